"""scvae.fit: from an AnnData with raw counts to a fitted model and its embedding."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scvae.arguments import (
    check_choice,
    check_name,
    check_path,
    check_positive,
    check_seed,
    check_switch,
    check_whole,
    is_number,
    is_switch,
    refuse,
)
from scvae.choices import (
    COUNTS,
    DECODERS,
    DISPERSIONS,
    FUSIONS,
    PRIORS,
    CountKind,
    Decoding,
    Dispersion,
    Fusion,
    LatentPrior,
    Likelihood,
)
from scvae.data.read.atlas import OnDisk
from scvae.data.read.library import FROM_COUNTS
from scvae.data.read.several import sources_of
from scvae.errors import warn
from scvae.keywords import named
from scvae.modalities.rna import Rna
from scvae.models.agreed import check_size
from scvae.models.budget import MOST_STEPS, VALIDATION, batch_size_of, schedule_of, split
from scvae.models.busy import watched
from scvae.models.device import pick_device
from scvae.models.keep.checkpoint import Checkpoint
from scvae.models.kinds import check_arguments_of_kinds, check_bounds, check_likelihood
from scvae.models.label.learned import labels_to_learn
from scvae.models.made import model_of
from scvae.models.model import Model
from scvae.models.network import Architecture
from scvae.models.on_disk import opened
from scvae.models.plan import Plan, train_plan
from scvae.models.prepare import Prepared, prepare, spec_of
from scvae.models.progress import progress as progress_of
from scvae.models.written import description, write_embedding
from scvae.train.deterministic import deterministic_algorithms
from scvae.train.ranks import Ranks

if TYPE_CHECKING:
    from anndata import AnnData


@named("scvae.fit")
def fit(
    adata: AnnData | OnDisk | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch: str | None = None,
    covariates: str | Sequence[str] | None = None,
    labels: str | None = None,
    unlabelled: str | None = None,
    modalities: str | Mapping[str, str] | None = None,
    measured: Mapping[str, str] | None = None,
    layer: str | Mapping[str, str] | None = None,
    genes: str | Sequence[str] | None = None,
    library_size: str = "observed",
    counts: CountKind = "whole",
    likelihood: Likelihood | Mapping[str, str] = "nb",
    dispersion: Dispersion = "gene",
    n_latent: int = 30,
    n_hidden: int = 128,
    n_layers: int = 1,
    encode_covariates: bool = True,
    prior: LatentPrior = "mixture",
    decoder: Decoding = "network",
    fusion: Fusion = "product",
    alone: float = 1.0,
    weights: Mapping[str, float] | None = None,
    align: bool | float = True,
    robust: bool = False,
    validation: float | str = VALIDATION,
    batch_size: int | None = None,
    max_steps: int | None = None,
    learning_rate: float = 8e-3,
    early_stopping: bool = True,
    seed: int = 0,
    device: str | None = None,
    stream: bool | None = None,
    deterministic: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    key_added: str = "X_scvae",
    progress: bool = True,
) -> Model:
    r"""Fit a variational autoencoder to raw counts and write the embedding to ``adata.obsm``.

    Maximises the evidence lower bound

    .. math:: E_{q(z|x)}[\log p(x \mid z, l, s)] - KL(q(z \mid x)\,\|\,p(z))

    in nats per cell, on the GPU where there is one. The KL weight rises to 1 over the first tenth
    of the steps and is 1 ever after, at every number of cells. What is kept is the average
    of the weights along training (`scvae.train.average`) with the best bound on held-out cells.

    Parameters
    ----------
    adata
        Cells x genes with raw counts: sparse or dense, of any number type, a view, or backed. Or a
        MuData with RNA, surface proteins, chromatin, or some of them; cells may lack any (see
        `scvae.data.read.several`). Or, with RNA, the path of an h5ad file or zarr store, a folder
        or list of them, or `scvae.on_disk` of those: more cells than memory holds are read from
        disk as training goes, and nothing is written to the files; ``model.embed(path)`` returns
        the embedding.
    batch
        Column of adata.obs with the batch to correct for.
    covariates
        Further columns to correct for: categories, or numbers, which are standardised.
    labels
        Column of adata.obs with labels of cells, such as their types, of which the prior learns
        where each lies (see `scvae.core.labelled`); ``model.predict(query)`` names other cells by
        them. Cells without a value have none, so that fine and coarse ones, some of them wrong, may
        stand together. Of RNA alone.
    unlabelled
        Value of that column which is no label, either, such as "Unknown".
    modalities
        Which kind is where, as in ``{"rna": "gex", "protein": "ADT", "chromatin": "peaks"}``:
        modalities of a MuData, types of features in ``adata.var["feature_types"]``, or slots of
        ``adata.obsm`` beside the genes in X. "protein" or "chromatin" alone says what an AnnData
        holds. None goes by their names, saying what is not plain.
    measured
        What marks what was measured of a kind, as in ``{"protein": "has_adt"}``: a boolean column
        of obs or, of proteins, a boolean layer. Cells that a modality of a MuData lacks are known.
    layer
        Layer with raw counts, or one a kind. None takes X or, if X holds none, a layer that does,
        with a warning.
    genes
        Boolean column of adata.var (such as "highly_variable") or gene names; None takes all.
    library_size
        "observed" (the cell's counts in the fitted genes), "latent" (inferred, with a log-normal
        prior per batch), or the column of adata.obs with total counts over all genes.
    counts
        "whole"; or "rounded", for estimates of counts that are no whole numbers, as corrections for
        ambient RNA and assignments of shared reads give them: the nearest whole numbers are fitted,
        and taken of every query, too. Normalised and log values are refused nevertheless.
    likelihood
        "nb" (negative binomial), "zinb" (zero-inflated), or "poisson", of RNA. Of chromatin,
        ``{"chromatin": "bernoulli"}`` models whether a region has a fragment; else it is Poisson.
    dispersion
        Inverse dispersion per "gene", per "gene-batch", or per "gene-cell".
    n_latent, n_hidden, n_layers
        Latent dimensions, width and number of hidden layers.
    encode_covariates
        Show batch and covariates to the encoder, too, not to the decoder alone; it can then take
        their effect out sooner.
    prior
        "mixture": 50 Gaussians that are learned with everything else, because cells come in groups;
        or "normal", N(0, I). The KL of a mixture is estimated from the latent samples.
    decoder
        "network", or "linear": log shares of genes are then a linear map of the latent vector, but
        for their sum (after Svensson, Gayoso, Yosef and Pachter, "Interpretable factor models of
        single-cell RNA-seq via variational autoencoders", Bioinformatics 2020), of which
        `scvae.analysis.loadings` are exact. The encoder has hidden layers still.
    fusion
        How the encoders of several kinds become one posterior: "product", "mixture", or
        "mixture-of-products" (see `scvae.core.fusion`).
    alone
        Weight of the bounds by which the encoder of every kind learns to stand alone, beside the
        bound of all (see `scvae.core.joint.joint_and_single_bounds`).
    weights
        Of the log-likelihoods of kinds while training, as in ``{"protein": 2.0}``; 1 if left out.
    align
        Take out of the embedding what the network left of the batches, cluster by cluster (see
        `scvae.models.alignment`): True, False, or the share of it, between 0 and 1. It changes
        neither the network nor what it decodes.
    robust
        Hide random sets of genes from the encoder in a quarter of the cells of every minibatch, so
        that cells in which some of the genes were not measured embed about as well.
    validation
        Share of the cells held out (at most 5,000 cells) to choose the best weights, or a boolean
        column of adata.obs that marks them.
    batch_size
        Cells of a minibatch, at least 2; None takes 128, fewer on small data.
    max_steps
        Training steps at most; None chooses by the number of cells.
    learning_rate
        Peak of the one-cycle learning rate.
    early_stopping
        Stop when the held-out bound no longer rises.
    seed
        Of the split, the initial weights, the order of cells and the latent noise. torch's, numpy's
        and Python's own random states are neither read nor changed. The same seed gives the same
        bits on the same machine with the same number of threads.
    device
        "cuda", "cpu", or None for the GPU where there is one.
    stream
        Keep the counts in host memory and send them to the GPU as training goes; None does so if
        they would take more than half of its free memory.
    deterministic
        On CUDA, take algorithms alone that give the same bits at every run, for the whole process
        while the fit lasts. It costs speed where a faster one sums in any order, and needs the
        environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 from the start. On the CPU they always
        do, at no cost.
    checkpoint
        Folder for a checkpoint, written every ten seconds, and when the process is told to end
        (SIGTERM). The same call after that or a crash goes on from there, to the same bits on the
        CPU.
    key_added
        Slot of the embedding.
    progress
        Show on standard error a progress bar with the held-out ELBO and cells per second, or a line
        a minute where that is no terminal. TQDM_DISABLE=1 in the environment silences both.

    Returns
    -------
    Model
        The fitted model. Written to `adata`, after everything has succeeded:

        ``obsm[key_added]``
            Embedding, float32 ``(n, n_latent)``, rows in the order of the cells.
        ``uns["scvae"]``
            Configuration, seed, versions, history, final KL weight, and the warnings of
            `scvae.check`.

    Raises
    ------
    DataError
        If the data are not what they must be: not counts, empty cells, duplicated genes, missing
        or unusable batches. Nothing is written.
    ConfigError
        If an argument has a value that is not allowed.

    References
    ----------
    Lopez, Regier, Cole, Jordan and Yosef. Deep generative modeling for single-cell transcriptomics.
    Nature Methods, 2018.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
    >>> adata.obsm["X_scvae"].shape
    (200, 30)

    With types of some cells, by which it names all:

    >>> adata.obs["type"] = adata.obs["cell_type"].where(adata.obs["batch"] == "batch_0")
    >>> model = scvae.fit(adata, batch="batch", labels="type", max_steps=20, progress=False)
    >>> len(model.predict(adata))
    200

    Of RNA and proteins, which a third of the cells lack each:

    >>> kinds = ["rna", "protein"]
    >>> mdata = scvae.simulate(n_cells=200, n_genes=50, modalities=kinds, missing=0.3)
    >>> model = scvae.fit(mdata, batch="batch", max_steps=20, progress=False)
    >>> model.normalized(mdata, modality="protein").shape
    (200, 20)
    """
    asked = Architecture(
        {},  # what follows from the data comes later
        n_latent=check_whole("n_latent", n_latent, 30),
        n_hidden=check_whole("n_hidden", n_hidden, 128),
        n_layers=check_whole("n_layers", n_layers, 1),
        encode_covariates=check_switch("encode_covariates", encode_covariates, True),
        prior=check_choice("prior", prior, PRIORS),
        fusion=check_choice("fusion", fusion, FUSIONS),
    )
    laws = check_likelihood(likelihood)
    rna = Rna(
        n_genes=1,
        likelihood=laws.get("rna", "nb"),
        dispersion=check_choice("dispersion", dispersion, DISPERSIONS),
        linear=check_choice("decoder", decoder, DECODERS) == "linear",
    )
    strength, robust = _strength(align), check_switch("robust", robust, True)
    _check_training(batch_size, max_steps, early_stopping)
    learning_rate, seed = check_positive("learning_rate", learning_rate, "8e-3"), check_seed(seed)
    ranks = Ranks.here()
    chosen = pick_device(device)
    stream, deterministic, progress = _switches(stream, deterministic, progress)
    folder = None if checkpoint is None else check_path("checkpoint", checkpoint, "checkpoint")
    key_added = check_name("key_added", key_added, "X_scvae")
    _warn_of_view(adata)
    cells = opened(adata)
    sources = sources_of(cells, modalities, measured, split=genes is None)
    alone, weights = check_bounds(alone, weights, [part.kind for part in sources.parts])
    check_arguments_of_kinds(sources, genes, library_size, robust, laws, rna.linear)
    counts = check_choice("counts", counts, COUNTS)
    to_learn = labels_to_learn(sources, labels, unlabelled, asked.prior, batch)
    prepared = prepare(sources, batch, covariates, layer, genes, library_size, counts, laws)
    prepared = dataclasses.replace(prepared, labels=to_learn)
    train_rows, held_out_rows = (rows.to(chosen) for rows in split(sources, validation, seed))
    prepared = prepared.told(held_out_rows.cpu().numpy(), validation)
    size = batch_size_of(batch_size, len(train_rows))
    architecture = sized(asked, rna, prepared, library_size, laws)
    schedule = schedule_of(max_steps, len(train_rows), size, learning_rate, early_stopping)
    plan = Plan(
        *(prepared, architecture, schedule, train_rows, held_out_rows, size, seed),
        *(robust, alone, weights),
    )
    check_size(ranks, size, len(train_rows))
    first = ranks is None or ranks.rank == 0
    kept = None if folder is None else Checkpoint(folder, plan.digest, writes=first)
    with deterministic_algorithms(deterministic and chosen.type == "cuda"):
        with progress_of(schedule.steps, progress and first) as report:
            report = watched(report, chosen, isinstance(cells, OnDisk))
            trained = train_plan(plan, chosen, stream=stream, checkpoint=kept, report=report)
        model = model_of(plan, trained, library_size, strength)
        if isinstance(cells, OnDisk):
            return model
        embedded = model.embed_dataset(trained.dataset, ranks=ranks)
    write_embedding(cells, key_added, embedded, description(model))
    return model


def _warn_of_view(adata: Any) -> None:
    """Say where the embedding of a view goes: a view made in the call has no name to find it by."""
    if getattr(adata, "is_view", False) and not getattr(adata, "isbacked", False):
        warn(
            "adata is a view: the embedding is written to the view, which becomes an AnnData of "
            "its own, and not to the AnnData that it was taken from. Where the view has no name it "
            "is lost; name it first, as in subset = adata[rows].copy(), or choose genes by "
            "scvae.fit(adata, genes='highly_variable')"
        )


def sized(
    asked: Architecture, rna: Rna, prepared: Prepared, library_size: str, laws: Mapping[str, Any]
) -> Architecture:
    """Return what was asked for, of the size of the data."""
    sizes = {kind: len(part.names) for kind, part in prepared.parts.items()}
    parts: dict[str, Any] = {k: spec_of(k, n, laws) for k, n in sizes.items() if k != "rna"}
    if "rna" in sizes:
        latent, outside = library_size == "latent", library_size not in FROM_COUNTS
        of_rna = dataclasses.replace(
            rna, n_genes=sizes["rna"], latent_library=latent, outside=outside
        )
        parts = {"rna": of_rna, **parts}
    return dataclasses.replace(
        asked,
        parts=parts,
        n_batches=prepared.covariates.n_batches,
        n_covariates=prepared.covariates.width,
        n_labels=0 if prepared.labels is None else len(prepared.labels.names),
    )


# -- choices -----------------------------------------------------------------------------------


def _check_training(batch_size: int | None, max_steps: int | None, early_stopping: bool) -> None:
    """Raise, before anything is read, for what no number of cells could take."""
    if batch_size is not None:
        check_whole("batch_size", batch_size, 128, least=2)
    if max_steps is not None:
        check_whole("max_steps", max_steps, MOST_STEPS)
    check_switch("early_stopping", early_stopping, True)


def _switches(
    stream: bool | None, deterministic: bool, progress: bool
) -> tuple[bool | None, bool, bool]:
    return (
        check_switch("stream", stream, True, or_none=True),
        check_switch("deterministic", deterministic, True),
        check_switch("progress", progress, False),
    )


def _strength(align: bool | float) -> float:
    """Return the share of what is left of the batches that the embedding is rid of."""
    if not (is_switch(align) or is_number(align)) or not 0 <= align <= 1:
        raise refuse("align", align, "True, False, or a share between 0 and 1", True)
    return float(align)
