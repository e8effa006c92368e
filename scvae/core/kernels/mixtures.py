r"""Compiled CPU kernels: log-density of a mixture of diagonal Gaussians, and its gradients.

.. math:: \log p(z) = \log \sum_c w_c\,N(z; \mu_c, \mathrm{diag}\,\sigma_c^2)

With the responsibilities :math:`\rho_c = w_c N_c / p`, the gradients are
:math:`-\sum_c \rho_c (z - \mu_c) / \sigma_c^2` in z and, of every component, :math:`\rho_c` in
:math:`\log w_c`, :math:`\rho_c (z - \mu_c) / \sigma_c^2` in its mean, and
:math:`\rho_c [(z - \mu_c)^2 / \sigma_c^2 - 1] / \sigma_c` in its scale.
"""

from __future__ import annotations

import math

import numpy as np

from scvae.core.kernels.arithmetic import compiled, f32, f64, reordered
from scvae.core.kernels.team import claim, entry, matrix, opened

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LEAST = f32(1e-12)  # of a responsibility: less changes no sum of float32


@reordered
def _half_square(z, loc, scale):  # type: ignore[no-untyped-def]
    total = f32(0.0)
    for d in range(z.shape[0]):
        t = (z[d] - loc[d]) / scale[d]
        total += t * t
    return f32(0.5) * total


@compiled
def mixture_rows(start, stop, z, log_w, loc, scale, out, share, d_z):  # type: ignore[no-untyped-def]
    """Write log p of rows of z ``(n, d)`` to `out` ``(n, 1)``, the responsibilities to `share`
    ``(n, c)`` and the derivatives to `d_z` ``(n, d)``.

    `log_w` are log-weights ``(1, c)``, `loc` and `scale` ``(c, d)``.
    """
    n_components, d = loc.shape
    constant = np.empty(n_components, np.float64)
    of_each = np.empty(n_components, np.float64)
    for c in range(n_components):
        constant[c] = f64(log_w[0, c]) - d * HALF_LOG_2PI
        for k in range(d):
            constant[c] -= math.log(f64(scale[c, k]))
    for n in range(start, stop):
        for c in range(n_components):
            of_each[c] = constant[c] - f64(_half_square(z[n], loc[c], scale[c]))
        top = of_each.max()
        total = 0.0
        for c in range(n_components):
            total += math.exp(of_each[c] - top)
        out[n, 0] = f32(top + math.log(total))
        d_z[n] = f32(0.0)
        for c in range(n_components):
            share[n, c] = f32(math.exp(of_each[c] - top) / total)
            if share[n, c] > LEAST:
                for k in range(d):
                    d_z[n, k] -= share[n, c] * (z[n, k] - loc[c, k]) / (scale[c, k] * scale[c, k])


@compiled
def mixture_components(start, stop, z, loc, scale, share, d_loc, d_scale):  # type: ignore[no-untyped-def]
    """Write the gradients of components ``[start, stop)`` to `d_loc` and `d_scale` ``(c, d)``, for
    responsibilities `share` ``(n, c)`` that are weighted by the gradient of every row."""
    for c in range(start, stop):
        d_loc[c], d_scale[c] = f32(0.0), f32(0.0)
        for n in range(z.shape[0]):
            if abs(share[n, c]) > f32(0.0):
                for k in range(z.shape[1]):
                    t = (z[n, k] - loc[c, k]) / scale[c, k]
                    d_loc[c, k] += share[n, c] * t / scale[c, k]
                    d_scale[c, k] += share[n, c] * (t * t - f32(1.0)) / scale[c, k]


@entry
def mixture(pointer):  # type: ignore[no-untyped-def]
    """Run `mixture_rows`."""
    table = opened(pointer)
    z, log_w, loc, scale = (matrix(table, 0), matrix(table, 1), matrix(table, 2), matrix(table, 3))
    start, stop = claim(table)
    while start < stop:
        out, share, d_z = matrix(table, 4), matrix(table, 5), matrix(table, 6)
        mixture_rows(start, stop, z, log_w, loc, scale, out, share, d_z)
        start, stop = claim(table)


@entry
def mixture_gradients(pointer):  # type: ignore[no-untyped-def]
    """Run `mixture_components`."""
    table = opened(pointer)
    z, loc, scale, share = (matrix(table, 0), matrix(table, 1), matrix(table, 2), matrix(table, 3))
    start, stop = claim(table)
    while start < stop:
        mixture_components(start, stop, z, loc, scale, share, matrix(table, 4), matrix(table, 5))
        start, stop = claim(table)
