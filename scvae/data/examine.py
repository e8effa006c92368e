"""What is worth knowing of counts, batches and labels before a model is fitted to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scvae.data.association import cramers_v, name_the_same_groups
from scvae.data.covariates import Covariates
from scvae.data.report import Finding
from scvae.data.source import where_named
from scvae.data.survey import CountSummary, Survey

EXTREME = 100  # times the median, or the median over it: library sizes that one cell does not have
EVEN = 1.02  # largest over smallest library size that counting does not give
FEW_CELLS = 30  # of a batch
GOES_TOGETHER = 0.8  # Cramér's V
ENOUGH = 10  # cells, from where on equal counts are no chance
MOST_CATEGORIES = 100  # of a column that may be a label
SHOWN = 5  # names of many
SILENT = "silent genes"  # what the finding is about that `fit` says aloud


def fitted_counts(layer: str | None, genes: str | Sequence[str] | None) -> str:
    """Return how the user writes the counts of the fitted genes: adata[:, genes].X."""
    if genes is None:
        return where_named(layer)
    chosen = f"adata.var[{genes!r}]" if isinstance(genes, str) else "genes"
    return where_named(layer).replace("adata", f"adata[:, {chosen}]", 1)


def examine(
    survey: Survey,
    obs: pd.DataFrame,
    genes: pd.Index,
    learned: Covariates,
    place: str,
    label: str | None = None,
) -> list[Finding]:
    """Find what is odd in sound counts, and in the batches of their cells; nothing is refused.

    Parameters
    ----------
    survey
        Of the counts of the fitted genes.
    obs
        What is known of the cells.
    genes
        Names of the fitted genes.
    learned
        The batch and the covariates that are corrected for.
    place
        How the user writes these counts.
    label
        Column with labels; None looks at every column of adata.obs with 2 to 100 categories.
    """
    return [
        *_silent_genes(survey.cells_of_genes, genes),
        *_odd_counts(survey, obs.index, genes, place),
        *_groups(obs, learned, label),
    ]


def _silent_genes(cells_of_genes: np.ndarray, genes: pd.Index) -> list[Finding]:
    silent = np.flatnonzero(cells_of_genes == 0)
    if not len(silent):
        return []
    text = (
        f"{len(silent)} genes have no counts (first: {genes[silent[0]]!r}); they are kept and "
        "modelled as near zero. To leave them out: sc.pp.filter_genes(adata, min_cells=1)"
    )
    return [Finding("warning", SILENT, text)]


def _odd_counts(survey: Survey, cells: pd.Index, genes: pd.Index, place: str) -> list[Finding]:
    counts = survey.counts
    if counts is None or not len(counts.totals):
        return []
    return [
        *_identical_genes(counts, survey.cells_of_genes, genes),
        *_totals(counts.totals, cells, place),
        *_even_totals(counts.totals, place),
        *_multiples(counts.factors, survey.genes_of_cells, cells, place),
    ]


# -- genes -------------------------------------------------------------------------------------


def _identical_genes(
    counts: CountSummary, cells_of_genes: np.ndarray, genes: pd.Index
) -> list[Finding]:
    # Genes of few cells have the same counts by chance.
    telling = np.flatnonzero(cells_of_genes >= ENOUGH)
    _, first, group = np.unique(counts.keys[telling], return_index=True, return_inverse=True)
    original = telling[first[group]]
    copies = telling[original != telling]
    if not len(copies):
        return []
    names = [genes[i] for i in copies]
    model = genes[original[original != telling][0]]
    more = f", and {len(copies) - 1} more genes those of others" if len(copies) > 1 else ""
    text = (
        f"Gene {names[0]!r} has exactly the counts of {model!r} in every cell{more}, as if the "
        "same gene were there twice; it then weighs twice. Leave the copies out: "
        f"adata = adata[:, ~adata.var_names.isin({_listed(names)})].copy()"
    )
    return [Finding("warning", "identical genes", text)]


def _listed(names: Sequence[object]) -> str:
    """Return the first names as a list in Python's own notation, and that there are more."""
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"[{shown}]" if len(names) <= SHOWN else f"[{shown}, ...]"


# -- cells -------------------------------------------------------------------------------------


def _totals(totals: np.ndarray, cells: pd.Index, place: str) -> list[Finding]:
    """Find the spread of the library sizes; empty cells are not judged here."""
    full = np.flatnonzero(totals > 0)
    if not len(full):
        return []
    low, high = full[np.argmin(totals[full])], full[np.argmax(totals[full])]
    median = float(np.median(totals[full]))
    found = [
        Finding(
            "info",
            "total counts",
            f"{place} has {totals[low]:,.0f} to {totals[high]:,.0f} counts in a cell, median "
            f"{median:,.0f}.",
        )
    ]
    sums = f"np.ravel({place}.sum(axis=1))"
    if totals[high] > EXTREME * median:
        text = (
            f"Cell {cells[high]!r} has {totals[high]:,.0f} counts, {totals[high] / median:,.0f} "
            f"times the median ({median:,.0f}); so many are rarely one cell's. Leave such cells "
            f"out: adata = adata[{sums} <= {_floor(EXTREME * median)}].copy()"
        )
        found.append(Finding("warning", "total counts", text))
    if median > EXTREME * totals[low]:
        text = (
            f"Cell {cells[low]!r} has {totals[low]:,.0f} counts; the median is "
            f"{median / totals[low]:,.0f} times that ({median:,.0f}). So few say little of what a "
            f"cell is. Leave such cells out: adata = adata[{sums} >= {-_floor(-median / EXTREME)}]"
            ".copy()"
        )
        found.append(Finding("warning", "total counts", text))
    return found


def _floor(value: float) -> int:
    return int(np.floor(value))


def _even_totals(totals: np.ndarray, place: str) -> list[Finding]:
    low, high = totals.min(), totals.max()
    if len(totals) < ENOUGH or low == 0 or high > EVEN * low:
        return []
    text = (
        f"All cells of {place} have about the same total, {low:,.0f} to {high:,.0f}, which "
        "counting does not give: the values were normalised and rounded, or cells downsampled. "
        "The model corrects for library size itself; give the counts as they were: "
        "scvae.fit(adata, layer=...)"
    )
    return [Finding("warning", "normalisation", text)]


def _multiples(
    factors: np.ndarray, genes_of_cells: np.ndarray, cells: pd.Index, place: str
) -> list[Finding]:
    scaled = np.flatnonzero(factors > 1)
    full = int((genes_of_cells > 0).sum())
    if len(scaled) <= full / 2:
        return []
    first = scaled[0]
    text = (
        f"In {len(scaled):,} of {full:,} cells all values of {place} are multiples of a whole "
        f"number above 1 (first: {factors[first]} in cell {cells[first]!r}): they look like counts "
        "times a factor, whose noise is not that of counts. Divide every cell by its factor, or "
        "give the counts as they were: scvae.fit(adata, layer=...)"
    )
    return [Finding("warning", "normalisation", text)]


# -- batches, covariates, labels ---------------------------------------------------------------


def _groups(obs: pd.DataFrame, learned: Covariates, label: str | None) -> list[Finding]:
    if learned.batch is None:
        return []
    codes = learned.codes(obs)
    covariates = [name for name in learned.categories if name != learned.batch]
    found = _small_batches(codes, obs[learned.batch], learned)
    for name in covariates:
        found += _confounded_covariate(codes, obs[name], learned.batch)
    if label is not None:
        return found + _confounded_label(codes, obs[label], learned.batch)
    corrected = {learned.batch, *covariates, *learned.numbers}
    return found + _other_columns(codes, obs, learned.batch, corrected)


def _small_batches(codes: np.ndarray, values: pd.Series, learned: Covariates) -> list[Finding]:
    sizes = np.bincount(codes, minlength=learned.n_batches)
    text = (
        f"adata.obs[{learned.batch!r}] has {len(sizes)} batches of {sizes.min():,} to "
        f"{sizes.max():,} cells."
    )
    found = [Finding("info", "batches", text)]
    small = np.flatnonzero(sizes < FEW_CELLS)
    if len(small):
        least = int(np.argmin(sizes))
        given = [values[codes == code].tolist()[0] for code in small[: SHOWN + 1]]
        text = (
            f"{len(small)} of {len(sizes)} batches in adata.obs[{learned.batch!r}] have fewer than "
            f"{FEW_CELLS} cells (smallest: {learned.batches[least]!r} with {sizes[least]}); so few "
            "hardly tell a batch effect. Merge them with others, or leave them out: "
            f"adata = adata[~adata.obs[{learned.batch!r}].isin({_listed(given)})].copy()"
        )
        found.append(Finding("warning", "batches", text))
    return found


def _association(codes: np.ndarray, values: pd.Series) -> float:
    """Return Cramér's V with the batch, over the cells where the value is known."""
    others = _codes(values)
    known = others >= 0
    return cramers_v(codes[known], others[known])


def _codes(values: pd.Series) -> np.ndarray:
    """Return the group of every cell, -1 where it is missing."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.codes.to_numpy()
    try:
        return pd.factorize(values)[0]
    except TypeError:  # lists, for one, are no names
        return pd.factorize(values.map(str))[0]


def _confounded_covariate(codes: np.ndarray, values: pd.Series, batch: str) -> list[Finding]:
    v = _association(codes, values)
    text = _go_together(batch, f"adata.obs[{values.name!r}] (covariate)", v)
    if v <= GOES_TOGETHER:
        return [Finding("info", "confounding", f"{text}.")]
    text += (
        ", so the covariate explains little that the batch does not. "
        f"Leave it out: scvae.fit(adata, batch={batch!r})"
    )
    return [Finding("warning", "confounding", text)]


def _confounded_label(codes: np.ndarray, values: pd.Series, batch: str) -> list[Finding]:
    v = _association(codes, values)
    text = _go_together(batch, f"adata.obs[{values.name!r}] (label)", v)
    if v <= GOES_TOGETHER:
        return [Finding("info", "confounding", f"{text}.")]
    return [Finding("warning", "confounding", f"{text}. {_lost('labels')}")]


def _go_together(batch: str, other: str, v: float) -> str:
    return (
        f"adata.obs[{batch!r}] (batch) and {other}: Cramér's V is {v:.2f}, where 0 is independent "
        "and 1 is told by each other"
    )


def _lost(what: str) -> str:
    return (
        f"Correcting for the batch takes out differences between the {what}, too. "
        "Compare with a fit without it: scvae.fit(adata)"
    )


def _other_columns(
    codes: np.ndarray, obs: pd.DataFrame, batch: str, besides: set[str]
) -> list[Finding]:
    """Find what else goes with the batch, the strongest first; other names of it do no harm."""
    found = []
    for name in obs.columns[~obs.columns.duplicated(keep=False)]:
        others = None if name in besides else _label_codes(obs[name])
        if others is None:
            continue
        known = others >= 0
        if not name_the_same_groups(codes[known], others[known]):
            found.append((cramers_v(codes[known], others[known]), name))
    found.sort(key=lambda pair: -pair[0])
    high = [pair for pair in found if pair[0] > GOES_TOGETHER]
    low = found[len(high) : len(high) + SHOWN]
    findings = []
    if high:
        text = (
            f"adata.obs[{batch!r}] (batch) goes together with {_valued(high)}, where 0 is "
            f"independent and 1 is told by each other. {_lost('groups')}"
        )
        findings.append(Finding("warning", "confounding", text))
    if low:
        text = f"adata.obs[{batch!r}] (batch) goes less with {_valued(low)}."
        findings.append(Finding("info", "confounding", text))
    return findings


def _valued(pairs: Sequence[tuple[float, str]]) -> str:
    shown = ", ".join(f"{name!r} ({v:.2f})" for v, name in pairs[:SHOWN])
    more = f" and {len(pairs) - SHOWN} more columns" if len(pairs) > SHOWN else ""
    return f"{shown}{more} (Cramér's V)"


def _label_codes(values: pd.Series) -> np.ndarray | None:
    """Return the groups of a column that may be a label, -1 where missing, or None."""
    dtype = values.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
        return None
    if len(np.unique(_codes(values.iloc[:1000]))) > MOST_CATEGORIES + 1:
        return None  # names of cells, say, which would take long to compare
    codes = _codes(values)
    return codes if 2 <= len(np.unique(codes[codes >= 0])) <= MOST_CATEGORIES else None
