"""Columns of obs as they lie in files, by anndata of any age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvae.errors import FileError

TEXT_ROWS = 2**16  # read at a time
MOST_TEXTS = 2**15  # different ones that a column of text may have, to be taken as categories


def check_frame(group: Any, path: Path) -> None:
    """Raise where a table is one array of records, as anndata wrote them before 0.7."""
    if hasattr(group, "dtype"):
        raise FileError(
            f"{path} was written by anndata before 0.7, whose tables are not read by rows. Write "
            f"it anew: anndata.read_h5ad({str(path)!r}).write_h5ad('new.h5ad')"
        )


def column_in(obs: Any, name: str) -> Any:
    """Return a column: text with few different values as categories, None if it has too many."""
    from anndata.io import read_elem

    column = obs[name]
    if column.attrs.get("encoding-type") == "string-array":
        return _categories(column)
    if "categories" not in column.attrs or not hasattr(column, "dtype"):
        return read_elem(column)
    # Before 0.8, codes stood in the column and their names in a group of all columns'.
    names = obs["__categories"][name]
    ordered = bool(names.attrs.get("ordered", False))
    return pd.Categorical.from_codes(read_elem(column), read_elem(names), ordered=ordered)


def _categories(column: Any) -> pd.Categorical | None:
    """Return text as categories, read some rows at a time; None if there are too many of them."""
    codes, known = [], pd.Index([], dtype=object)
    for start in range(0, column.shape[0], TEXT_ROWS):
        raw = column[start : start + TEXT_ROWS]
        texts = [value.decode() if isinstance(value, bytes) else str(value) for value in raw]
        part, levels = pd.factorize(np.asarray(texts, dtype=object))
        known = known.union(pd.Index(levels, dtype=object), sort=False)
        if len(known) > MOST_TEXTS:
            return None
        codes.append(known.get_indexer(pd.Index(levels, dtype=object))[part])
    flat = np.concatenate(codes) if codes else np.zeros(0, dtype=np.int64)
    order = known.argsort()
    return pd.Categorical.from_codes(np.argsort(order)[flat], known[order])
