"""Compiled kernels: rows of a sparse matrix, written out densely or one after another."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def dense_rows(indptr, indices, values, rows, out):  # type: ignore[no-untyped-def]
    """Write the given rows of a CSR matrix over the zeros of `out`, ``(len(rows), g)``."""
    for i in range(rows.shape[0]):
        for entry in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, indices[entry]] = values[entry]


@njit(cache=True, nogil=True, error_model="numpy")
def take_rows(indptr, indices, values, rows, ends, to_indices, to_values):  # type: ignore[no-untyped-def]
    """Write the entries of the given rows one row after another, from ``ends[i]`` on."""
    for i in range(rows.shape[0]):
        start = indptr[rows[i]]
        for k in range(ends[i + 1] - ends[i]):
            to_indices[ends[i] + k] = indices[start + k]
            to_values[ends[i] + k] = values[start + k]
