"""A compiled kernel: rows of a sparse matrix, written out densely."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def dense_rows(indptr, indices, values, rows, out):  # type: ignore[no-untyped-def]
    """Write the given rows of a CSR matrix over the zeros of `out`, ``(len(rows), g)``."""
    for i in range(rows.shape[0]):
        for entry in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, indices[entry]] = values[entry]
