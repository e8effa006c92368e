"""Heads: modules that map activations to distributions, and the conditionals made of them.

A family says how many numbers a distribution over d entries needs, and how it is built of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    ZeroInflated,
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

    Examples
    --------
    >>> halves = Family(lambda d: d, lambda numbers, d: Gaussian(numbers, torch.full((d,), 0.5)))
    >>> Head(8, 3, halves)(torch.randn(5, 8)).variance[0]
    tensor([0.2500, 0.2500, 0.2500])
    >>> GAUSSIAN.size(3), GAUSSIAN.of(torch.zeros(5, 6), 3).event_shape
    (6, torch.Size([3]))
    >>> [family.size(3) for family in (UNIT_GAUSSIAN, FULL_GAUSSIAN, LOG_NORMAL, POISSON)]
    [3, 9, 6, 3]
    """

    size: Callable[[int], int]
    build: Callable[[Tensor, int], Any]

    def of(self, numbers: Tensor, d: int) -> Any:
        """Return the distribution of numbers of any type, in float32 at least: the eight bits of
        bfloat16, in which autocast multiplies, are too few to draw and score with."""
        few = numbers.dtype in (torch.bfloat16, torch.float16)
        return self.build(numbers.float() if few else numbers, d)


def positive(numbers: Tensor) -> Tensor:
    """Return softplus(numbers), at least `SMALLEST_SCALE`."""
    # Of columns of a wider matrix torch takes it number by number, thirty times as slowly.
    return softplus(numbers.contiguous()) + SMALLEST_SCALE


def bounded(logarithms: Tensor) -> Tensor:
    """Return logarithms within +-30, whose exponentials and squares float32 can hold."""
    return logarithms.clamp(-30.0, 30.0)


def _once(d: int) -> int:
    return d


def _twice(d: int) -> int:
    return 2 * d


def _and_below_diagonal(d: int) -> int:
    return 2 * d + d * (d - 1) // 2


def _gaussian(numbers: Tensor, d: int) -> Gaussian:
    return Gaussian(numbers[..., :d], positive(numbers[..., d:]))


def _unit_gaussian(numbers: Tensor, d: int) -> Gaussian:
    return Gaussian(numbers, torch.ones_like(numbers))


def _log_normal(numbers: Tensor, d: int) -> LogNormal:
    return LogNormal(numbers[..., :d], positive(numbers[..., d:]))


def _full_gaussian(numbers: Tensor, d: int) -> FullGaussian:
    loc, diagonal, below = numbers.split([d, d, d * (d - 1) // 2], dim=-1)
    rows, columns = torch.tril_indices(d, d, offset=-1, device=numbers.device)
    tril = torch.diag_embed(positive(diagonal))
    tril[..., rows, columns] = below
    return FullGaussian(loc, tril)


def _bernoulli(numbers: Tensor, d: int) -> Bernoulli:
    return Bernoulli(numbers)


def _categorical(numbers: Tensor, d: int) -> Categorical:
    return Categorical(numbers)


def _poisson(numbers: Tensor, d: int) -> Poisson:
    return Poisson(bounded(numbers))


def _negative_binomial(numbers: Tensor, d: int) -> NegativeBinomial:
    return NegativeBinomial(bounded(numbers[..., :d]), bounded(numbers[..., d:]))


# Functions that have names: without one, no model of a family could be sent to another process.
GAUSSIAN = Family(_twice, _gaussian)
UNIT_GAUSSIAN = Family(_once, _unit_gaussian)  # N(mu, I)
FULL_GAUSSIAN = Family(_and_below_diagonal, _full_gaussian)
LOG_NORMAL = Family(_twice, _log_normal)
BERNOULLI = Family(_once, _bernoulli)
CATEGORICAL = Family(_once, _categorical)
POISSON = Family(_once, _poisson)
NEGATIVE_BINOMIAL = Family(_twice, _negative_binomial)


def zero_inflated(family: Family) -> Family:
    """Return the family of the same counts, of which every entry is replaced by zero with a
    probability of its own (`ZeroInflated`).

    Examples
    --------
    >>> Head(8, 3, zero_inflated(NEGATIVE_BINOMIAL))(torch.randn(5, 8)).event_shape
    torch.Size([3])
    """
    return Family(partial(_inflated_size, family), partial(_inflated, family))


def _inflated_size(family: Family, d: int) -> int:
    return family.size(d) + d


def _inflated(family: Family, numbers: Tensor, d: int) -> ZeroInflated:
    of_counts, logits = numbers.split([family.size(d), d], dim=-1)
    return ZeroInflated(family.build(of_counts, d), logits)


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
        return self.family.of(self.linear(h), self.n_out)


class Encoder(nn.Module):
    """q(z | x, s): a network over what is observed, then a head. Entries not observed count as 0.

    Parameters
    ----------
    network
        From ``(n, g)`` to activations, such as an `MLP`, or any network of torch; where there are
        covariates ``(n, c)``, it is given them as its second argument. Bytes and other types become
        that of the network's parameters.
    head
        From activations to a distribution over z.

    Examples
    --------
    >>> encoder = Encoder(MLP(64, 16, n_covariates=3), Head(16, 2, GAUSSIAN))
    >>> encoder(Batch(torch.ones(5, 64), s=torch.zeros(5, 3))).mean.shape
    torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, batch: Batch) -> Any:
        x = batch.x if batch.observed is None else torch.where(batch.observed, batch.x, 0.0)
        return self.head(_activations(self.network, x, batch.s))


class Decoder(nn.Module):
    """p(x | z, s): a network over z ``(k, n, d)``, then a head. Parameters are as in `Encoder`.

    Without covariates, the network sees the k samples as rows, ``(k n, d)``, so that a convolution
    may follow; with them, it is given z and s as they are.

    Examples
    --------
    >>> decoder = Decoder(MLP(2, 16), Head(16, 64, NEGATIVE_BINOMIAL))
    >>> decoder(torch.zeros(7, 5, 2), Batch(torch.ones(5, 64))).mean.shape
    torch.Size([7, 5, 64])
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, z: Tensor, batch: Batch) -> Any:
        if batch.s is not None:
            return self.head(_activations(self.network, z, batch.s))
        rows = _activations(self.network, z.reshape(-1, z.shape[-1]), None)
        return self.head(rows.unflatten(0, z.shape[:-1]))


def _activations(network: nn.Module, x: Tensor, s: Tensor | None) -> Tensor:
    like = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    x = x.to(like or (x.dtype if x.is_floating_point() else torch.get_default_dtype()))
    h: Tensor = network(x) if s is None else network(x, s)
    return h
