"""Closed-form KL divergences, registered with torch: `torch.distributions.kl_divergence(q, p)`."""

from __future__ import annotations

from torch import Tensor
from torch.distributions.kl import kl_divergence, register_kl

from scvae.core.distributions import Gaussian

__all__ = ["kl_divergence"]


@register_kl(Gaussian, Gaussian)
def _kl_gaussian_gaussian(q: Gaussian, p: Gaussian) -> Tensor:
    r"""Return :math:`\sum_d \tfrac12[(\sigma_q/\sigma_p)^2 + ((\mu_q-\mu_p)/\sigma_p)^2 - 1]
    - \log(\sigma_q/\sigma_p)`, one number per row."""
    ratio = q.scale / p.scale
    shift = (q.loc - p.loc) / p.scale
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(-1)
