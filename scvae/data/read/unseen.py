"""Cells of batches and categories that a model was not fitted on, as the mean over those it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scvae.data.read.amounts import finite
from scvae.data.read.covariates import Covariates, Encoded, names_of_cells
from scvae.errors import warn

UNSEEN = -1  # code of a batch that is none of the model's


def encode_unseen(covariates: Covariates, obs: pd.DataFrame) -> Encoded:
    r"""Return what the covariates are of cells of a batch that the model has not seen.

    In place of one batch stands the mean over all, :math:`\tfrac1b \sum_b e_b`. So it does for
    another covariate of a cell whose category is unknown or missing; and for a number that is
    missing, the mean. Columns that `obs` lacks are told.
    """
    parts = [np.empty((len(obs), 0), dtype=np.float32)]
    for name, categories in covariates.categories.items():
        is_read = name != covariates.batch and name in obs
        parts.append(_rows(obs[name] if is_read else None, categories, len(obs)))
    for name, (mean, std) in covariates.numbers.items():
        values = finite(obs[name].fillna(mean), name) if name in obs else np.full(len(obs), mean)
        parts.append(((values - mean) / std).astype(np.float32)[:, None])
    absent = [name for name in covariates.others if name not in obs]
    if absent:
        warn(f"adata.obs has no column {absent}; every cell is taken as a mean over what it says.")
    return Encoded(covariates, np.hstack(parts), np.full(len(obs), UNSEEN, dtype=np.int64))


def _rows(values: pd.Series | None, categories: Sequence[str], n: int) -> np.ndarray:
    """Return one-hot rows of known categories and the mean of these of all others, ``(n, k)``."""
    rows = np.full((n, len(categories)), 1 / len(categories), dtype=np.float32)
    if values is None:
        return rows
    there = np.flatnonzero(values.notna())
    codes = pd.Index(categories).get_indexer(pd.Index(names_of_cells(values.iloc[there])))
    known = codes >= 0
    rows[there[known]] = np.eye(len(categories), dtype=np.float32)[codes[known]]
    return rows
