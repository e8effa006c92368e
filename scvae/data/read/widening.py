"""Covariates with the categories of further cells, after those that are known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from scvae.data.read.covariates import Covariates, column, names_of_cells
from scvae.errors import DataError


@dataclass(frozen=True)
class Widened:
    """Covariates with further categories, and where the old are among them.

    Attributes
    ----------
    covariates
        The same columns, with unseen categories after the known ones of each.
    start
        Weights of the old columns of a design that every new one is made of, ``(c', c)``: the
        column itself, or the mean over those of its kind, which is where a new one starts.
    is_new
        True for the columns that are new, ``(c',)``.
    n_new_batches
        Number of new batches, which come after the old.
    """

    covariates: Covariates
    start: np.ndarray
    is_new: np.ndarray
    n_new_batches: int


def widen(covariates: Covariates, obs: pd.DataFrame) -> Widened:
    """Return the covariates with the categories that cells in `obs` have besides.

    Raises
    ------
    DataError
        If a column is absent or incomplete, or a new category has one cell.
    """
    categories, starts, flags = {}, [], []
    for name, known in covariates.categories.items():
        new = _unseen(obs, name, known, "batch" if name == covariates.batch else "covariate")
        categories[name] = [*known, *new]
        starts.append(np.vstack([np.eye(len(known)), np.full((len(new), len(known)), 1)]))
        flags += [False] * len(known) + [True] * len(new)
    starts.append(np.eye(len(covariates.numbers)))
    flags += [False] * len(covariates.numbers)
    start = np.zeros((len(flags), covariates.width))
    row = place = 0
    for block in starts:
        row_end, place_end = row + block.shape[0], place + block.shape[1]
        start[row:row_end, place:place_end] = block / np.maximum(block.sum(1, keepdims=True), 1)
        row, place = row_end, place_end
    wide = replace(covariates, categories=categories)
    return Widened(wide, start, np.array(flags, bool), wide.n_batches - covariates.n_batches)


def _unseen(obs: pd.DataFrame, name: str, known: list[str], role: str) -> list[str]:
    """Return the categories of a column that are not known, sorted."""
    sizes = names_of_cells(column(obs, name, role)).value_counts()
    new = sizes[~sizes.index.isin(known)]
    if len(new) and new.min() < 2:
        single = sorted(new.index[new < 2])
        where = f"adata.obs[{name!r}]"
        raise DataError(
            f"{where} has {len(single)} new categories with one cell (first: {single[0]!r}); what "
            "is particular to it cannot be learned from one cell. Leave it out: "
            f"adata = adata[{where} != {single[0]!r}].copy()"
        )
    return sorted(map(str, new.index))
