"""The column of adata.obs with labels, of which some cells may have none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scvae.arguments import check_name, shown
from scvae.data.read.covariates import column, names_of_cells
from scvae.errors import ConfigError, DataError

UNLABELLED = -1


@dataclass(frozen=True)
class Labels:
    """Labels of n cells.

    Attributes
    ----------
    column
        Column of adata.obs.
    names
        The labels, sorted.
    codes
        Number of every cell's label, int64 ``(n,)``, -1 without one.
    """

    column: str
    names: list[str]
    codes: np.ndarray

    def check_learned(self, held_out: np.ndarray) -> None:
        """Raise DataError unless two labels are left to learn from, given the rows held out."""
        left = np.unique(np.delete(self.codes, held_out))
        if (left >= 0).sum() < 2:
            raise DataError(
                f"Of the labels in adata.obs[{self.column!r}], no two have cells to learn from: "
                "those of all others are held out. Hold out fewer: "
                f"scvae.fit(adata, labels={self.column!r}, validation=0.1)"
            )


def read_labels(
    obs: pd.DataFrame, labels: str | None, unlabelled: str | None, batch: str | None = None
) -> Labels | None:
    """Return the labels that a fit learns from, if it is to; as `scvae.fit` says.

    Raises
    ------
    ConfigError
        If `unlabelled` is given without labels, or is no value of the column, or if the labels are
        the batch.
    DataError
        As `labels_of`.
    """
    if labels is None:
        if unlabelled is not None:
            raise ConfigError(
                f"unlabelled={shown(unlabelled)} is a value of a column of labels, but labels=None:"
                " scvae.fit(adata, labels='cell_type', unlabelled='Unknown')"
            )
        return None
    if isinstance(labels, str) and labels == batch:
        raise ConfigError(
            f"labels={shown(labels)} is the batch, too, whose differences are taken out of the "
            f"embedding: scvae.fit(adata, batch={shown(batch)}, labels='cell_type')"
        )
    return labels_of(obs, labels, check_name("unlabelled", unlabelled, "Unknown", or_none=True))


def labels_of(obs: pd.DataFrame, name: str, unlabelled: str | None = None) -> Labels:
    """Return the labels in a column; cells without a value, or with `unlabelled`, have none.

    Raises
    ------
    DataError
        If there is no such column, it has no labels, one alone, or one with a single cell, or it
        holds amounts.
    """
    known = obs[[name]].dropna() if isinstance(name, str) and name in obs else obs
    where = f"adata.obs[{name!r}]"
    if not len(known) and len(obs):
        raise DataError(f"{where} has no labels: every cell is without a value.")
    values = column(known, name, "labels")
    _check_not_amounts(values, where)
    given = names_of_cells(values).to_numpy()
    is_label = np.ones(len(given), dtype=bool) if unlabelled is None else given != unlabelled
    if unlabelled is not None and is_label.all():
        raise ConfigError(
            f"unlabelled={unlabelled!r}, but no cell has that value in {where}; it holds "
            f"{sorted(set(given))[:10]}. Cells without a value have no label, either."
        )
    there = np.flatnonzero(obs[name].notna().to_numpy())[is_label]
    if not len(there):
        raise DataError(f"{where} has no labels: every cell is {unlabelled!r} or without a value.")
    numbers, names = pd.factorize(given[is_label], sort=True)
    _check_sizes(np.bincount(numbers), names, name)
    codes = np.full(len(obs), UNLABELLED, dtype=np.int64)
    codes[there] = numbers
    return Labels(name, list(map(str, names)), codes)


def _check_not_amounts(values: pd.Series, where: str) -> None:
    if not pd.api.types.is_float_dtype(values.dtype) or (values == values.round()).all():
        return
    raise DataError(
        f"{where} holds amounts, from {values.min():.4g} to {values.max():.4g}, and no labels. "
        "Give a column with names of groups."
    )


def _check_sizes(sizes: np.ndarray, names: np.ndarray, name: str) -> None:
    if len(names) < 2:
        raise DataError(
            f"adata.obs[{name!r}] has one label alone, {names[0]!r}; there is nothing to tell "
            "cells apart by. Give a column with several."
        )
    single = np.flatnonzero(sizes == 1)
    if len(single):
        raise DataError(
            f"adata.obs[{name!r}] has {len(single)} labels of one cell (first: "
            f"{names[single[0]]!r}), from which none can be learned. Leave it out: "
            f"adata.obs.loc[adata.obs[{name!r}] == {names[single[0]]!r}, {name!r}] = None"
        )
