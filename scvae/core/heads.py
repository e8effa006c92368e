"""Heads: modules that map activations to distributions, and the conditionals made of them.

A family says how many numbers a distribution over d entries needs, and how it is built of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from scvae.core.batch import Batch
from scvae.core.distributions import (
    Bernoulli,
    Categorical,
    FullGaussian,
    Gaussian,
    LogNormal,
    NegativeBinomial,
    Poisson,
)
from scvae.core.networks import Linear

SMALLEST_SCALE = 1e-3  # of a standard deviation: densities and KL divergences stay finite


@dataclass(frozen=True)
class Family:
    """A distribution over d entries as a function of unconstrained numbers.

    Attributes
    ----------
    size
        From d to the numbers needed.
    build
        From the numbers ``(..., size(d))`` and d to the distribution, batch shape ``(...)``.
    """

    size: Callable[[int], int]
    build: Callable[[Tensor, int], Any]


def positive(numbers: Tensor) -> Tensor:
    """Return softplus(numbers), at least `SMALLEST_SCALE`."""
    return softplus(numbers) + SMALLEST_SCALE


def bounded(logarithms: Tensor) -> Tensor:
    """Return logarithms within +-30, whose exponentials and squares float32 can hold."""
    return logarithms.clamp(-30.0, 30.0)


def _gaussian(numbers: Tensor, d: int) -> Gaussian:
    return Gaussian(numbers[..., :d], positive(numbers[..., d:]))


def _log_normal(numbers: Tensor, d: int) -> LogNormal:
    return LogNormal(numbers[..., :d], positive(numbers[..., d:]))


def _full_gaussian(numbers: Tensor, d: int) -> FullGaussian:
    loc, diagonal, below = numbers.split([d, d, d * (d - 1) // 2], dim=-1)
    rows, columns = torch.tril_indices(d, d, offset=-1, device=numbers.device)
    tril = torch.diag_embed(positive(diagonal))
    tril[..., rows, columns] = below
    return FullGaussian(loc, tril)


def _negative_binomial(numbers: Tensor, d: int) -> NegativeBinomial:
    return NegativeBinomial(bounded(numbers[..., :d]), bounded(numbers[..., d:]))


GAUSSIAN = Family(lambda d: 2 * d, _gaussian)
FULL_GAUSSIAN = Family(lambda d: 2 * d + d * (d - 1) // 2, _full_gaussian)
LOG_NORMAL = Family(lambda d: 2 * d, _log_normal)
BERNOULLI = Family(lambda d: d, lambda numbers, d: Bernoulli(numbers))
CATEGORICAL = Family(lambda d: d, lambda numbers, d: Categorical(numbers))
POISSON = Family(lambda d: d, lambda numbers, d: Poisson(bounded(numbers)))
NEGATIVE_BINOMIAL = Family(lambda d: 2 * d, _negative_binomial)


class Head(nn.Module):
    """Map activations ``(..., n_in)`` to a distribution over `n_out` entries by one linear layer.

    Parameters
    ----------
    n_in, n_out
        Width of the activations, entries of the event.
    family
        What the numbers mean: `GAUSSIAN`, `BERNOULLI`, and so on, or a `Family` of your own.
    generator
        Source of the initial weights.

    Examples
    --------
    >>> Head(8, 3, GAUSSIAN)(torch.randn(5, 8)).event_shape
    torch.Size([3])
    """

    def __init__(
        self, n_in: int, n_out: int, family: Family, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.n_out, self.family = n_out, family
        self.linear = Linear(n_in, family.size(n_out), generator)

    def forward(self, h: Tensor) -> Any:
        return self.family.build(self.linear(h), self.n_out)


class Encoder(nn.Module):
    """q(z | x, s): a network over what is observed, then a head. Entries not observed count as 0.

    Parameters
    ----------
    network
        From ``(n, g)`` and the covariates ``(n, c)`` or None to activations, such as an `MLP`.
    head
        From activations to a distribution over z.
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, batch: Batch) -> Any:
        x = batch.x if batch.observed is None else torch.where(batch.observed, batch.x, 0.0)
        return self.head(self.network(x, batch.s))


class Decoder(nn.Module):
    """p(x | z, s): a network over z ``(k, n, d)``, then a head. Parameters are as in `Encoder`."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, z: Tensor, batch: Batch) -> Any:
        return self.head(self.network(z, batch.s))
