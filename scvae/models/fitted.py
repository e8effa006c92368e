"""A trained network and how data are read for it: the verbs that every analysis is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scvae.arguments import check_choice, check_switch, check_whole, shown
from scvae.core.networks import evaluating
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.several import CellParts, Datasets
from scvae.errors import ConfigError
from scvae.modalities.kinds import View
from scvae.modalities.modality import Modality, amount_in_batches
from scvae.modalities.rna import KIND
from scvae.models.keep.origin import Origin
from scvae.models.network import Architecture, views_of
from scvae.models.placing import CLOSEST, closest
from scvae.models.query import as_stored, check_out, codes_of, draws, rows_of
from scvae.models.reading import read_cells

if TYPE_CHECKING:
    from anndata import AnnData

Layer = str | Mapping[str, str] | None
CHUNK_VALUES = 2**21  # dense values of one inference minibatch: 8 MiB of float32


class Fitted:
    """A trained network that reads data and answers cell by cell.

    Attributes
    ----------
    vae
        The network.
    architecture
        Shapes and formulas of the network.
    origin
        Genes, covariates and counts that it was fitted on.

    Examples
    --------
    Parts of an analysis of one's own:

    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
    >>> model.device, model.batches, [*model.modalities], model.kind_of(None)
    (device(type='cpu'), ['batch_0', 'batch_1'], ['rna'], 'rna')
    >>> model.demand_rna()  # nothing to say
    >>> cells = model.read_rna(adata, layer=None)
    >>> same = model.read_for(adata, None, "my_analysis(model, adata")
    >>> len(cells) == len(same), model.chunk(samples=10)
    (True, 4194)
    >>> len(model.views), model.decoder is model.view("rna").decoder
    (1, True)
    >>> def as_of_the_first_batch(minibatch):
    ...     z = model.vae.encode(minibatch).mean
    ...     return model.amount_of(z, minibatch, [0], "rna")
    >>> model.over(cells, as_of_the_first_batch).shape
    (200, 50)
    """

    def __init__(self, vae: VAE, architecture: Architecture, origin: Origin) -> None:
        self.vae, self.architecture, self.origin = vae, architecture, origin

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.vae.parameters()).device

    @property
    def modalities(self) -> dict[str, Modality]:
        """Kinds of measurement that the model was fitted on, by name."""
        return dict(self.architecture.parts)

    @property
    def batches(self) -> list[str]:
        """Names of the batches that the model corrects for."""
        return self.origin.covariates.batches

    @property
    def views(self) -> tuple[View, ...]:
        """Every kind with its decoder, of which the embedding is made."""
        return views_of(self.vae, self.architecture)

    @property
    def decoder(self) -> Any:
        """The decoder of the first kind: of RNA, if it is among them."""
        return self.views[0].decoder

    def view(self, kind: str) -> View:
        """Return one kind with its decoder."""
        return dict(zip(self.modalities, self.views, strict=True))[kind]

    def chunk(self, samples: int = 1) -> int:
        """Return of how many cells so many draws may be decoded at once."""
        return max(1, CHUNK_VALUES // (self.architecture.n_features * samples))

    # -- verbs that every analysis is made of ------------------------------------------------

    def read(
        self, adata: AnnData, *, layer: Layer = None, partial: bool = False
    ) -> Dataset | Datasets:
        """Return the cells of `adata` as the network sees them, to be asked more than once.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes, in any order.
        layer
            Where the counts are; None looks where they were in the fit, then in X.
        partial
            Take genes that `adata` lacks as not observed, with a warning; else they are an error.

        Raises
        ------
        DataError
            If genes are missing, values are not counts, or a batch is unknown.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> len(model.read(adata))
        200
        """
        partial = check_switch("partial", partial, True)
        return self.read_for(adata, layer, "model.read(adata", partial=partial)

    def read_rna(self, adata: AnnData, layer: str | None) -> Dataset:
        """Return the cells of `adata` for what is of RNA alone."""
        self.demand_rna()
        dataset = self.read_for(adata, layer, "model.read(adata")
        assert isinstance(dataset, Dataset)
        return dataset

    def demand_rna(self) -> None:
        """Raise ConfigError where the model is of several kinds of measurement, or of others."""
        if [*self.modalities] != [KIND]:
            raise ConfigError(
                f"This is of RNA alone, but the model is of {[*self.modalities]}. Fit the RNA: "
                "scvae.fit(mdata['rna'])"
            )

    def over(
        self,
        dataset: Dataset | Datasets,
        function: Callable[[Any], Tensor | None],
        *,
        samples: int = 1,
        out: Any = None,
        rows: Tensor | None = None,
        size: int | None = None,
    ) -> Any:
        """Apply `function` to all cells, a bounded number at a time, in their order.

        The network is in evaluation mode meanwhile, and no gradients are kept.

        Parameters
        ----------
        dataset
            What `read` returned.
        function
            Takes a minibatch of n cells, whose numbers in the dataset are ``cells.rows``, and
            returns their rows, ``(n, ...)``; or None, if it keeps what it wants to know itself.
        samples
            Draws of a cell that `function` decodes at once: the more, the fewer cells it is given.
        out
            Array to fill with the rows; None makes one.
        rows
            Numbers of the cells to take, int64, in this order; None takes all.
        size
            Of how many cells a minibatch is; None takes as many as may be decoded at once.

        Returns
        -------
        numpy.ndarray
            float32 ``(n_cells, ...)``; or `out`; or None, if `function` returned none.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> scale = model.over(model.read(adata), lambda cells: model.vae.encode(cells).scale)
        >>> scale.shape == (200, model.architecture.n_latent)
        True
        """
        if not isinstance(dataset, Dataset | Datasets):
            raise ConfigError(
                f"dataset={shown(dataset)}, but it must be what model.read(adata) returned."
            )
        if not callable(function):
            raise ConfigError(f"function={shown(function)} is not a function of a minibatch.")
        samples = check_whole("samples", samples, 1)
        everyone = torch.arange(len(dataset), device=self.device) if rows is None else rows
        size = self.chunk(samples) if size is None else check_whole("size", size, 1)
        end = 0
        with torch.no_grad(), evaluating(self.vae):
            for cells in dataset.minibatches(everyone, size):
                start, end = end, end + len(cells)
                found = function(replace(cells, rows=everyone[start:end]))
                if found is None:
                    continue
                values = as_stored(rows_of(found, len(cells), function), out)
                if out is None:
                    out = np.empty((len(everyone), *values.shape[1:]), dtype=np.float32)
                elif start == 0:
                    check_out(out, (len(everyone), *values.shape[1:]))
                out[start:end] = values
        return out

    def amount(
        self,
        data: AnnData | Dataset | Datasets,
        modality: str | None = None,
        *,
        layer: Layer = None,
        samples: int | None = None,
        batch: str | Sequence[str] = "average",
        seed: int = 0,
    ) -> np.ndarray:
        r"""Return the denoised amount of every feature: for RNA its share of the library, rho.

        .. math:: a_{ng} = \frac{1}{|B|} \sum_{b \in B} \rho_g(z_n, s_n^{(b)})

        Parameters
        ----------
        data
            An AnnData, or what `read` returned.
        modality
            Kind of measurement, one of ``model.modalities``; None takes the first.
        layer
            Of an AnnData, as for `read`.
        samples
            Draws of z from the posterior of every cell; None takes its mean.
        batch
            As if every cell came from this batch, or in the mean over these; "average" takes all
            batches, "own" leaves every cell in its own.
        seed
            Of the draws.

        Returns
        -------
        numpy.ndarray
            float32 ``(n, g)``, or ``(n, samples, g)`` of draws; features in the model's order.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
        >>> model.amount(adata, samples=3, batch="batch_0").shape
        (200, 3, 50)
        """
        kind = self.kind_of(modality)
        k, generator = draws(1 if samples is None else samples, seed, self.device)
        codes = codes_of(batch, self.batches)

        def amounts(cells: Cells | CellParts) -> Tensor:
            q = self.vae.encode(cells)
            if samples is None:
                return self.amount_of(q.mean, cells, codes, kind)
            z = q.sample((k,), generator=generator)
            return self.amount_of(z, cells, codes, kind).movedim(0, 1)

        dataset = (
            data
            if isinstance(data, Dataset | Datasets)
            else self.read_for(data, layer, "model.amount(adata", partial=True)
        )
        found: np.ndarray = self.over(dataset, amounts, samples=k)
        return found

    def kind_of(self, modality: str | None) -> str:
        """Return a kind of measurement of the model; None is the first."""
        kinds = tuple(self.modalities)
        return kinds[0] if modality is None else check_choice("modality", modality, kinds)

    def amount_of(
        self, z: Tensor, cells: Cells | CellParts, batches: list[int], kind: str
    ) -> Tensor:
        """Return the amount of latents ``(..., n, d)``, as these batches would have it."""
        view, n = self.view(kind), self.architecture.n_batches
        return amount_in_batches(view.modality, view.decoder, z, cells.s, batches, n)

    def read_for(
        self,
        adata: AnnData,
        layer: Layer,
        call: str,
        *,
        partial: bool = False,
        batch: str | None = None,
    ) -> Dataset | Datasets:
        """Return the cells of `adata`, for the user's `call`; all or a part of the genes, each of
        its own batch or as `batch` says (see `scvae.models.placing`)."""
        given = (adata, self.architecture, self.origin, layer, call, self.device)
        dataset, obs = read_cells(*given, partial=partial, batch=batch)
        if batch != CLOSEST or batch in self.batches:
            return dataset
        return closest(self.vae, dataset, obs, self.origin.covariates, self.chunk())
