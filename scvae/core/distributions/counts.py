"""Count distributions: Poisson, its detection, negative binomial, and zero inflation of any."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Gamma, Independent, constraints

from scvae.core.distributions.factorised import Factorised, demand_support
from scvae.core.numerics import detected_log_mass, nb_log_mass, poisson_log_mass, zero_inflate
from scvae.core.rows import log_means, nb_log_prob, poisson_log_prob, zinb_log_prob
from scvae.core.shapes import broadcast_shape
from scvae.core.sparse_rows import detected_log_prob


@dataclass(frozen=True)
class Shares:
    r"""Log-means that are shares of a total.

    .. math:: \log\mu = \log\mathrm{softmax}(\text{logits}) + \log l

    A `NegativeBinomial` of them is the same as one of their `log_mean`; its log-probability takes
    the softmax in the same pass over memory as everything else.

    Parameters
    ----------
    logits
        Of the shares, ``(..., h)``.
    log_total
        :math:`\log l`, ``(..., 1)``.
    counted
        How many columns are counted, the first g; the others take their shares of the total, and
        that is all. None counts all.

    Examples
    --------
    >>> shares = Shares(torch.zeros(5, 4), torch.full((5, 1), 100.0).log())
    >>> shares.log_mean.exp().round()[0], shares.shape, shares.expand(torch.Size([7, 5, 4])).shape
    (tensor([25., 25., 25., 25.]), torch.Size([5, 4]), torch.Size([7, 5, 4]))
    """

    logits: Tensor
    log_total: Tensor
    counted: int | None = None

    @property
    def shape(self) -> Size:
        """Of the log-means, ``(..., g)``."""
        width = self.logits.shape[-1] if self.counted is None else self.counted
        batch = broadcast_shape(self.logits.shape[:-1], self.log_total.shape[:-1])
        return Size((*batch, width))

    @property
    def log_mean(self) -> Tensor:
        return log_means(self.logits, self.log_total, self.shape[-1])

    def expand(self, shape: Size) -> Shares:
        """Return the same shares, of log-means of this shape."""
        of_logits, of_total = (
            Size((*shape[:-1], of.shape[-1])) for of in (self.logits, self.log_total)
        )
        return Shares(self.logits.expand(of_logits), self.log_total.expand(of_total), shape[-1])


class _OfMeans(Factorised):
    """Counts by their log-means, or by `Shares`, of which all zeros together cost one sum."""

    arg_constraints: ClassVar[dict[str, Any]] = {"log_mean": constraints.real_vector}

    def __init__(self, log_mean: Tensor | Shares, validate_args: bool | None = False) -> None:
        self._given = log_mean
        shape = Size(log_mean.shape)
        super().__init__(Size(shape[:-1]), Size(shape[-1:]), validate_args=validate_args)

    @property
    def log_mean(self) -> Tensor:
        return self._given.log_mean if isinstance(self._given, Shares) else self._given

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self._given.expand(Size(batch_shape) + self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every row, ``(...)``."""
        given = self._given
        if isinstance(given, Shares) and given.shape[-1] == value.shape[-1]:
            demand_support(self, value)
            return self._row_log_prob(value, given.logits, given.log_total)
        return super().log_prob(value)

    @abstractmethod
    def _row_log_prob(self, value: Tensor, logits: Tensor, log_total: Tensor) -> Tensor:
        """Return log p(x) of every row, by its non-zeros."""


class Poisson(_OfMeans):
    r"""Independent Poisson counts over the last axis, by their log-mean.

    .. math:: \log p(x) = \sum_g x_g \log\mu_g - \mu_g - \log x_g!

    Parameters
    ----------
    log_mean
        :math:`\log\mu`, ``(..., g)``; or `Shares` of a total, of which all zeros together cost one
        sum.

    Examples
    --------
    >>> p = Poisson(torch.zeros(3))
    >>> p.mean, p.variance, p.log_prob(torch.zeros(3))
    (tensor([1., 1., 1.]), tensor([1., 1., 1.]), tensor(-3.))
    >>> p.expand((5,)).sample((7,)).shape
    torch.Size([7, 5, 3])
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean

    def entry_log_prob(self, value: Tensor) -> Tensor:
        return poisson_log_mass(value, self.log_mean)

    def _row_log_prob(self, value: Tensor, logits: Tensor, log_total: Tensor) -> Tensor:
        return poisson_log_prob(value, logits, log_total)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        shape = self._extended(sample_shape)
        with torch.no_grad():
            return torch.poisson(self.mean.expand(shape), generator=generator)


class Detected(_OfMeans):
    r"""Ones where a Poisson count is above zero, else zeros, over the last axis.

    .. math:: \log p(x) = \sum_g x_g \log(e^{\mu_g} - 1) - \mu_g

    Parameters
    ----------
    log_mean
        Of the count, as for `Poisson`.

    Examples
    --------
    >>> p = Detected(torch.zeros(3))
    >>> p.mean, p.variance, p.log_prob(torch.zeros(3))
    (tensor([0.6321, 0.6321, 0.6321]), tensor([0.2325, 0.2325, 0.2325]), tensor(-3.))
    >>> p.expand((5,)).sample((7,)).shape
    torch.Size([7, 5, 3])
    """

    support = constraints.independent(constraints.boolean, 1)

    @property
    def mean(self) -> Tensor:
        return -torch.expm1(-self.log_mean.exp())

    @property
    def variance(self) -> Tensor:
        return self.mean * torch.exp(-self.log_mean.exp())

    def entry_log_prob(self, value: Tensor) -> Tensor:
        return detected_log_mass(value, self.log_mean)

    def _row_log_prob(self, value: Tensor, logits: Tensor, log_total: Tensor) -> Tensor:
        return detected_log_prob(value, logits, log_total)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        shape = self._extended(sample_shape)
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(shape), generator=generator)


class NegativeBinomial(Factorised):
    r"""Independent negative binomial counts over the last axis.

    The Gamma-Poisson mixture with mean :math:`\mu` and inverse dispersion :math:`r`; its variance
    is :math:`\mu + \mu^2 / r`, and it tends to the Poisson as :math:`r \to \infty`.

    Parameters
    ----------
    log_mean, log_inverse_dispersion
        :math:`\log\mu` and :math:`\log r`, broadcast against each other: ``(..., g)``. The
        log-means may be given as `Shares` of a total.

    Examples
    --------
    >>> p = NegativeBinomial(torch.zeros(2), torch.zeros(2))
    >>> p.mean, p.variance, p.rates.mean
    (tensor([1., 1.]), tensor([2., 2.]), tensor([1., 1.]))
    >>> x = torch.zeros(2)
    >>> p.log_prob(x), p.zero_inflated_log_prob(x, torch.zeros(2))
    (tensor(-1.3863), tensor(-0.5754))
    >>> p.expand((5,)).sample((7,)).shape
    torch.Size([7, 5, 2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": constraints.real_vector,
        "log_inverse_dispersion": constraints.real_vector,
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        log_mean: Tensor | Shares,
        log_inverse_dispersion: Tensor,
        validate_args: bool | None = False,
    ) -> None:
        # Kept as they came: a per-gene dispersion costs per gene, not per cell and gene.
        self._given = log_mean
        self.log_inverse_dispersion = log_inverse_dispersion
        shape = broadcast_shape(log_mean.shape, log_inverse_dispersion.shape)
        super().__init__(Size(shape[:-1]), Size(shape[-1:]), validate_args=validate_args)

    @property
    def log_mean(self) -> Tensor:
        return self._given.log_mean if isinstance(self._given, Shares) else self._given

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp().expand(self.batch_shape + self.event_shape)

    @property
    def inverse_dispersion(self) -> Tensor:
        return self.log_inverse_dispersion.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() / self.inverse_dispersion

    @property
    def rates(self) -> Independent:
        r"""The Gamma of Poisson rates whose mixture this is:
        :math:`w_g \sim \mathrm{Gamma}(r_g, r_g / \mu_g),\ x_g \sim \mathrm{Poisson}(w_g)`."""
        shape = self.inverse_dispersion.expand(self.batch_shape + self.event_shape)
        return Independent(Gamma(shape, shape / self.mean, validate_args=False), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        shape = Size(batch_shape) + self.event_shape
        return NegativeBinomial(
            self._given.expand(shape), self.log_inverse_dispersion.expand(shape)
        )

    def entry_log_prob(self, value: Tensor) -> Tensor:
        return nb_log_mass(value, self.log_mean, self.log_inverse_dispersion)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every row, ``(...)``."""
        demand_support(self, value)
        a, total = self._row_parameters
        return nb_log_prob(value, a, self.log_inverse_dispersion, total)

    def zero_inflated_log_prob(self, value: Tensor, logits: Tensor) -> Tensor:
        """Return log p(x) of every row, zero-inflated by log-odds `logits`, ``(...)``."""
        a, total = self._row_parameters
        return zinb_log_prob(value, a, self.log_inverse_dispersion, logits, total)

    @property
    def _row_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return log-means, or else logits of shares and the logarithm of their total."""
        given = self._given
        return (given.logits, given.log_total) if isinstance(given, Shares) else (given, None)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        shape = self._extended(sample_shape)
        with torch.no_grad():
            shape_parameter = self.inverse_dispersion.expand(shape).contiguous()
            # torch exposes the seeded Gamma sampler only under this name.
            unit = torch._standard_gamma(shape_parameter, generator=generator)
            return torch.poisson(unit * (self.mean / shape_parameter), generator=generator)


def NegativeBinomialShares(
    logits: Tensor, log_total: Tensor, log_inverse_dispersion: Tensor
) -> NegativeBinomial:
    """Return ``NegativeBinomial(Shares(logits, log_total), log_inverse_dispersion)``.

    For code that was written when this was a class; as many columns are counted as there are
    dispersions.

    Examples
    --------
    >>> logits, total = torch.zeros(5, 4), torch.full((5, 1), 100.0).log()
    >>> NegativeBinomialShares(logits, total, torch.zeros(4)).mean.round()[0]
    tensor([25., 25., 25., 25.])
    """
    shares = Shares(logits, log_total, log_inverse_dispersion.shape[-1])
    return NegativeBinomial(shares, log_inverse_dispersion)


class ZeroInflated(Factorised):
    r"""Any count distribution whose entries are, with probability :math:`\pi`, replaced by zero.

    .. math:: p(x_g) = \pi_g\,1\{x_g = 0\} + (1 - \pi_g)\,p_{base}(x_g),
              \qquad \pi = \mathrm{sigmoid}(\text{logits})

    Parameters
    ----------
    base
        The count distribution: `Poisson`, `NegativeBinomial` or another.
    logits
        Log-odds of a replaced zero, ``(..., g)``.

    Examples
    --------
    >>> p = ZeroInflated(Poisson(torch.zeros(2)), torch.zeros(2))
    >>> p.mean, p.variance, p.log_prob(torch.zeros(2))
    (tensor([0.5000, 0.5000]), tensor([0.7500, 0.7500]), tensor(-0.7598))
    >>> p.expand((5,)).sample((7,)).shape
    torch.Size([7, 5, 2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, base: Factorised, logits: Tensor, validate_args: bool | None = False
    ) -> None:
        self.base, self.logits = base, logits
        shape = broadcast_shape(base.batch_shape + base.event_shape, logits.shape)
        if base.event_shape != shape[-1:]:
            raise ValueError(
                f"{base.event_shape[0]} counts cannot take {shape[-1]} zero inflations"
            )
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

    def entry_log_prob(self, value: Tensor) -> Tensor:
        return zero_inflate(self.base.entry_log_prob(value), self.logits, value == 0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) of every row, ``(...)``."""
        demand_support(self, value)
        if isinstance(self.base, NegativeBinomial):
            return self.base.zero_inflated_log_prob(value, self.logits)
        return super().log_prob(value)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        with torch.no_grad():
            counts = self.base.expand(self.batch_shape).sample(sample_shape, generator=generator)
            keep = torch.sigmoid(-self.logits).expand_as(counts)
            return counts * torch.bernoulli(keep, generator=generator)
