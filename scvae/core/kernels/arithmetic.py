"""Arithmetic of the compiled kernels, written out so that the compiler vectorises it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

f32 = np.float32
f64 = np.float64
i32, i64 = np.int32, np.int64

LARGEST = f32(80.0)  # of a log-mean: its exponential, over any inverse dispersion, is finite
LOG_2_HIGH, LOG_2_LOW = f32(0.693359375), f32(-2.12194440e-4)

# numpy's error model: a check of every division would stop vectorisation. Everything is inlined
# into the entry: a call is compiled once for the process that compiles and again for what it keeps
# on disk, and the two round differently.
options: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "forceinline": True,
}
exact = njit(**options)  # the same bits wherever an entry lies in a part
compiled = njit(fastmath={"contract", "nsz", "arcp"}, **options)
reordered = njit(fastmath={"contract", "nsz", "arcp", "reassoc", "nnan"}, **options)
inlined = njit(fastmath={"contract", "nsz", "arcp"}, inline="always", **options)


@inlined
def exp(x):  # type: ignore[no-untyped-def]
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
def log(x):  # type: ignore[no-untyped-def]
    """Return log x to 1e-7, for normal x > 0 (Cephes' polynomial); NaN of NaN."""
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
    # The bits of NaN would pass for a number's: x - x is 0 of every other.
    return t + y + exponent * LOG_2_HIGH + (x - x)


@inlined
def log1p(x, of_sum):  # type: ignore[no-untyped-def]
    """Return log(1 + x) for x >= 0, given 1 / (1 + x), with the digits that 1 + x loses."""
    u = f32(1.0) + x
    return log(u) + (x - (u - f32(1.0))) * of_sum


@inlined
def log_exact(x):  # type: ignore[no-untyped-def]
    """Return log x, float64, for normal x > 0: 2 atanh((x - 1) / (x + 1)) as a series.

    To 2e-15 of the larger of 1 and its size."""
    bits = f64(x).view(np.int64)
    exponent = f64((bits >> i64(52)) - i64(1022))
    t = i64((bits & i64(0x000FFFFFFFFFFFFF)) | i64(0x3FE0000000000000)).view(np.float64)
    low = t < 0.7071067811865476
    exponent = exponent - 1.0 if low else exponent
    t = t + t if low else t
    s = (t - 1.0) / (t + 1.0)
    q = s * s
    p = q * (1 / 11 + q * (1 / 13 + q * (1 / 15 + q / 17)))
    p = q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + p))))
    return 2.0 * (s + s * p) + exponent * 0.6931471805599453


@reordered
def sum_of(values, total):  # type: ignore[no-untyped-def]
    """Return the sum, in the precision of `total`, where it starts."""
    for j in range(values.shape[0]):
        total += values[j]
    return total


@inlined
def _ordered(bits):  # type: ignore[no-untyped-def]
    """Map the bits of a float to an integer that grows with it; the map is its own inverse."""
    return bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF))


@compiled
def largest_of(values):  # type: ignore[no-untyped-def]
    """Return the largest, found among integers: the compiler does not vectorise it for floats."""
    largest = _ordered(f32(-np.inf).view(np.int32))
    for j in range(values.shape[0]):
        largest = max(largest, _ordered(f32(values[j]).view(np.int32)))
    return i32(_ordered(largest)).view(np.float32)
