"""Mixtures of any distribution, and sampling by strata, which keeps them differentiable."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, constraints

from scvae.core.distributions.discrete import sample_index
from scvae.core.distributions.gaussian import Gaussian
from scvae.core.rows import gaussian_mixture_log_prob
from scvae.core.shapes import broadcast_shape


class Mixture(Distribution):
    r"""A weighted mixture of c components.

    .. math:: p(x) = \sum_c w_c\,p_c(x), \qquad w = \mathrm{softmax}(\text{logits})

    Parameters
    ----------
    logits
        Log-weights up to a constant, ``(..., c)``; minus infinity leaves a component out.
    components
        Any distribution of batch shape ``(..., c)``: its last batch axis are the components.

    Examples
    --------
    >>> p = Mixture(torch.zeros(4), Gaussian(torch.randn(5, 4, 3), torch.ones(3)))
    >>> p.batch_shape, p.event_shape
    (torch.Size([5]), torch.Size([3]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}

    def __init__(
        self, logits: Tensor, components: Distribution, validate_args: bool | None = False
    ) -> None:
        shape = broadcast_shape(logits.shape, components.batch_shape)
        self.logits = logits.expand(shape)
        self.components = (
            components if components.batch_shape == shape else components.expand(shape)
        )
        super().__init__(Size(shape[:-1]), components.event_shape, validate_args=validate_args)
        # One mixture for all rows need not be spread over them to ask for densities.
        self._same_for_all: Any = self if not shape[:-1] and type(components) is Gaussian else None

    @property
    def support(self) -> Any:
        return self.components.support

    @property
    def log_weights(self) -> Tensor:
        """Logarithm of the weight of every component, ``(..., c)``."""
        return torch.log_softmax(self.logits, dim=-1)

    @property
    def mean(self) -> Tensor:
        return self._average(self.components.mean)

    @property
    def variance(self) -> Tensor:
        off = self.components.mean - self.mean[..., None, :]
        return self._average(self.components.variance + off.square())

    def _average(self, values: Tensor) -> Tensor:
        return (torch.softmax(self.logits, dim=-1)[..., None] * values).sum(-2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        shape = Size(batch_shape) + self.logits.shape[-1:]
        expanded = Mixture(self.logits.expand(shape), self.components.expand(shape))
        expanded._same_for_all = self._same_for_all
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every row, ``(...)``."""
        same = self._same_for_all
        if same is not None:
            batch = broadcast_shape(value.shape[:-1], self.batch_shape)
            rows = value.expand(*batch, value.shape[-1])
            loc, scale = same.components.loc, same.components.scale
            return gaussian_mixture_log_prob(rows, same.log_weights, loc, scale)
        of_each = self.components.log_prob(value[..., None, :])
        return torch.logsumexp(self.log_weights + of_each, dim=-1)

    def marginal_log_prob(self, value: Tensor, observed: Tensor) -> Tensor:
        """Return the log-density of the entries where `observed`, all others integrated out."""
        components: Any = self.components
        of_each = components.marginal_log_prob(value[..., None, :], observed[..., None, :])
        return torch.logsumexp(self.log_weights + of_each, dim=-1)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw samples ``sample_shape + (..., d)``, from `generator` if given."""
        components: Any = self.components
        of_each = sampled(components.sample, sample_shape, generator)
        index = sample_index(self.logits, Size(sample_shape) + self.batch_shape, generator)
        where = index[..., None, None].expand(*index.shape, 1, of_each.shape[-1])
        return of_each.gather(-2, where)[..., 0, :]


def strata(q: Any, samples: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    r"""Draw `samples` samples from every stratum of `q`: from every component of a mixture, or from
    `q` itself. They are differentiable where `q` has differentiable samples.

    An expectation over a mixture is the weighted sum of those over its components,
    :math:`E_q[f] = \sum_c w_c E_{q_c}[f]`; so weighted, samples are differentiable in the weights,
    too, and vary less than samples of the mixture itself (Morningstar, Vikram, Ham, Gallagher and
    Dillon, "Automatic differentiation variational inference with mixtures", AISTATS 2021).

    Returns
    -------
    z
        Samples, ``(k, c, ..., d)``; c = 1 for anything but a mixture.
    log_weights
        Log-weight of every stratum, ``(c, ...)``.
    """
    if isinstance(q, Mixture):
        z = drawn(q.components, samples, generator)
        return z.movedim(-2, 1), q.log_weights.movedim(-1, 0)
    z = drawn(q, samples, generator)
    return z[:, None], z.new_zeros(1, *q.batch_shape)


def is_differentiable(q: Distribution) -> bool:
    """Return whether `strata` draws differentiable samples of `q`."""
    return q.components.has_rsample if isinstance(q, Mixture) else q.has_rsample


def drawn(q: Any, samples: int, generator: Generator | None) -> Tensor:
    """Return `samples` samples of q, differentiable where it has such."""
    return sampled(q.rsample if q.has_rsample else q.sample, Size((samples,)), generator)


def sampled(sample: Any, shape: Any = (), generator: Generator | None = None) -> Tensor:
    """Return sample(shape), from `generator` if given: torch's own distributions take none."""
    z: Tensor = sample(shape) if generator is None else sample(shape, generator=generator)
    return z
