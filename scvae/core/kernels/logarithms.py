"""Compiled CPU kernel: logarithms of scaled rows."""

from __future__ import annotations

from scvae.core.kernels.arithmetic import compiled, f32, i64, log1p
from scvae.core.kernels.team import claim, entry, matrix, numbers, opened, vector


@compiled
def log1p_rows(start, stop, x, scale, out):  # type: ignore[no-untyped-def]
    """Write log(1 + c x) of every row to `out` ``(n, g)``, for x ``(n, g)`` and c ``(n, 1)``."""
    for n in range(start, stop):
        _log1p_row(x[n], scale[n, 0], out[n])


@compiled
def csr_log1p_rows(start, stop, starts, ends, x, scale, out):  # type: ignore[no-untyped-def]
    """Write log(1 + c x) of the values x ``(nnz,)`` of compressed sparse rows to `out`; row n has
    those from ``starts[n]`` to before ``ends[n]``, c is ``(n, 1)``."""
    for n in range(start, stop):
        first = max(starts[n], 0)
        last = max(first, min(i64(ends[n]), x.shape[0]))
        _log1p_row(x[first:last], scale[n, 0], out[first:last])


@compiled
def _log1p_row(x, factor, out):  # type: ignore[no-untyped-def]
    for j in range(x.shape[0]):
        scaled = x[j] * factor
        out[j] = log1p(scaled, f32(1.0) / (f32(1.0) + scaled))


@entry
def csr_scaled_log1p(pointer):  # type: ignore[no-untyped-def]
    """Run `csr_log1p_rows`."""
    table = opened(pointer)
    starts, ends, x = numbers(table, 0), numbers(table, 1), vector(table, 2)
    scale, out = matrix(table, 3), vector(table, 4)
    start, stop = claim(table)
    while start < stop:
        csr_log1p_rows(start, stop, starts, ends, x, scale, out)
        start, stop = claim(table)


@entry
def scaled_log1p(pointer):  # type: ignore[no-untyped-def]
    """Run `log1p_rows`."""
    table = opened(pointer)
    start, stop = claim(table)
    while start < stop:
        log1p_rows(start, stop, matrix(table, 0), matrix(table, 1), matrix(table, 2))
        start, stop = claim(table)
