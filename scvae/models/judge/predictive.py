"""Posterior predictive check: what a model would have counted of the same cells, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from scvae.arguments import check_whole
from scvae.core.batch import Batch, Parts
from scvae.core.joint import Joint
from scvae.core.vae import VAE
from scvae.errors import DataError
from scvae.models.fitted import Fitted, Layer
from scvae.models.query import draws, some_rows
from scvae.models.reading import cells_of, measured_in

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass
class _Sums:
    """Sums over cells of counts, of their squares, and of zeros: float64 ``(k, g)`` of k sets.

    Of every gene over the ``n`` cells ``(g,)`` in which it was measured."""

    n: Tensor
    counts: Tensor
    squares: Tensor
    zeros: Tensor

    @classmethod
    def none(cls, n_sets: int, n_genes: int, device: torch.device) -> _Sums:
        shape = (n_sets, n_genes)
        zeros = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(4))
        return cls(next(zeros)[0], *zeros)

    def add(self, x: Tensor, observed: Tensor | None) -> None:
        """Add counts ``(k, n, g)``, of the entries ``(n, g)`` that were observed; None is all."""
        self.n += x.shape[1] if observed is None else observed.sum(0)
        for k, counts in enumerate(x):
            part, zeros = counts.double(), counts == 0
            if observed is not None:
                part, zeros = torch.where(observed, part, 0.0), zeros & observed
            self.counts[k] += part.sum(0)
            self.squares[k] += part.square().sum(0)
            self.zeros[k] += zeros.sum(0)

    def statistics(self) -> dict[str, Tensor]:
        """Return mean, variance and share of zeros of every gene, ``(g,)``: means over the sets."""
        mean = self.counts / self.n
        # Of one cell, 0 / 0: it has no variance, and NaN says so; of none, no mean either.
        variance = (self.squares - self.n * mean.square()).clamp(min=0) / (self.n - 1)
        found = {"mean": mean, "variance": variance, "zeros": self.zeros / self.n}
        return {name: values.mean(0) for name, values in found.items()}


class PredictiveCheck:
    r"""Statistics of the counts of cells, and of counts that a model draws in their place.

    .. math:: z_n \sim q(z \mid x_n, s_n), \qquad \tilde x_n \sim p(x \mid z_n, l_n, s_n)

    Parameters
    ----------
    vae
        A model of counts, in evaluation mode.
    n_genes
        Number of genes.
    generator
        Source of the draws, on the device of the minibatches.
    samples
        Draws of the whole data set, over which its statistics are averaged.
    place
        Of a model of several kinds of measurement, the number of the one to check, of which cells
        that were not measured are left out.

    References
    ----------
    Gelman, Meng and Stern. Posterior predictive assessment of model fitness via realized
    discrepancies. Statistica Sinica, 1996.
    """

    def __init__(
        self, vae: VAE, n_genes: int, generator: Generator, samples: int = 1, place: int = 0
    ) -> None:
        self.place = place
        self.vae, self.generator, self.samples = vae, generator, samples
        self.observed = _Sums.none(1, n_genes, generator.device)
        self.predicted = _Sums.none(samples, n_genes, generator.device)

    @torch.no_grad()
    def add(self, batch: Batch | Parts) -> None:
        """Count a minibatch."""
        z = self.vae.encode(batch).sample((self.samples,), generator=self.generator)
        likelihood, part = self.vae.likelihood, batch
        if isinstance(batch, Parts):
            assert isinstance(likelihood, Joint)
            likelihood, part = likelihood.likelihoods[self.place], batch.parts[self.place]
            there = None if part.present is None else part.present.nonzero()[:, 0]
            part, z = (part, z) if there is None else (part[there], z[:, there])
        assert isinstance(part, Batch)
        if not len(part):
            return
        self.observed.add(part.x[None], part.observed)
        drawn = likelihood(z, part).sample(generator=self.generator)
        self.predicted.add(drawn, part.observed)

    def table(self, genes: Sequence[str]) -> pd.DataFrame:
        """Return a row a gene of all cells counted.

        ``observed_`` and ``predicted_`` ``mean`` (counts a cell), ``variance`` over cells
        (unbiased, in squared counts) and ``zeros`` (share of the cells without a count); NaN of
        genes that were not measured.
        """
        both = {"observed": self.observed.statistics(), "predicted": self.predicted.statistics()}
        columns = {
            f"{which}_{name}": both[which][name].cpu().numpy()
            for name in both["observed"]
            for which in both
        }
        return pd.DataFrame(columns, index=pd.Index(list(genes)))


def predictive_table(
    model: Fitted,
    adata: AnnData,
    layer: Layer,
    modality: str | None,
    samples: int,
    max_cells: int,
    seed: int,
    *,
    call: str,
) -> pd.DataFrame:
    """Do as `Model.predictive_check`, in the name of the user's `call`."""
    cells = cells_of(adata)
    samples, generator = draws(samples, seed, model.device)
    max_cells = check_whole("max_cells", max_cells, 5_000, least=None)
    if min(cells.n_obs, max_cells) < 1:
        raise DataError(f"{cells.n_obs} cells, max_cells={max_cells}: nothing to compare.")
    kind = model.kind_of(modality)
    if cells.n_obs > max_cells:
        there = measured_in(cells, model.origin, kind).nonzero()[0]
        chosen = there if len(there) else np.arange(cells.n_obs)
        cells = cells[some_rows(chosen, max_cells, seed)]
    names, place = model.origin.parts[kind].names, [*model.modalities].index(kind)
    check = PredictiveCheck(model.vae, len(names), generator, samples, place)
    model.over(model.read_for(cells, layer, call), check.add, samples=samples)
    if not check.observed.n.any():
        raise DataError(
            f"modality={kind!r}, but none of the {cells.n_obs:,} cells was measured in it, and a "
            "check compares with what was: model.normalized(mdata, modality=...) imputes"
        )
    return check.table(names)
