r"""Compiled CPU kernels: the log-mass of rows of counts and its gradients in one pass over memory.

What `numerics` computes elementwise with torch in about forty passes, these compute in one, for
float32 on the CPU: the value of every row and the derivative at every entry together. `numerics` is
their oracle. 85 to 97 % of the entries are zero, and a zero needs one exponential and one
logarithm, which the compiler turns into vector instructions because they are written out here as
polynomials. At a count x up to `SHORT`, the gamma functions are products of x factors,

.. math:: \frac{\Gamma(x + r)}{\Gamma(r)\,(r + \mu)^x} = \prod_{i < x} \frac{r + i}{r + \mu},
          \qquad \psi(x + r) - \psi(r) = \sum_{i < x} \frac{1}{r + i},

in float64, where nothing cancels; larger counts are rare and take the gamma functions themselves.

Kernels take contiguous arrays, rows ``[start, stop)``, and release Python's lock, so that threads
share the rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

f32 = np.float32
f64 = np.float64
i32 = np.int32

SHORT = 16
LOG_FACTORIAL = np.array([math.lgamma(x + 1.0) for x in range(SHORT + 1)])
LARGEST = f32(80.0)  # of a log-mean: its exponential, over any inverse dispersion, is finite
LOG_2_HIGH, LOG_2_LOW = f32(0.693359375), f32(-2.12194440e-4)

# numpy's error model: a check of every division would stop vectorisation.
options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
compiled = njit(fastmath={"contract", "nsz", "arcp"}, **options)
inlined = njit(fastmath={"contract", "nsz", "arcp"}, inline="always", **options)


@inlined
def _exp(x):  # type: ignore[no-untyped-def]
    """Return e^x to 1e-7, for x between -87 and 88 (Cephes' polynomial)."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = np.floor(x * f32(1.44269504) + f32(0.5))
    t = x - n * LOG_2_HIGH - n * LOG_2_LOW
    p = f32(1.9875691500e-4)
    p = p * t + f32(1.3981999507e-3)
    p = p * t + f32(8.3334519073e-3)
    p = p * t + f32(4.1665795894e-2)
    p = p * t + f32(1.6666665459e-1)
    p = p * t + f32(5.0000001201e-1)
    return (p * t * t + t + f32(1.0)) * i32((i32(n) + i32(127)) << i32(23)).view(np.float32)


@inlined
def _log(x):  # type: ignore[no-untyped-def]
    """Return log x to 1e-7, for normal x > 0 (Cephes' polynomial)."""
    bits = f32(x).view(np.int32)
    exponent = f32((bits >> i32(23)) - i32(126))
    t = i32((bits & i32(0x007FFFFF)) | i32(0x3F000000)).view(np.float32)  # in [0.5, 1)
    low = t < f32(0.707106781)
    exponent = exponent - f32(1.0) if low else exponent
    t = t + t - f32(1.0) if low else t - f32(1.0)
    p = f32(7.0376836292e-2)
    p = p * t + f32(-1.1514610310e-1)
    p = p * t + f32(1.1676998740e-1)
    p = p * t + f32(-1.2420140846e-1)
    p = p * t + f32(1.4249322787e-1)
    p = p * t + f32(-1.6668057665e-1)
    p = p * t + f32(2.0000714765e-1)
    p = p * t + f32(-2.4999993993e-1)
    p = p * t + f32(3.3333331174e-1)
    square = t * t
    y = p * t * square + exponent * LOG_2_LOW - f32(0.5) * square
    return t + y + exponent * LOG_2_HIGH


@inlined
def _log1p(x):  # type: ignore[no-untyped-def]
    """Return log(1 + x) for x >= 0, with the digits that 1 + x loses put back."""
    u = f32(1.0) + x
    return _log(u) + (x - (u - f32(1.0))) / u


@compiled
def _digamma(y):  # type: ignore[no-untyped-def]
    """Return the digamma function in float64, for y > 0."""
    shift = 0.0
    while y < 10.0:
        shift -= 1.0 / y
        y += 1.0
    t = 1.0 / (y * y)
    series = t * (1 / 12 - t * (1 / 120 - t * (1 / 252 - t * (1 / 240 - t * (1 / 132)))))
    return shift + math.log(y) - 0.5 / y - series


@compiled
def _positive(x, log_mean, mean, r, zero):  # type: ignore[no-untyped-def]
    """Return log NB(x) at x > 0 and its derivative in log r, in float64, given log NB(0)."""
    of_total = 1.0 / (r + mean)
    if x <= SHORT:
        log_product, product, difference = -LOG_FACTORIAL[int(x)], 1.0, 0.0
        for i in range(int(x)):
            product *= (r + i) * of_total
            difference += 1.0 / (r + i)
            if product < 1e-200:
                log_product += math.log(product)
                product = 1.0
        log_product += math.log(product)
    else:
        log_product = math.lgamma(x + r) - math.lgamma(r) - math.lgamma(x + 1.0)
        log_product += x * math.log(of_total)
        difference = _digamma(x + r) - _digamma(r)
    return log_product + x * log_mean + zero, r * (difference + (mean - x) * of_total) + zero


@compiled
def _nonzero(x, where):  # type: ignore[no-untyped-def]
    """Write the positions of the non-zeros of a row to `where` and return their number."""
    found = 0
    for j in range(x.shape[0]):
        where[found] = j  # without a branch, which would be guessed wrongly at most non-zeros
        found += x[j] > 0
    return found


@njit(fastmath={"contract", "nsz", "arcp", "reassoc"}, **options)
def _sum(values):  # type: ignore[no-untyped-def]
    total = 0.0
    for value in values:
        total += value
    return total


@compiled
def nb_rows(x, log_mean, r, start, stop, out, d_mean, d_r):  # type: ignore[no-untyped-def]
    """Write log NB(x) of every row to `out` ``(n,)`` and its derivatives in log-mean and log r to
    `d_mean` and `d_r` ``(n, g)``. All are float32; the inverse dispersion `r` is ``(1 or n, g)``.
    """
    g = x.shape[1]
    mass, where = np.empty(g, np.float32), np.empty(g + 1, np.int32)
    for n in range(start, stop):
        k = n if r.shape[0] > 1 else 0
        for j in range(g):
            mean = _exp(min(log_mean[n, j], LARGEST))
            ratio = mean / r[k, j]
            zero, slope = -r[k, j] * _log1p(ratio), mean / (f32(1.0) + ratio)
            mass[j] = zero
            d_mean[n, j] = -slope
            d_r[n, j] = zero + slope
        for i in range(_nonzero(x[n], where)):
            j = where[i]
            count, log_mu = f64(x[n, j]), f64(log_mean[n, j])
            mean, rate = f64(_exp(min(log_mean[n, j], LARGEST))), f64(r[k, j])
            mass[j], d_r[n, j] = _positive(count, log_mu, mean, rate, f64(mass[j]))
            d_mean[n, j] = rate * (count - mean) / (rate + mean)
        out[n] = _sum(mass)


@compiled
def zinb_rows(x, log_mean, r, logits, start, stop, out, d_mean, d_r, d_logits):  # type: ignore[no-untyped-def]
    """Do as `nb_rows` for counts that are, with log-odds `logits` ``(n, g)``, replaced by 0."""
    g = x.shape[1]
    mass, zeros = np.empty(g, np.float32), np.empty(g, np.float32)
    where = np.empty(g + 1, np.int32)
    for n in range(start, stop):
        k = n if r.shape[0] > 1 else 0
        for j in range(g):
            mean, h = _exp(min(log_mean[n, j], LARGEST)), logits[n, j]
            ratio = mean / r[k, j]
            zero, slope = -r[k, j] * _log1p(ratio), mean / (f32(1.0) + ratio)
            # log p(0) = max(h, m) - max(h, 0) + log[(1 + e^-|h - m|) / (1 + e^-|h|)], m = log NB(0)
            at_zero, at_one = _exp(-abs(h - zero)), _exp(-abs(h))
            share = f32(1.0) / (f32(1.0) + at_zero)
            keep = share * at_zero if h > zero else share
            drop = share if h > zero else share * at_zero
            gate = (f32(1.0) if h > f32(0.0) else at_one) / (f32(1.0) + at_one)
            odds = _log((f32(1.0) + at_zero) / (f32(1.0) + at_one))
            mass[j] = max(h, zero) - max(h, f32(0.0)) + odds
            zeros[j] = zero
            d_mean[n, j] = -keep * slope
            d_r[n, j] = keep * (zero + slope)
            d_logits[n, j] = drop - gate
        for i in range(_nonzero(x[n], where)):
            j = where[i]
            count, log_mu, h = f64(x[n, j]), f64(log_mean[n, j]), logits[n, j]
            mean, rate = f64(_exp(min(log_mean[n, j], LARGEST))), f64(r[k, j])
            value, d_r[n, j] = _positive(count, log_mu, mean, rate, f64(zeros[j]))
            at_one = _exp(-abs(h))
            mass[j] = value - max(h, f32(0.0)) - _log1p(at_one)
            d_mean[n, j] = rate * (count - mean) / (rate + mean)
            d_logits[n, j] = -(f32(1.0) if h > f32(0.0) else at_one) / (f32(1.0) + at_one)
        out[n] = _sum(mass)
