"""Which kinds of measurement data hold, and of which cells: MuData, or an AnnData of several kinds.

What was measured is told by where a cell is: a cell of a MuData that a modality lacks was not
measured in it. Zeros say nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.arguments import shown
from scvae.data.read.atlas import OnDisk
from scvae.data.read.features import COLUMNS
from scvae.data.read.measured import check_cells, marked
from scvae.data.read.sources import Source, Sources
from scvae.errors import ConfigError, DataError, warn

if TYPE_CHECKING:
    from anndata import AnnData

# What the kinds are called, in small letters and single spaces.
NAMES = {
    "rna": ("rna", "gex", "gene expression", "expression", "mrna", "gene", "genes"),
    "protein": (
        *("protein", "proteins", "prot", "adt", "adts", "ab", "antibody", "antibodies"),
        *("antibody capture", "surface protein", "cite"),
    ),
    "chromatin": (
        *("chromatin", "atac", "peak", "peaks", "accessibility", "chromatin accessibility"),
        *("scatac", "atac seq"),
    ),
}
REGION = r"(?:chr)?[\w.]+[:_-]\d+[_-]\d+$"  # of the genome, as peaks are named


def is_mudata(data: object) -> bool:
    """Return whether `data` holds several AnnData by name, as MuData does."""
    return isinstance(getattr(data, "mod", None), Mapping) and hasattr(data, "obs_names")


def is_several(data: Any, modalities: Any, *, split: bool) -> bool:
    """Return whether `data` are more than an AnnData of genes, as `sources_of` takes them."""
    if is_mudata(data) or modalities is not None:
        return True
    return split and not isinstance(data, OnDisk) and bool(_recognised_types(types_of(data)))


def kind_called(name: str) -> str | None:
    """Return the kind that is called so, if any is."""
    plain = re.sub(r"[\s_.-]+", " ", str(name)).strip().lower()
    return next((kind for kind, names in NAMES.items() if plain in names), None)


def sources_of(
    data: Any,
    modalities: str | Mapping[str, str] | None = None,
    measured: Mapping[str, str] | None = None,
    *,
    split: bool = True,
) -> Sources:
    """Return where every kind of measurement is.

    Parameters
    ----------
    data
        AnnData or MuData.
    modalities
        Where the kinds are: names of modalities of a MuData; of an AnnData, values of
        ``var["feature_types"]``, or slots of obsm beside the genes in X. One name alone says of
        what kind an AnnData is. None goes by names and by what is there.
    measured
        What marks what was measured of a kind: a boolean column of obs, or a boolean layer.
    split
        Whether an AnnData with several kinds of features is taken apart without being asked.
    """
    if measured is not None and not _are_names(measured):
        raise ConfigError(
            f"measured={shown(measured)}, but it says what marks what was measured of a kind: "
            "measured={'protein': 'has_adt'}"
        )
    if is_mudata(data):
        found = _of_mudata(data, _checked(modalities, [*data.mod]))
    else:
        found = _of_anndata(data, modalities, split)
    return marked(found, measured or {})


# -- MuData ------------------------------------------------------------------------------------


def _checked(modalities: Any, there: list[str]) -> dict[str, str] | None:
    """Return which kind is where, by kind, if that was given."""
    if modalities is None:
        return None
    example = f"modalities={{'rna': {there[0] if there else 'rna'!r}}}"
    if not isinstance(modalities, Mapping) or not modalities:
        raise ConfigError(
            f"modalities={shown(modalities)}, but it says which kind is where: {example}"
        )
    for kind, name in modalities.items():
        if kind not in NAMES:
            raise ConfigError(
                f"modalities has the kind {shown(kind)}; the kinds are {list(NAMES)}: {example}"
            )
        if not isinstance(name, str) or name not in there:
            raise DataError(
                f"modalities says that {kind} is {shown(name)}, which is not there; there are "
                f"{there}: modalities={{{kind!r}: {there[0] if there else None!r}}}"
            )
    if len(set(modalities.values())) < len(modalities):
        raise ConfigError(f"modalities={dict(modalities)} names one place twice: {example}")
    return {kind: modalities[kind] for kind in NAMES if kind in modalities}


def _are_names(given: Any) -> bool:
    """Return whether names are given by name."""
    if not isinstance(given, Mapping):
        return False
    return all(isinstance(word, str) for pair in given.items() for word in pair)


def _of_mudata(mdata: Any, chosen: dict[str, str] | None) -> Sources:
    if getattr(mdata, "axis", 0) != 0:
        raise DataError(
            f"mdata shares features, not cells, among its parts (axis={mdata.axis}); parts of the "
            "same cells are needed: mudata.MuData({'rna': adata, 'protein': other}, axis=0)"
        )
    notes: list[str] = []
    if chosen is None:
        chosen = _recognised(mdata, notes)
    cells = pd.Index(mdata.obs_names)
    if not cells.is_unique:
        raise DataError(
            f"mdata.obs_names has repeated names (first: {cells[cells.duplicated()][0]!r}); cells "
            "of several kinds are matched by name: mdata.obs_names_make_unique()"
        )
    parts = tuple(_of_modality(mdata.mod[name], kind, name, cells) for kind, name in chosen.items())
    check_cells(cells, parts)
    _check_overlap(cells, parts)
    return Sources(_obs_of(mdata, parts), parts, tuple(notes))


def _recognised(mdata: Any, notes: list[str]) -> dict[str, str]:
    """Return which modality is of which kind, by names, types of features, and what they hold."""
    found: dict[str, str] = {}
    unknown = []
    for name, adata in mdata.mod.items():
        kind = kind_called(name)
        if kind is None and (kind := _kind_of_features(adata)) is not None:
            notes.append(f"mdata[{name!r}] is taken for {kind}, by its features.")
        if kind is None:
            unknown.append(name)
        elif kind in found:
            raise DataError(
                f"mdata[{found[kind]!r}] and mdata[{name!r}] both look like {kind}; say which to "
                f"take: scvae.fit(mdata, modalities={{{kind!r}: {found[kind]!r}}})"
            )
        else:
            found[kind] = name
    if not found:
        first = next(iter(mdata.mod), "rna")
        raise DataError(
            f"mdata holds {[*mdata.mod]}, none of which is known as RNA, proteins or chromatin; "
            f"say what they are: scvae.fit(mdata, modalities={{'rna': {first!r}}})"
        )
    notes += [f"mdata[{name!r}] is left out: it is not known as any kind." for name in unknown]
    for note in notes:
        warn(f"{note} To choose and silence this: scvae.fit(mdata, modalities={found})")
    return {kind: found[kind] for kind in NAMES if kind in found}


def _kind_of_features(adata: AnnData) -> str | None:
    """Return of which kind all features are, by their types, or by their names."""
    for column in COLUMNS:
        if column in adata.var:
            types = adata.var[column].dropna().astype(str).unique()
            if len(types) == 1:
                return kind_called(types[0])
    names = pd.Index(adata.var_names).astype(str)[:1000]
    return "chromatin" if len(names) and names.str.fullmatch(REGION).mean() > 0.9 else None


def _of_modality(adata: AnnData, kind: str, name: str, cells: pd.Index) -> Source:
    rows = cells.get_indexer(pd.Index(adata.obs_names))
    if (rows < 0).any():
        first = adata.obs_names[int(np.argmax(rows < 0))]
        raise DataError(
            f"mdata[{name!r}] has {int((rows < 0).sum())} cells that mdata.obs_names lacks (first: "
            f"{first!r}): it was changed since mdata was made. Bring them together: mdata.update()"
        )
    if len(set(rows)) < len(rows):
        repeated = adata.obs_names[adata.obs_names.duplicated()][0]
        raise DataError(
            f"mdata[{name!r}].obs_names has repeated names (first: {repeated!r}); cells of several "
            f"kinds are matched by name: mdata[{name!r}].obs_names_make_unique()"
        )
    is_all = np.array_equal(rows, np.arange(len(cells)))
    return Source(kind, adata, name, f"mdata[{name!r}]", None if is_all else rows)


def _check_overlap(cells: pd.Index, parts: tuple[Source, ...]) -> None:
    """Raise if no cell was measured in two kinds: nothing then says how kinds belong together."""
    if len(parts) < 2 or any(part.rows is None for part in parts):
        return
    times = np.bincount(np.concatenate([part.rows for part in parts if part.rows is not None]))
    if times.max() < 2:
        each = "; ".join(f"{part.written} {part.adata.obs_names[0]!r}" for part in parts)
        raise DataError(
            f"{[part.place for part in parts]} have no cell in common (first: {each}), so that "
            "nothing says how they belong together; cells are matched by name. Give both the same "
            f"names, such as barcodes: {parts[1].written}.obs_names = ..., then mdata.update()"
        )


def _obs_of(mdata: Any, parts: tuple[Source, ...]) -> pd.DataFrame:
    """Return what is known of all cells: of mdata, or, where it has no such column, of its parts.

    Columns of parts that contradict each other are not taken."""
    obs = mdata.obs.copy()
    for name in dict.fromkeys(column for part in parts for column in part.adata.obs.columns):
        if name in obs.columns:
            continue
        of_all, agrees = pd.Series(np.nan, index=obs.index, dtype=object), True
        for part in parts:
            if name in part.adata.obs:
                values = part.adata.obs[name].astype(object)
                values.index = part.adata.obs_names
                known = of_all[values.index].notna() & values.notna()
                agrees &= bool((of_all[values.index][known] == values[known]).all())
                of_all[values.index] = values.where(values.notna(), of_all[values.index])
        if agrees:
            obs[name] = of_all.infer_objects()
    return obs


# -- AnnData -----------------------------------------------------------------------------------


def _of_anndata(adata: Any, modalities: Any, split: bool) -> Sources:
    if isinstance(adata, OnDisk):
        if modalities is not None:
            raise ConfigError(
                f"modalities={shown(modalities)}, but from disk genes alone are fitted: read the "
                "file into memory for several kinds, adata = anndata.read_h5ad(path)"
            )
        return Sources(adata.obs, (Source("rna", adata),))
    if isinstance(modalities, str):
        if modalities not in NAMES:
            raise ConfigError(
                f"modalities={shown(modalities)}; the kinds are {list(NAMES)}: modalities='protein'"
            )
        return Sources(adata.obs, (Source(modalities, adata),))
    types = types_of(adata)
    if modalities is not None:
        slots = [*getattr(adata, "obsm", {})]
        chosen = _checked(modalities, [*types, *slots])
        assert chosen is not None
        parts = {kind: _named_part(adata, kind, name, types) for kind, name in chosen.items()}
        if "rna" not in parts and not set(chosen.values()) & set(types):
            parts = {"rna": Source("rna", adata, "X", "adata"), **parts}
        return Sources(adata.obs, tuple(parts[kind] for kind in NAMES if kind in parts))
    by_kind = _recognised_types(types) if split else {}
    if not by_kind:
        return Sources(getattr(adata, "obs", None), (Source("rna", adata),))  # type: ignore[arg-type]
    found = (_named_part(adata, kind, name, types) for kind, name in by_kind.items())
    note = _taken_apart(adata, by_kind, types)
    warn(f"{note} To choose and silence this: scvae.fit(adata, modalities={by_kind})")
    return Sources(adata.obs, tuple(found), (note,))


def _taken_apart(adata: AnnData, by_kind: dict[str, str], types: dict[str, np.ndarray]) -> str:
    """Say which types of features are taken for which kinds, and how to take one alone."""
    column = _column_of_types(adata)
    shown = ", ".join(f"{int(types[name].sum()):,} of {name!r}" for name in by_kind.values())
    one = next(iter(by_kind.values()))
    return (
        f"adata.var[{column!r}] has several kinds of features: {shown}; they are fitted side by "
        f"side, as {' and '.join(by_kind)}. For one alone: "
        f"adata = adata[:, adata.var[{column!r}] == {one!r}].copy()."
    )


def _recognised_types(types: Mapping[str, Any]) -> dict[str, str]:
    """Return which type of features is of which kind, if there are several and each is of one."""
    kinds = [kind_called(name) for name in types]
    if len(kinds) < 2 or None in kinds or len(set(kinds)) < len(kinds):
        return {}
    by_kind = dict(zip(kinds, types, strict=True))
    return {kind: by_kind[kind] for kind in NAMES if kind in by_kind}


def types_of(adata: Any) -> dict[str, np.ndarray]:
    """Return which features are of which type, if several types are named."""
    column = _column_of_types(adata)
    if column is None:
        return {}
    values = adata.var[column].astype(str)
    return {str(name): (values == name).to_numpy() for name in values.unique()}


def _column_of_types(adata: Any) -> str | None:
    """Return the column of var with the types of features, if there is one."""
    columns = getattr(getattr(adata, "var", None), "columns", ())
    return next((column for column in COLUMNS if column in columns), None)


def _named_part(adata: AnnData, kind: str, name: str, types: dict[str, np.ndarray]) -> Source:
    if name in types:
        column = _column_of_types(adata)
        return Source(
            kind, adata[:, types[name]].copy(), name, f"adata[:, adata.var[{column!r}] == {name!r}]"
        )
    return Source(kind, _of_slot(adata, kind, name), name, f"adata.obsm[{name!r}]")


def _of_slot(adata: AnnData, kind: str, name: str) -> AnnData:
    """Return a slot of obsm as an AnnData: a table has names, an array numbers."""
    from anndata import AnnData

    values: Any = adata.obsm[name]
    names = [f"{kind}_{i}" for i in range(values.shape[1])]
    if isinstance(values, pd.DataFrame):
        names, values = list(map(str, values.columns)), values.to_numpy()
    x = values if sparse.issparse(values) else np.asarray(values, dtype=np.float64)
    return AnnData(x, adata.obs, pd.DataFrame(index=pd.Index(names, dtype=object)))
