"""What a model says of cells: where they lie, what they express, and which kind says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvae.arguments import check_switch
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.models.answers import answered
from scvae.models.contributions import contributions
from scvae.models.denoised import denoised, foreground, intervals
from scvae.models.embedded import embedded, mean_of
from scvae.models.embedding import Embedding
from scvae.models.fitted import Layer
from scvae.models.judged import Judged
from scvae.models.keep.origin import Origin
from scvae.models.keep.record import Record
from scvae.models.network import Architecture
from scvae.models.reading import cells_of
from scvae.models.results import Precision
from scvae.train.ranks import Ranks

if TYPE_CHECKING:
    from anndata import AnnData


class Answering(Judged):
    """A trained network, with the map from its latent space to the embedding, that is asked."""

    def __init__(
        self,
        vae: VAE,
        embedding: Embedding,
        architecture: Architecture,
        origin: Origin,
        record: Record,
    ) -> None:
        super().__init__(vae, architecture, origin)
        self.embedding, self.record = embedding, record

    def embed(
        self,
        adata: AnnData,
        *,
        layer: Layer = None,
        modality: str | None = None,
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
        modality
            Kind of measurement to go by alone, as if cells had no other; NaN of those that lack it.
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
        return embedded(self, adata, layer, batch, return_std, out, distributed, modality)

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
            a cell of its own batch and size, in counts: two more tables. Of proteins that were not
            measured, what held this share of the counts of held-out cells, protein by protein (see
            `scvae.models.judge.imputed`).
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
        asked = (modality, genes, return_interval, samples, seed, self.record.imputed)
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
