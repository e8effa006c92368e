"""Mixtures of any distribution, and sampling by strata, which keeps them differentiable."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, constraints

from scvae.core.distributions.discrete import sample_index
from scvae.core.distributions.factorised import Factorised, demand_support
from scvae.core.distributions.gaussian import Gaussian
from scvae.core.numerics import HALF_LOG_2PI
from scvae.core.shapes import broadcast_shape

MOST = 2**24  # numbers that samples of all components may take at a time


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
    >>> p = Mixture(torch.zeros(2), Gaussian(torch.tensor([[-3.0], [3.0]]), torch.ones(1)))
    >>> p.log_weights.exp(), p.mean, p.variance
    (tensor([0.5000, 0.5000]), tensor([0.]), tensor([10.]))
    >>> p.log_prob(torch.zeros(1)), p.marginal_log_prob(torch.zeros(1), torch.tensor([False]))
    (tensor(-5.4189), tensor(0.))
    >>> p.expand((5,)).sample((7,)).shape, p.support
    (torch.Size([7, 5, 1]), IndependentConstraint(Real(), 1))
    >>> p.log_responsibilities(torch.zeros(1)).exp()
    tensor([0.5000, 0.5000])
    >>> p.log_prob_with(torch.zeros(1), torch.tensor([0.0, -torch.inf]))  # of the first alone
    tensor(-6.1121)
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
        return _mean(self.log_weights[..., None], self.components)

    @property
    def variance(self) -> Tensor:
        return _variance(self.log_weights[..., None], self.components)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        shape = Size(batch_shape) + self.logits.shape[-1:]
        expanded = Mixture(self.logits.expand(shape), self.components.expand(shape))
        expanded._same_for_all = self._same_for_all
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every row, ``(...)``."""
        return self.log_prob_with(value, None)

    def log_prob_with(self, value: Tensor, log_event: Tensor | None) -> Tensor:
        """Return log p(x, e) of every row, ``(...)``, of an event that has probability
        p(e | c) under every component, by its logarithm ``(..., c)``; None is a sure event."""
        joint = self._log_joint(value)
        joint = joint if log_event is None else joint + log_event
        if (same := self._same_for_all) is None:
            return torch.logsumexp(joint, dim=-1)
        dtype = torch.promote_types(value.dtype, same.components.loc.dtype)
        batch = broadcast_shape(value.shape[:-1], self.batch_shape)
        return torch.logsumexp(joint, dim=-1).to(dtype).expand(batch)

    def log_responsibilities(self, value: Tensor) -> Tensor:
        """Return the log-probability of every component, given the row, ``(..., c)``."""
        return torch.log_softmax(self._log_joint(value), dim=-1).to(self.logits.dtype)

    def _log_joint(self, value: Tensor) -> Tensor:
        """Return log w_c + log p_c(x) of every row and component, ``(..., c)``: in float64 where
        rows are under one and the same mixture of Gaussians."""
        demand_support(self, value)
        _demand_width(self, value)
        if (same := self._same_for_all) is not None:
            return _of_gaussians(value, same.log_weights, same.components)
        joint: Tensor = self.log_weights + self.components.log_prob(value[..., None, :])
        return joint

    def marginal_log_prob(self, value: Tensor, observed: Tensor) -> Tensor:
        """Return the log-density of the entries where `observed`, all others integrated out."""
        components: Any = self.components
        of_each = components.marginal_log_prob(value[..., None, :], observed[..., None, :])
        return torch.logsumexp(self.log_weights + of_each, dim=-1)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw samples ``sample_shape + (..., d)``, from `generator` if given.

        Of Gaussians, only the components that are drawn from are looked at; of others, a chunk of
        samples is drawn from all of them at a time."""
        shape = Size(sample_shape) + self.batch_shape
        if type(self.components) is Gaussian:
            index = sample_index(self.logits, shape, generator)
            loc, scale = (_chosen(t, index) for t in (self.components.loc, self.components.scale))
            return Gaussian(loc, scale).sample((), generator)
        rows = Size(sample_shape).numel()
        chunk = max(1, MOST // max(1, self.logits.numel() * self.event_shape.numel()))
        parts = [self._sample(len(part), generator) for part in torch.arange(rows).split(chunk)]
        return torch.cat(parts).view(shape + self.event_shape)

    def _sample(self, rows: int, generator: Generator | None) -> Tensor:
        components: Any = self.components
        of_each = sampled(components.sample, Size((rows,)), generator)
        return _chosen(of_each, sample_index(self.logits, of_each.shape[:-2], generator))


def _demand_width(p: Mixture, value: Tensor) -> None:
    """Raise ValueError where rows are of another width, a single entry among them, which torch
    would take for all."""
    width = p.event_shape
    if value.shape[value.dim() - len(width) :] != width:
        shape = tuple(value.shape)
        raise ValueError(f"x has shape {shape}, but a row of this mixture has {tuple(width)}")


def _of_gaussians(value: Tensor, log_weights: Tensor, components: Gaussian) -> Tensor:
    """Return log w_c + log p_c(x) of rows under one and the same mixture, ``(..., c)``, float64.

    Squares are of the type that is given, the rest in float64, at no cost: in float32 the
    responsibilities, and gradients with them, would not sum up to 1 where log-densities are large.
    """
    loc, scale = components.loc, components.scale
    standard = (value[..., None, :] - loc) / scale
    at_the_mean = log_weights.double() - (scale.double().log() + HALF_LOG_2PI).sum(-1)
    return at_the_mean - 0.5 * standard.square().sum(-1)


def _chosen(of_each: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``(..., d)`` of components ``(..., c, d)`` at an index ``(...)``."""
    wide = of_each.expand(*index.shape, *of_each.shape[-2:])
    where = index[..., None, None].expand(*index.shape, 1, of_each.shape[-1])
    return wide.gather(-2, where)[..., 0, :]


class EntryMixture(Factorised):
    r"""Independent entries, each of which chooses its own of c components.

    .. math:: p(x) = \prod_d \sum_c w_{cd}\,p_c(x_d), \qquad w_{\cdot d} = \mathrm{softmax}_c

    A `Mixture` chooses once for the whole row.

    Parameters
    ----------
    logits
        Log-weights up to a constant, ``(..., c, d)``.
    components
        Independent entries of batch shape ``(..., c)``: the last batch axis are the components.

    Examples
    --------
    >>> background, foreground = torch.tensor([[0.0], [3.0]]).unbind()
    >>> counts = Poisson(torch.stack([background, foreground]).expand(5, 2, 4))
    >>> p = EntryMixture(torch.zeros(2, 4), counts)
    >>> p.log_responsibilities(torch.ones(5, 4)).shape
    torch.Size([5, 2, 4])
    >>> p.log_weights.exp()[:, 0], p.mean[0, 0], p.variance[0, 0]
    (tensor([0.5000, 0.5000]), tensor(10.5428), tensor(101.6072))
    >>> p.sample((7,)).shape, p.expand((6, 5)).batch_shape, p.support.event_dim
    (torch.Size([7, 5, 4]), torch.Size([6, 5]), 1)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}

    def __init__(
        self, logits: Tensor, components: Factorised, validate_args: bool | None = False
    ) -> None:
        shape = broadcast_shape(logits.shape, components.batch_shape + components.event_shape)
        if components.event_shape != shape[-1:] or not components.batch_shape:
            raise ValueError(
                f"logits {tuple(logits.shape)} do not weigh components of batch shape "
                f"{tuple(components.batch_shape)} and {components.event_shape[0]} entries"
            )
        self.logits, self.components = logits, components
        super().__init__(Size(shape[:-2]), Size(shape[-1:]), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self.components.support

    @property
    def log_weights(self) -> Tensor:
        """Logarithm of the weight of every component in every entry, ``(..., c, d)``."""
        return torch.log_softmax(self.logits, dim=-2)

    @property
    def mean(self) -> Tensor:
        return _mean(self.log_weights, self.components)

    @property
    def variance(self) -> Tensor:
        return _variance(self.log_weights, self.components)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EntryMixture:
        c = broadcast_shape(self.logits.shape[-2:-1], self.components.batch_shape[-1:])
        shape = Size(batch_shape) + c
        return EntryMixture(
            self.logits.expand(shape + self.event_shape), self.components.expand(shape)
        )

    def _log_joint(self, value: Tensor) -> Tensor:
        return self.log_weights + self.components.entry_log_prob(value[..., None, :])

    def entry_log_prob(self, value: Tensor) -> Tensor:
        return torch.logsumexp(self._log_joint(value), dim=-2)

    def log_responsibilities(self, value: Tensor) -> Tensor:
        """Return the log-probability of every component, given the entry, ``(..., c, d)``."""
        return torch.log_softmax(self._log_joint(value), dim=-2)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw samples ``sample_shape + (..., d)``, from `generator` if given."""
        whole: Any = self.expand(self.batch_shape)
        of_each = sampled(whole.components.sample, sample_shape, generator)
        index = sample_index(whole.logits.movedim(-2, -1), self._extended(sample_shape), generator)
        return of_each.gather(-2, index[..., None, :])[..., 0, :]


def _mean(log_weights: Tensor, components: Distribution) -> Tensor:
    """Return the mean of every entry, ``(..., d)``, for log-weights ``(..., c, 1 or d)``."""
    return (log_weights.exp() * components.mean).sum(-2)


def _variance(log_weights: Tensor, components: Distribution) -> Tensor:
    """Return the variance of every entry, ``(..., d)``: within components and between them."""
    off = components.mean - _mean(log_weights, components)[..., None, :]
    return (log_weights.exp() * (components.variance + off.square())).sum(-2)


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

    Examples
    --------
    >>> q = Mixture(torch.zeros(4), Gaussian(torch.zeros(5, 4, 3), torch.ones(3)))
    >>> z, log_weights = strata(q, samples=7)
    >>> z.shape, log_weights.shape
    (torch.Size([7, 4, 5, 3]), torch.Size([4, 5]))
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
    demand_samples(samples)
    return sampled(q.rsample if q.has_rsample else q.sample, Size((samples,)), generator)


def demand_samples(samples: int, least: int = 1) -> None:
    """Raise ValueError unless there are samples enough."""
    if samples < least:
        raise ValueError(f"samples={samples}, but it must be at least {least}")


def sampled(sample: Any, shape: Any = (), generator: Generator | None = None) -> Tensor:
    """Return sample(shape), from `generator` if given: torch's own distributions take none."""
    z: Tensor = sample(shape) if generator is None else sample(shape, generator=generator)
    return z
