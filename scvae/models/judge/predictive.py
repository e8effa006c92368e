"""Posterior predictive check: what a model would have counted of the same cells, gene by gene."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Generator, Tensor

from scvae.core.networks import evaluating
from scvae.core.vae import VAE, Batch


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


@torch.no_grad()
def predictive_statistics(
    vae: VAE,
    minibatches: Iterable[Batch],
    genes: Sequence[str],
    generator: Generator,
    *,
    samples: int = 1,
) -> pd.DataFrame:
    r"""Return statistics of the counts of cells, and of counts that the model draws in their place.

    .. math:: z_n \sim q(z \mid x_n, s_n), \qquad \tilde x_n \sim p(x \mid z_n, l_n, s_n)

    Parameters
    ----------
    vae
        A model of counts.
    minibatches
        Minibatches of at least one cell; only one is in memory at a time.
    genes
        Names of the genes.
    generator
        Source of the draws, on the device of the minibatches.
    samples
        Draws of the whole data set, over which its statistics are averaged.

    Returns
    -------
    pandas.DataFrame
        A row a gene: ``observed_`` and ``predicted_`` ``mean`` (counts a cell), ``variance`` over
        cells (unbiased, in squared counts) and ``zeros`` (share of the cells without a count).

    References
    ----------
    Gelman, Meng and Stern. Posterior predictive assessment of model fitness via realized
    discrepancies. Statistica Sinica, 1996.
    """
    observed = _Sums.none(1, len(genes), generator.device)
    predicted = _Sums.none(samples, len(genes), generator.device)
    with evaluating(vae):
        for batch in minibatches:
            z = vae.encode(batch).sample((samples,), generator=generator)
            observed.add(batch.x[None])
            predicted.add(vae.decode(z, batch).sample(generator=generator))
    both = {"observed": observed.statistics(), "predicted": predicted.statistics()}
    columns = {
        f"{which}_{name}": both[which][name].cpu().numpy()
        for name in both["observed"]
        for which in both
    }
    return pd.DataFrame(columns, index=pd.Index(list(genes)))
