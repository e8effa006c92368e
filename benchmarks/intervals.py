"""How often intervals of importance sampling hold log p(x), where the posterior is too narrow.

A linear-Gaussian model has an exact log p(x) and an exact posterior; q is that posterior, moved by
0.2 standard deviations and stretched. Prints a table of markdown: of 2,000 estimates a line, how
many intervals of 95 % hold the truth, by the standard error alone and by `Estimate.interval`, and
how many of the latter are bounded on both sides.

    python benchmarks/intervals.py
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from scvae.core import (
    VAE,
    Batch,
    FullGaussian,
    Gaussian,
    LinearGaussian,
    StandardNormal,
    log_evidence,
)

REPEATS = 2000


class Stretched(nn.Module):
    def __init__(self, model: LinearGaussian, stretch: float) -> None:
        super().__init__()
        self.model, self.stretch = model, stretch

    def forward(self, batch: Batch) -> FullGaussian:
        exact = self.model.posterior(batch.x)
        moved = exact.loc + 0.2 * exact.variance.sqrt()
        return FullGaussian(moved, self.stretch * exact.scale_tril)


class Likelihood(nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return self.model.likelihood(z)


def line(d: int, stretch: float, samples: int) -> str:
    noise = Generator().manual_seed(1)
    loading = torch.randn(3 * d, d, generator=noise, dtype=torch.float64)
    model = LinearGaussian(
        loading, torch.zeros(3 * d).double(), torch.full((3 * d,), 0.5, dtype=torch.float64)
    )
    x = model.marginal.sample((1,), noise)
    vae = VAE(StandardNormal(d).double(), Stretched(model, stretch), Likelihood(model))
    estimate = log_evidence(vae, Batch(x.expand(REPEATS, -1)), samples, noise)
    truth = model.log_prob(x)
    plain = (estimate.value - truth).abs() < 1.96 * estimate.standard_error
    low, high = estimate.interval()
    held, bounded = (low <= truth) & (truth <= high), high.isfinite()
    shares = [f"{t.double().mean():.1%}" for t in (plain, held, bounded)]
    both = f"{held[bounded].double().mean():.1%}" if bounded.any() else ""
    return f"| {d} | {stretch} | {samples} | " + " | ".join([*shares, both]) + " |"


if __name__ == "__main__":
    print("| dimensions | width of q | samples | +-1.96 se holds | interval holds | bounded above |"
          " of these, holds |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for d in (2, 8):
        for stretch in (0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5):
            for samples in (100, 1000):
                print(line(d, stretch, samples), flush=True)
