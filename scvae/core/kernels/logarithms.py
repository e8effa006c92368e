"""Compiled CPU kernel: logarithms of scaled rows."""

from __future__ import annotations

from scvae.core.kernels.arithmetic import compiled, f32, log1p
from scvae.core.kernels.team import claim, entry, matrix, opened


@compiled
def log1p_rows(start, stop, x, scale, out):  # type: ignore[no-untyped-def]
    """Write log(1 + c x) of every row to `out` ``(n, g)``, for x ``(n, g)`` and c ``(n, 1)``."""
    for n in range(start, stop):
        of_row = scale[n, 0]
        for j in range(x.shape[1]):
            scaled = x[n, j] * of_row
            out[n, j] = log1p(scaled, f32(1.0) / (f32(1.0) + scaled))


@entry
def scaled_log1p(pointer):  # type: ignore[no-untyped-def]
    """Run `log1p_rows`."""
    table = opened(pointer)
    start, stop = claim(table)
    while start < stop:
        log1p_rows(start, stop, matrix(table, 0), matrix(table, 1), matrix(table, 2))
        start, stop = claim(table)
