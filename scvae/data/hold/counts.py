"""Counts in compressed sparse rows, where training happens, in the narrowest types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # data, indices and indptr of CSR
COMPILED = [np.dtype(kind) for kind in ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]


def narrowest(largest: int) -> np.dtype:
    """Return the narrowest signed-safe integer type that torch indexes and that holds `largest`."""
    for dtype in (np.uint8, np.int16, np.int32):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


@cache
def _kernel(name: str) -> Callable[..., None] | None:
    """Return a compiled loop over rows, or None where this machine cannot compile or keep it."""
    try:
        from scvae.data.hold import gather
    except (ImportError, RuntimeError):
        return None
    kernel: Callable[..., None] = getattr(gather, name)
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
    longest
        Non-zeros of the fullest row.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    n_genes: int
    longest: int

    @classmethod
    def from_csr(
        cls,
        matrix: sparse.csr_matrix,
        device: torch.device | str = "cpu",
        *,
        largest: int | None = None,
    ) -> Counts:
        """Copy a scipy CSR matrix of whole numbers to `device`, in types that hold `largest`: of a
        part of a matrix, the largest of all; None takes that of `matrix`."""
        if largest is None:
            largest = int(matrix.data.max()) if matrix.nnz else 0
        n_genes = matrix.shape[1]
        return cls(
            torch.from_numpy(matrix.indptr.astype(np.int64)).to(device),
            torch.from_numpy(matrix.indices.astype(narrowest(n_genes))).to(device),
            torch.from_numpy(matrix.data.astype(narrowest(largest))).to(device),
            n_genes,
            int(np.diff(matrix.indptr).max(initial=0)),
        )

    @classmethod
    def from_plain(
        cls, arrays: Arrays, places: np.ndarray, n_genes: int, largest: int
    ) -> Counts | None:
        """Return consecutive rows of a file in one fast pass, or None where one of them is odd: it
        has columns out of order, stored zeros, or values other than counts up to `largest`.

        `arrays` are data, indices and indptr; `places` is the gene of every column, ``(g,)``
        int64, rising, below zero for those that are left out.
        """
        data, indices, indptr = arrays
        kernel = _kernel("narrow_rows")
        if kernel is None or data.dtype not in COMPILED or indices.dtype not in COMPILED:
            return None
        ends = np.zeros(len(indptr), dtype=np.int64)
        to_indices = np.empty(len(indices), dtype=narrowest(n_genes))
        to_values = np.empty(len(indices), dtype=narrowest(largest))
        if not kernel(indptr, indices, data, places, largest, ends, to_indices, to_values):
            return None
        filled = (ends, to_indices[: ends[-1]], to_values[: ends[-1]])
        return cls(*map(torch.from_numpy, filled), n_genes, int(np.diff(ends).max(initial=0)))

    def __len__(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Memory that the counts take."""
        return sum(t.numel() * t.element_size() for t in (self.indptr, self.indices, self.values))

    def take(self, rows: Tensor, *, pinned: bool = False) -> Counts:
        """Return the given rows, in their order, of counts in host memory.

        `pinned` puts them where a GPU fetches them by itself."""
        length = self.indptr[rows + 1] - self.indptr[rows]
        indptr = torch.zeros(len(rows) + 1, dtype=torch.int64, pin_memory=pinned)
        torch.cumsum(length, 0, out=indptr[1:])
        n_entries = int(indptr[-1])
        indices = torch.empty(n_entries, dtype=self.indices.dtype, pin_memory=pinned)
        values = torch.empty(n_entries, dtype=self.values.dtype, pin_memory=pinned)
        kernel = _kernel("take_rows")
        if kernel is None:
            entry = _entries(self.indptr, rows, length, indptr)
            indices.copy_(self.indices[entry])
            values.copy_(self.values[entry])
        else:
            given = (self.indptr, self.indices, self.values, rows, indptr, indices, values)
            kernel(*[tensor.numpy() for tensor in given])
        longest = int(length.max()) if len(rows) else 0
        return Counts(indptr, indices, values, self.n_genes, longest)

    @classmethod
    def of_parts(
        cls, parts: Sequence[Counts], places: Tensor, pool: Executor, *, pinned: bool = False
    ) -> Counts:
        """Return the rows of all parts, in host memory, each at its place: of the first part first;
        `pinned` as for `take`. The threads of `pool` share the parts out."""
        length = torch.cat([part.indptr.diff() for part in parts])
        indptr = torch.zeros(len(length) + 1, dtype=torch.int64, pin_memory=pinned)
        torch.cumsum(length.new_empty(len(length)).scatter_(0, places, length), 0, out=indptr[1:])
        indices, values = (
            torch.empty(int(indptr[-1]), dtype=like.dtype, pin_memory=pinned)
            for like in (parts[0].indices, parts[0].values)
        )

        def put(part: Counts, starts: Tensor) -> None:
            given = (part.indptr, part.indices, part.values, starts, indices, values)
            _put(*[tensor.numpy() for tensor in given])

        starts = indptr[places].split([len(part) for part in parts])
        list(pool.map(put, parts, starts))
        longest = max(part.longest for part in parts)
        return cls(indptr, indices, values, parts[0].n_genes, longest)

    def to(self, device: torch.device | str) -> Counts:
        """Return the counts on `device`; from pinned memory, without waiting for the copy."""
        indptr, indices, values = (
            t.to(device, non_blocking=True) for t in (self.indptr, self.indices, self.values)
        )
        return Counts(indptr, indices, values, self.n_genes, self.longest)

    def dense(self, rows: Tensor) -> Tensor:
        """Return the given rows, in their order, as dense float32 ``(len(rows), n_genes)``."""
        kernel = _kernel("dense_rows") if rows.device.type == "cpu" else None
        if kernel is None:
            return self._dense_by_index(rows)
        out = torch.zeros(len(rows), self.n_genes, dtype=torch.float32)
        given = (self.indptr, self.indices, self.values, rows, out)
        kernel(*[tensor.numpy() for tensor in given])
        return out

    def _dense_by_index(self, rows: Tensor) -> Tensor:
        """Do as `dense` on any device, by scattering as many entries a row as the fullest row has.

        Its size is known beforehand, so that a GPU need not report back in between.
        """
        start, length = (
            self.indptr[rows, None],
            (self.indptr[rows + 1] - self.indptr[rows])[:, None],
        )
        column = torch.arange(self.longest, device=rows.device)
        entry = torch.where(column < length, start + column, 0)
        # What lies beyond a row's end goes to one more column, which is cut off.
        gene = torch.where(column < length, self.indices[entry].long(), self.n_genes)
        out = torch.zeros(len(rows), self.n_genes + 1, dtype=torch.float32, device=rows.device)
        return out.scatter_(1, gene, self.values[entry].float())[:, : self.n_genes].contiguous()


def _put(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    starts: np.ndarray,
    to_indices: np.ndarray,
    to_values: np.ndarray,
) -> None:
    """Write the entries of every row from where it starts on, see `gather.put_rows`."""
    kernel = _kernel("put_rows")
    if kernel is not None:
        kernel(indptr, indices, values, starts, to_indices, to_values)
        return
    to = np.arange(len(indices)) + np.repeat(starts - indptr[:-1], np.diff(indptr))
    to_indices[to], to_values[to] = indices, values


def _entries(indptr: Tensor, rows: Tensor, length: Tensor, ends: Tensor) -> Tensor:
    """Return the positions of all entries of the given rows, one row after another."""
    row = torch.repeat_interleave(torch.arange(len(rows)), length)
    return torch.arange(len(row)) + (indptr[rows] - ends[:-1])[row]
