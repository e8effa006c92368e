"""What was measured, as columns and layers mark it: what they leave out is not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from scvae.arguments import shown
from scvae.data.read.marks import marks
from scvae.data.read.sources import Source, Sources
from scvae.errors import ConfigError, DataError


def marked(sources: Sources, measured: Mapping[str, str]) -> Sources:
    """Return the same without what was not measured, by names of columns or layers by kind."""
    by_kind = {part.kind: part for part in sources.parts}
    for kind, name in measured.items():
        if kind not in by_kind:
            raise ConfigError(f"measured names {shown(kind)}, but there are {list(by_kind)}.")
        part = by_kind[kind]
        if name in part.adata.layers:
            by_kind[kind] = _by_layer(part, name)
        elif name in sources.obs:
            by_kind[kind] = _by_column(part, sources.obs, name)
        else:
            raise DataError(
                f"measured={{{kind!r}: {name!r}}}, but there is neither a boolean layer of "
                f"{part.written} nor a boolean column of obs of this name."
            )
    kept = replace(sources, parts=tuple(by_kind.values()))
    if measured:
        check_cells(pd.Index(sources.obs.index), kept.parts)
    return kept


def marked_as_before(sources: Sources, measured: Mapping[str, str]) -> Sources:
    """Return the same without what the columns and layers of a fit leave out, where data have them;
    of others, all that is there was measured."""
    named = [(part, measured[part.kind]) for part in sources.parts if part.kind in measured]
    there = {p.kind: name for p, name in named if name in p.adata.layers or name in sources.obs}
    return marked(sources, there)


def check_cells(cells: pd.Index, parts: tuple[Source, ...]) -> None:
    """Raise if a cell was measured in nothing."""
    if any(part.rows is None for part in parts):
        return
    of_all = np.zeros(len(cells), dtype=bool)
    for part in parts:
        of_all[part.rows] = True
    if not of_all.all():
        names = cells[~of_all]
        marks = [part.marked_by for part in parts if part.marked_by is not None]
        told = "mdata.obs_names.isin(mdata[name].obs_names) for name in mdata.mod"
        call = f"mdata = mdata[np.logical_or.reduce([{told}])].copy()"
        if marks:
            few = names[:5].to_list()
            call = f"mdata = mdata[~mdata.obs_names.isin({few})].copy(), or mark them in {marks}"
        raise DataError(
            f"{len(names)} of {len(cells)} cells were measured in none of "
            f"{[part.place for part in parts]} (first: {names[0]!r}); nothing says what they are. "
            f"Leave them out: {call}"
        )


def _by_column(part: Source, obs: pd.DataFrame, name: str) -> Source:
    """Return the cells of a part that a column marks."""
    there = marks(obs[name], f"obs[{name!r}]", "measured")[_rows(part)]
    return _of_cells(part, there, name)


def _by_layer(part: Source, name: str) -> Source:
    """Return a part without the entries that a layer does not mark, which may be anything, and
    without cells of which it marks none."""
    from anndata import AnnData

    if part.kind != "protein":
        raise ConfigError(f"measured takes a layer of proteins alone; {part.kind} takes a column.")
    mask, adata = _mask(part, name), part.adata
    there = np.asarray(mask.any(axis=1))
    held = {
        key: np.where(mask, _dense(values), 0)
        for key, values in (("", adata.X), *adata.layers.items())
        if key != name and values is not None
    }
    x = held.pop("", None)
    whole = AnnData(x, adata.obs, adata.var, layers=held)
    some = _of_cells(replace(part, adata=whole), there, name)
    return replace(some, observed=mask[there])


def _mask(part: Source, name: str) -> np.ndarray:
    """Return which entries a layer marks, ``(n, g)`` of bool."""
    values = _dense(part.adata.layers[name])
    if not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{part.written}.layers[{name!r}] (given as measured) must be boolean, and it holds "
            f"other values than 0 and 1: {part.written}.layers[{name!r}] = ~np.isnan("
            f"{part.written}.X)"
        )
    return values.astype(bool)


def _of_cells(part: Source, there: np.ndarray, name: str) -> Source:
    """Return some of the cells of a part, and that a name marks them."""
    if there.all():
        return replace(part, marked_by=name)
    place, rows = part.place or "X", _rows(part)[there]
    return replace(part, adata=part.adata[there].copy(), rows=rows, place=place, marked_by=name)


def _rows(part: Source) -> np.ndarray:
    return np.arange(part.adata.n_obs) if part.rows is None else part.rows


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
