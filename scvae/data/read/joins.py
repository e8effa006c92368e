"""Values that were never measured: NaN where a join of parts had none to give, or whole cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvae.data.read.source import blocks, matrix_of

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST = 2  # NaN of a gene that has some, on average, if these are of whole parts


def told_nan(adata: AnnData, layer: str | None) -> str | None:
    """Say what NaN come from, with the call that leaves out what was not measured; None if they
    are slips here and there.

    An outer join leaves NaN in blocks: for the genes that a part of the cells never measured.
    """
    of_cells, of_genes, ends = _number_of_nan(matrix_of(adata, layer))
    some, total = of_genes > 0, int(of_genes.sum())
    frame = "adata.to_df()" if layer is None else f"adata.to_df({layer!r})"
    if set(of_cells) <= {0, len(of_genes)} and (of_cells == 0).any():
        return (
            f"{int((of_cells > 0).sum()):,} of {len(of_cells):,} cells have NaN alone: nothing was "
            f"measured of them. Leave them out: adata = adata[{frame}.notna().all(axis=1)"
            ".to_numpy()].copy()"
        )
    if total < FEWEST * some.sum():
        return None
    told = (
        f"{total:,} NaN are what an outer join of parts leaves where a part never measured a gene."
    )
    if int((~some).sum()) < 2:
        genes = adata.var_names[ends]
        return (
            f"{told} Nearly no gene was measured in all parts, as where parts name their genes "
            f"otherwise: the first cell has {genes[0]!r}, the last {genes[1]!r}. Give genes the "
            "same names in all, then join them: adata = anndata.concat(parts, join='inner')"
        )
    return (
        f"{told} Keep the genes that all parts measured: "
        f"adata = adata[:, {frame}.notna().all().to_numpy()].copy()"
    )


def _number_of_nan(matrix: Any) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return how many values are NaN of every row, and of every column; and the first columns that
    are none in the first row and in the last."""
    of_rows, of_columns = [], np.zeros(matrix.shape[1], dtype=np.int64)
    ends: list[int] = []
    for block in blocks(matrix):
        is_nan = np.isnan(block.data)
        of_rows.append(np.diff(np.concatenate([[0], np.cumsum(is_nan)])[block.indptr]))
        of_columns += np.bincount(block.indices[is_nan], minlength=len(of_columns))
        known = ~np.isnan(block[[0, -1]].toarray())
        ends = [*ends[:1], *map(int, known.argmax(axis=1))]
    return np.concatenate(of_rows), of_columns, [ends[0], ends[-1]]
