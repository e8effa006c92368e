"""The rows of `scvae.core.kernels.counts` on CUDA, as three Triton kernels.

The first takes the softmax of every row, where means are shares of a total. The second takes a
piece of a row, so that a minibatch of 128 cells fills the device, and writes its derivatives and
its part of the row's sums; the third adds the parts up, always in the same order, and takes the
derivatives on to the shares. Zeros are computed in float32, as on the CPU; gamma functions of the
non-zeros in float64, by the same product and series.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scvae.core.kernels.layouts import demand

SHORT = tl.constexpr(16)
LARGE = tl.constexpr(1000.0)  # as in counts.py: beyond, a mean in float32 has too few digits
LARGEST = tl.constexpr(80.0)
BLOCK = 256  # entries of a row that one program takes
OF_SOFTMAX = 2048  # entries of a row that its softmax takes at a time


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
def _positive(x, longest, log_mean, mean, r, zero):  # type: ignore[no-untyped-def]
    """Return log NB(x) at x > 0 and its derivatives in log-mean and log r, in float64.

    `longest` is the largest of the counts, and `zero` log NB(0) by the mean in float32, on which
    the derivatives rest."""
    r = tl.minimum(r, 1e18)
    of_total = 1.0 / (r + mean)
    product = 1.0 + 0.0 * x
    derivative, factorial = 0.0 * x, 1.0 + 0.0 * x
    for i in range(tl.minimum(longest, SHORT).to(tl.int32)):
        active = x > i
        derivative = tl.where(active, derivative * (r + i) + product, derivative)
        product = tl.where(active, product * (r + i), product)
        factorial = tl.where(active, factorial * (i + 1), factorial)
    log_product, difference = tl.log(product), derivative / product
    log_factorial = tl.log(factorial)
    if longest > SHORT:
        beyond = tl.maximum(x - SHORT, 0.0)
        log_product += _rise_of_gamma(r + SHORT, beyond)
        difference += _rise_of_digamma(r + SHORT, beyond)
        log_factorial += _rise_of_gamma(0.0 * x + 1.0 + SHORT, beyond)
    odds = tl.exp(tl.where(log_mean > 700.0, 700.0, log_mean)) / r
    in_full = (x > LARGE) | (log_mean > LARGEST)
    log_odds = log_mean + tl.log(of_total)
    log_odds = tl.where(in_full, log_mean - tl.log(r) - tl.log(1.0 + odds), log_odds)
    log_zero = tl.where(in_full, -r * _log1p(odds), zero)
    value = log_product + x * log_odds - log_factorial + log_zero
    d_log_mean = r * (x - mean) * of_total
    return value, d_log_mean, r * (difference + (mean - x) * of_total) + zero


@triton.jit
def _scales(a, log_total, shift, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write what the logits of every row are shifted by to become log-means."""
    n = tl.program_id(0).to(tl.int64)
    a += n * width
    lanes = tl.arange(0, BLOCK)
    top = tl.full((), -float("inf"), tl.float32)
    sum_ = tl.zeros((), tl.float32)
    for start in range(0, width, BLOCK):
        j = start + lanes
        share = tl.load(a + j, mask=j < width, other=-float("inf"))
        higher = tl.maximum(top, tl.max(share, axis=0))
        sum_ = sum_ * tl.exp(top - higher) + tl.sum(tl.exp(share - higher), axis=0)
        top = higher
    log_l = tl.load(log_total + n).to(tl.float64)
    tl.store(shift + n, log_l - top.to(tl.float64) - tl.log(sum_.to(tl.float64)))


@triton.jit
def _pieces(  # type: ignore[no-untyped-def]
    x, a, shift, r, logits, d_a, d_r, d_logits, mass, slope_of_all,
    g, width, step_of_r,
    HAS_TOTAL: tl.constexpr, INFLATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the derivatives of a piece of a row, and its parts of the sums over the row."""
    n, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = piece * BLOCK + tl.arange(0, BLOCK)
    inside = j < g
    count = tl.load(x + n * g + j, mask=inside, other=0.0)
    log_mean = tl.load(a + n * width + j, mask=inside, other=-1e4).to(tl.float64)
    if HAS_TOTAL:
        log_mean += tl.load(shift + n)
    rate = tl.load(r + n * step_of_r + j, mask=inside, other=1.0)
    mean = _exp(log_mean.to(tl.float32))
    of_sum = 1.0 / (1.0 + mean / rate)
    zero, slope = -rate * _log1p(mean / rate), mean * of_sum
    value, of_mean, of_r = _positive(
        tl.maximum(count, 1.0).to(tl.float64),
        tl.max(count, axis=0).to(tl.float64),
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
    of_mean_ = tl.where(inside, tl.where(some, of_mean.to(tl.float32), -keep * slope), 0.0)
    of_r_ = tl.where(some, of_r.to(tl.float32), keep * (zero + slope))
    entry = tl.where(inside, tl.where(some, value, at_zero.to(tl.float64)), 0.0)
    tl.store(d_a + n * width + j, of_mean_, mask=j < width)
    tl.store(d_r + n * g + j, of_r_, mask=inside)
    part = n * tl.num_programs(1) + piece
    tl.store(mass + part, tl.sum(entry, axis=0))
    tl.store(slope_of_all + part, tl.sum(of_mean_.to(tl.float64), axis=0))


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    a, log_total, shift, mass, slope_of_all, out, d_a, d_total,
    width, pieces,
    HAS_TOTAL: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the parts of a row up, and take the derivatives of one piece on to the shares."""
    n, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts = tl.arange(0, PIECES)
    if piece == 0:
        of_row = tl.load(mass + n * pieces + parts, mask=parts < pieces, other=0.0)
        tl.store(out + n, tl.sum(of_row, axis=0).to(tl.float32))
    if HAS_TOTAL:
        slopes = tl.load(slope_of_all + n * pieces + parts, mask=parts < pieces, other=0.0)
        d_sum = tl.sum(slopes, axis=0).to(tl.float32)
        if piece == 0:
            tl.store(d_total + n, d_sum)
        total = tl.exp(tl.minimum(tl.load(log_total + n), LARGEST))
        j = piece * BLOCK + tl.arange(0, BLOCK)
        inside = j < width
        logit = tl.load(a + n * width + j, mask=inside, other=-1e4).to(tl.float64)
        mean = _exp((logit + tl.load(shift + n)).to(tl.float32))
        so_far = tl.load(d_a + n * width + j, mask=inside, other=0.0)
        tl.store(d_a + n * width + j, so_far - mean / total * d_sum, mask=inside)


def launch(inputs: list[Tensor], out: Tensor, slopes: list[Tensor]) -> None:
    """Fill `out` and `slopes` as the CPU's kernels do, for contiguous float32 matrices.

    `inputs` are x, a, log_total, r and, for zero-inflated counts, logits; `slopes` are the
    derivatives in a, log_total, log r and logits.
    """
    demand("zinb" if inputs[4:] else "nb", len(out), (*inputs, out, *slopes), out.device.type)
    x, a, log_total, r, *logits = inputs
    d_a, d_total, d_r, *d_logits = slopes
    (n, g), width = x.shape, a.shape[1]
    if n == 0:
        return
    has_total = log_total.shape[1] > 0
    pieces = max(1, triton.cdiv(width, BLOCK))
    shift = torch.empty(n, device=x.device, dtype=torch.float64)
    mass, slope_of_all = torch.empty(2, n, pieces, device=x.device, dtype=torch.float64)
    if has_total:
        _scales[(n,)](a, log_total, shift, width, BLOCK=OF_SOFTMAX, num_warps=8)
    _pieces[(n, pieces)](
        x, a, shift, r, logits[0] if logits else x,
        d_a, d_r, d_logits[0] if d_logits else d_r, mass, slope_of_all,
        g, width, g if len(r) > 1 else 0,
        HAS_TOTAL=has_total, INFLATED=bool(logits), BLOCK=BLOCK,
    )  # fmt: skip
    _sums[(n, pieces if has_total else 1)](
        a, log_total, shift, mass, slope_of_all, out, d_a, d_total, width, pieces,
        HAS_TOTAL=has_total, PIECES=triton.next_power_of_2(pieces), BLOCK=BLOCK,
    )  # fmt: skip
