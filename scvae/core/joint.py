"""Several kinds of measurement at once: one posterior over `Parts`, and their joint likelihood.

A kind that a cell was not measured in is left out of both, and what its part holds there, NaN
included, touches neither value nor gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from scvae.core.batch import Batch, Parts
from scvae.core.distributions import Gaussian
from scvae.core.distributions.mixture import sampled
from scvae.core.fusion import product_of_experts, side_by_side

Fuse = Callable[[Gaussian, Gaussian, Tensor], Distribution]


class Fused(nn.Module):
    r"""q(z | x_1, ..., x_m): one Gaussian expert a part, fused over the parts that are present.

    Parameters
    ----------
    experts
        Modules that map the `Batch` of one part to a `Gaussian` over z, such as `Encoder`, one a
        part. Networks that normalise over the minibatch see absent cells as cells of ones: give
        them ``normalise=False`` where many are absent.
    fuse
        `product_of_experts`, `mixture_of_experts` or `mixture_of_products`; a `functools.partial`
        of one sets its arguments.
    prior
        Module that maps a minibatch to the `Gaussian` that stands in where nothing is present and
        is an expert of the products; None makes it N(0, I).

    Examples
    --------
    >>> encoders = [Encoder(MLP(g, 16), Head(16, 2, GAUSSIAN)) for g in (64, 9)]
    >>> parts = Parts((Batch(torch.ones(5, 64)), Batch(torch.ones(5, 9))))
    >>> Fused(encoders)(parts).loc.shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        experts: Iterable[nn.Module],
        fuse: Fuse = product_of_experts,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.experts, self.fuse, self.prior = nn.ModuleList(experts), fuse, prior

    def forward(self, batch: Parts) -> Distribution:
        _demand_one_each("experts", self.experts, batch.parts)
        each = zip(self.experts, batch.parts, strict=True)
        experts = side_by_side([expert(part.filled) for expert, part in each])
        if self.prior is None:
            standard = torch.zeros_like(experts.loc[..., 0, :])
            prior = Gaussian(standard, torch.ones_like(standard))
        else:
            prior = self.prior(batch)
        return self.fuse(experts, prior, batch.present)


@dataclass(frozen=True)
class Jointly:
    """Distributions over the parts of a minibatch, independent of each other.

    Attributes
    ----------
    of
        Over x of every part, batch shape ``(..., n)``.
    """

    of: tuple[Any, ...]

    @property
    def mean(self) -> tuple[Tensor, ...]:
        """The mean of every part, ``(..., n, g_m)``, of absent ones, too."""
        return tuple(p.mean for p in self.of)

    def sample(
        self, sample_shape: Any = (), generator: Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Draw every part, ``sample_shape + (..., n, g_m)``, from `generator` if given."""
        return tuple(sampled(p.sample, sample_shape, generator) for p in self.of)

    def log_prob(self, value: Parts) -> Tensor:
        r"""Return :math:`\sum_{m\,present} \log p(x_m)` of every row, ``(..., n)``, in nats."""
        each = zip(value.parts, self.of, strict=True)
        return torch.stack([part.filled.log_prob(p) for part, p in each]).sum(0)


class Joint(nn.Module):
    r"""p(x_1, ..., x_m | z) = p(x_1 | z) ... p(x_m | z), one likelihood a part.

    Parameters
    ----------
    likelihoods
        Modules that map ``(z, part)`` to a distribution over x of the part, such as `Decoder`.

    Examples
    --------
    >>> decoders = [Decoder(MLP(2, 16), Head(16, g, BERNOULLI)) for g in (64, 9)]
    >>> parts = Parts((Batch(torch.ones(5, 64)), Batch(torch.ones(5, 9))))
    >>> Joint(decoders)(torch.zeros(7, 5, 2), parts).log_prob(parts).shape
    torch.Size([7, 5])
    """

    def __init__(self, likelihoods: Iterable[nn.Module]) -> None:
        super().__init__()
        self.likelihoods = nn.ModuleList(likelihoods)

    def forward(self, z: Tensor, batch: Parts | Batch) -> Jointly:
        """Return p(x | z); a batch that has no parts tells every likelihood the same."""
        parts = batch.parts if isinstance(batch, Parts) else (batch,) * len(self.likelihoods)
        _demand_one_each("likelihoods", self.likelihoods, parts)
        each = zip(self.likelihoods, parts, strict=True)
        return Jointly(tuple(likelihood(z, part.filled) for likelihood, part in each))


def _demand_one_each(what: str, modules: nn.ModuleList, parts: Sequence[Batch]) -> None:
    if len(modules) != len(parts):
        raise ValueError(f"{len(modules)} {what} for {len(parts)} parts, but it takes one each")
