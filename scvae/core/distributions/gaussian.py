"""Gaussians over the last axis, diagonal and full, and the log-normal."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from scvae.core.distributions.factorised import (
    Factorised,
    Reparameterised,
    demand_support,
    event_last,
)
from scvae.core.numerics import HALF_LOG_2PI
from scvae.core.shapes import broadcast_shape


def standard_normal(shape: Size, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw N(0, 1) of the given shape, in the type and on the device of `like`."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


class Gaussian(Reparameterised, Factorised):
    r"""Normal distribution with diagonal covariance over the last axis.

    .. math:: \log p(x) = -\sum_d \left[\tfrac12 \left(\tfrac{x_d-\mu_d}{\sigma_d}\right)^2
              + \log\sigma_d + \tfrac12\log 2\pi\right]

    Parameters
    ----------
    loc, scale
        Mean and standard deviation, broadcast against each other: ``(..., d)``.

    Examples
    --------
    >>> p = Gaussian(torch.zeros(5, 3), torch.ones(3))
    >>> p.rsample((7,)).shape, p.log_prob(torch.zeros(5, 3)).shape
    (torch.Size([7, 5, 3]), torch.Size([5]))
    >>> p.mean.shape, p.variance[0], p.entropy()[0]
    (torch.Size([5, 3]), tensor([1., 1., 1.]), tensor(4.2568))
    >>> Gaussian(torch.zeros(3), torch.ones(3)).expand((5,)).sample((7,)).shape
    torch.Size([7, 5, 3])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real_vector

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = False) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(*event_last(self.loc), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Gaussian:
        shape = Size(batch_shape) + self.event_shape
        return Gaussian(self.loc.expand(shape), self.scale.expand(shape))

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        noise = standard_normal(self._extended(sample_shape), self.loc, generator)
        return self.loc + self.scale * noise

    def entry_log_prob(self, value: Tensor) -> Tensor:
        standard = (value - self.loc) / self.scale
        return -(0.5 * standard.square() + self.scale.log() + HALF_LOG_2PI)

    def entropy(self) -> Tensor:
        r"""Return :math:`\sum_d \log\sigma_d + \tfrac12\log 2\pi e`, in nats, ``(...)``."""
        return (self.scale.log() + HALF_LOG_2PI + 0.5).sum(-1)


class FullGaussian(Reparameterised):
    r"""Normal distribution with full covariance, by its Cholesky factor.

    .. math:: \log p(x) = -\tfrac12 \|L^{-1}(x - \mu)\|^2 - \sum_d \log L_{dd}
              - \tfrac d2 \log 2\pi, \qquad \Sigma = L L^\top

    Parameters
    ----------
    loc
        Mean, ``(..., d)``.
    scale_tril
        L, lower triangular with a positive diagonal, ``(..., d, d)``.

    Examples
    --------
    >>> p = FullGaussian(torch.zeros(5, 3), torch.eye(3))
    >>> p.log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    >>> p = FullGaussian.of_covariance(torch.zeros(2), torch.tensor([[4.0, 2.0], [2.0, 2.0]]))
    >>> p.mean, p.variance, p.covariance
    (tensor([0., 0.]), tensor([4., 2.]), tensor([[4., 2.],
            [2., 2.]]))
    >>> p.half_log_det, p.entropy()
    (tensor(0.6931), tensor(3.5310))
    >>> p.expand((5,)).rsample((7,)).shape, p.sample((7,)).shape
    (torch.Size([7, 5, 2]), torch.Size([7, 2]))
    >>> p.marginal_log_prob(torch.zeros(2), torch.tensor([True, False]))  # of N(0, 4)
    tensor(-1.6121)
    >>> FullGaussian.of_diagonal(Gaussian(torch.zeros(3), torch.ones(3))).covariance.shape
    torch.Size([3, 3])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = False) -> None:
        shape = broadcast_shape(loc.shape, scale_tril.shape[:-1])
        self.loc = loc.expand(shape)
        self.scale_tril = scale_tril.expand(*shape, shape[-1])
        super().__init__(Size(shape[:-1]), Size(shape[-1:]), validate_args=validate_args)

    @classmethod
    def of_covariance(cls, loc: Tensor, covariance: Tensor) -> FullGaussian:
        """Return N(loc, covariance), for a positive definite covariance ``(..., d, d)``."""
        return cls(loc, torch.linalg.cholesky(covariance))

    @classmethod
    def of_diagonal(cls, p: Gaussian) -> FullGaussian:
        """Return the same distribution as the diagonal Gaussian `p`."""
        return cls(p.loc, torch.diag_embed(p.scale))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale_tril.square().sum(-1)

    @property
    def covariance(self) -> Tensor:
        """Covariance L L', ``(..., d, d)``."""
        return self.scale_tril @ self.scale_tril.mT

    @property
    def half_log_det(self) -> Tensor:
        """Half the logarithm of the determinant of the covariance, ``(...)``."""
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FullGaussian:
        shape = Size(batch_shape) + self.event_shape
        return FullGaussian(self.loc.expand(shape), self.scale_tril.expand(*shape, shape[-1]))

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        shape = Size(sample_shape) + self.batch_shape + self.event_shape
        noise = standard_normal(shape, self.loc, generator)
        return self.loc + (self.scale_tril @ noise[..., None])[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every row, ``(...)``."""
        demand_support(self, value)
        standard = whiten(self.scale_tril, value - self.loc)
        d = self.event_shape[0]
        return -0.5 * standard.square().sum(-1) - self.half_log_det - d * HALF_LOG_2PI

    def marginal_log_prob(self, value: Tensor, observed: Tensor) -> Tensor:
        """Return the log-density of the entries where `observed`, all others integrated out."""
        off = torch.where(observed, value, self.loc) - self.loc
        # An entry not observed becomes an independent N(0, 1) at its mean, then is taken out again.
        # Rows of L, not of the covariance: their products would lose half of the digits.
        rows = torch.where(observed[..., None], self.scale_tril, 0.0)
        unit = torch.diag_embed((~observed).to(off)).expand_as(rows)
        factor = torch.cat([rows, unit], dim=-1)
        filled = FullGaussian(torch.zeros_like(off), _lower_triangular(factor))
        return filled.log_prob(off) + (~observed).sum(-1).to(off) * HALF_LOG_2PI

    def entropy(self) -> Tensor:
        r"""Return :math:`\tfrac12\log\det 2\pi e\,\Sigma`, in nats, ``(...)``."""
        return self.half_log_det + self.event_shape[0] * (HALF_LOG_2PI + 0.5)


def _lower_triangular(factor: Tensor) -> Tensor:
    """Return the Cholesky factor of factor factor' ``(..., d, d)``, for factor ``(..., d, e)``."""
    upper = torch.linalg.qr(factor.mT).R
    signs = upper.diagonal(dim1=-2, dim2=-1).sign()
    return (upper * signs[..., :, None]).mT


def whiten(scale_tril: Tensor, value: Tensor) -> Tensor:
    """Return the inverse of L times `value` ``(..., d)``."""
    shape = broadcast_shape(scale_tril.shape[:-1], value.shape)
    column = value.expand(shape)[..., None]
    return torch.linalg.solve_triangular(scale_tril, column, upper=False)[..., 0]


class LogNormal(Reparameterised, Factorised):
    r"""The exponential of a diagonal Gaussian.

    .. math:: \log p(x) = \sum_d \log N(\log x_d;\, \mu_d, \sigma_d^2) - \log x_d

    Parameters
    ----------
    loc, scale
        Mean and standard deviation of log x, broadcast against each other: ``(..., d)``.

    Examples
    --------
    >>> p = LogNormal(torch.zeros(3), torch.ones(3))
    >>> p.mean, p.variance, p.entropy()
    (tensor([1.6487, 1.6487, 1.6487]), tensor([4.6708, 4.6708, 4.6708]), tensor(4.2568))
    >>> p.log_prob(torch.ones(5, 3)).shape, p.expand((5,)).rsample((7,)).shape, p.sample().shape
    (torch.Size([5]), torch.Size([7, 5, 3]), torch.Size([3]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.independent(constraints.positive, 1)

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = False) -> None:
        self.log = Gaussian(loc, scale)
        self.loc, self.scale = self.log.loc, self.log.scale
        super().__init__(*event_last(self.loc), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return torch.exp(self.loc + 0.5 * self.scale.square())

    @property
    def variance(self) -> Tensor:
        return torch.expm1(self.scale.square()) * self.mean.square()

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogNormal:
        wide = self.log.expand(batch_shape)
        return LogNormal(wide.loc, wide.scale)

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        return self.log.rsample(sample_shape, generator).exp()

    def entry_log_prob(self, value: Tensor) -> Tensor:
        log_value = value.log()
        return self.log.entry_log_prob(log_value) - log_value

    def entropy(self) -> Tensor:
        """Return the entropy of log x plus the mean of log x, in nats, ``(...)``."""
        return self.log.entropy() + self.loc.sum(-1)
