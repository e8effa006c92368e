"""What distributions share: independent entries over the last axis, and differentiable samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution

from scvae.core.shapes import broadcast_shape


def event_last(*tensors: Tensor) -> tuple[Size, Size]:
    """Return the batch shape and the event shape, the last axis, of tensors broadcast together."""
    shape = broadcast_shape(*[t.shape for t in tensors])
    return Size(shape[:-1]), Size(shape[-1:])


def demand_support(p: Distribution, value: Tensor) -> None:
    """Raise ValueError, under ``validate_args=True``, where p gives a value no probability at all:
    a negative or broken count, or one of another width."""
    if not p._validate_args:
        return
    width = tuple(p.event_shape)
    if tuple(value.shape[-1:]) != width:
        raise ValueError(f"x has shape {tuple(value.shape)}, but it must be (..., {width[0]})")
    support: Any = p.support
    wrong = ~support.check(value)
    if wrong.any():
        row = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Row {row} of x lies outside the support of a {type(p).__name__}: "
            f"{value[tuple(row)].tolist()}. It takes {support}"
        )


class Factorised(Distribution, ABC):
    r"""A distribution whose entries are independent, :math:`p(x) = \prod_d p(x_d)`.

    Subclasses give `entry_log_prob`; everything that sums over entries follows from it.

    Examples
    --------
    >>> p = Poisson(torch.zeros(5, 3))
    >>> x, seen = torch.ones(5, 3), torch.tensor([True, True, False])
    >>> p.entry_log_prob(x).shape, p.log_prob(x)[0].item(), p.marginal_log_prob(x, seen)[0].item()
    (torch.Size([5, 3]), -3.0, -2.0)
    """

    def __init__(
        self, batch_shape: Size, event_shape: Size, validate_args: bool | None = False
    ) -> None:
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @abstractmethod
    def entry_log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_d) of every entry, ``(..., d)``."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every row, ``(...)``."""
        demand_support(self, value)
        return self.entry_log_prob(value).sum(-1)

    def marginal_log_prob(self, value: Tensor, observed: Tensor) -> Tensor:
        """Return the log-density of the entries where `observed`, all others integrated out.

        What stands at the other entries, NaN included, touches neither value nor gradient.
        """
        filled = torch.where(observed, value, 1.0)  # 1 lies in the support of every subclass
        demand_support(self, filled)
        return torch.where(observed, self.entry_log_prob(filled), 0.0).sum(-1)

    def _extended(self, sample_shape: Any) -> Size:
        return Size(sample_shape) + self.batch_shape + self.event_shape


class Reparameterised(Distribution, ABC):
    """A distribution whose samples can be differentiated in its parameters."""

    has_rsample = True

    @abstractmethod
    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw reparameterised samples ``sample_shape + (..., d)``, from `generator` if given."""

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw samples as `rsample` does, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)
