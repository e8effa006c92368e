"""Bounds on log p(x), one number per cell, and the warm-up of the KL weight."""

from __future__ import annotations

import math

from torch import Tensor

from scvae.core.vae import Terms


def elbo(terms: Terms, beta: float = 1.0) -> Tensor:
    r"""Return :math:`E_q[\log p(x|z)] - \beta\,KL(q(z|x)\,\|\,p(z))` of every cell, ``(n,)``.

    The evidence lower bound at ``beta=1`` (Kingma and Welling, "Auto-encoding variational Bayes",
    ICLR 2014); the beta-VAE objective otherwise (Higgins et al., ICLR 2017).
    """
    return terms.log_px.mean(0) - beta * terms.kl


def importance_weighted_bound(terms: Terms) -> Tensor:
    r"""Return :math:`\log \frac1k \sum_k p(x, z_k) / q(z_k | x)` of every cell, ``(n,)``.

    A tighter bound than the ELBO that meets log p(x) as k grows (Burda, Grosse and Salakhutdinov,
    "Importance weighted autoencoders", ICLR 2016).
    """
    weights = terms.log_weight
    return weights.logsumexp(0) - math.log(weights.shape[0])


def warmup(step: int, steps: int) -> float:
    """Return the KL weight at `step`: from 0 to 1 over `steps`, and 1 ever after."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0
