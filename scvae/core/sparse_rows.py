r"""Log-probabilities of rows that are nearly all zeros, by their non-zeros and one sum.

Where means are shares of a total, :math:`\mu_g = l\,\mathrm{softmax}(a)_g`, and a zero has
:math:`\log p(0) = -\mu_g`, no zero needs a number of its own:

.. math:: \log p(x) = \sum_{x_g > 0} [\log p(x_g) + \mu_g] - \sum_g \mu_g,

whose last sum is l, less the share of what is not counted. Where non-zeros cannot be looked up
without stalling the device, or are many, every entry is taken: the difference of large sums would
lose digits that float32 does not have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scvae.core.gradients import is_transformed, promoted
from scvae.core.numerics import detected_log_mass, poisson_log_mass
from scvae.core.shapes import broadcast_shape

SPARSE = 0.25  # share of non-zeros up to which the zeros are taken together


def poisson_log_prob(x: Tensor, a: Tensor, log_total: Tensor) -> Tensor:
    r"""Return log p of Poisson counts ``(..., g)`` that share a total, ``(...)``.

    Parameters
    ----------
    x
        Counts, ``(..., g)``.
    a
        Logits of the shares, ``(..., h)``, of which the first g are counted.
    log_total
        Logarithm of the total, ``(..., 1)``.
    """
    return _row_law(x, a, log_total, poisson_log_mass)


def detected_log_prob(x: Tensor, a: Tensor, log_total: Tensor) -> Tensor:
    """Return log p of zeros and ones that tell whether such counts are above zero, ``(...)``."""
    return _row_law(x, a, log_total, detected_log_mass)


def _row_law(
    x: Tensor, a: Tensor, log_total: Tensor, of_entry: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    x, a, log_total = promoted(x, a, log_total)
    g, h = x.shape[-1], a.shape[-1]
    # What is subtracted from all logits, so that they are log-means.
    norm = torch.logsumexp(a, dim=-1, keepdim=True)
    batch = broadcast_shape(x.shape[:-1], a.shape[:-1], log_total.shape[:-1])
    flat = x.expand(*batch, g).reshape(-1)
    where = None if x.device.type != "cpu" or is_transformed() else flat.nonzero().squeeze(-1)
    if where is None or len(where) > SPARSE * len(flat):
        log_mean = a[..., :g] + (log_total - norm)
        return of_entry(x, log_mean).sum(-1)
    row = where // g
    shift = (log_total - norm).expand(*batch, 1).reshape(-1)
    logits = a.expand(*batch, h).reshape(-1)
    log_mean = logits.gather(0, where + row * (h - g)) + shift.gather(0, row)
    log_sum = log_total[..., 0]
    if g < h:
        log_sum = log_sum + torch.logsumexp(a[..., :g], dim=-1) - norm[..., 0]
    total = shift.new_zeros(batch.numel())
    total = total.index_add(0, row, of_entry(flat[where], log_mean) + log_mean.exp())
    return total.view(batch) - log_sum.exp()
