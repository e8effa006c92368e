"""What `fit` reads from the AnnData before it trains, and what it tells the untrained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scvae.arguments import shown
from scvae.choices import CountKind
from scvae.data.checkup.examine import examine
from scvae.data.checkup.held_out import unseen_groups
from scvae.data.checkup.kinds import controls_beside, no_genes
from scvae.data.checkup.orientation import turned
from scvae.data.checkup.report import Kind, warning_texts
from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.data.read.choice import look
from scvae.data.read.covariates import Covariates, Encoded, learn_covariates
from scvae.data.read.features import check_one_kind
from scvae.data.read.genes import check_unique, choose_genes
from scvae.data.read.labels import Labels
from scvae.data.read.library import library_sizes
from scvae.data.read.source import chosen_genes, fitted_place
from scvae.data.read.sources import Source, Sources
from scvae.data.read.sums import column_sums
from scvae.data.read.survey import Survey
from scvae.errors import ConfigError, DataError, warn
from scvae.modalities import chromatin, protein
from scvae.modalities.chromatin import Chromatin
from scvae.modalities.modality import Modality, Part
from scvae.modalities.protein import Protein
from scvae.modalities.rna import Rna, Statistics
from scvae.models.network import Architecture, Facts

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 10
ALOUD = frozenset(
    {
        Kind.GENES,
        Kind.SILENT_GENES,
        Kind.COVARIATES,
        Kind.CONTROLS,
        Kind.ABSENT_GENES,
        Kind.ESTIMATES,
        Kind.MULTIPLES,
    }
)  # findings that `fit` says while it reads


@dataclass(frozen=True)
class PreparedPart:
    """What `fit` reads of one kind of measurement, of all n cells: nothing where one was absent.

    Attributes
    ----------
    names
        Names of the features.
    counts
        ``(n, g)``; where they stay on disk, `scvae.data.hold.shards.Shards`.
    library
        Observed size of every cell, ``(n,)``; a typical one where it was absent.
    present, observed
        Which cells, ``(n,)``, and which entries, ``(n, g)``, were measured; None if all were.
    layer, place
        Where the counts were, as in `PartOrigin`.
    seen
        What was seen of the counts; None of kinds that need no more of it.
    measured
        Column or layer that marks what was measured, if one does.
    """

    names: list[str]
    counts: sparse.csr_matrix
    library: np.ndarray
    present: np.ndarray | None
    observed: np.ndarray | None
    layer: str | None
    place: str | None
    seen: Survey | None = None
    measured: str | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything that `fit` reads before it trains."""

    parts: dict[str, PreparedPart]
    covariates: Covariates
    design: np.ndarray
    codes: np.ndarray
    warnings: list[str]
    counted: CountKind = "whole"
    labels: Labels | None = None

    @property
    def first(self) -> PreparedPart:
        """The first kind: RNA, if it is there."""
        return next(iter(self.parts.values()))

    def told(self, held_out: np.ndarray, validation: object) -> Prepared:
        """Warn of groups that are held out as a whole, and return this with the warnings; raise
        DataError where there is no label to learn from."""
        encoded = Encoded(self.covariates, self.design, self.codes)
        if self.labels is not None:
            self.labels.check_learned(held_out)
        texts = warning_texts(unseen_groups(encoded, held_out, validation))
        for text in texts:
            warn(text)
        return replace(self, warnings=[*self.warnings, *texts])


def prepare(
    sources: Sources,
    batch: str | None,
    covariates: str | Sequence[str] | None,
    layer: str | Mapping[str, str] | None,
    genes: str | Sequence[str] | None,
    library_size: str,
    counts: CountKind = "whole",
    laws: Mapping[str, Any] = MappingProxyType({}),
) -> Prepared:
    """Read everything that `fit` needs, checking all of it; see `fit` for the parameters."""
    for source in sources.parts:
        with source.in_words():
            for demand in DEMANDS if source.kind == "rna" else DEMANDS_OF_OTHERS:
                demand(source.adata)
    parts: dict[str, PreparedPart] = {}
    told, encoded = [*sources.notes], None
    for source in sources.parts:
        where = layer_of(source, sources, layer)
        with source.in_words():
            if source.kind == "rna":
                part, encoded, said = _rna(
                    sources, source, batch, covariates, where, genes, library_size, counts
                )
            else:
                part, said = read_other(source, sources.n_obs, where, counts, laws)
        parts[source.kind], told = part, told + said
    if encoded is None:
        encoded = learn_covariates(sources.obs, batch, covariates)
    return Prepared(parts, encoded.covariates, encoded.design, encoded.codes, told, counts)


def layer_of(source: Source, sources: Sources, layer: str | Mapping[str, str] | None) -> str | None:
    """Return the layer that was given for a kind: one name is that of the only kind."""
    if layer is None or (not isinstance(layer, Mapping) and len(sources.parts) == 1):
        return layer
    kinds = [part.kind for part in sources.parts]
    if not isinstance(layer, Mapping) or not layer.keys() <= set(kinds):
        raise ConfigError(
            f"layer={shown(layer)}, but there are {kinds}: say whose layer it is, "
            f"layer={{{kinds[0]!r}: 'counts'}}"
        )
    return layer.get(source.kind)


def _rna(
    sources: Sources,
    source: Source,
    batch: str | None,
    covariates: str | Sequence[str] | None,
    layer: str | None,
    genes: str | Sequence[str] | None,
    library_size: str,
    counts: CountKind,
) -> tuple[PreparedPart, Encoded, list[str]]:
    """Return the counts of genes, the covariates of all cells, and what is worth knowing."""
    adata, n = source.adata, sources.n_obs
    odd = warning_texts([*turned(adata), *no_genes(adata)])
    for text in odd:
        warn(text)
    columns = choose_genes(adata, genes, layer)
    names = chosen_genes(adata, layer, columns)
    controls = controls_beside(adata, names)
    check_one_kind(adata, names)
    whole = learn_covariates(sources.obs, batch, covariates)
    encoded, obs = whole, sources.obs
    if source.rows is not None:
        encoded = replace(whole, design=whole.design[source.rows], codes=whole.codes[source.rows])
        obs = obs.iloc[source.rows]
    groups = encoded.codes if batch is not None else None
    choice = look(adata, layer, columns, groups=groups, counts=counts)
    seen = choice.require()
    chosen = None if columns is None else genes
    place = fitted_place(adata, choice.layer, chosen, is_rounded=seen.estimates > 0)
    is_all = chosen is None and choice.layer is None and not seen.estimates
    library = library_sizes(adata, seen.totals, library_size, None if is_all else place)
    findings = controls + examine(seen, obs, names, encoded, choice.layer, place)
    for text in warning_texts(finding for finding in findings if finding.what in ALOUD):
        warn(text)
    part = _part(source, n, list(names), Part(seen.held, library, layer=choice.layer), seen)
    told = [*odd, *([] if choice.note is None else [choice.note]), *warning_texts(findings)]
    return part, whole, told


def read_other(
    source: Source, n: int, layer: str | None, counts: CountKind, laws: Mapping[str, Any]
) -> tuple[PreparedPart, list[str]]:
    """Return the counts of another kind, and what is worth knowing of them."""
    names = list(map(str, source.adata.var_names))
    spec = spec_of(source.kind, len(names), laws)
    _check_measured(source, layer)
    call = "scvae.fit(adata"
    part = spec.read(source.adata, names, layer, "observed", counts=counts, call=call)
    silent = np.flatnonzero(np.diff(part.counts.tocsc().indptr) == 0)
    told = []
    if len(silent):
        told.append(
            f"{len(silent)} of {len(names):,} features of {source.kind} have no counts (first: "
            f"{names[silent[0]]!r}); they are kept and modelled as near zero."
        )
        warn(told[0])
    return _part(source, n, names, part, None), told


def _check_measured(source: Source, layer: str | None) -> None:
    """Raise where a matrix has NaN, which does not say whether it was measured."""
    adata, written = source.adata, "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    held: Any = adata.X if layer is None else adata.layers.get(layer)
    if getattr(held, "dtype", np.dtype(object)).kind != "f":
        return
    is_sparse = hasattr(held, "toarray")
    values = held.data if is_sparse else held
    wrong = np.isnan(np.asarray(values, dtype=np.float64))
    if wrong.any():
        is_nan = f"np.isnan({written}{'.toarray()' * is_sparse})"
        raise DataError(
            f"{written} has {int(wrong.sum()):,} NaN. {_how_to_mark(source, layer, is_nan)}; "
            "else give the counts as they were."
        )


def _how_to_mark(source: Source, layer: str | None, is_nan: str) -> str:
    """Return the call that says what was not measured: of proteins entries, else cells."""
    kind, place = source.kind, source.place
    if kind == "protein":
        return (
            f"If these were not measured, say so: adata.layers['seen'] = ~{is_nan}, then "
            f"scvae.fit(adata, {'' if layer is None else f'layer={layer!r}, '}"
            f"measured={{{kind!r}: 'seen'}})"
        )
    if source.written.startswith("mdata"):
        return (
            f"If nothing was measured of these cells, leave them out of this modality: "
            f"mdata.mod[{place!r}] = mdata[{place!r}][~{is_nan}.any(axis=1)].copy(); mdata.update()"
        )
    if place is None:
        return f"Leave these cells out: adata = adata[~{is_nan}.any(axis=1)].copy()"
    return (
        f"If nothing was measured of these cells, set these to 0 and mark the others in a boolean "
        f"column of obs, 'seen': scvae.fit(adata, measured={{{kind!r}: 'seen'}})"
    )


def spec_of(kind: str, n_features: int, laws: Mapping[str, Any]) -> Modality:
    """Return a kind of measurement other than RNA, of so many features and of these laws."""
    if kind == "protein":
        return Protein(n_features)
    return Chromatin(n_features, laws.get("chromatin", "poisson"))


def _part(
    source: Source, n: int, names: list[str], part: Part, seen: Survey | None
) -> PreparedPart:
    return PreparedPart(
        names,
        source.widened(part.counts, n),
        source.spread(part.size, n),
        source.present(n),
        source.observed_of(n),
        part.layer,
        source.place,
        seen,
        source.marked_by,
    )


def _check_not_a_view_of_a_file(adata: AnnData) -> None:
    if adata.isbacked and adata.is_view:
        raise DataError(
            "adata is a view of a file, which cannot take an embedding. "
            "Bring it to memory: adata = adata.to_memory()"
        )


def _check_number_of_cells(adata: AnnData) -> None:
    if adata.n_obs < FEWEST_CELLS:
        raise DataError(f"adata has {adata.n_obs} cells; a fit needs at least {FEWEST_CELLS}.")


def _check_number_of_genes(adata: AnnData) -> None:
    if adata.n_vars < 2:
        raise DataError(f"adata has {adata.n_vars} genes; a fit needs at least 2.")


def _check_any_features(adata: AnnData) -> None:
    if adata.n_vars < 1:
        raise DataError("adata has no features; a fit needs at least one.")


# What an AnnData must be before anything of it is read; the first makes sure that it is one.
DEMANDS = (
    check_unique,
    _check_not_a_view_of_a_file,
    _check_number_of_cells,
    _check_number_of_genes,
)
DEMANDS_OF_OTHERS = (check_unique, _check_number_of_cells, _check_any_features)


def facts_of(prepared: Prepared, rows: np.ndarray, a: Architecture) -> Facts:
    """Return what the untrained network is told of the training cells."""
    kinds: dict[str, Any] = {}
    locs, scales = {}, {}
    for kind, part in prepared.parts.items():
        there = rows if part.present is None else rows[part.present[rows]]
        sizes = _sizes(part.library[there], prepared.codes[there], a.n_batches)
        locs[kind], scales[kind] = sizes
        spec = a.parts[kind]
        if isinstance(spec, Rna):
            kinds[kind] = Statistics(_log_share(part, there, spec.outside), *sizes)
        elif isinstance(spec, Protein):
            y = part.counts[there].toarray().astype(np.float64)
            if part.observed is not None:
                y[~part.observed[there]] = np.nan
            kinds[kind] = protein.Statistics.of(y, prepared.codes[there], a.n_batches)
        else:
            kinds[kind] = chromatin.Statistics.of(part.counts[there], part.library[there])
    return Facts(kinds, locs, scales)


def _sizes(library: np.ndarray, codes: np.ndarray, n_batches: int) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the log size of every batch; without cells, those of all."""
    log_library = np.log(library)
    of_batch = [log_library[codes == code] for code in range(n_batches)]
    of_batch = [values if len(values) else log_library for values in of_batch]
    return (
        torch.tensor([values.mean() for values in of_batch], dtype=torch.float32),
        torch.tensor([max(values.std(), 0.01) for values in of_batch], dtype=torch.float32),
    )


def _log_share(part: PreparedPart, rows: np.ndarray, outside: bool) -> Tensor:
    """Return the log share of every gene in all counts of the training cells."""
    totals = _gene_totals(part, rows) + 1.0
    if outside:
        totals = np.append(totals, max(part.library[rows].sum() - totals.sum(), 1.0))
    return torch.tensor(np.log(totals / totals.sum()), dtype=torch.float32)


def _gene_totals(part: PreparedPart, rows: np.ndarray) -> np.ndarray:
    """Return the counts of every gene in the training cells, ``(g,)``: all less those held out."""
    assert part.seen is not None
    assert part.seen.summary is not None
    is_held_out = np.ones(part.counts.shape[0], dtype=bool)
    is_held_out[rows] = False
    return part.seen.summary.gene_totals - column_sums(part.counts, np.flatnonzero(is_held_out))


def batch_shares(prepared: Prepared, rows: np.ndarray) -> list[float]:
    """Return the share of every batch in the training cells, ``(b,)``."""
    sizes = np.bincount(prepared.codes[rows], minlength=prepared.covariates.n_batches)
    return [float(share) for share in sizes / sizes.sum()]


def dataset_of(prepared: Prepared, device: torch.device, stream: bool | None) -> Dataset | Datasets:
    """Return the cells where training happens."""
    parts = [
        Dataset.build(
            part.counts,
            prepared.design,
            prepared.codes,
            part.library,
            device,
            stream=stream,
            present=part.present,
            observed=part.observed,
            label=None if prepared.labels is None else prepared.labels.codes,
        )
        for part in prepared.parts.values()
    ]
    return Datasets.of(parts)
