r"""Compiled CPU kernels: the log-mass of rows of counts and its gradients in one pass over memory.

What `numerics` computes elementwise with torch in about forty passes, these compute in one, for
float32 on the CPU: the value of every row and the derivative at every entry together. `numerics` is
their oracle. 85 to 97 % of the entries are zero, and a zero needs one exponential and one
logarithm, which the compiler turns into vector instructions because they are written out here as
polynomials. At a count x up to `SHORT`, the gamma functions are products of x factors,

.. math:: \frac{\Gamma(x + r)}{\Gamma(r)} = \prod_{i < x} (r + i),
          \qquad \psi(x + r) - \psi(r) = \sum_{i < x} \frac{1}{r + i},

in float64; larger counts are rare and rise from there by Stirling's series.

Kernels take contiguous arrays, rows ``[start, stop)``, and release Python's lock, so that threads
share the rows.
"""

from __future__ import annotations

import math

import numpy as np

from scvae.core.kernels.arithmetic import (
    LARGEST,
    compiled,
    exp,
    f32,
    f64,
    largest_of,
    log,
    log1p,
    log_exact,
    sum_of,
)
from scvae.core.kernels.products import nonzero
from scvae.core.kernels.team import claim, entry, matrix, opened

SHORT = 16
LARGE = 1000.0  # counts from which the digits of a mean in float32 no longer suffice
LANES = 32  # counts taken at a time
LARGEST_R = 1e18  # beyond, the counts are Poisson to the last digit of float64
LOG_FACTORIAL = np.array([math.lgamma(x + 1.0) for x in range(SHORT + 1)])


@compiled
def _log1p_exact(t):  # type: ignore[no-untyped-def]
    u = 1.0 + t
    return math.log(u) + (t - (u - 1.0)) / u


@compiled
def _stirling(y):  # type: ignore[no-untyped-def]
    """Return what the gamma and the digamma function add to Stirling's formula, for y >= 16."""
    i = 1.0 / y
    t = i * i
    of_gamma = i * (1 / 12 - t * (1 / 360 - t * (1 / 1260 - t / 1680)))
    of_digamma = -0.5 * i - t * (1 / 12 - t * (1 / 120 - t * (1 / 252 - t / 240)))
    return of_gamma, of_digamma


@compiled
def _rise(y, d):  # type: ignore[no-untyped-def]
    """Return by how much log-gamma and digamma rise from y >= 16 to y + d."""
    log_ratio = _log1p_exact(d / y)
    to_gamma, to_digamma = _stirling(y + d)
    from_gamma, from_digamma = _stirling(y)
    of_gamma = (y - 0.5) * log_ratio + d * (math.log(y + d) - 1.0) + to_gamma - from_gamma
    return of_gamma, log_ratio + to_digamma - from_digamma


@compiled
def _long(x, r):  # type: ignore[no-untyped-def]
    """Return log[Gamma(x + r) / Gamma(r)] - log x! and its derivative in r, less those at SHORT."""
    of_gamma, of_digamma = _rise(r + SHORT, x - SHORT)
    return of_gamma - _rise(1.0 + SHORT, x - SHORT)[0], of_digamma


@compiled
def _in_full(log_mean, r):  # type: ignore[no-untyped-def]
    """Return log(mean / (r + mean)) and log NB(0), of a log-mean with all its digits."""
    odds = math.exp(min(log_mean, 700.0)) / r
    return log_mean - math.log(r) - math.log(1.0 + odds), -r * _log1p_exact(odds)


@compiled
def _rises(count, r, rise, slope):  # type: ignore[no-untyped-def]
    """Write log[Gamma(x + r) / Gamma(r)] and its derivative in r for counts x up to `SHORT`."""
    lanes, longest = count.shape[0], 0.0
    for i in range(lanes):
        longest = max(longest, count[i])
        rise[i], slope[i] = 1.0, 0.0
    for k in range(min(int(longest), SHORT)):
        for i in range(lanes):
            factor, product = r[i] + k, rise[i]
            goes_on = k < count[i]
            slope[i] = slope[i] * factor + product if goes_on else slope[i]
            rise[i] = product * factor if goes_on else product
    for i in range(lanes):
        slope[i] /= rise[i]
        rise[i] = log_exact(rise[i])


@compiled
def _positive(x, where, found, a, shift, mean, r, zero, mass, d_a, d_r):  # type: ignore[no-untyped-def]
    """Write log NB(x) of one row at its positive counts, and its derivatives in log-mean and log r.

    `where` are the positions of the `found` counts, a + `shift` their log-means, and `zero` is
    log NB(0). `LANES` counts are taken at a time, in float64, so that they fill vector registers.
    """
    count, of_mean, of_r = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    rise, slope = np.empty(LANES), np.empty(LANES)
    of_total, log_of_total = np.empty(LANES), np.empty(LANES)
    for start in range(0, found, LANES):
        lanes = min(LANES, found - start)
        for i in range(lanes):
            j = where[start + i]
            count[i], of_mean[i], of_r[i] = f64(x[j]), f64(mean[j]), min(f64(r[j]), LARGEST_R)
        for i in range(lanes):
            of_total[i] = 1.0 / (of_r[i] + of_mean[i])
            log_of_total[i] = log_exact(of_total[i])
        _rises(count[:lanes], of_r[:lanes], rise[:lanes], slope[:lanes])
        for i in range(lanes):
            j, n = where[start + i], count[i]
            if n > SHORT:
                further, steeper = _long(n, of_r[i])
                rise[i] += further
                slope[i] += steeper
            at_zero, excess = f64(zero[j]), (n - of_mean[i]) * of_total[i]
            log_odds = f64(a[j]) + shift + log_of_total[i]
            log_zero = at_zero
            if n > LARGE or a[j] + shift > LARGEST:
                log_odds, log_zero = _in_full(f64(a[j]) + shift, of_r[i])
            mass[j] = rise[i] - LOG_FACTORIAL[max(0, min(int(n), SHORT))] + n * log_odds + log_zero
            d_a[j] = of_r[i] * excess
            d_r[j] = of_r[i] * (slope[i] - excess) + at_zero


@compiled
def _means(a, log_total, mean):  # type: ignore[no-untyped-def]
    """Write the means of one row to `mean` and return the logarithm of what they were scaled by.

    Without `log_total`, `a` are log-means. With it, they are logits of shares of that total.
    """
    if log_total.shape[0] == 0:
        for j in range(mean.shape[0]):
            mean[j] = exp(min(a[j], LARGEST))
        return 0.0
    top = largest_of(a)
    for j in range(mean.shape[0]):
        mean[j] = exp(a[j] - top)
    total = f64(sum_of(mean, f32(0.0)))
    scale = f32(math.exp(f64(min(log_total[0], LARGEST))) / total)
    for j in range(mean.shape[0]):
        mean[j] *= scale
    return f64(log_total[0]) - f64(top) - math.log(total)


@compiled
def _through_shares(mean, log_total, d_a, d_total):  # type: ignore[no-untyped-def]
    """Take derivatives in one row of log-means on to the logits of the shares and to the total."""
    if log_total.shape[0] == 0:
        return
    d_total[0] = sum_of(d_a, f32(0.0))
    of_share = f32(f64(d_total[0]) / math.exp(f64(min(log_total[0], LARGEST))))
    for j in range(mean.shape[0]):
        d_a[j] -= mean[j] * of_share


@compiled
def _inverse(n, start, r, of_r):  # type: ignore[no-untyped-def]
    """Return which row of `r` holds for row n, with 1 / r written to `of_r`."""
    k = n if r.shape[0] > 1 else 0
    if k > 0 or n == start:
        for j in range(of_r.shape[0]):
            of_r[j] = f32(1.0) / r[k, j]
    return k


@compiled
def nb_rows(start, stop, x, a, log_total, r, out, d_a, d_total, d_r):  # type: ignore[no-untyped-def]
    """Write log NB(x) of every row to `out` ``(n, 1)``, and its derivatives in `a`, in the
    logarithm of the total ``(n, 1)`` and in log r ``(n, g)``.

    All are float32. Log-means `a` are ``(n, g)``, and `log_total` is ``(n, 0)``; or else `a` are
    logits of shares of a total, ``(n, g)`` or more columns, of which the first g are counted, and
    `log_total` is ``(n, 1)``. The inverse dispersion `r` is ``(1 or n, g)``.
    """
    g = x.shape[1]
    mass, where = np.empty(g, np.float32), np.empty(g + 1, np.int32)
    mean, of_r = np.empty(a.shape[1], np.float32), np.empty(g, np.float32)
    for n in range(start, stop):
        k = _inverse(n, start, r, of_r)
        shift = _means(a[n], log_total[n], mean)
        for j in range(g):
            ratio = mean[j] * of_r[j]
            of_sum = f32(1.0) / (f32(1.0) + ratio)
            zero, slope = -r[k, j] * log1p(ratio, of_sum), mean[j] * of_sum
            mass[j] = zero
            d_a[n, j] = -slope
            d_r[n, j] = zero + slope
        d_a[n, g:] = f32(0.0)
        found = nonzero(x[n], where)
        _positive(x[n], where, found, a[n], shift, mean, r[k], mass, mass, d_a[n], d_r[n])
        out[n, 0] = sum_of(mass, 0.0)
        _through_shares(mean, log_total[n], d_a[n], d_total[n])


@compiled
def zinb_rows(start, stop, x, a, log_total, r, logits, out, d_a, d_total, d_r, d_logits):  # type: ignore[no-untyped-def]
    """Do as `nb_rows` for counts that are, with log-odds `logits` ``(n, g)``, replaced by 0."""
    g = x.shape[1]
    mass, where = np.empty(g, np.float32), np.empty(g + 1, np.int32)
    mean, of_r = np.empty(a.shape[1], np.float32), np.empty(g, np.float32)
    zeros, gates = np.empty(g, np.float32), np.empty(g, np.float32)
    log_kept = np.empty(g, np.float32)  # log(1 - pi)
    for n in range(start, stop):
        k = _inverse(n, start, r, of_r)
        shift = _means(a[n], log_total[n], mean)
        for j in range(g):
            h = logits[n, j]
            ratio = mean[j] * of_r[j]
            of_sum = f32(1.0) / (f32(1.0) + ratio)
            zero, slope = -r[k, j] * log1p(ratio, of_sum), mean[j] * of_sum
            # log p(0) = max(h, m) + log(1 + e^-|h - m|) + log(1 - pi), m = log NB(0)
            at_zero, at_one = exp(-abs(h - zero)), exp(-abs(h))
            share, of_one = f32(1.0) / (f32(1.0) + at_zero), f32(1.0) / (f32(1.0) + at_one)
            keep = share * at_zero if h > zero else share
            drop = share if h > zero else share * at_zero
            gate = of_one if h > f32(0.0) else of_one * at_one
            log_kept[j] = -max(h, f32(0.0)) - log(f32(1.0) + at_one)
            mass[j] = max(h, zero) + log(f32(1.0) + at_zero) + log_kept[j]
            zeros[j], gates[j] = zero, gate
            d_a[n, j] = -keep * slope
            d_r[n, j] = keep * (zero + slope)
            d_logits[n, j] = drop - gate
        d_a[n, g:] = f32(0.0)
        found = nonzero(x[n], where)
        _positive(x[n], where, found, a[n], shift, mean, r[k], zeros, mass, d_a[n], d_r[n])
        for i in range(found):
            j = where[i]
            mass[j] += log_kept[j]
            d_logits[n, j] = -gates[j]
        out[n, 0] = sum_of(mass, 0.0)
        _through_shares(mean, log_total[n], d_a[n], d_total[n])


@entry
def nb(pointer):  # type: ignore[no-untyped-def]
    """Run `nb_rows`."""
    table = opened(pointer)
    x, a, log_total, r = matrix(table, 0), matrix(table, 1), matrix(table, 2), matrix(table, 3)
    start, stop = claim(table)
    while start < stop:
        out, d_a, d_total, d_r = (
            matrix(table, 4),
            matrix(table, 5),
            matrix(table, 6),
            matrix(table, 7),
        )
        nb_rows(start, stop, x, a, log_total, r, out, d_a, d_total, d_r)
        start, stop = claim(table)


@entry
def zinb(pointer):  # type: ignore[no-untyped-def]
    """Run `zinb_rows`."""
    table = opened(pointer)
    x, a, log_total, r = matrix(table, 0), matrix(table, 1), matrix(table, 2), matrix(table, 3)
    logits, out = matrix(table, 4), matrix(table, 5)
    d_a, d_total, d_r, d_logits = (
        matrix(table, 6),
        matrix(table, 7),
        matrix(table, 8),
        matrix(table, 9),
    )
    start, stop = claim(table)
    while start < stop:
        zinb_rows(start, stop, x, a, log_total, r, logits, out, d_a, d_total, d_r, d_logits)
        start, stop = claim(table)
