"""Compiled CPU kernels: products with a matrix most of whose entries are zero.

The dense matrix beside it is held by rows of the inner axis, so that every non-zero reads or writes
one contiguous row of it.
"""

from __future__ import annotations

import numpy as np

from scvae.core.kernels.arithmetic import compiled, f32, i64
from scvae.core.kernels.team import claim, entry, matrix, numbers, opened, vector

BLOCK = 2**16  # numbers of w that are taken in turn: 256 KiB, of the cache of each core


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
def csr_product_rows(start, stop, starts, ends, indices, values, w, out):  # type: ignore[no-untyped-def]
    """Write rows of x w to `out` ``(n, h)``, for compressed sparse rows x and w ``(g, h)``.

    Row n of x has the `values` from ``starts[n]`` to before ``ends[n]``, at columns `indices`, all
    int32. As many rows of w as the cache holds are taken in turn, each for all rows of x; columns
    are best in order, but need not be. Entries that cannot be are passed over.
    """
    g, width = w.shape
    block, at = max(1, BLOCK // max(width, 1)), np.empty(stop - start, np.int64)
    for n in range(start, stop):
        out[n, :] = f32(0.0)
        at[n - start] = max(starts[n], 0)
    for until in range(block, g + block, block):
        for n in range(start, stop):
            end = min(i64(ends[n]), values.shape[0])
            first = at[n - start]
            last = first
            while last < end and indices[last] < min(until, g):
                last += 1
            if until >= g:  # whatever is left
                last = max(first, end)
            index, value = indices[first:last], values[first:last]
            _add_rows(index, value, w, out[n])
            at[n - start] = last


@compiled
def _add_rows(index, value, w, to):  # type: ignore[no-untyped-def]
    """Add some rows of w, each times its value, four at a time."""
    found = index.shape[0] - index.shape[0] % 4
    for i in range(0, found, 4):
        a, b, c, d = index[i], index[i + 1], index[i + 2], index[i + 3]
        if min(a, b, c, d) < 0 or max(a, b, c, d) >= w.shape[0]:
            for k in range(i, i + 4):
                _add_if_there(index[k], value[k], w, to)
            continue
        at_a, at_b, at_c, at_d = value[i], value[i + 1], value[i + 2], value[i + 3]
        row_a, row_b, row_c, row_d = w[a], w[b], w[c], w[d]
        for h in range(to.shape[0]):
            to[h] += at_a * row_a[h] + at_b * row_b[h] + at_c * row_c[h] + at_d * row_d[h]
    for i in range(found, index.shape[0]):
        _add_if_there(index[i], value[i], w, to)


@compiled
def _add_if_there(j, times, w, to):  # type: ignore[no-untyped-def]
    if 0 <= j < w.shape[0]:
        _add(to, w[j], times)


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
def csr_product(pointer):  # type: ignore[no-untyped-def]
    """Run `csr_product_rows`."""
    table = opened(pointer)
    starts, ends, indices = numbers(table, 0), numbers(table, 1), numbers(table, 2)
    values, w, out = vector(table, 3), matrix(table, 4), matrix(table, 5)
    start, stop = claim(table)
    while start < stop:
        csr_product_rows(start, stop, starts, ends, indices, values, w, out)
        start, stop = claim(table)


@entry
def outer(pointer):  # type: ignore[no-untyped-def]
    """Run `outer_rows`."""
    table = opened(pointer)
    start, stop = claim(table)
    while start < stop:
        outer_rows(start, stop, matrix(table, 0), matrix(table, 1), matrix(table, 2))
        start, stop = claim(table)
