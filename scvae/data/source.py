"""Find the raw counts in an AnnData and bring them home as CSR, checking every value on the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scvae.data.counts import narrowest
from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK_VALUES = 2**25  # dense values converted at a time: 128 MiB of float32


@dataclass(frozen=True)
class Fault:
    """The first value that cannot be a count."""

    row: int
    column: int
    value: float

    @property
    def kind(self) -> str:
        if np.isnan(self.value):
            return "NaN"
        if np.isinf(self.value):
            return "infinite"
        return "negative" if self.value < 0 else "non-integer"


def where_named(layer: str | None) -> str:
    """Return how the user writes the place: adata.X or adata.layers['counts']."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _matrix(adata: AnnData, layer: str | None) -> Any:
    if layer is None:
        return adata.X
    if layer not in adata.layers:
        held = ", ".join(map(repr, adata.layers)) or "none"
        raise DataError(
            f"adata.layers has no {layer!r}; it holds: {held}. "
            "Give the name of the layer with raw counts, or layer=None to use adata.X."
        )
    return adata.layers[layer]


def _blocks(matrix: Any) -> Iterator[sparse.csr_matrix]:
    """Yield consecutive rows as CSR, few enough at a time to bound the memory of a dense block."""
    kind = getattr(matrix, "format", None)  # None: dense, in memory or in a file
    in_memory = sparse.issparse(matrix)
    if kind == "csc" or (kind == "csr" and in_memory):
        whole: Any = matrix if in_memory else matrix.to_memory()
        yield sparse.csr_matrix(whole)
        return
    n, g = matrix.shape
    step = max(1, BLOCK_VALUES // max(g, 1))
    for start in range(0, max(n, 1), step):
        rows = matrix[start : start + step]
        yield sparse.csr_matrix(rows.astype(np.float32) if rows.dtype == np.float16 else rows)


def _canonical(block: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return `block` sorted, without duplicates or stored zeros, never touching the user's own."""
    clean = block.has_canonical_format and bool(np.all(block.data))
    if clean:
        return block
    block = block.copy()
    block.sum_duplicates()
    block.eliminate_zeros()
    return block


def _first_wrong(data: np.ndarray) -> int | None:
    """Return the position of the first value that cannot be a count, if there is one."""
    for start in range(0, len(data), BLOCK_VALUES):
        part = data[start : start + BLOCK_VALUES]
        with np.errstate(invalid="ignore"):
            # One pass decides; NaN and infinity fail the comparison with their own floor, too.
            good = (part >= 0) & (part == np.floor(part)) & (part < 2**63)
        if not good.all():
            return start + int(np.argmin(good))
    return None


def _fault(block: sparse.csr_matrix, offset: int) -> Fault | None:
    data = block.data
    if data.dtype.kind == "b" or data.size == 0:
        return None
    position = _first_wrong(data)
    if position is None:
        return None
    row = int(np.searchsorted(block.indptr, position, side="right")) - 1
    return Fault(offset + row, int(block.indices[position]), float(data[position]))


def _read(matrix: Any, columns: np.ndarray | None) -> sparse.csr_matrix | Fault:
    """Read `matrix` as CSR of the narrowest integers, or return its first fault."""
    parts, offset = [], 0
    for block in _blocks(matrix):
        block = _canonical(block)
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
    found = None if matrix is None else _read(matrix, None)
    return isinstance(found, sparse.csr_matrix) and found.nnz > 0


def _layer_with_counts(adata: AnnData, besides: str | None) -> str | None:
    names = [name for name in adata.layers if name != besides]
    names.sort(key=lambda name: name not in ("counts", "raw_counts", "raw"))
    return next((name for name in names if _holds_counts(adata.layers[name])), None)


def _not_counts(adata: AnnData, layer: str | None, fault: Fault, call: str) -> DataError:
    cell, gene = adata.obs_names[fault.row], adata.var_names[fault.column]
    problem = (
        f"{where_named(layer)} has {fault.kind} values "
        f"(first: {fault.value:.6g} at cell {cell!r}, gene {gene!r}). "
        "The counts model needs raw counts: whole numbers, zero or more"
    )
    other = _layer_with_counts(adata, layer)
    if other is not None:
        return DataError(
            f"{problem}; adata.layers[{other!r}] holds some: {call}, layer={other!r})."
        )
    if layer is not None and _holds_counts(adata.X):
        remedy = f"{call})" if call.startswith("scvae.fit") else f"{where_named(layer)} = adata.X"
        return DataError(f"{problem}; adata.X holds some: {remedy}.")
    if adata.raw is not None and _holds_counts(adata.raw.X):
        return DataError(
            f"{problem}; adata.raw holds some: adata = adata.raw.to_adata(), then scvae.fit(adata)."
        )
    return DataError(f"{problem}. Load the matrix as it came from the counting pipeline.")


def read_counts(
    adata: AnnData,
    layer: str | None = None,
    columns: np.ndarray | None = None,
    *,
    call: str = "scvae.fit(adata",
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

    Raises
    ------
    DataError
        If the values are not counts; the message names value, cell, gene and remedy.
    """
    matrix = _matrix(adata, layer)
    if matrix is None:
        found: sparse.csr_matrix | Fault | None = None
    else:
        found = _read(matrix, columns)
    if isinstance(found, sparse.csr_matrix):
        return found, layer
    other = _layer_with_counts(adata, layer) if layer is None else None
    if other is None:
        if found is None:
            raise DataError(
                f"adata.X is empty and no layer holds counts. Give raw counts: {call}, layer=...)."
            )
        raise _not_counts(adata, layer, found, call)
    counts = _read(adata.layers[other], columns)
    assert isinstance(counts, sparse.csr_matrix)
    state = "is empty" if found is None else f"holds {found.kind} values"
    warnings.warn(
        f"adata.X {state}; using the raw counts in adata.layers[{other!r}]. "
        f"To choose and silence this: {call}, layer={other!r}).",
        stacklevel=4,
    )
    return counts, other
