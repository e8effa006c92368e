"""KL divergences: closed forms, registered with torch, and Monte Carlo where there is none.

`torch.distributions.kl_divergence(q, p)` finds the closed forms, one number per row, in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence, register_kl
from torch.nn.functional import logsigmoid

from scvae.core.distributions import Bernoulli, Categorical, FullGaussian, Gaussian, LogNormal
from scvae.core.distributions.gaussian import whiten
from scvae.core.distributions.mixture import demand_samples, strata
from scvae.core.shapes import broadcast_shape

__all__ = ["Estimate", "closed_form_kl", "kl_divergence", "monte_carlo_kl"]


SOUND = 0.5  # shape of the tail of weights from which they may have no variance


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate of every row, and its standard error, both ``(n,)``.

    Of an estimate by importance sampling, `tail` is the shape of the tail of the weights, ``(n,)``:
    above `SOUND` they may have no variance, the error is too small; above 0.7 so few draws decide
    that the value itself is not to be trusted. NaN where there were too few draws to tell (Vehtari,
    Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", JMLR 2024). `tail_error`
    is its own standard error.

    Examples
    --------
    >>> Estimate(torch.tensor([-3.0]), torch.tensor([0.1])).interval(0.95)
    (tensor([-3.1960]), tensor([-2.8040]))
    """

    value: Tensor
    standard_error: Tensor
    tail: Tensor | None = None
    tail_error: Tensor | None = None

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        r"""Return the ends of an interval that holds the truth at this level, each ``(n,)``.

        The value plus and minus so many standard errors, where the error is to be trusted: by
        importance sampling, where the `tail` of the weights is below `SOUND` by more than its own
        error. Elsewhere what the draws missed has no bound, and the upper end is infinite; the
        lower is :math:`\log \hat p + \log(1 - level)`, as an unbiased estimate of p is rarely far
        above it (Markov's inequality).
        """
        if not 0 < level < 1:
            raise ValueError(f"level={level}, but it must be between 0 and 1")
        width = math.sqrt(2) * torch.erfinv(torch.tensor(level)).item() * self.standard_error
        low, high = self.value - width, self.value + width
        if self.tail is None or self.tail_error is None:
            return low, high
        sound = self.tail + self.tail_error < SOUND
        low = torch.where(sound, low, self.value + math.log1p(-level))
        return low, torch.where(sound, high, math.inf)


@register_kl(Gaussian, Gaussian)
def _kl_gaussian_gaussian(q: Gaussian, p: Gaussian) -> Tensor:
    r"""Return :math:`\sum_d \tfrac12[(\sigma_q/\sigma_p)^2 + ((\mu_q-\mu_p)/\sigma_p)^2 - 1]
    - \log(\sigma_q/\sigma_p)`, one number per row."""
    ratio = q.scale / p.scale
    shift = (q.loc - p.loc) / p.scale
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(-1)


@register_kl(FullGaussian, FullGaussian)
def _kl_full_full(q: FullGaussian, p: FullGaussian) -> Tensor:
    r"""Return :math:`\tfrac12[\|L_p^{-1}L_q\|_F^2 + \|L_p^{-1}(\mu_q-\mu_p)\|^2 - d]
    + \log|L_p| - \log|L_q|`, one number per row."""
    shape = broadcast_shape(q.scale_tril.shape, p.scale_tril.shape)
    factors = (g.scale_tril.expand(shape) for g in (p, q))
    ratio = torch.linalg.solve_triangular(*factors, upper=False)
    shift = whiten(p.scale_tril, q.loc - p.loc)
    squares = ratio.square().sum((-2, -1)) + shift.square().sum(-1)
    return 0.5 * (squares - q.event_shape[0]) + p.half_log_det - q.half_log_det


@register_kl(Gaussian, FullGaussian)
def _kl_diagonal_full(q: Gaussian, p: FullGaussian) -> Tensor:
    return _kl_full_full(FullGaussian.of_diagonal(q), p)


@register_kl(FullGaussian, Gaussian)
def _kl_full_diagonal(q: FullGaussian, p: Gaussian) -> Tensor:
    return _kl_full_full(q, FullGaussian.of_diagonal(p))


@register_kl(LogNormal, LogNormal)
def _kl_log_normal_log_normal(q: LogNormal, p: LogNormal) -> Tensor:
    """Return the KL of the Gaussians of log x: a one-to-one map changes no KL divergence."""
    return _kl_gaussian_gaussian(q.log, p.log)


@register_kl(Bernoulli, Bernoulli)
def _kl_bernoulli_bernoulli(q: Bernoulli, p: Bernoulli) -> Tensor:
    r"""Return :math:`\sum_d \pi_q\log(\pi_q/\pi_p) + (1-\pi_q)\log[(1-\pi_q)/(1-\pi_p)]`."""
    one, zero = torch.sigmoid(q.logits), torch.sigmoid(-q.logits)
    of_one = logsigmoid(q.logits) - logsigmoid(p.logits)
    of_zero = logsigmoid(-q.logits) - logsigmoid(-p.logits)
    return (one * of_one + zero * of_zero).sum(-1)


@register_kl(Categorical, Categorical)
def _kl_categorical_categorical(q: Categorical, p: Categorical) -> Tensor:
    r"""Return :math:`\sum_d \pi_q\log(\pi_q/\pi_p)`; a category that q rules out adds nothing."""
    possible = q.mean > 0
    ratio = torch.where(possible, q.log_probs, 0.0) - torch.where(possible, p.log_probs, 0.0)
    return (q.mean * ratio).sum(-1)


def closed_form_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """Return KL(q || p) of every row, or None where no closed form is registered.

    Examples
    --------
    >>> p, q = (Gaussian(torch.full((3,), loc), torch.ones(3)) for loc in (0.0, 1.0))
    >>> closed_form_kl(q, p), kl_divergence(q, p)  # the second is torch's, and raises for None
    (tensor(1.5000), tensor(1.5000))
    >>> closed_form_kl(q, Mixture(torch.zeros(1), p.expand((1,)))) is None
    True
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def monte_carlo_kl(
    q: Distribution, p: Distribution, samples: int = 1000, generator: Generator | None = None
) -> Estimate:
    r"""Estimate :math:`KL(q\,\|\,p) = E_q[\log q(x) - \log p(x)]` from samples of q.

    Unbiased, and differentiable where q can be sampled so. A mixture is sampled by strata.

    Parameters
    ----------
    q, p
        Any two distributions over the same event.
    samples
        Samples of q, of every component if q is a mixture; at least 2.

    Examples
    --------
    >>> q = Mixture(torch.zeros(2), Gaussian(torch.randn(5, 2, 3), torch.ones(3)))
    >>> monte_carlo_kl(q, Gaussian(torch.zeros(3), torch.ones(3))).value.shape
    torch.Size([5])
    """
    demand_samples(samples, 2)
    shape = broadcast_shape(q.batch_shape, p.batch_shape)
    q = q if q.batch_shape == shape else q.expand(shape)
    x, log_weights = strata(q, samples, generator)
    ratio = q.log_prob(x) - p.log_prob(x)  # (k, c, n)
    weights = log_weights.exp()
    variance = (weights.square() * ratio.var(0)).sum(0) / samples
    return Estimate((weights * ratio.mean(0)).sum(0), variance.sqrt())
