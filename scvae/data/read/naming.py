"""Genes that are there under other names: with versions, in other case, in a column of var."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

ENOUGH = 0.5  # of the genes that are missing
# What is left of a name, in words, as a function, and as one writes it.
Way = tuple[str, Callable[[str], str], str]
WAYS: tuple[Way, ...] = (
    ("without the version", lambda name: name.split(".")[0], "name.split('.')[0]"),
    ("in another case", str.upper, "name.upper()"),
    (
        "with other marks between the parts",
        lambda name: re.sub(r"[\W_]", "", name).upper(),
        r"re.sub(r'[\W_]', '', name).upper()",
    ),
    ("without the genome before it", lambda name: name.split("_")[-1], "name.split('_')[-1]"),
    (
        "with another name behind it",
        lambda name: re.split("[_|:]", name)[0],
        "re.split('[_|:]', name)[0]",
    ),
    (
        "with another name before it",
        lambda name: re.split("[_|:]", name)[-1],
        "re.split('[_|:]', name)[-1]",
    ),
)


def other_names(adata: AnnData, wanted: Sequence[str], missing: Sequence[str]) -> str | None:
    """Say under which names most of the `missing` genes are there, with the call that maps them."""
    best, text = max(ENOUGH * len(missing), 0.5), None
    genes, n_there = set(wanted), len(wanted) - len(missing)
    # Fewer are too few, whatever they are called.
    held = [each for each in _sources(adata) if len(set(each[2])) - n_there > best]
    if not held:
        return None
    ways = [(*way, {way[1](name): name for name in wanted}) for way in WAYS]
    for where, code, names in held:
        if where and (found := len(genes.intersection(names)) - n_there) > best:
            best, text = found, f"{where}: adata.var_names = list({code})"
            if len(set(names)) < len(names):
                text += "; adata.var_names_make_unique()"
        for way, key, written, known in ways:
            renamed = [known.get(key(name), name) for name in names]
            if (found := len(genes.intersection(renamed)) - n_there) > best:
                best, text = found, f"{way}{', ' + where if where else ''}: "
                text += "import re; " if written.startswith("re.") else ""
                text += f"known = {{{written}: name for name in model.origin.genes}}; "
                text += f"adata.var_names = [known.get({written}, name) for name in {code}]"
                if len(set(renamed)) < len(renamed):
                    text += "; adata.var_names_make_unique()"
    return None if text is None else f"{int(best)} of them are there {text}"


def _sources(adata: AnnData) -> Iterator[tuple[str, str, list[str]]]:
    """Yield what may hold names of the genes: in words, as one writes it, and the names."""
    yield "", "adata.var_names", list(map(str, adata.var_names))
    for column in adata.var.columns[~adata.var.columns.duplicated()]:
        values = adata.var[column]
        if pd.api.types.is_numeric_dtype(values.dtype):
            continue
        code = f"adata.var[{column!r}].astype(str)"
        yield f"in adata.var[{column!r}]", code, list(values.astype(str))
