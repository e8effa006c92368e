"""Library sizes: how many transcripts of every cell were counted."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.arguments import check_name
from scvae.data.read.covariates import column
from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

FROM_COUNTS = ("observed", "latent")


def library_sizes(
    adata: AnnData, totals: np.ndarray, source: str, place: str | None = None
) -> np.ndarray:
    """Return the library size of every cell, float64 ``(n,)``, all positive.

    Parameters
    ----------
    totals
        Counts of every cell in the fitted genes, ``(n,)``.
    source
        "observed" or "latent" take `totals`; any other string names a column of adata.obs with the
        total counts over all genes.
    place
        As for `check_not_empty`.

    Raises
    ------
    DataError
        If a cell is empty, or the column has values below the cell's own counts.
    """
    check_not_empty(adata, totals, place)
    source = check_name("library_size", source, "observed")
    if source in FROM_COUNTS:
        return totals
    if source not in adata.obs:
        known = [*FROM_COUNTS, *map(str, adata.obs.columns)]
        near = get_close_matches(source, known, n=1)
        hint = f"; did you mean library_size={near[0]!r}?" if near else "."
        raise DataError(
            f"adata.obs has no column {source!r} (given as library_size){hint} "
            f"It takes one of {known}."
        )
    values = column(adata.obs, source, "library_size")
    sizes = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(sizes) & (sizes >= totals * (1 - 1e-6)))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"adata.obs[{source!r}] (given as library_size) is {values.iloc[first]} at cell "
            f"{adata.obs_names[first]!r}, which has {totals[first]:g} counts in the fitted genes "
            "alone. Give total counts over all genes: "
            "adata.obs['total_counts'] = adata.X.sum(axis=1)"
        )
    return sizes


def check_not_empty(adata: AnnData, totals: np.ndarray, place: str | None = None) -> None:
    """Raise if a cell has no counts in the fitted genes; `place` is how the user writes these, None
    if they are all of X."""
    empty = totals == 0
    if len(empty) and empty.all():
        raise DataError(
            f"No cell of adata has counts in {'adata.X' if place is None else place}; an empty "
            "cell says nothing of what it is. Give the counts: scvae.fit(adata, layer=...)"
        )
    if empty.any():
        call = "sc.pp.filter_cells(adata, min_counts=1)"
        if place is not None:
            call = f"adata = adata[np.ravel({place}.sum(axis=1)) > 0].copy()"
        raise DataError(
            f"{int(empty.sum())} of {len(totals)} cells have no counts in the fitted genes (first: "
            f"{adata.obs_names[int(np.argmax(empty))]!r}); an empty cell says nothing of what it "
            f"is. Leave them out: {call}"
        )
