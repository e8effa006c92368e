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

from scvae.core.csr import csr

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # data, indices and indptr of CSR
COMPILED = [np.dtype(kind) for kind in ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]


def narrowest(largest: int) -> np.dtype:
    """Return the narrowest signed-safe integer type that torch indexes and that holds `largest`."""
    for dtype in (np.uint8, np.int16, np.int32):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def _within(largest: int, dtype: np.dtype) -> np.generic:
    """Return the largest whole number up to `largest` that a type holds."""
    if dtype.kind != "f":
        return dtype.type(min(largest, np.iinfo(dtype).max))
    rounded = dtype.type(largest)
    return rounded if int(rounded) <= largest else np.nextafter(rounded, dtype.type(0))


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
        part of a matrix, the largest of all; None takes that of `matrix`. Columns are put in order,
        so that sums over them are the same to the bit however the genes were ordered."""
        matrix = matrix if matrix.has_sorted_indices else matrix.sorted_indices()
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
        most = _within(largest, data.dtype)
        if not kernel(indptr, indices, data, places, most, ends, to_indices, to_values):
            return None
        filled = (ends, to_indices[: ends[-1]], to_values[: ends[-1]])
        return cls(*map(torch.from_numpy, filled), n_genes, int(np.diff(ends).max(initial=0)))

    def __len__(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def entries(self) -> int:
        """Number of non-zeros."""
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """Memory that the counts take."""
        return sum(t.numel() * t.element_size() for t in (self.indptr, self.indices, self.values))

    def take(self, rows: Tensor, *, pinned: bool = False) -> Counts:
        """Return the given rows, in their order, of counts in host memory.

        `pinned` puts them where a GPU fetches them by itself."""
        made = self._room(self.indptr[rows + 1] - self.indptr[rows], pinned=pinned)
        made._put(self, rows, made.indptr[:-1])
        return made

    @classmethod
    def of_parts(
        cls, parts: Sequence[Counts], places: Tensor, pool: Executor, *, pinned: bool = False
    ) -> Counts:
        """Return the rows of all parts, in host memory, each at its place: of the first part first;
        `pinned` as for `take`. The threads of `pool` share the parts out."""
        length = torch.cat([part.indptr.diff() for part in parts])
        in_place = length.new_empty(len(length)).scatter_(0, places, length)
        made = parts[0]._room(in_place, pinned=pinned)
        starts = made.indptr[places].split([len(part) for part in parts])
        rows = [torch.arange(len(part)) for part in parts]
        list(pool.map(made._put, parts, rows, starts))
        return made

    def _room(self, length: Tensor, *, pinned: bool) -> Counts:
        """Return rows of so many entries, which are to be written, of the types of these counts."""
        indptr = torch.zeros(len(length) + 1, dtype=torch.int64, pin_memory=pinned)
        torch.cumsum(length, 0, out=indptr[1:])
        indices, values = (
            torch.empty(int(indptr[-1]), dtype=like.dtype, pin_memory=pinned)
            for like in (self.indices, self.values)
        )
        longest = int(length.max()) if len(length) else 0
        return Counts(indptr, indices, values, self.n_genes, longest)

    def _put(self, given: Counts, rows: Tensor, starts: Tensor) -> None:
        """Write the entries of some rows of `given`, of each from where it is to start on."""
        kernel = _kernel("put_rows")
        if kernel is not None:
            source = (given.indptr, given.indices, given.values)
            each = (*source, rows, starts, self.indices, self.values)
            kernel(*[tensor.numpy() for tensor in each])
            return
        begin, length = given.indptr[rows], given.indptr[rows + 1] - given.indptr[rows]
        row = torch.repeat_interleave(torch.arange(len(rows)), length)
        within = torch.arange(len(row)) - (length.cumsum(0) - length)[row]
        self.indices[starts[row] + within] = given.indices[begin[row] + within]
        self.values[starts[row] + within] = given.values[begin[row] + within]

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

    def compressed(self, rows: Tensor) -> Tensor:
        """Return the given rows, in their order, as torch's compressed sparse rows of float32,
        ``(len(rows), n_genes)``; of consecutive ones nothing but their entries is looked at."""
        if len(rows) and bool((rows.diff() == 1).all()):
            first = int(rows[0])
            indptr = self.indptr[first : first + len(rows) + 1]
            start, stop = int(indptr[0]), int(indptr[-1])
            indices, values = self.indices[start:stop], self.values[start:stop]
            return csr(indptr - start, indices, values, self.n_genes)
        taken = self.take(rows)
        return csr(taken.indptr, taken.indices, taken.values, self.n_genes)

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
