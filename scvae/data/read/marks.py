"""Columns that can only mean yes or no, whatever the type that a file or a join left them in."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from scvae.errors import DataError

HELD_OUT = re.compile(r"test|val|held", re.IGNORECASE)
YES = re.compile(r"^(?:b')?(?:y|yes|t|true|1|high|selected|chosen|hvg)\b", re.IGNORECASE)
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
        raise DataError(
            f"{where} (given as {role}) must be boolean; it is {values.dtype} with "
            f"{found[:3]}: {_remedy(values, found, where, role)}"
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


def _remedy(values: pd.Series, found: list[Any], where: str, role: str) -> str:
    """Return the call that makes marks of numbers or words."""
    if role == "genes" and pd.api.types.is_numeric_dtype(values.dtype):
        which = f"{where}.notna()" if values.isna().any() else f"{where} > {where}.median()"
        return f"adata.var['chosen'] = {which}, and genes='chosen'"
    telling = HELD_OUT if role == "validation" else YES
    likely = next((word for word in found if telling.search(str(word))), found[0])
    return f"{where} = {where} == {likely!r}"
