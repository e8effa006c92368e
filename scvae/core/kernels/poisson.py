r"""Compiled CPU kernel: rows of Poisson counts that share a total, by one exponential an entry.

.. math:: \log p(x) = \sum_{x_g > 0} (x_g \log\mu_g - \log x_g!) - \sum_g \mu_g, \qquad
          \mu = l\,\mathrm{softmax}(a), \qquad
          \frac{\partial \log p(x)}{\partial \log\mu_g} = x_g - \mu_g

The zeros, nearly all entries of chromatin, cost no logarithm.
"""

from __future__ import annotations

import math

import numpy as np

from scvae.core.kernels.arithmetic import LARGEST, compiled, exp, f32, f64, largest_of, sum_of
from scvae.core.kernels.counts import LOG_FACTORIAL, SHORT
from scvae.core.kernels.products import nonzero
from scvae.core.kernels.team import claim, entry, matrix, opened


@compiled
def _log_factorial(x):  # type: ignore[no-untyped-def]
    is_short = 0.0 <= x <= SHORT and x == math.floor(x)
    return LOG_FACTORIAL[int(x)] if is_short else math.lgamma(x + 1.0)


@compiled
def poisson_rows(start, stop, x, a, log_total, out, d_a, d_total):  # type: ignore[no-untyped-def]
    """Write log p of every row to `out` ``(n, 1)``, and its derivatives in `a` and `log_total`.

    `x` is ``(n, g)``, the logits `a` of the shares are ``(n, g)`` or more columns, of which the
    first g are counted, and `log_total` is ``(n, 1)``; all float32.
    """
    g, width = x.shape[1], a.shape[1]
    part, where = np.empty(width, np.float32), np.empty(g + 1, np.int32)
    for n in range(start, stop):
        top = largest_of(a[n])
        for j in range(width):
            part[j] = exp(a[n, j] - top)
        whole = sum_of(part, 0.0)
        total = math.exp(f64(min(log_total[n, 0], LARGEST)))
        expected = total * (sum_of(part[:g], 0.0) / whole if g < width else 1.0)
        to_log_mean = f64(log_total[n, 0]) - f64(top) - math.log(whole)
        found, mass, counted = nonzero(x[n], where), -expected, 0.0
        for i in range(found):
            count = f64(x[n, where[i]])
            mass += count * (f64(a[n, where[i]]) + to_log_mean) - _log_factorial(count)
            counted += count
        out[n, 0], d_total[n, 0] = mass, counted - expected
        # d log p / d log mean = x - mean, of what is counted, and through the softmax to the logits
        through = f32((counted - expected) / whole)
        own = f32(total / whole) + through
        for j in range(g):
            d_a[n, j] = -part[j] * own
        for j in range(g, width):
            d_a[n, j] = -part[j] * through
        for i in range(found):
            d_a[n, where[i]] += x[n, where[i]]


@entry
def poisson(pointer):  # type: ignore[no-untyped-def]
    """Run `poisson_rows`."""
    table = opened(pointer)
    x, a, log_total = matrix(table, 0), matrix(table, 1), matrix(table, 2)
    out, d_a, d_total = matrix(table, 3), matrix(table, 4), matrix(table, 5)
    start, stop = claim(table)
    while start < stop:
        poisson_rows(start, stop, x, a, log_total, out, d_a, d_total)
        start, stop = claim(table)
