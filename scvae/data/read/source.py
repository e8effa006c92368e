"""The matrices of an AnnData by the names that a user gives them, read as blocks of CSR."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.arguments import shown
from scvae.data.hold.residence import SHARE, ahead, free_memory
from scvae.data.read.stored import StoredMatrix, in_file
from scvae.data.read.structure import check_structure
from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK_VALUES = 2**25  # dense values converted at a time: 128 MiB of float32


RAW = "raw"  # as a layer: adata.raw, unless there is a layer of that name


def is_raw(adata: AnnData, layer: str | None) -> bool:
    """Return whether `layer` means adata.raw."""
    return (
        isinstance(layer, str)
        and layer == RAW
        and RAW not in adata.layers
        and adata.raw is not None
    )


def home_in(adata: AnnData, layer: str | None) -> str | None:
    """Return the layer that a fit took the counts from, where `adata` has it; else None."""
    return layer if layer in adata.layers or is_raw(adata, layer) else None


def genes_of(adata: AnnData, layer: str | None) -> pd.Index:
    """Return the names of the columns of a matrix: adata.raw may have more than adata."""
    return adata.raw.var_names if is_raw(adata, layer) else adata.var_names


def chosen_genes(adata: AnnData, layer: str | None, columns: np.ndarray | None) -> pd.Index:
    """Return the names of the columns of a matrix that were chosen; None takes all."""
    names = genes_of(adata, layer)
    return names if columns is None else names[columns]


def cell_named(adata: AnnData, row: int) -> str:
    """Return the name of a cell, with that of its file where there are several."""
    file_of = getattr(adata, "file_of", lambda row: None)
    of_file = "" if file_of(row) is None else f" of {file_of(row)}"
    return f"{adata.obs_names[row]!r}{of_file}"


def where_named(layer: str | None, adata: AnnData | None = None) -> str:
    """Return how the user writes the place: adata.X, adata.layers['counts'] or adata.raw.X."""
    if adata is not None and is_raw(adata, layer):
        return "adata.raw.X"
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def fitted_place(adata: AnnData, layer: str | None, genes: Any, *, is_rounded: bool = False) -> str:
    """Return how the user writes the counts of the fitted genes: adata[:, genes].X.

    `genes` is what the user chose them by; None is all."""
    place = _fitted_place(adata, layer, genes)
    return f"np.rint({place})" if is_rounded else place


def _fitted_place(adata: AnnData, layer: str | None, genes: Any) -> str:
    place = where_named(layer, adata)
    if genes is None:
        return place if place != "adata.raw.X" else "adata.raw[:, adata.var_names].X"
    chosen = "list(genes)"
    if isinstance(genes, str):
        chosen = f"adata.var[{genes!r}]"
        if adata.var[genes].dtype != bool:
            chosen += ".astype(str).isin(['True', 'TRUE', 'true', '1', '1.0'])"
    if place == "adata.raw.X":
        return f"adata.raw[:, adata[:, {chosen}].var_names].X"
    return place.replace("adata", f"adata[:, {chosen}]", 1)


def matrix_of(adata: AnnData, layer: str | None) -> Any:
    """Return adata.X or the layer, as it is; None where X is empty.

    An X in backed mode, if it is CSR, is one that may be read into memory or stay where it is."""
    if layer is None:
        path = getattr(adata, "filename", None)
        if path is None or adata.is_view:
            return adata.X
        return in_file(adata.X, path, int(SHARE * free_memory()))
    if is_raw(adata, layer):
        return adata.raw.X
    if not isinstance(layer, str) or layer not in adata.layers:
        near = get_close_matches(str(layer), list(adata.layers), n=1)
        held = ", ".join(map(repr, adata.layers)) or "none"
        hint = f"Did you mean layer={near[0]!r}? " if near else ""
        is_raw_asked = isinstance(layer, str) and layer == RAW
        no_raw = "adata.raw is None, and " if is_raw_asked else ""
        raise DataError(
            f"{no_raw}adata.layers has no {shown(layer)}; it holds: {held}. {hint}"
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
        yield _plain(whole)
        return
    for rows in _parts(matrix):
        check_structure(rows)
        yield _plain(rows)


def _plain(rows: Any) -> sparse.csr_matrix:
    """Return rows as CSR of numbers that scipy takes: no half floats, in this machine's order."""
    if rows.dtype == np.float16:
        rows = rows.astype(np.float32)
    elif not rows.dtype.isnative:
        rows = rows.astype(rows.dtype.newbyteorder("="))
    if sparse.issparse(rows):
        rows = _with_native_indices(rows)
    return sparse.csr_matrix(rows)


def _with_native_indices(rows: Any) -> Any:
    """Return a compressed matrix whose indices are in this machine's order, as scipy takes them."""
    if rows.indices.dtype.isnative and rows.indptr.dtype.isnative:
        return rows
    native = (each.astype(each.dtype.newbyteorder("=")) for each in (rows.indices, rows.indptr))
    return type(rows)((rows.data, *native), shape=rows.shape)


def _parts(matrix: Any) -> Iterator[Any]:
    """Yield consecutive rows as they are: the chunks of dask, of others a bounded number."""
    n, g = matrix.shape
    if hasattr(matrix, "dask"):
        for start, size in zip(np.cumsum((0, *matrix.chunks[0])), matrix.chunks[0], strict=False):
            yield matrix[start : start + size].compute()
        return
    step = max(1, BLOCK_VALUES // max(g, 1))
    starts = range(0, max(n, 1), step)
    if isinstance(matrix, StoredMatrix):
        yield from ahead(lambda start: matrix[start : start + step], starts)
        return
    for start in starts:
        yield matrix[start : start + step]
