"""Counts in compressed sparse rows, where training happens, in the narrowest types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


def narrowest(largest: int) -> np.dtype:
    """Return the narrowest signed-safe integer type that torch indexes and that holds `largest`."""
    for dtype in (np.uint8, np.int16, np.int32):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


@cache
def _kernel() -> Callable[..., None] | None:
    """Return the compiled loop over rows, or None where this machine cannot compile or keep it."""
    try:
        from scvae.data.gather import dense_rows
    except (ImportError, RuntimeError):
        return None
    kernel: Callable[..., None] = dense_rows
    return kernel


@dataclass(frozen=True)
class Counts:
    """A cells x genes matrix of counts as CSR tensors on one device.

    Attributes
    ----------
    indptr
        Start of every row, ``(n + 1,)`` int64.
    indices, values
        Gene and count of every non-zero, ``(nnz,)``.
    n_genes
        Number of columns.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    n_genes: int

    @classmethod
    def from_csr(cls, matrix: sparse.csr_matrix, device: torch.device | str = "cpu") -> Counts:
        """Copy a scipy CSR matrix of whole numbers to `device`."""
        largest = int(matrix.data.max()) if matrix.nnz else 0
        n_genes = matrix.shape[1]
        return cls(
            torch.from_numpy(matrix.indptr.astype(np.int64)).to(device),
            torch.from_numpy(matrix.indices.astype(narrowest(n_genes))).to(device),
            torch.from_numpy(matrix.data.astype(narrowest(largest))).to(device),
            n_genes,
        )

    def __len__(self) -> int:
        return self.indptr.shape[0] - 1

    def dense(self, rows: Tensor) -> Tensor:
        """Return the given rows, in their order, as dense float32 ``(len(rows), n_genes)``."""
        kernel = _kernel() if rows.device.type == "cpu" else None
        if kernel is None:
            return self._dense_by_index(rows)
        out = torch.zeros(len(rows), self.n_genes, dtype=torch.float32)
        given = (self.indptr, self.indices, self.values, rows, out)
        kernel(*(tensor.numpy() for tensor in given))
        return out

    def _dense_by_index(self, rows: Tensor) -> Tensor:
        """Do as `dense` on any device, by a scatter of all non-zeros at once."""
        start, length = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        ends = length.cumsum(0)
        row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), length)
        entry = torch.arange(row.shape[0], device=rows.device) + (start - (ends - length))[row]
        out = torch.zeros(len(rows) * self.n_genes, dtype=torch.float32, device=rows.device)
        out[row * self.n_genes + self.indices[entry]] = self.values[entry].float()
        return out.view(len(rows), self.n_genes)
