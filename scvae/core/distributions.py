"""Distributions whose last axis is the event: `log_prob` gives one number per row (per cell).

All are `torch.distributions.Distribution`s, so samples, moments and torch's KL registry work as
users of torch expect.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from scvae.core.numerics import HALF_LOG_2PI, nb_log_mass, poisson_log_mass, zero_inflate


def _event_last(*tensors: Tensor) -> tuple[Size, Size]:
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return Size(shape[:-1]), Size(shape[-1:])


class Gaussian(Distribution):
    r"""Normal distribution with diagonal covariance over the last axis.

    .. math:: \log p(x) = -\sum_d \left[\tfrac12 \left(\tfrac{x_d-\mu_d}{\sigma_d}\right)^2
              + \log\sigma_d + \tfrac12\log 2\pi\right]

    Parameters
    ----------
    loc, scale
        Mean and standard deviation, broadcast against each other: ``(..., d)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = False) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(*_event_last(self.loc), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Gaussian:
        shape = Size(batch_shape) + self.event_shape
        return Gaussian(self.loc.expand(shape), self.scale.expand(shape))

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw reparameterised samples ``sample_shape + (..., d)``, from `generator` if given."""
        shape = Size(sample_shape) + self.batch_shape + self.event_shape
        like: dict[str, Any] = {"dtype": self.loc.dtype, "device": self.loc.device}
        return self.loc + self.scale * torch.randn(shape, generator=generator, **like)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw samples as `rsample` does, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def log_prob(self, value: Tensor) -> Tensor:
        standard = (value - self.loc) / self.scale
        return -(0.5 * standard.square() + self.scale.log() + HALF_LOG_2PI).sum(-1)


class CountDistribution(Protocol):
    """What zero inflation needs of a count distribution."""

    @property
    def batch_shape(self) -> Size: ...
    @property
    def event_shape(self) -> Size: ...
    @property
    def mean(self) -> Tensor: ...
    @property
    def variance(self) -> Tensor: ...
    def log_mass(self, value: Tensor) -> Tensor: ...
    def sample(
        self, sample_shape: Any = ..., generator: torch.Generator | None = ...
    ) -> Tensor: ...
    def expand(self, batch_shape: Any) -> Any: ...


class Poisson(Distribution):
    r"""Independent Poisson counts over the last axis, by their log-mean.

    .. math:: \log p(x) = \sum_g x_g \log\mu_g - \mu_g - \log x_g!
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_mean": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, log_mean: Tensor, validate_args: bool | None = False) -> None:
        self.log_mean = log_mean
        super().__init__(*_event_last(log_mean), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> Poisson:
        return Poisson(self.log_mean.expand(Size(batch_shape) + self.event_shape))

    def log_mass(self, value: Tensor) -> Tensor:
        """Return log p(x_g) for every entry, ``(..., g)``."""
        return poisson_log_mass(value, self.log_mean)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_mass(value).sum(-1)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        shape = Size(sample_shape) + self.batch_shape + self.event_shape
        with torch.no_grad():
            return torch.poisson(self.mean.expand(shape), generator=generator)


class NegativeBinomial(Distribution):
    r"""Independent negative binomial counts over the last axis.

    The Gamma-Poisson mixture with mean :math:`\mu` and inverse dispersion :math:`r`; its variance
    is :math:`\mu + \mu^2 / r`, and it tends to the Poisson as :math:`r \to \infty`.

    Parameters
    ----------
    log_mean, log_inverse_dispersion
        :math:`\log\mu` and :math:`\log r`, broadcast against each other: ``(..., g)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": constraints.real_vector,
        "log_inverse_dispersion": constraints.real_vector,
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, log_mean: Tensor, log_inverse_dispersion: Tensor, validate_args: bool | None = False
    ) -> None:
        # Kept as they came: a per-gene dispersion costs per gene, not per cell and gene.
        self.log_mean = log_mean
        self.log_inverse_dispersion = log_inverse_dispersion
        super().__init__(
            *_event_last(log_mean, log_inverse_dispersion), validate_args=validate_args
        )

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp().expand(self.batch_shape + self.event_shape)

    @property
    def inverse_dispersion(self) -> Tensor:
        return self.log_inverse_dispersion.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() / self.inverse_dispersion

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        shape = Size(batch_shape) + self.event_shape
        return NegativeBinomial(
            self.log_mean.expand(shape), self.log_inverse_dispersion.expand(shape)
        )

    def log_mass(self, value: Tensor) -> Tensor:
        """Return log p(x_g) for every entry, ``(..., g)``."""
        return nb_log_mass(value, self.log_mean, self.log_inverse_dispersion)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_mass(value).sum(-1)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        shape = Size(sample_shape) + self.batch_shape + self.event_shape
        with torch.no_grad():
            shape_parameter = self.inverse_dispersion.expand(shape).contiguous()
            # torch exposes the seeded Gamma sampler only under this name.
            unit = torch._standard_gamma(shape_parameter, generator=generator)
            return torch.poisson(unit * (self.mean / shape_parameter), generator=generator)


class ZeroInflated(Distribution):
    r"""Any count distribution whose entries are, with probability :math:`\pi`, replaced by zero.

    .. math:: p(x_g) = \pi_g\,1\{x_g = 0\} + (1 - \pi_g)\,p_{base}(x_g),
              \qquad \pi = \mathrm{sigmoid}(\text{logits})

    Parameters
    ----------
    base
        The count distribution: `Poisson`, `NegativeBinomial` or another with `log_mass`.
    logits
        Log-odds of a replaced zero, ``(..., g)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, base: CountDistribution, logits: Tensor, validate_args: bool | None = False
    ) -> None:
        self.base, self.logits = base, logits
        shape = torch.broadcast_shapes(base.batch_shape + base.event_shape, logits.shape)
        super().__init__(Size(shape[:-1]), Size(shape[-1:]), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        keep, drop = torch.sigmoid(-self.logits), torch.sigmoid(self.logits)
        return keep * (self.base.variance + drop * self.base.mean.square())

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroInflated:
        shape = Size(batch_shape) + self.event_shape
        return ZeroInflated(self.base.expand(batch_shape), self.logits.expand(shape))

    def log_mass(self, value: Tensor) -> Tensor:
        """Return log p(x_g) for every entry, ``(..., g)``."""
        return zero_inflate(self.base.log_mass(value), self.logits, value == 0)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_mass(value).sum(-1)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            counts = self.base.expand(self.batch_shape).sample(sample_shape, generator=generator)
            keep = torch.sigmoid(-self.logits).expand_as(counts)
            return counts * torch.bernoulli(keep, generator=generator)
