"""Posterior predictive check: what a model would have counted of the same cells, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Generator, Tensor

from scvae.core.batch import Batch
from scvae.core.vae import VAE


@dataclass
class _Sums:
    """Sums over cells of counts, of their squares, and of zeros: float64 ``(k, g)`` of k sets."""

    n: int
    counts: Tensor
    squares: Tensor
    zeros: Tensor

    @classmethod
    def none(cls, n_sets: int, n_genes: int, device: torch.device) -> _Sums:
        shape = (n_sets, n_genes)
        zeros = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
        return cls(0, *zeros)

    def add(self, x: Tensor) -> None:
        """Add counts ``(k, n, g)``."""
        self.n += x.shape[1]
        for k, counts in enumerate(x):
            part = counts.double()
            self.counts[k] += part.sum(0)
            self.squares[k] += part.square().sum(0)
            self.zeros[k] += (part == 0).sum(0)

    def statistics(self) -> dict[str, Tensor]:
        """Return mean, variance and share of zeros of every gene, ``(g,)``: means over the sets."""
        mean = self.counts / self.n
        # Of one cell, 0 / 0: it has no variance, and NaN says so.
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

    References
    ----------
    Gelman, Meng and Stern. Posterior predictive assessment of model fitness via realized
    discrepancies. Statistica Sinica, 1996.
    """

    def __init__(self, vae: VAE, n_genes: int, generator: Generator, samples: int = 1) -> None:
        self.vae, self.generator, self.samples = vae, generator, samples
        self.observed = _Sums.none(1, n_genes, generator.device)
        self.predicted = _Sums.none(samples, n_genes, generator.device)

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Count a minibatch of at least one cell."""
        z = self.vae.encode(batch).sample((self.samples,), generator=self.generator)
        self.observed.add(batch.x[None])
        self.predicted.add(self.vae.decode(z, batch).sample(generator=self.generator))

    def table(self, genes: Sequence[str]) -> pd.DataFrame:
        """Return a row a gene of all cells counted.

        ``observed_`` and ``predicted_`` ``mean`` (counts a cell), ``variance`` over cells
        (unbiased, in squared counts) and ``zeros`` (share of the cells without a count).
        """
        both = {"observed": self.observed.statistics(), "predicted": self.predicted.statistics()}
        columns = {
            f"{which}_{name}": both[which][name].cpu().numpy()
            for name in both["observed"]
            for which in both
        }
        return pd.DataFrame(columns, index=pd.Index(list(genes)))
