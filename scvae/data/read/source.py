"""Find the raw counts in an AnnData and bring them home as CSR, checking every value on the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scvae.arguments import shown
from scvae.data.hold.counts import narrowest
from scvae.data.read.structure import check_structure
from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK_VALUES = 2**25  # dense values converted at a time: 128 MiB of float32
CALL = "scvae.fit(adata"  # the user's call, for the remedies


class FaultKind(StrEnum):
    """Why a value cannot be a count; the value is the word for it."""

    NAN = "NaN"
    INFINITE = "infinite"
    NEGATIVE = "negative"
    NON_INTEGER = "non-integer"


@dataclass(frozen=True)
class Fault:
    """The first value that cannot be a count."""

    row: int
    column: int
    value: float

    @property
    def kind(self) -> FaultKind:
        if np.isnan(self.value):
            return FaultKind.NAN
        if np.isinf(self.value):
            return FaultKind.INFINITE
        return FaultKind.NEGATIVE if self.value < 0 else FaultKind.NON_INTEGER


def where_named(layer: str | None) -> str:
    """Return how the user writes the place: adata.X or adata.layers['counts']."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def matrix_of(adata: AnnData, layer: str | None) -> Any:
    """Return adata.X or the layer, as it is; None where X is empty."""
    if layer is None:
        return adata.X
    if not isinstance(layer, str) or layer not in adata.layers:
        held = ", ".join(map(repr, adata.layers)) or "none"
        raise DataError(
            f"adata.layers has no {shown(layer)}; it holds: {held}. "
            "Give the name of the layer with raw counts, or layer=None to use adata.X."
        )
    return adata.layers[layer]


def blocks(matrix: Any) -> Iterator[sparse.csr_matrix]:
    """Yield consecutive rows as CSR, few enough at a time to bound the memory of a dense block.

    Raises DataError if `matrix` is broken."""
    kind = getattr(matrix, "format", None)  # None: dense, in memory or in a file
    in_memory = sparse.issparse(matrix)
    if kind == "csc" or (kind == "csr" and in_memory):
        whole: Any = matrix if in_memory else matrix.to_memory()
        check_structure(whole)
        yield sparse.csr_matrix(whole)
        return
    n, g = matrix.shape
    step = max(1, BLOCK_VALUES // max(g, 1))
    for start in range(0, max(n, 1), step):
        rows = matrix[start : start + step]
        check_structure(rows)
        yield sparse.csr_matrix(rows.astype(np.float32) if rows.dtype == np.float16 else rows)


def canonical(block: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return `block` sorted, without duplicates or stored zeros, never touching the user's own."""
    clean = block.has_canonical_format and bool(np.all(block.data))
    if clean:
        return block
    block = block.copy()
    block.sum_duplicates()
    block.eliminate_zeros()
    return block


def are_counts(values: np.ndarray) -> np.ndarray:
    """Return, for every value, whether it can be a count: whole and zero or more."""
    if values.dtype.kind == "b" or (values.dtype.kind == "u" and values.dtype.itemsize < 8):
        return np.ones(len(values), dtype=bool)
    if values.dtype.kind == "i":
        return values >= 0
    with np.errstate(invalid="ignore"):
        # NaN and infinity fail the comparison with their own floor, too, or with the bound.
        return (values >= 0) & (values == np.floor(values)) & (values < 2**63)


def _first_wrong(data: np.ndarray) -> int | None:
    """Return the position of the first value that cannot be a count, if there is one."""
    for start in range(0, len(data), BLOCK_VALUES):
        good = are_counts(data[start : start + BLOCK_VALUES])
        if not good.all():
            return start + int(np.argmin(good))
    return None


def _fault(block: sparse.csr_matrix, offset: int) -> Fault | None:
    position = _first_wrong(block.data)
    return None if position is None else fault_at(block, position, offset)


def fault_at(block: sparse.csr_matrix, position: int, offset: int) -> Fault:
    """Return the value at `position` of a block that starts at row `offset` of the matrix."""
    row = int(np.searchsorted(block.indptr, position, side="right")) - 1
    return Fault(offset + row, int(block.indices[position]), float(block.data[position]))


def _read(matrix: Any, columns: np.ndarray | None) -> sparse.csr_matrix | Fault:
    """Read `matrix` as CSR of the narrowest integers, or return its first fault."""
    parts, offset = [], 0
    for block in blocks(matrix):
        block = canonical(block)
        fault = _fault(block, offset)
        if fault is not None:
            return fault
        offset += block.shape[0]
        part = block if columns is None else block[:, columns]
        largest = int(part.data.max()) if part.nnz else 0
        parts.append(
            sparse.csr_matrix(
                (part.data.astype(narrowest(largest)), part.indices, part.indptr), shape=part.shape
            )
        )
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


def _holds_counts(matrix: Any) -> bool:
    stored = 0
    try:
        for block in blocks(matrix) if matrix is not None else ():
            block = canonical(block)
            if _fault(block, 0) is not None:
                return False
            stored += block.nnz
    except DataError:  # it is broken, or of strings
        return False
    return stored > 0


def candidates(adata: AnnData, besides: str | None) -> list[str]:
    """Return the other layers, those first whose names promise counts."""
    names = [name for name in adata.layers if name != besides]
    return sorted(names, key=lambda name: name not in ("counts", "raw_counts", "raw"))


def layer_with_counts(adata: AnnData, besides: str | None) -> str | None:
    """Return the first other layer that holds counts, if there is one."""
    names = candidates(adata, besides)
    return next((name for name in names if _holds_counts(adata.layers[name])), None)


def no_counts(call: str = CALL) -> DataError:
    """Return the error of an empty X without a layer that holds counts."""
    return DataError(
        f"adata.X is empty and no layer holds counts. Give raw counts: {call}, layer=...)."
    )


def instead_of_x(fault: Fault | None, other: str, call: str = CALL) -> str:
    """Say that the counts of another layer are used, because X has a fault or is empty."""
    state = "is empty" if fault is None else f"holds {fault.kind} values"
    return (
        f"adata.X {state}; using the raw counts in adata.layers[{other!r}]. "
        f"To choose and silence this: {call}, layer={other!r})."
    )


def not_counts(
    adata: AnnData,
    layer: str | None,
    fault: Fault,
    other: str | None,
    call: str = CALL,
    *,
    home: str | None = None,
) -> DataError:
    """Return the error of a matrix with a fault; `other` is a layer that holds counts.

    `home` is where the call looks without a layer."""
    cell, gene = adata.obs_names[fault.row], adata.var_names[fault.column]
    problem = (
        f"{where_named(layer)} has {fault.kind} values "
        f"(first: {fault.value:.6g} at cell {cell!r}, gene {gene!r}). "
        "The counts model needs raw counts: whole numbers, zero or more"
    )
    if other is not None:
        return DataError(
            f"{problem}; adata.layers[{other!r}] holds some: {call}, layer={other!r})."
        )
    if layer is not None and _holds_counts(adata.X):
        remedy = f"{call})" if home is None else f"{where_named(layer)} = adata.X"
        return DataError(f"{problem}; adata.X holds some: {remedy}.")
    if adata.raw is not None and _holds_counts(adata.raw.X):
        return DataError(
            f"{problem}; adata.raw holds some: adata = adata.raw.to_adata(), then {call})."
        )
    return DataError(f"{problem}. Load the matrix as it came from the counting pipeline.")


@dataclass(frozen=True)
class Found:
    """Raw counts, the layer where they were (None: X), and what the user should know of it."""

    counts: sparse.csr_matrix
    layer: str | None
    note: str | None = None


def find_counts(
    adata: AnnData,
    layer: str | None = None,
    columns: np.ndarray | None = None,
    *,
    call: str = CALL,
    home: str | None = None,
) -> Found:
    """Return the raw counts of `adata`, as `read_counts` does, with its warning as a note."""
    matrix = matrix_of(adata, layer)
    read = None if matrix is None else _read(matrix, columns)
    if isinstance(read, sparse.csr_matrix):
        return Found(read, layer)
    other = layer_with_counts(adata, layer)
    if layer is None and other is not None:
        counts = _read(adata.layers[other], columns)
        assert isinstance(counts, sparse.csr_matrix)
        return Found(counts, other, instead_of_x(read, other, call))
    if read is None:
        raise no_counts(call)
    raise not_counts(adata, layer, read, other, call, home=home)


def read_counts(
    adata: AnnData,
    layer: str | None = None,
    columns: np.ndarray | None = None,
    *,
    call: str = CALL,
    home: str | None = None,
    stacklevel: int = 2,
) -> tuple[sparse.csr_matrix, str | None]:
    """Return the raw counts of `adata` as CSR, and the layer where they were (None: X).

    Every value is checked, also of files opened in backed mode, which are read block by block.

    Parameters
    ----------
    adata
        Cells x genes; X or a layer holds raw counts in any format that AnnData knows.
    layer
        Where to look. None looks in X, then for a layer that holds counts, and warns which.
    columns
        Positions of the genes to return, in this order; None returns all.
    call
        The user's call, for the remedy in an error.
    home
        The layer where that call looks if it is given none; None is X.
    stacklevel
        Of the warning, seen from here: 2 is the caller's line.

    Raises
    ------
    DataError
        If the values are not counts; the message names value, cell, gene and remedy.
    """
    found = find_counts(adata, layer, columns, call=call, home=home)
    if found.note is not None:
        warnings.warn(found.note, stacklevel=stacklevel)
    return found.counts, found.layer
