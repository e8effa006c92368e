"""A fitted model: what it says of cells, others made of it, and its files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

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
from scvae.errors import ConfigError
from scvae.keywords import named_methods
from scvae.models.answering import Answering
from scvae.models.budget import VALIDATION
from scvae.models.draw import draw
from scvae.models.embedding import Embedding
from scvae.models.extend import STEPS, extended
from scvae.models.judge.summary import Summary, summarise
from scvae.models.judge.words import described
from scvae.models.keep.files import Parts, write_model
from scvae.models.keep.origin import Origin
from scvae.models.keep.record import Record
from scvae.models.label.predict import FALSE_ALARMS, demand_reference, predict, reference_of
from scvae.models.label.reference import Reference
from scvae.models.network import Architecture
from scvae.models.query import code_of

if TYPE_CHECKING:
    from anndata import AnnData


@named_methods
class Model(Answering):
    """A fitted variational autoencoder of counts; made by `scvae.fit` or `scvae.load`.

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
        Labelled cells that it was fitted or saved with, without their counts, or None.

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
        super().__init__(vae, embedding, architecture, origin, record)
        self.reference = reference

    def __repr__(self) -> str:
        a, covariates = self.architecture, self.origin.covariates
        given = [f"batch={covariates.batch!r} ({a.n_batches})"] if covariates.batch else []
        return encodable(
            f"scvae.Model({described(a)}, "
            + ", ".join([*given, f"library_size={self.origin.library_size!r}"])
            + f", {self.device})"
        )

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

    # -- labels and files --------------------------------------------------------------------

    def predict(
        self,
        adata: AnnData,
        *,
        batch: str | None = None,
        layer: str | None = None,
        false_alarms: float = FALSE_ALARMS,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the label of every cell, by the labelled cells that the model was fitted with,
        ``scvae.fit(adata, labels="cell_type")``, or saved with.

        As `scvae.analysis.labels.transfer` does without their counts; for parameters, columns and
        what a probability means here, see there.

        Raises
        ------
        ConfigError
            If the model carries no labelled cells.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=300, n_genes=50)
        >>> model = scvae.fit(adata[:200].copy(), labels="cell_type", max_steps=20, progress=False)
        >>> model.predict(adata[200:]).columns.to_list()[:3]
        ['label', 'probability', 'second']
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
