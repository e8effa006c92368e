"""Compiled CPU kernels: products with a matrix most of whose entries are zero.

The dense matrix beside it is held by rows of the inner axis, so that every non-zero reads or writes
one contiguous row of it.
"""

from __future__ import annotations

import numpy as np

from scvae.core.kernels.arithmetic import compiled, f32
from scvae.core.kernels.team import claim, entry, matrix, opened


@compiled
def nonzero(x, where):  # type: ignore[no-untyped-def]
    """Write the positions of the non-zeros of a row to `where`, and return their number."""
    found = 0
    for j in range(x.shape[0]):
        where[found] = j  # without a branch, which would be guessed wrongly at most non-zeros
        found += x[j] != f32(0.0)
    return found


@compiled
def product_rows(start, stop, x, w, out):  # type: ignore[no-untyped-def]
    """Write rows of x w to `out` ``(n, h)``, for x ``(n, g)`` and w ``(g, h)``.

    Four rows of w are added at a time, so that `out` is read and written once for all of them.
    """
    g, width = w.shape
    where = np.empty(g + 4, np.int32)
    for n in range(start, stop):
        out[n, :] = f32(0.0)
        found = nonzero(x[n], where)
        for i in range(0, found - found % 4, 4):
            a, b, c, d = where[i], where[i + 1], where[i + 2], where[i + 3]
            at_a, at_b, at_c, at_d = x[n, a], x[n, b], x[n, c], x[n, d]
            for h in range(width):
                out[n, h] += at_a * w[a, h] + at_b * w[b, h] + at_c * w[c, h] + at_d * w[d, h]
        for i in range(found - found % 4, found):
            _add(out[n], w[where[i]], x[n, where[i]])


@compiled
def _add(to, row, times):  # type: ignore[no-untyped-def]
    for h in range(to.shape[0]):
        to[h] += times * row[h]


@compiled
def outer_rows(start, stop, x, d_out, d_w):  # type: ignore[no-untyped-def]
    """Write rows ``[start, stop)`` of x' d_out to `d_w` ``(g, h)``: the gradient of w."""
    where = np.empty(stop - start + 1, np.int32)
    d_w[start:stop] = f32(0.0)
    for n in range(x.shape[0]):
        for i in range(nonzero(x[n, start:stop], where)):
            j = start + where[i]
            _add(d_w[j], d_out[n], x[n, j])


@entry
def product(pointer):  # type: ignore[no-untyped-def]
    """Run `product_rows`."""
    table = opened(pointer)
    start, stop = claim(table)
    while start < stop:
        product_rows(start, stop, matrix(table, 0), matrix(table, 1), matrix(table, 2))
        start, stop = claim(table)


@entry
def outer(pointer):  # type: ignore[no-untyped-def]
    """Run `outer_rows`."""
    table = opened(pointer)
    start, stop = claim(table)
    while start < stop:
        outer_rows(start, stop, matrix(table, 0), matrix(table, 1), matrix(table, 2))
        start, stop = claim(table)
