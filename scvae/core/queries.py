"""Questions to a trained VAE: reconstruct, impute, generate, interpolate, and what does not fit.

All answer in evaluation mode and leave the model as it was. Ancestral sampling is `VAE.sample`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from scvae.core.batch import Batch, Minibatch, mapped
from scvae.core.distributions import Mixture
from scvae.core.distributions.mixture import demand_samples, sampled
from scvae.core.inference import moments, refine
from scvae.core.networks import evaluating
from scvae.core.objectives import elbo, log_evidence
from scvae.core.vae import VAE

CHUNK = 100  # samples decoded at a time


@torch.no_grad()
def reconstruct(
    vae: VAE, batch: Minibatch, samples: int = 10, generator: Generator | None = None
) -> Any:
    """Return the posterior mean of the decoded means, E_q[E[x | z]], ``(n, g)``; of every one of
    several parts, of those that are absent, too.

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 16), Head(16, 8, BERNOULLI))
    >>> vae, batch = VAE(StandardNormal(2), posterior, likelihood), Batch(torch.ones(5, 8))
    >>> reconstruct(vae, batch).shape
    torch.Size([5, 8])
    """
    demand_samples(samples)
    with evaluating(vae):
        z = sampled(vae.encode(batch).sample, (samples,), generator)
        return mapped(vae.decode(z, batch).mean, lambda mean: mean.mean(0))


def impute(
    vae: VAE,
    batch: Batch,
    samples: int = 1000,
    *,
    steps: int = 200,
    generator: Generator | None = None,
) -> Tensor:
    r"""Return `x` with its missing entries replaced by :math:`E[x_{mis} \mid x_{obs}]`, ``(n, g)``.

    The posterior is fitted to the observed entries alone (`refine`), then corrected by importance
    weights on the same entries (Mattei and Frellsen, "MIWAE", ICML 2019):

    .. math:: E[x_{mis} \mid x_{obs}] \approx \sum_k \tilde w_k\,E[x_{mis} \mid z_k], \qquad
              w_k = p(x_{obs}, z_k) / q(z_k)

    ``batch.observed`` marks the observed entries; what stands at the others does not matter.

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 16), Head(16, 8, BERNOULLI))
    >>> vae = VAE(StandardNormal(2), posterior, likelihood)
    >>> seen = torch.arange(8) < 6
    >>> filled = impute(vae, Batch(torch.ones(5, 8), observed=seen.expand(5, 8)), 100, steps=20)
    >>> filled.shape, bool((filled[:, :6] == 1).all())
    (torch.Size([5, 8]), True)
    """
    if batch.observed is None:
        raise ValueError("Nothing is missing: mark what was seen, Batch(x, observed=mask)")
    demand_samples(samples)
    q = refine(vae, batch, steps=steps, generator=generator)
    with evaluating(vae), torch.no_grad():
        # By chunks, twice: what is decoded is wide, a weight is one number.
        parts = q.sample((samples,), generator=generator).split(CHUNK)
        log_weight = torch.cat([vae.terms_at(z, q, batch).log_weight for z in parts])
        weights = torch.softmax(log_weight, dim=0)[..., None].split(CHUNK)
        decoded = zip(weights, parts, strict=True)
        mean = sum((w * vae.decode(z, batch).mean).sum(0) for w, z in decoded)
    return torch.where(batch.observed, batch.x, mean)


@torch.no_grad()
def aggregated_posterior(vae: VAE, batch: Batch) -> Mixture:
    r"""Return :math:`\frac1n \sum_n q(z \mid x_n)`, batch shape ``()``: where the data live.

    Samples of it decode to what the model has seen; those of the prior may fall between.

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 16), Head(16, 8, BERNOULLI))
    >>> vae, batch = VAE(StandardNormal(2), posterior, likelihood), Batch(torch.ones(5, 8))
    >>> aggregated_posterior(vae, batch).sample((7,)).shape
    torch.Size([7, 2])
    """
    with evaluating(vae):
        q = vae.encode(batch)
    return Mixture(torch.zeros(len(batch)).to(batch.x), q)


def interpolate(
    start: Tensor, end: Tensor, steps: int, path: Literal["linear", "spherical"] = "linear"
) -> Tensor:
    r"""Return `steps` latent points from `start` to `end` ``(..., d)``, ``(steps, ..., d)``.

    The spherical path keeps to the shell where N(0, I) has its mass in many dimensions, which the
    straight one leaves (White, "Sampling generative networks", 2016). Its direction turns on the
    sphere, :math:`\sin((1-t)\omega)\,\hat a + \sin(t\omega)\,\hat b` with the angle
    :math:`\omega` between a and b, and its length goes evenly from that of a to that of b.

    Examples
    --------
    >>> start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> interpolate(start, end, steps=3)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000]])
    >>> interpolate(start, end, steps=3, path="spherical")
    tensor([[1.0000, 0.0000],
            [0.7071, 0.7071],
            [0.0000, 1.0000]])
    """
    start, end = torch.broadcast_tensors(start, end)
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    t = t.view(steps, *[1] * start.dim())
    straight = (1 - t) * start + t * end
    if path == "linear":
        return straight
    if path != "spherical":
        raise ValueError(f"path={path!r} is not known; give 'linear' or 'spherical'")
    one, other = normalize(start, dim=-1), normalize(end, dim=-1)
    # Not by the cosine, which loses the digits of angles near 0 and pi.
    apart, along = ((v.norm(dim=-1, keepdim=True)) for v in (one - other, one + other))
    angle = 2 * torch.atan2(apart, along)
    sine = torch.sin(angle)
    flat = sine.abs() < 1e-4
    turned = torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * other
    length = (1 - t) * start.norm(dim=-1, keepdim=True) + t * end.norm(dim=-1, keepdim=True)
    return torch.where(flat, straight, length * normalize(turned, dim=-1))


def surprise(
    vae: VAE, batch: Batch, samples: int = 1000, generator: Generator | None = None
) -> Tensor:
    """Return -log p(x) of every cell, ``(n,)``, in nats: high for what the model finds unlikely.

    Simple inputs may be likelier than any of the training data (Nalisnick et al., "Do deep
    generative models know what they don't know?", ICLR 2019); `likelihood_regret` and `atypicality`
    were made for that case.

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 16), Head(16, 8, BERNOULLI))
    >>> vae, batch = VAE(StandardNormal(2), posterior, likelihood), Batch(torch.ones(5, 8))
    >>> surprise(vae, batch, samples=100).shape
    torch.Size([5])
    """
    return -log_evidence(vae, batch, samples, generator).value


def atypicality(log_px: Tensor, of_training: Tensor) -> Tensor:
    r"""Return :math:`|\log p(x) - m| / s`, with mean m and deviation s over training data.

    Far above is as strange as far below (Nalisnick et al., "Detecting out-of-distribution inputs
    to deep generative models using typicality", 2019).

    Examples
    --------
    >>> atypicality(torch.tensor([-9.0, -5.0]), of_training=torch.tensor([-6.0, -5.0, -4.0]))
    tensor([4., 0.])
    """
    return (log_px - of_training.mean()).abs() / of_training.std()


def likelihood_regret(
    vae: VAE,
    batch: Batch,
    samples: int = 100,
    *,
    steps: int = 200,
    generator: Generator | None = None,
) -> Tensor:
    """Return how much the ELBO of every cell rises when its posterior is refined, ``(n,)``.

    Both posteriors are diagonal Gaussians, the first with the moments of the encoder's. The encoder
    knows the training data well and little else (after Xiao, Yan and Amit, "Likelihood regret",
    NeurIPS 2020, who refine the whole encoder for every input).

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 16), Head(16, 8, BERNOULLI))
    >>> vae, batch = VAE(StandardNormal(2), posterior, likelihood), Batch(torch.ones(5, 8))
    >>> likelihood_regret(vae, batch, steps=20).shape
    torch.Size([5])
    """
    demand_samples(samples)
    refined = refine(vae, batch, steps=steps, generator=generator)
    with evaluating(vae), torch.no_grad():
        bounds = [
            elbo(vae.terms_at(q.sample((samples,), generator=generator), q, batch))
            for q in (refined, moments(vae.encode(batch)))
        ]
    return bounds[0] - bounds[1]
