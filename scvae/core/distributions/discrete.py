"""Distributions over a few values: Bernoulli entries and one category."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid, one_hot

from scvae.core.distributions.factorised import Factorised, demand_support, event_last
from scvae.core.gradients import promoted


class Bernoulli(Factorised):
    r"""Independent zeros and ones over the last axis, by their log-odds.

    .. math:: \log p(x) = \sum_d x_d \log\pi_d + (1 - x_d) \log(1 - \pi_d),
              \qquad \pi = \mathrm{sigmoid}(\text{logits})

    Values between 0 and 1 are taken, too, and give the cross entropy, which is no log-density.

    Parameters
    ----------
    logits
        Log-odds of a one, ``(..., d)``.

    Examples
    --------
    >>> p = Bernoulli(torch.zeros(2))
    >>> p.mean, p.variance, p.entropy()
    (tensor([0.5000, 0.5000]), tensor([0.2500, 0.2500]), tensor(1.3863))
    >>> p.expand((5,)).sample((7,)).shape, p.enumerate_support().shape
    (torch.Size([7, 5, 2]), torch.Size([4, 2]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits: Tensor, validate_args: bool | None = False) -> None:
        self.logits = logits
        super().__init__(*event_last(logits), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Bernoulli:
        return Bernoulli(self.logits.expand(Size(batch_shape) + self.event_shape))

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw samples ``sample_shape + (..., d)``, from `generator` if given."""
        with torch.no_grad():
            return torch.bernoulli(
                self.mean.expand(self._extended(sample_shape)), generator=generator
            )

    def entry_log_prob(self, value: Tensor) -> Tensor:
        (value,) = promoted(value)  # bytes would wrap around at 1 - value
        return value * logsigmoid(self.logits) + (1 - value) * logsigmoid(-self.logits)

    has_enumerate_support = True

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all 2^d vectors of zeros and ones, ``(2^d, ..., d)``."""
        d = self.event_shape[0]
        codes = torch.arange(2**d, device=self.logits.device)[:, None]
        places = torch.arange(d, device=self.logits.device)
        return _as_states((codes >> places) % 2, self.logits, expand)

    def entropy(self) -> Tensor:
        """Return the entropy, in nats, ``(...)``."""
        # 1 - sigmoid(l) is sigmoid(-l), which keeps the digits that the difference would lose.
        one, zero = torch.sigmoid(self.logits), torch.sigmoid(-self.logits)
        return -(one * logsigmoid(self.logits) + zero * logsigmoid(-self.logits)).sum(-1)


class Categorical(Distribution):
    r"""One of d categories, as a one-hot vector over the last axis.

    .. math:: \log p(x) = \sum_d x_d \log\pi_d, \qquad \pi = \mathrm{softmax}(\text{logits})

    Parameters
    ----------
    logits
        Log-probabilities up to a constant, ``(..., d)``; minus infinity rules a category out.

    Examples
    --------
    >>> p = Categorical(torch.zeros(4))
    >>> p.mean, p.variance[0], p.log_probs[0], p.entropy()
    (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor(0.1875), tensor(-1.3863), tensor(1.3863))
    >>> p.log_prob(p.enumerate_support()).exp()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    >>> seen = torch.tensor([True, False, False, False])  # it is not the first
    >>> p.marginal_log_prob(torch.zeros(4), seen).exp(), p.expand((5,)).sample((7,)).shape
    (tensor(0.7500), torch.Size([7, 5, 4]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}
    support = constraints.one_hot

    def __init__(self, logits: Tensor, validate_args: bool | None = False) -> None:
        self.logits = logits
        super().__init__(*event_last(logits), validate_args=validate_args)

    @property
    def log_probs(self) -> Tensor:
        """Logarithm of the probability of every category, ``(..., d)``."""
        return torch.log_softmax(self.logits, dim=-1)

    @property
    def mean(self) -> Tensor:
        return torch.softmax(self.logits, dim=-1)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Categorical:
        return Categorical(self.logits.expand(Size(batch_shape) + self.event_shape))

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw one-hot samples ``sample_shape + (..., d)``, from `generator` if given."""
        index = sample_index(self.logits, Size(sample_shape) + self.batch_shape, generator)
        return one_hot(index, self.event_shape[0]).to(self.logits.dtype)

    has_enumerate_support = True

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all d categories, one-hot, ``(d, ..., d)``."""
        return _as_states(torch.eye(self.event_shape[0]), self.logits, expand)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every one-hot row, ``(...)``."""
        demand_support(self, value)
        return self._cross(value)

    def _cross(self, value: Tensor) -> Tensor:
        # Replaced before the product: 0 times minus infinity is NaN, forwards and backwards.
        return (value * torch.where(value == 0, 0.0, self.log_probs)).sum(-1)

    def marginal_log_prob(self, value: Tensor, observed: Tensor) -> Tensor:
        """Return the log-probability of what was seen of every one-hot row, ``(...)``: of its
        category, if the one is among the entries `observed`, else of all categories not seen."""
        seen = torch.where(observed, value, 0.0)
        is_told = (seen != 0).any(-1, keepdim=True)
        possible = torch.where(observed & ~is_told, -torch.inf, self.log_probs)
        of_rest = torch.logsumexp(possible, dim=-1)
        return torch.where(is_told[..., 0], self._cross(seen), of_rest)

    def entropy(self) -> Tensor:
        """Return the entropy, in nats, ``(...)``."""
        return -self._cross(self.mean)


def _as_states(states: Tensor, logits: Tensor, expand: bool) -> Tensor:
    """Return states ``(c, d)`` with the batch axes of `logits` ``(..., d)``, of size 1 or whole."""
    batch = logits.shape[:-1]
    states = states.to(logits).view(len(states), *[1] * len(batch), states.shape[-1])
    return states.expand(-1, *batch, -1) if expand else states


@torch.no_grad()
def sample_index(logits: Tensor, shape: Size, generator: Generator | None) -> Tensor:
    """Draw positions along the last axis of `logits` ``(..., d)``, of a shape that ends in ..."""
    if not shape.numel():
        return torch.zeros(shape, dtype=torch.int64, device=logits.device)
    # Several draws of a row at once: a copy of its probabilities for each would be large.
    probs = torch.softmax(logits, dim=-1).reshape(-1, logits.shape[-1])
    rows = logits.shape[:-1]
    draws = shape.numel() // rows.numel()
    flat = torch.multinomial(probs, draws, replacement=True, generator=generator)
    return flat.T.reshape(shape)
