"""The rows of `scvae.core.kernels.counts` on CUDA, as one fused Triton kernel.

One program takes one row: a first pass over its genes for the softmax, where means are shares of a
total, a second for the log-mass and all derivatives. Zeros are computed in float32, as on the CPU;
gamma functions of the non-zeros in float64, by the same product and series, for all lanes at once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from scvae.core.kernels.layouts import demand

SHORT = tl.constexpr(16)
LARGEST = tl.constexpr(80.0)
BLOCK = 1024


@triton.jit
def _exp(t):  # type: ignore[no-untyped-def]
    return tl.exp(tl.where(t > LARGEST, LARGEST, t))  # a minimum would make a number of NaN


@triton.jit
def _log1p(t):  # type: ignore[no-untyped-def]
    u = 1.0 + t
    return tl.log(u) + (t - (u - 1.0)) / u


@triton.jit
def _stirling_of_gamma(y):  # type: ignore[no-untyped-def]
    i = 1.0 / y
    t = i * i
    return i * (1 / 12 - t * (1 / 360 - t * (1 / 1260 - t / 1680)))


@triton.jit
def _stirling_of_digamma(y):  # type: ignore[no-untyped-def]
    i = 1.0 / y
    t = i * i
    return -0.5 * i - t * (1 / 12 - t * (1 / 120 - t * (1 / 252 - t / 240)))


@triton.jit
def _rise_of_gamma(y, d):  # type: ignore[no-untyped-def]
    of_stirling = _stirling_of_gamma(y + d) - _stirling_of_gamma(y)
    return (y - 0.5) * _log1p(d / y) + d * (tl.log(y + d) - 1.0) + of_stirling


@triton.jit
def _rise_of_digamma(y, d):  # type: ignore[no-untyped-def]
    return _log1p(d / y) + _stirling_of_digamma(y + d) - _stirling_of_digamma(y)


@triton.jit
def _positive(x, log_mean, mean, r, zero):  # type: ignore[no-untyped-def]
    """Return log NB(x) at x > 0 and its derivatives in log-mean and log r, in float64."""
    r = tl.minimum(r, 1e18)
    of_total = 1.0 / (r + mean)
    product = 1.0 + 0.0 * x
    derivative, factorial = 0.0 * x, 1.0 + 0.0 * x
    for i in tl.static_range(SHORT):
        active = x > i
        derivative = tl.where(active, derivative * (r + i) + product, derivative)
        product = tl.where(active, product * (r + i), product)
        factorial = tl.where(active, factorial * (i + 1), factorial)
    beyond = tl.maximum(x - SHORT, 0.0)
    log_product = tl.log(product) + _rise_of_gamma(r + SHORT, beyond)
    difference = derivative / product + _rise_of_digamma(r + SHORT, beyond)
    log_factorial = tl.log(factorial) + _rise_of_gamma(0.0 * x + 1.0 + SHORT, beyond)
    value = log_product + x * (log_mean + tl.log(of_total)) - log_factorial + zero
    d_log_mean = r * (x - mean) * of_total
    return value, d_log_mean, r * (difference + (mean - x) * of_total) + zero


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    x, a, log_total, r, logits, out, d_a, d_total, d_r, d_logits,
    g, width, step_of_r,
    HAS_TOTAL: tl.constexpr, INFLATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    x, a, d_a, d_r = x + n * g, a + n * width, d_a + n * width, d_r + n * g
    r = r + n * step_of_r
    lanes = tl.arange(0, BLOCK)
    shift = tl.zeros((), tl.float64)
    total = 1.0
    if HAS_TOTAL:
        log_l = tl.load(log_total + n)
        top = tl.full((), -float("inf"), tl.float32)
        sum_ = tl.zeros((), tl.float32)
        for start in range(0, width, BLOCK):
            j = start + lanes
            share = tl.load(a + j, mask=j < width, other=-float("inf"))
            higher = tl.maximum(top, tl.max(share, axis=0))
            sum_ = sum_ * tl.exp(top - higher) + tl.sum(tl.exp(share - higher), axis=0)
            top = higher
        shift = log_l.to(tl.float64) - top.to(tl.float64) - tl.log(sum_.to(tl.float64))
        total = tl.exp(tl.minimum(log_l, LARGEST))
    mass = tl.zeros((), tl.float64)
    d_sum = 0.0
    for start in range(0, g, BLOCK):
        j = start + lanes
        inside = j < g
        count = tl.load(x + j, mask=inside, other=0.0)
        log_mean = tl.load(a + j, mask=inside, other=-1e4).to(tl.float64) + shift
        rate = tl.load(r + j, mask=inside, other=1.0)
        mean = _exp(log_mean.to(tl.float32))
        of_sum = 1.0 / (1.0 + mean / rate)
        zero, slope = -rate * _log1p(mean / rate), mean * of_sum
        value, of_mean, of_r = _positive(
            tl.maximum(count, 1.0).to(tl.float64),
            log_mean,
            mean.to(tl.float64),
            rate.to(tl.float64),
            zero.to(tl.float64),
        )
        some = count > 0
        at_zero, keep = zero, 1.0
        if INFLATED:
            h = tl.load(logits + n * g + j, mask=inside, other=0.0)
            off_zero, off_one = tl.exp(-tl.abs(h - zero)), tl.exp(-tl.abs(h))
            share_, of_one = 1.0 / (1.0 + off_zero), 1.0 / (1.0 + off_one)
            keep = tl.where(h > zero, share_ * off_zero, share_)
            drop = tl.where(h > zero, share_, share_ * off_zero)
            gate = tl.where(h > 0.0, of_one, of_one * off_one)
            log_kept = -tl.maximum(h, 0.0) - tl.log(1.0 + off_one)
            at_zero = tl.maximum(h, zero) + tl.log(1.0 + off_zero) + log_kept
            value += log_kept.to(tl.float64)
            tl.store(d_logits + n * g + j, tl.where(some, -gate, drop - gate), mask=inside)
        of_mean_ = tl.where(some, of_mean.to(tl.float32), -keep * slope)
        of_r_ = tl.where(some, of_r.to(tl.float32), keep * (zero + slope))
        entry = tl.where(some, value, at_zero.to(tl.float64))
        mass += tl.sum(tl.where(inside, entry, 0.0), axis=0)
        d_sum += tl.sum(tl.where(inside, of_mean_, 0.0), axis=0)
        tl.store(d_a + j, of_mean_, mask=inside)
        tl.store(d_r + j, of_r_, mask=inside)
    tl.store(out + n, mass.to(tl.float32))
    if HAS_TOTAL:
        tl.store(d_total + n, d_sum)
        tl.debug_barrier()  # what other threads of the row have stored is read again
        for start in range(0, width, BLOCK):
            j = start + lanes
            log_mean = tl.load(a + j, mask=j < width, other=-1e4) + shift.to(tl.float32)
            mean = _exp(log_mean)
            so_far = tl.load(d_a + j, mask=j < g, other=0.0)
            tl.store(d_a + j, so_far - mean / total * d_sum, mask=j < width)


def launch(inputs: list[Tensor], out: Tensor, slopes: list[Tensor]) -> None:
    """Fill `out` and `slopes` as the CPU's kernels do, for contiguous float32 matrices.

    `inputs` are x, a, log_total, r and, for zero-inflated counts, logits; `slopes` are the
    derivatives in a, log_total, log r and logits.
    """
    demand("zinb" if inputs[4:] else "nb", len(out), (*inputs, out, *slopes), out.device.type)
    x, a, log_total, r, *logits = inputs
    d_a, d_total, d_r, *d_logits = slopes
    n, g = x.shape
    if n == 0:
        return
    _rows[(n,)](
        x, a, log_total, r, logits[0] if logits else x,
        out, d_a, d_total, d_r, d_logits[0] if d_logits else d_r,
        g, a.shape[1], g if len(r) > 1 else 0,
        HAS_TOTAL=log_total.shape[1] > 0,
        INFLATED=bool(logits),
        BLOCK=min(BLOCK, triton.next_power_of_2(max(g, 16))),
    )  # fmt: skip
