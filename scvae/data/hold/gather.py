"""Compiled kernels: rows of a sparse matrix, written out densely or one after another.

They leave Python's lock free, so that threads read from disk while another trains. Loops run over
pieces of arrays, from 0 on: an index that may be negative for all the compiler knows, which Python
would count from the end, is looked at each time, and keeps vector instructions away.
"""

from __future__ import annotations

import numpy as np
from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def dense_rows(indptr, indices, values, rows, out):  # type: ignore[no-untyped-def]
    """Write the given rows of a CSR matrix over the zeros of `out`, ``(len(rows), g)``."""
    for i in range(rows.shape[0]):
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        index, value, to = indices[start:stop], values[start:stop], out[i]
        for k in range(index.shape[0]):
            to[np.uintp(index[k])] = value[k]


@compiled
def put_rows(indptr, indices, values, rows, starts, to_indices, to_values):  # type: ignore[no-untyped-def]
    """Write the entries of the given rows of a CSR matrix, of each from ``starts[i]`` on."""
    for i in range(rows.shape[0]):
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        first, last = starts[i], starts[i] + stop - start
        _copy(indices[start:stop], to_indices[first:last])
        _copy(values[start:stop], to_values[first:last])


@compiled
def narrow_rows(indptr, indices, data, places, largest, ends, to_indices, to_values):  # type: ignore[no-untyped-def]
    """Write the counts of a CSR matrix in narrow types, of every column at its place, and the end
    of every row; return whether all is plain: columns in order, counts whole, 1 to `largest`.

    Columns whose place is below zero are left out, whatever they hold. `largest` is of the type of
    `data`.
    """
    k, stays = 0, _is_own(places)
    for row in range(indptr.shape[0] - 1):
        start, stop = indptr[row], indptr[row + 1]
        index, value = indices[start:stop], data[start:stop]
        if not rises(index, places.shape[0]):
            return False
        to_index, to_value = to_indices[k : k + stop - start], to_values[k : k + stop - start]
        if not are_counts(value, largest) and not are_counts(value[places[index] >= 0], largest):
            return False
        if stays:
            _copy(index, to_index)
            _copy(value, to_value)
            k += stop - start
        else:
            k += copy_placed(index, value, places, to_index, to_value)
        ends[row + 1] = k
    return True


@compiled
def _is_own(places):  # type: ignore[no-untyped-def]
    """Return whether every column has its own number for a place."""
    own = 0
    for i in range(places.shape[0]):
        own += places[i] == i
    return own == places.shape[0]


@compiled
def rises(index, g):  # type: ignore[no-untyped-def]
    """Return whether columns of a row are in order, each of them once, and among `g`."""
    n, rising = index.shape[0], 1
    for i in range(1, n):
        rising += index[i - 1] < index[i]
    return n == 0 or (rising == n and index[0] >= 0 and index[n - 1] < g)


@compiled
def are_counts(value, largest):  # type: ignore[no-untyped-def]
    """Return whether all are whole numbers from 1 to `largest`."""
    counts = 0
    for i in range(value.shape[0]):
        counts += (value[i] > 0) & (value[i] <= largest) & (np.floor(value[i]) == value[i])
    return counts == value.shape[0]


@compiled
def _copy(given, to):  # type: ignore[no-untyped-def]
    for i in range(given.shape[0]):
        to[i] = given[i]


@compiled
def copy_placed(index, value, places, to_index, to_value):  # type: ignore[no-untyped-def]
    """Write the entries that have a place, of any number of them without a branch; return how many
    they are."""
    kept = 0
    for i in range(index.shape[0]):
        place = places[np.uintp(index[i])]
        to_index[kept], to_value[kept] = place, value[i]
        kept += place >= 0
    return kept
