"""Whether a matrix is one: scipy's compiled code reads where the indices of a sparse matrix point,
inside its memory or not, and files can hold any."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scvae.errors import DataError

NUMBERS = "biuf"  # kinds of dtypes: truth values, whole numbers and floats


def check_structure(matrix: Any) -> None:
    """Raise if `matrix` does not hold numbers, or is a CSR or CSC matrix that contradicts itself.

    Takes one pass over the indices. Dense matrices may lie in a file; sparse ones are in memory.

    Raises
    ------
    DataError
        With what is wrong.
    """
    dtype = getattr(matrix, "dtype", None)
    if dtype is None or dtype.kind not in NUMBERS:
        raise DataError(
            f"The matrix of counts holds {dtype or type(matrix).__name__} values. The counts model "
            "needs raw counts: whole numbers, zero or more. If they are numbers: "
            "adata.X = adata.X.astype('float32')"
        )
    if isinstance(matrix, np.ma.MaskedArray) and (masked := int(np.ma.count_masked(matrix))):
        raise DataError(
            f"The matrix of counts is a masked array with {masked:,} values that are masked. Every "
            "value is needed; if they are zeros: adata.X = adata.X.filled(0)"
        )
    is_compressed = sparse.issparse(matrix) and getattr(matrix, "format", "") in ("csr", "csc")
    problem = _problem(matrix) if is_compressed else None
    if problem is not None:
        raise DataError(
            f"The sparse matrix of counts is broken: {problem}. "
            "Load the matrix as it came from the counting pipeline."
        )


def _problem(matrix: Any) -> str | None:
    indptr, indices, data = matrix.indptr, matrix.indices, matrix.data
    lines, (n, g) = "rows", matrix.shape
    if matrix.format == "csc":
        lines, (g, n) = "columns", matrix.shape
    if any(each.ndim != 1 for each in (indptr, indices, data)):
        return "indptr, indices and data are not all one-dimensional"
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        return f"indptr is {indptr.dtype} and indices are {indices.dtype}, not whole numbers"
    if len(indptr) != n + 1:
        return f"{n} {lines} need {n + 1} entries of indptr, but it has {len(indptr)}"
    if len(indices) != len(data):
        return f"it has {len(data)} values, but {len(indices)} indices"
    if indptr[0] != 0 or indptr[-1] > len(indices) or (indptr[1:] < indptr[:-1]).any():
        return f"indptr does not rise from 0 to at most {len(indices)}, the number of its values"
    if _largest(indices[: indptr[-1]]) >= g:
        return f"an index is not between 0 and {g - 1}"
    return None


def _largest(indices: np.ndarray) -> int:
    """Return the largest index; a negative one counts as huge."""
    unsigned = np.dtype(f"u{indices.dtype.itemsize}").newbyteorder(indices.dtype.byteorder)
    return int(indices.view(unsigned).max()) if len(indices) else -1


def canonical(block: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return `block` sorted, without duplicates or stored zeros, never touching the user's own."""
    clean = block.has_canonical_format and bool(np.all(block.data))
    if clean:
        return block
    is_narrow = block.dtype.kind in "iu" and not block.has_canonical_format
    block = block.astype(np.int64) if is_narrow else block.copy()  # sums may be wider
    block.sum_duplicates()
    block.eliminate_zeros()
    return block
