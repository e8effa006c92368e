"""Heads: modules that map activations to distributions, and the conditionals made of them.

A family says how many numbers a distribution over d entries needs, and how it is built of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from scvae.core.distributions import (
    Bernoulli,
    Categorical,
    FullGaussian,
    Gaussian,
    LogNormal,
    Mixture,
    NegativeBinomial,
    Poisson,
)
from scvae.core.networks import Linear
from scvae.core.vae import Batch

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


class MixtureOfExperts(nn.Module):
    r"""Map activations ``(..., n_in)`` to a mixture of what several experts say of them.

    .. math:: p(y \mid h) = \sum_i \mathrm{softmax}(\mathrm{gate}(h))_i\, p_i(y \mid h), \qquad
              p_i = N(\mu_i(h), \Sigma_i(h)) \text{ or another family}

    Parameters
    ----------
    n_in, n_out
        Width of the activations, entries of the event.
    family
        Of every expert: `GAUSSIAN`, `FULL_GAUSSIAN`, `BERNOULLI`, and so on.
    experts
        Networks from ``(rows, n_in)`` to ``(rows, family.size(n_out))``; a number makes as many
        linear layers.
    gate
        Network from ``(..., n_in)`` to one number an expert; None makes a linear layer.
    n_active
        Experts used for each row, those of the highest gates, whose weights are renormalised; the
        others are not computed for that row. None uses all. A single active expert always weighs 1,
        so that its gate learns nothing: use at least 2.
    generator
        Source of the initial weights.

    References
    ----------
    Jacobs, Jordan, Nowlan and Hinton. Adaptive mixtures of local experts. Neural Computation, 1991.
    Shazeer et al. Outrageously large neural networks: the sparsely-gated mixture-of-experts layer.
    ICLR, 2017.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        family: Family,
        experts: int | Sequence[nn.Module],
        *,
        gate: nn.Module | None = None,
        n_active: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_out, self.family = n_out, family
        if isinstance(experts, int):
            experts = [Linear(n_in, family.size(n_out), generator) for _ in range(experts)]
        self.experts = nn.ModuleList(experts)
        self.gate = Linear(n_in, len(self.experts), generator) if gate is None else gate
        self.n_active = len(self.experts) if n_active is None else n_active
        if not 1 <= self.n_active <= len(self.experts):
            raise ValueError(
                f"n_active={n_active}, but it must be between 1 and the {len(self.experts)} experts"
            )

    def forward(self, h: Tensor) -> Mixture:
        gates = self.gate(h)
        if gates.shape[-1] != len(self.experts):
            raise ValueError(
                f"The gate gives {gates.shape[-1]} numbers for {len(self.experts)} experts; "
                "it must give one for each."
            )
        logits, chosen = self._choose(gates)
        numbers = self._numbers(h.reshape(-1, h.shape[-1]), chosen.reshape(-1, self.n_active))
        components = self.family.build(numbers.view(*logits.shape, numbers.shape[-1]), self.n_out)
        return Mixture(logits, components)

    def _choose(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gates and the numbers of the experts used, ``(..., n_active)``."""
        if self.n_active < len(self.experts):
            return gates.topk(self.n_active, dim=-1)
        return gates, torch.arange(self.n_active, device=gates.device).expand(gates.shape)

    def _numbers(self, h: Tensor, chosen: Tensor) -> Tensor:
        """Return what the chosen experts say of every row, ``(rows, n_active, size)``."""
        numbers = h.new_empty(*chosen.shape, self.family.size(self.n_out))
        for i, expert in enumerate(self.experts):
            rows, slots = (chosen == i).nonzero(as_tuple=True)
            if len(rows):
                numbers = numbers.index_put((rows, slots), expert(h[rows]))
        return numbers


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
