r"""Bounds on log p(x), one number per cell, and estimates of log p(x) itself.

All are made of the `Terms` of a minibatch. At the exact posterior every bound is tight; elsewhere
:math:`\log p(x) - ELBO = KL(q(z|x)\,\|\,p(z|x))`.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from scvae.core.batch import Minibatch
from scvae.core.distributions.mixture import demand_samples, sampled
from scvae.core.kl import Estimate
from scvae.core.networks import evaluating
from scvae.core.vae import VAE, Terms


def elbo(terms: Terms, beta: float | Tensor = 1.0, *, sampled_kl: bool = False) -> Tensor:
    r"""Return :math:`E_q[\log p(x|z)] - \beta\,KL(q(z|x)\,\|\,p(z))` of every cell, ``(n,)``.

    The evidence lower bound at ``beta=1`` (Kingma and Welling, "Auto-encoding variational Bayes",
    ICLR 2014); the beta-VAE objective otherwise (Higgins et al., ICLR 2017). The KL is the closed
    form where there is one; with `sampled_kl`, always the mean over the samples of z.

    Examples
    --------
    >>> prior, one = Gaussian(torch.zeros(2), torch.ones(2)), torch.ones(5, 2)
    >>> q = Gaussian(one, one)
    >>> terms = Terms(q.rsample((7,)), q, prior, log_px=torch.full((7, 5), -3.0))
    >>> elbo(terms)[0], elbo(terms, beta=0.5)[0]
    (tensor(-4.), tensor(-3.5000))
    """
    return terms.reconstruction - beta * (terms.sampled_kl if sampled_kl else terms.kl)


def importance_weighted_bound(terms: Terms) -> Tensor:
    r"""Return :math:`\log \frac1k \sum_k p(x, z_k) / q(z_k | x)` of every cell, ``(n,)``.

    A tighter bound than the ELBO that meets log p(x) as k grows (Burda, Grosse and Salakhutdinov,
    "Importance weighted autoencoders", ICLR 2016). Over strata of a mixture, every weight counts
    by the share of its component (Morningstar et al., AISTATS 2021).

    Examples
    --------
    >>> q = prior = Gaussian(torch.zeros(5, 2), torch.ones(2))
    >>> terms = Terms(q.rsample((7,)), q, prior, log_px=torch.full((7, 5), -3.0))
    >>> importance_weighted_bound(terms).round()[0]
    tensor(-3.)
    """
    weights = terms.log_weight
    if terms.log_share is None:
        return weights.logsumexp(0) - math.log(weights.shape[0])
    return (weights + terms.log_share).logsumexp(0)


def score_function_elbo(
    vae: VAE, batch: Minibatch, samples: int = 10, generator: Generator | None = None
) -> Tensor:
    r"""Return the ELBO of every cell, ``(n,)``, with the score-function gradient in q.

    .. math:: \nabla_\phi ELBO = E_q\left[(\log w(z) - b)\,\nabla_\phi \log q_\phi(z | x)\right],
              \qquad w = p(x, z) / q(z|x)

    The baseline b of a sample is the mean of the others, which leaves the gradient unbiased. It
    needs no derivative through z, which may be discrete, at the price of a far larger variance
    than reparameterisation (Williams, "Simple statistical gradient-following algorithms", 1992;
    Mnih and Rezende, ICML 2016). `samples` is at least 2.

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 3, CATEGORICAL))
    >>> likelihood = Decoder(MLP(3, 16), Head(16, 8, BERNOULLI))
    >>> vae = VAE(lambda batch: Categorical(torch.zeros(3)), posterior, likelihood)
    >>> score_function_elbo(vae, Batch(torch.ones(5, 8))).mean().backward()
    """
    demand_samples(samples, 2)  # the baseline of one is the mean of the others
    q = vae.encode(batch)
    terms = vae.terms_at(sampled(q.sample, (samples,), generator), q, batch)
    log_q = terms.log_q
    signal = terms.log_px + terms.log_prior - log_q.detach()
    others = (signal.sum(0) - signal) / (samples - 1)
    score = (signal - others).detach() * log_q
    return signal.mean(0) + (score - score.detach()).mean(0)


@torch.no_grad()
def log_evidence(
    vae: VAE,
    batch: Minibatch,
    samples: int = 1000,
    generator: Generator | None = None,
    *,
    naive: bool = False,
    chunk: int = 100,
) -> Estimate:
    r"""Estimate :math:`\log p(x) = \log E_{r(z)}[p(x, z) / r(z)]` of every cell by sampling.

    Parameters
    ----------
    samples
        Draws of z, `chunk` at a time.
    naive
        Draw from the prior instead of the posterior: right in the limit, and hopeless in more
        than a few dimensions, because hardly a draw explains x.

    Returns
    -------
    Estimate
        In nats, and its standard error by the delta method, which is too small where few draws
        carry all the weight, as they do where the posterior is too narrow: `tail` tells, and
        `Estimate.interval` covers. The estimate errs downwards on average.

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 16), Head(16, 8, BERNOULLI))
    >>> vae = VAE(StandardNormal(2), posterior, likelihood)
    >>> found = log_evidence(vae, Batch(torch.ones(5, 8)), samples=200)
    >>> found.value.shape, found.standard_error.shape
    (torch.Size([5]), torch.Size([5]))
    """
    demand_samples(samples)
    demand_samples(chunk)
    parts = []
    with evaluating(vae):
        proposal = vae.prior(batch) if naive else vae.encode(batch)
        for part in torch.arange(samples).split(chunk):
            z = sampled(proposal.sample, (len(part),), generator)
            parts.append(vae.terms_at(z, proposal, batch).log_weight)
    log_weight = torch.cat(parts)
    total, squares = log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)
    relative = torch.exp(squares - 2 * total) - 1 / samples  # (mean w^2 / (mean w)^2 - 1) / k
    unbiased = samples / (samples - 1) if samples > 1 else math.nan  # one draw has no spread
    error = (relative.clamp(min=0) * unbiased).sqrt()
    tail = tail_shape(log_weight)
    tail_error = (1 + tail.clamp(min=0)) / math.sqrt(max(1, _in_tail(samples)))
    return Estimate(total - math.log(samples), error, tail, tail_error)


def _in_tail(samples: int) -> int:
    """Return how many of the largest weights the shape of their tail is estimated from."""
    return min(samples // 5, math.ceil(3 * math.sqrt(samples)))


def tail_shape(log_weight: Tensor) -> Tensor:
    """Return the shape of the generalised Pareto law of the largest weights, from their logarithms
    ``(k, n)``, ``(n,)``; NaN where they are fewer than 5.

    By the nearly Bayesian estimate of Zhang and Stephens, "A new and efficient estimation method
    for the generalized Pareto distribution", Technometrics 2009, drawn to 0.5 by ten observations.
    """
    k = len(log_weight)
    m = _in_tail(k)
    if m < 5:
        return torch.full_like(log_weight[0], math.nan)
    largest = (log_weight - log_weight.amax(0)).double().topk(m + 1, dim=0).values.flip(0).exp()
    x = (largest[1:] - largest[0]).clamp(min=1e-15)  # rises; the largest weight is 1
    grid = torch.arange(30 + math.isqrt(m), device=x.device) + 0.5
    spread = 1 - (len(grid) / grid).sqrt()
    slopes = spread[:, None] / (3 * x[(m + 2) // 4 - 1]) + 1 / x[-1]  # (grid, n)
    shapes = torch.log1p(-slopes[:, None] * x).mean(1)
    fit = m * (torch.log(-slopes / shapes) - shapes - 1)
    slope = (torch.softmax(fit, 0) * slopes).sum(0)
    shape = torch.log1p(-slope * x).mean(0)
    return ((m * shape + 5) / (m + 10)).to(log_weight)


def scale_to_dataset(per_cell: Tensor, n_cells: int) -> Tensor:
    r"""Return :math:`\frac NB \sum_{n \in batch} f_n`: unbiased for the sum over all N cells.

    Examples
    --------
    >>> scale_to_dataset(torch.ones(5), n_cells=100)
    tensor(100.)
    """
    return per_cell.sum() * (n_cells / len(per_cell))


def warmup(step: int, steps: int) -> float:
    """Return the KL weight at `step`: from 0 to 1 over `steps`, and 1 ever after.

    Examples
    --------
    >>> [warmup(step, steps=4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0
