"""Compiled kernels: rows of a sparse matrix, written out densely or one after another.

They leave Python's lock free, so that threads read from disk while another trains.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def dense_rows(indptr, indices, values, rows, out):  # type: ignore[no-untyped-def]
    """Write the given rows of a CSR matrix over the zeros of `out`, ``(len(rows), g)``."""
    for i in range(rows.shape[0]):
        for entry in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, indices[entry]] = values[entry]


@njit(cache=True, nogil=True, error_model="numpy")
def put_rows(indptr, indices, values, rows, starts, to_indices, to_values):  # type: ignore[no-untyped-def]
    """Write the entries of the given rows of a CSR matrix, of each from ``starts[i]`` on."""
    for i in range(rows.shape[0]):
        start = indptr[rows[i]]
        for k in range(indptr[rows[i] + 1] - start):
            to_indices[starts[i] + k] = indices[start + k]
            to_values[starts[i] + k] = values[start + k]


@njit(cache=True, nogil=True, error_model="numpy")
def narrow_rows(indptr, indices, data, places, largest, ends, to_indices, to_values):  # type: ignore[no-untyped-def]
    """Write the counts of a CSR matrix in narrow types, of every column at its place, and the end
    of every row; return whether all is plain: columns in order, counts whole, 1 to `largest`.

    Columns whose place is below zero are left out, whatever they hold.
    """
    k = 0
    for row in range(indptr.shape[0] - 1):
        last = np.int64(-1)
        for entry in range(indptr[row], indptr[row + 1]):
            column = np.int64(indices[entry])
            if column <= last or column >= places.shape[0]:
                return False
            last = column
            if places[column] < 0:
                continue
            value = data[entry]
            if not 0 < value <= largest or np.int64(value) != value:
                return False
            to_indices[k] = places[column]
            to_values[k] = value
            k += 1
        ends[row + 1] = k
    return True
