"""How data are read for a model: every kind as it was in the fit, any of which they may lack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.data.read.atlas import OnDisk
from scvae.data.read.genes import check_unique, match_genes
from scvae.data.read.measured import marked_as_before
from scvae.data.read.several import is_mudata, kind_called, sources_of, types_of
from scvae.data.read.source import home_in
from scvae.data.read.sources import Source, Sources
from scvae.errors import DataError, warn
from scvae.modalities.rna import Rna
from scvae.models.keep.origin import Origin
from scvae.models.network import Architecture
from scvae.models.on_disk import is_paths, opened
from scvae.models.placing import encode
from scvae.models.prepare import layer_of

if TYPE_CHECKING:
    from anndata import AnnData


def cells_of(data: Any) -> Any:
    """Return the cells that a question is about, opened where `data` is the path of some.

    Raises unless it is one, a MuData, or an AnnData whose features have unique names."""
    if not (is_mudata(data) or is_paths(data)):
        check_unique(data)
    return opened(data)


def read_cells(
    data: AnnData,
    a: Architecture,
    origin: Origin,
    layer: str | Mapping[str, str] | None,
    call: str,
    device: torch.device,
    *,
    partial: bool = False,
    batch: str | None = None,
) -> tuple[Dataset | Datasets, pd.DataFrame]:
    """Return the cells of `data`, for the user's `call`, and what is known of them; all or a part
    of the genes, each of its own batch or as `batch` says (see `scvae.models.placing`)."""
    sources = _as_in_the_fit(opened(data), origin)
    found = {
        source.kind: _part(
            source, sources, a, origin, layer_of(source, sources, layer), call, partial
        )
        for source in sources.parts
    }
    known, n = encode(origin.covariates, sources.obs, batch), sources.n_obs
    parts = []
    for kind, spec in a.parts.items():
        counts, size, present, observed = found.get(kind) or (
            _empty(n, spec.n_features),
            np.ones(n),
            np.zeros(n, dtype=bool),
            None,
        )
        parts.append(
            Dataset.build(
                counts,
                known.design,
                known.codes,
                size,
                device,
                present=present,
                observed=observed,
            )
        )
    return Datasets.of(parts), sources.obs


def measured_in(data: Any, origin: Origin, kind: str) -> np.ndarray:
    """Return which cells were measured in a kind, by what `data` and their marks say, ``(n,)``."""
    sources = _as_in_the_fit(data, origin)
    part = next((part for part in sources.parts if part.kind == kind), None)
    present = None if part is None else part.present(sources.n_obs)
    return np.full(sources.n_obs, part is not None) if present is None else present


def _as_in_the_fit(data: Any, origin: Origin) -> Sources:
    """Return where the kinds of a model are, with the columns that mark what was measured."""
    marks = {kind: part.measured for kind, part in origin.parts.items() if part.measured}
    return marked_as_before(sources_for(data, origin), marks)


def _empty(n: int, n_features: int) -> sparse.csr_matrix:
    arrays = (np.zeros(0, np.uint8), np.zeros(0, np.int32), np.zeros(n + 1, np.int64))
    return sparse.csr_matrix(arrays, shape=(n, n_features))


def sources_for(data: AnnData, origin: Origin) -> Sources:
    """Return where the kinds of a model are in `data`: those that are there."""
    kinds = [*origin.parts]
    if isinstance(data, OnDisk):
        return Sources(data.obs, (Source(kinds[0], data),))
    if not is_mudata(data):
        check_unique(data)
        if len(kinds) == 1:
            return Sources(data.obs, (Source(kinds[0], data),))
        slots = {*data.obsm, *types_of(data)}
        places = {k: p.place for k, p in origin.parts.items() if p.place is not None}
        named = {k: place for k, place in places.items() if place in slots}
        if named:
            return sources_of(data, named)
        kind = next((k for k in kinds if _has(data, origin.parts[k].names)), kinds[0])
        return Sources(data.obs, (Source(kind, data),))
    there = [*data.mod]
    places = {k: p.place or "" for k, p in origin.parts.items()}
    chosen = {kind: place for kind, place in places.items() if place in data.mod}
    for name in there:
        kind = kind_called(name) or ""
        if kind in kinds and kind not in chosen and name not in chosen.values():
            chosen[kind] = name
    if not chosen:
        raise DataError(
            f"mdata holds {there}, none of which is one of the model's {kinds}; a modality is "
            f"found by the name it had in the fit, {[p.place for p in origin.parts.values()]}, or "
            f"by that of its kind: mudata.MuData({{{kinds[0]!r}: mdata[{there[:1]}[0]]}})"
        )
    unknown = [name for name in there if name not in chosen.values()]
    if unknown and len(kinds) > 1:
        warn(
            f"mdata holds {unknown}, which the model does not know: it was fitted to {kinds}, and "
            "looks at nothing else. To have them in the embedding: scvae.fit(mdata)"
        )
    return sources_of(data, chosen)


def _has(adata: AnnData, names: list[str]) -> bool:
    return set(names) <= set(adata.var_names)


def _part(
    source: Source,
    sources: Sources,
    a: Architecture,
    origin: Origin,
    layer: str | None,
    call: str,
    partial: bool,
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return counts, sizes, and which cells and entries were measured, of all cells."""
    known, adata, n = origin.parts[source.kind], source.adata, sources.n_obs
    with source.in_words():
        check_unique(adata)
        home = home_in(adata, known.layer)
        spec, at = a.parts[source.kind], home if layer is None else layer
        asked = (adata, known.names, at, known.library_size)
        told: Any = {"counts": origin.counts, "call": call, "home": home}
        if isinstance(spec, Rna):
            part = spec.read(*asked, partial=partial, **told)
        else:
            part = spec.read(*asked, **told)
    observed = part.observed
    if source.observed is not None:
        observed = source.observed_of(n, match_genes(adata, known.names))
    return (
        source.widened(part.counts, n),
        source.spread(part.size, n),
        source.present(n),
        observed,
    )
