"""Columns that can only mean yes or no, whatever the type that a file or a join left them in."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from scvae.errors import DataError

HELD_OUT = re.compile(r"test|val|held", re.IGNORECASE)
MEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def marks(values: pd.Series, where: str, role: str) -> np.ndarray:
    """Return what a column of truth values, 0 and 1, or such words marks, ``(n,)``.

    Parameters
    ----------
    where, role
        How the user writes the column, and the argument that it was given as.

    Raises
    ------
    DataError
        If values are missing, or mean neither yes nor no.
    """
    words = values.astype(object)
    missing = int(words.isna().sum())
    meant = words.map(lambda value: MEANS.get(str(value).strip().lower()))
    if meant[words.notna()].isna().any():
        found = list(words.dropna().unique())
        likely = next((word for word in found if HELD_OUT.search(str(word))), ...)
        other = "..." if likely is ... or role != "validation" else repr(likely)
        raise DataError(
            f"{where} (given as {role}) must be boolean; it is {values.dtype} with "
            f"{found[:3]}: {where} = {where} == {other}"
        )
    if missing:
        is_word = words.dropna().map(lambda value: isinstance(value, str)).any()
        column = f"{where}.astype(str).isin(['True', 'TRUE', 'true', '1', '1.0'])"
        call = column if is_word else f"{where}.astype(object).fillna(False).astype(bool)"
        raise DataError(
            f"{where} (given as {role}) must be boolean, and {missing} of {len(values)} values are "
            f"missing, as a join of parts leaves them. If missing means no, fillna says so: "
            f"{where} = {call}"
        )
    return meant.to_numpy(dtype=bool)
