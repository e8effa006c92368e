"""A fitted model of RNA counts, and what analysts ask of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Generator

from scvae.arguments import (
    check_path,
    check_seed,
    check_switch,
    check_whole,
    encodable,
)
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.errors import ConfigError
from scvae.keywords import named_methods
from scvae.models.answers import answered
from scvae.models.budget import VALIDATION
from scvae.models.contributions import contributions
from scvae.models.denoised import denoised, foreground, intervals
from scvae.models.draw import draw
from scvae.models.embedded import embedded, mean_of
from scvae.models.embedding import Embedding
from scvae.models.extend import STEPS, extended
from scvae.models.fitted import Layer
from scvae.models.judge.summary import Summary, summarise
from scvae.models.judge.words import described
from scvae.models.judged import Judged
from scvae.models.keep.files import Parts, write_model
from scvae.models.keep.origin import Origin
from scvae.models.keep.record import Record
from scvae.models.label.predict import FALSE_ALARMS, demand_reference, predict, reference_of
from scvae.models.label.reference import Reference
from scvae.models.network import Architecture
from scvae.models.query import code_of
from scvae.models.reading import cells_of
from scvae.models.results import Precision
from scvae.train.ranks import Ranks

if TYPE_CHECKING:
    from anndata import AnnData


@named_methods
class Model(Judged):
    """A fitted variational autoencoder of RNA counts; made by `scvae.fit` or `scvae.load`.

    Every method takes any AnnData with the model's genes, in any order, and returns rows in the
    order of its cells. Genes that it lacks are not observed, never zero, and how many there are is
    told; others than the model's are not looked at. Nothing is written to the AnnData.

    Attributes
    ----------
    vae
        The network.
    embedding
        Map from its latent space to the embedding.
    architecture
        Shapes and formulas of the network.
    origin
        Genes, covariates and counts that the model was fitted on.
    record
        How the fit went: seed, versions, history, final KL weight; also in ``uns["scvae"]``.
    reference
        Labelled cells that it was saved with, without their counts, or None.

    Examples
    --------
    >>> import scvae
    >>> mdata = scvae.simulate(n_cells=200, n_genes=50, modalities=["rna", "protein"])
    >>> model = scvae.fit(mdata, max_steps=20, progress=False)
    >>> model.foreground(mdata).shape, model.contributions(mdata).columns.to_list()
    ((200, 20), ['rna', 'protein', 'prior'])
    >>> model.sample(10).n_obs, "objective" in str(model.summary()).lower()
    (10, True)
    >>> model.embed_dataset(model.read(mdata)).shape
    (200, 30)
    """

    def __init__(
        self,
        vae: VAE,
        embedding: Embedding,
        architecture: Architecture,
        origin: Origin,
        record: Record,
        reference: Reference | None = None,
    ) -> None:
        super().__init__(vae, architecture, origin)
        self.embedding, self.record, self.reference = embedding, record, reference

    def __repr__(self) -> str:
        a, covariates = self.architecture, self.origin.covariates
        given = [f"batch={covariates.batch!r} ({a.n_batches})"] if covariates.batch else []
        return encodable(
            f"scvae.Model({described(a)}, "
            + ", ".join([*given, f"library_size={self.origin.library_size!r}"])
            + f", {self.device})"
        )

    # -- inference ---------------------------------------------------------------------------

    def embed(
        self,
        adata: AnnData,
        *,
        layer: Layer = None,
        batch: str | None = None,
        return_std: bool = False,
        out: Any = None,
        distributed: bool = False,
    ) -> Any:
        r"""Return the embedding of every cell, float32 ``(n, d)``.

        The principal components of expression decoded from the mean of q(z | x), as if every cell
        had the same covariates (see `scvae.models.coordinates`), less what the network left of the
        cell's batch (see `scvae.models.alignment`). Distances are those of decoded expression.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes.
        layer
            Where the counts are; None looks where they were in the fit, then in X.
        batch
            None takes the batch of every cell from ``adata.obs``. For cells of batches that the
            model has not seen: "new", the mean over those that it knows, or "closest", for each of
            theirs the known one under which they are likeliest; other covariates that are unknown
            are the mean over the known, too. The name of a known batch takes all cells as of it.
        return_std
            Also return the posterior standard deviation, ``(n, d)``, in the same units, by the
            delta method. It takes more than a hundred times as long.
        out
            Array ``(n, d)`` to fill and return instead; or the name of a new .zarr or .h5ad, which
            is written as `normalized` does, with the embedding in ``obsm["X_scvae"]``.
        distributed
            Share the cells out to the processes of a torchrun job, all of which make this call. The
            numbers are those of one process; all return them, and the first writes the file.

        Raises
        ------
        DataError
            If no gene is the model's, values are not counts, or a batch is unknown.
        ConfigError
            If `batch` is neither one of the model's nor "new" or "closest".

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> model.embed(adata).shape == (200, model.architecture.n_latent)
        True

        Of a run that the model has not seen:

        >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
        >>> query = scvae.simulate(n_cells=100, n_genes=50, seed=1)
        >>> query.obs["batch"] = "run_9"
        >>> model.embed(query, batch="new").shape
        (100, 30)
        """
        return_std = check_switch("return_std", return_std, True)
        return embedded(self, adata, layer, batch, return_std, out, distributed)

    def extend(
        self,
        adata: AnnData,
        *,
        batch: str | None = None,
        layer: str | None = None,
        max_steps: int = STEPS,
        validation: float | str = VALIDATION,
        seed: int = 0,
    ) -> Model:
        """Return a model that also knows the batches of further cells; all it knew stays as it is.

        New rows of V, a row a batch in every layer W x + V s + b, climb the evidence lower bound of
        these cells from the mean over the old (see `scvae.models.extend`); all else is frozen. So
        are cells of the old batches: the new model embeds them to the same bits. Categories of
        other covariates that are new are learned likewise.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes, or some of them, and its batch column.
        batch
            Name of that column; None takes the model's.
        layer
            Where the counts are; None looks where they were in the fit, then in X.
        max_steps
            Steps at most. Training stops when the bound of held-out cells no longer rises.
        validation
            Share of the cells held out for it, or a boolean column of adata.obs that marks them.
        seed
            Of the cells held out, the order of the others, and the latent noise.

        Raises
        ------
        ConfigError
            If the model has no batches, or no batch or category of `adata` is new.
        DataError
            If `adata` lacks a column, or a new batch has one cell.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
        >>> query = scvae.simulate(n_cells=100, n_genes=50, seed=1)
        >>> query.obs["batch"] = "run_9"
        >>> wider = model.extend(query, max_steps=20)
        >>> wider.batches, wider.embed(query).shape
        (['batch_0', 'batch_1', 'run_9'], (100, 30))
        """
        options = batch, layer, max_steps, validation, seed
        parts = extended(self, self.embedding, self.record, adata, *options)
        made = parts.vae, parts.embedding, parts.architecture, parts.origin, parts.record
        return Model(*made, self.reference)

    def embed_dataset(
        self, dataset: Dataset | Datasets, out: Any = None, ranks: Ranks | None = None
    ) -> np.ndarray:
        """Return the embedding of cells that were already read, float32 ``(n, d)``, in `out` if it
        is given; several processes together."""
        found: np.ndarray = answered(self, dataset, mean_of(self), out, ranks)
        return found

    def normalized(
        self,
        adata: AnnData,
        *,
        layer: Layer = None,
        modality: str | None = None,
        batch: str = "average",
        genes: Sequence[str] | None = None,
        library_size: float = 1e4,
        background: bool = False,
        return_interval: float | None = None,
        samples: int = 200,
        seed: int = 0,
        out: Any = None,
        dtype: Precision = "float32",
        distributed: bool = False,
    ) -> Any:
        r"""Return denoised expression: :math:`\rho_{ng}` times a library size, cells x genes.

        Or the mean foreground count of proteins, or the accessibility of regions times a library
        size. Of cells that were not measured in this kind it is imputed, from all others.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes; or a MuData.
        modality
            Kind of measurement, one of ``model.modalities``; None takes the first.
        batch
            As if every cell came from this batch; "average" takes the mean over all batches
            (batch-corrected expression), "own" leaves every cell in its batch.
        genes
            Names of the genes (proteins, regions) to return; None returns all of the model.
        library_size
            Total that the counts of a cell are scaled to; not those of proteins.
        background
            Of proteins, the mean count of background and foreground together.
        return_interval
            Also return the bounds between which this share of counts lies that the model draws for
            a cell of its own batch and size, in counts: two more tables.
        samples, seed
            Draws of counts for these bounds, and their seed.
        out
            Array ``(n, g)`` to fill instead, a few thousand rows at a time, for more cells than
            memory holds: a numpy.memmap, or a dataset of h5py or zarr. Or the name of a new .zarr
            or .h5ad, which AnnData reads: denoised expression in X, names and columns of the cells
            in obs. It takes its name once it is whole; if the work fails nothing of it is left.
        dtype
            "float32", or "float16" with three digits.
        distributed
            As for `embed`.

        Returns
        -------
        pandas.DataFrame
            float32, rows as in `adata`, columns as in `genes`; or `out`, if it was given. With
            `return_interval`, this, lower bounds, and upper bounds.

        Raises
        ------
        ConfigError
            If `out` has another shape, or is the name of another kind of file.
        FileError
            If the file is there already, or cannot be written.

        Examples
        --------
        >>> import scvae
        >>> from tempfile import mkdtemp
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> path = model.normalized(adata, out=mkdtemp() + "/denoised.zarr", dtype="float16")
        >>> import anndata
        >>> anndata.read_zarr(path).shape
        (200, 50)
        """
        cells = cells_of(adata)
        table = denoised(
            *(self, cells, layer),
            modality=modality,
            batch=batch,
            genes=genes,
            library_size=library_size,
            background=background,
            out=out,
            dtype=dtype,
            distributed=distributed,
        )
        if return_interval is None:
            return table
        asked = (modality, genes, return_interval, samples, seed)
        return table, *intervals(self, cells, layer, *asked)

    def foreground(
        self, adata: AnnData, *, layer: Layer = None, samples: int = 10, seed: int = 0
    ) -> pd.DataFrame:
        r"""Return the probability that a protein's count is of its foreground, cells x proteins.

        .. math:: E_{q(z_n)}[P(v_{nt} = 1 \mid y_{nt}, z)]

        NaN where a protein was not measured. For the law see `scvae.modalities.protein`.

        Parameters
        ----------
        adata
            Cells as for `embed`.
        samples, seed
            Draws of z of every cell, and their seed.

        Raises
        ------
        ConfigError
            If the model has no proteins.
        """
        return foreground(self, cells_of(adata), layer, samples, seed)

    def contributions(self, adata: AnnData, *, layer: Layer = None) -> pd.DataFrame:
        r"""Return what part of every cell's posterior comes from each kind of measurement.

        .. math:: c_{nm} = \frac1d \sum_k \frac{\sigma_{nmk}^{-2}}{1 + \sum_{m'}
                  \sigma_{nm'k}^{-2}}

        The share of the precision of its encoder, in the mean over latents; what is left is of the
        prior. A row adds up to 1, and a kind that was not measured has 0.

        Parameters
        ----------
        adata
            Cells as for `embed`.

        Returns
        -------
        pandas.DataFrame
            A row a cell, a column a kind, and "prior".

        Raises
        ------
        ConfigError
            If the model is of one kind alone.
        """
        return contributions(self, cells_of(adata), layer)

    def sample(self, n: int, *, batch: str | None = None, seed: int = 0) -> AnnData:
        """Draw `n` new cells from the model: z from the prior, then library, then counts.

        Parameters
        ----------
        n
            Number of cells.
        batch
            Batch of all cells; None draws batches as often as they were seen in training.
            Categorical covariates take their first category, continuous ones their mean.
        seed
            Of the draws.

        Returns
        -------
        AnnData
            Counts as CSR in X, the batch in obs, in ``obsm["X_scvae"]`` the embedding of z, as it
            would be of a cell of that batch.
        """
        n = check_whole("n", n, 100, least=None)
        if n < 1:
            raise ConfigError(f"n={n}, but at least one cell must be drawn: model.sample(100)")
        code = None if batch is None else code_of(batch, self.batches)
        generator = Generator(self.device).manual_seed(check_seed(seed))
        return draw(self, self.embedding, n, code, generator)

    # -- how good it is ----------------------------------------------------------------------

    def summary(self) -> Summary:
        """Return a report of the model that prints itself: data, network, objective, and the fit.

        With warnings, if training had not converged, if few latent dimensions are active, or if
        the weights are of a time at which the KL weight was still rising.
        """
        n_parameters = sum(parameter.numel() for parameter in self.vae.parameters())
        return summarise(self.architecture, self.origin, self.record, n_parameters)

    # -- files -------------------------------------------------------------------------------

    def predict(
        self,
        adata: AnnData,
        *,
        batch: str | None = None,
        layer: str | None = None,
        false_alarms: float = FALSE_ALARMS,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the label of every cell, by the labelled cells that the model was saved with.

        As `scvae.analysis.labels.transfer` does without their counts; for parameters, columns and
        what a probability means here, see there.

        Raises
        ------
        ConfigError
            If the model carries no labelled cells.
        """
        reference = demand_reference(self.reference)
        options = batch, layer, false_alarms, seed, "model.predict(adata"
        return predict(self, reference, adata, *options)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        reference: AnnData | None = None,
        labels: str | None = None,
        parent: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the model to one safetensors file, atomically; `scvae.load` reads it.

        With a reference, it is an atlas: whoever has the file alone can map and label cells. Of
        every cell the posterior, label and batch are in it, and the mean expression of every label;
        none of the counts. That takes 8 bytes a latent dimension of a cell, 0.3 kB in all.

        Parameters
        ----------
        path
            A new file, or one with a model, which is replaced and keeps its permissions; a pipe or
            a device is written into.
        reference
            Cells with labels, best those that were fitted; None writes those that the model
            carries already, if any.
        labels, parent
            Columns of reference.obs with the labels and, if there are, coarser ones.
        overwrite
            Also replace a file that holds something else.

        Raises
        ------
        FileError
            If `path` cannot be written or holds something else; it is then left as it was.
        DataError
            If `reference` has no such labels.

        Examples
        --------
        >>> import scvae, tempfile
        >>> adata = scvae.simulate(n_cells=300, n_genes=50)
        >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/atlas.scvae", reference=adata, labels="cell_type")
        ...     atlas = scvae.load(f"{folder}/atlas.scvae")
        >>> atlas.predict(scvae.simulate(n_cells=100, n_genes=50), batch="new").shape
        (100, 6)
        """
        path = check_path("path", path, "model.scvae")
        cells = reference_of(self, self.reference, reference, labels, parent)
        parts = Parts(self.vae, self.embedding, self.architecture, self.origin, self.record, cells)
        overwrite = check_switch("overwrite", overwrite, True)
        write_model(path, parts, overwrite=overwrite)
