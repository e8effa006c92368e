"""What is worth knowing of counts, batches and labels before a model is fitted to them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scvae.data.checkup.doubles import doubled_genes
from scvae.data.checkup.groups import odd_groups
from scvae.data.checkup.report import Finding, Kind, listed
from scvae.data.read.covariates import Encoded, native
from scvae.data.read.features import CONTROLS, are_controls
from scvae.data.read.multiples import ENOUGH, told_multiples
from scvae.data.read.source import where_named
from scvae.data.read.summary import CountSummary
from scvae.data.read.survey import Survey

MUCH = 0.1  # of all counts, lost or won by rounding
EXTREME = 100  # times the median, or the median over it: library sizes that one cell does not have
EVEN = 1.02  # largest over smallest library size that counting does not give
PEAK, ABOVE = 20, 8  # counts of one cell; times those of any other
FEWEST_PEAKS, PEAKS = 10, 0.005  # genes, and share of the genes, with such a cell
EXPECTED = 30  # counts of a gene that a batch has none of
FEWEST_ABSENT, ABSENT = 10, 0.03  # genes, and share of the genes


def examine(
    survey: Survey,
    obs: pd.DataFrame,
    genes: pd.Index,
    encoded: Encoded,
    layer: str | None,
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
    encoded
        The batch and the covariates that are corrected for, of these cells.
    layer, place
        Where the counts are, None is X; and how the user writes those of the fitted genes.
    label
        Column with labels; None looks at every column of adata.obs with 2 to 100 categories.
    """
    return [
        *_estimates(survey, layer),
        *_silent_genes(survey.cells_of_genes, genes),
        *_controls(genes),
        *doubled_genes(genes, layer, is_raw=place.startswith("adata.raw")),
        *_absent_genes(survey, genes, encoded, place),
        *_odd_counts(survey, obs.index, genes, layer, place),
        *odd_groups(native(obs), encoded, label),
    ]


def _estimates(survey: Survey, layer: str | None) -> list[Finding]:
    """Say what it changed that fractions are taken as the nearest whole numbers."""
    if not survey.estimates or survey.tallies:
        return []
    change = survey.after / survey.before - 1
    text = (
        f"{survey.estimates:,} fractions in {where_named(layer)} are taken as the nearest whole "
        f"numbers (counts='rounded'), which changes the sum of all values by {change:+.1%}"
    )
    if abs(change) <= MUCH:
        return [Finding("info", Kind.COUNTS, f"{text}.")]
    text += (
        ". So much is lost where most values are small; if the counts before the estimation are at "
        "hand, fit those: scvae.fit(adata, layer=...)"
    )
    return [Finding("warning", Kind.ESTIMATES, text)]


def _silent_genes(cells_of_genes: np.ndarray, genes: pd.Index) -> list[Finding]:
    silent = np.flatnonzero(cells_of_genes == 0)
    if not len(silent):
        return []
    text = (
        f"{len(silent)} genes have no counts (first: {genes[silent[0]]!r}); they are kept and "
        "modelled as near zero. To leave them out: sc.pp.filter_genes(adata, min_cells=1)"
    )
    return [Finding("warning", Kind.SILENT_GENES, text)]


def _controls(genes: pd.Index) -> list[Finding]:
    controls = np.flatnonzero(are_controls(genes))
    if not len(controls):
        return []
    text = (
        f"{len(controls)} of {len(genes):,} features are named as controls, spike-ins or what "
        f"is no gene (first: {genes[controls[0]]!r}); their counts do not say what a cell "
        f"is. Leave them out: adata = adata[:, ~adata.var_names.str.match({CONTROLS!r})].copy()"
    )
    return [Finding("warning", Kind.CONTROLS, text)]


def _absent_genes(survey: Survey, genes: pd.Index, encoded: Encoded, place: str) -> list[Finding]:
    """Find genes that a batch has no counts of, where the other batches make one expect many."""
    batch, totals = encoded.covariates.batch, survey.of_groups
    if batch is None or totals is None or survey.tallies:
        return []
    depth = totals.sum(1, keepdims=True)
    there = (totals > 0) * depth
    rate = totals.sum(0) / np.maximum(there.sum(0), 1)
    is_absent = (totals == 0) & (rate * depth >= EXPECTED)
    absent = np.flatnonzero(is_absent.any(0))
    if len(absent) < max(FEWEST_ABSENT, ABSENT * len(genes)):
        return []  # genes of a sex or a cell type that a batch lacks
    share = totals[:, absent].sum() / totals.sum()
    where = f"adata.obs[{batch!r}]"
    rows = place.replace("adata", f"adata[{where} == name]", 1)
    text = (
        f"{len(absent)} of {len(genes):,} genes (first: {genes[absent[0]]!r}; {share:.0%} of the "
        f"counts) have many counts in some batches and none in {int(is_absent.any(1).sum())} of "
        f"{len(totals)}, as if they were never measured there: zeros of an outer join. They pass "
        "for a batch effect. Keep the genes that every batch has: "
        "adata = adata[:, adata.var_names.isin("
        f"{_names_at(place)}[np.all([np.ravel({rows}.sum(axis=0)) > 0 for name in "
        f"{where}.unique()], axis=0)])].copy()"
    )
    return [Finding("warning", Kind.ABSENT_GENES, text)]


def _names_at(place: str) -> str:
    """Return how the user writes the names of the genes at a place."""
    place = place.removeprefix("np.rint(")
    for end in (".X", ".layers"):
        if end in place:
            return place.partition(end)[0] + ".var_names"
    return "adata.var_names"


def _odd_counts(
    survey: Survey, cells: pd.Index, genes: pd.Index, layer: str | None, place: str
) -> list[Finding]:
    summary, totals = survey.summary, survey.totals
    if summary is None or not len(totals):
        return []
    return [
        *_identical_genes(summary, survey.cells_of_genes, genes),
        *_lone_peaks(summary, totals, genes, layer),
        *_totals(totals, cells, place),
        *_even_totals(totals, place),
        *_multiples(survey, summary.factors, cells, layer, place),
    ]


# -- genes -------------------------------------------------------------------------------------


def _identical_genes(
    summary: CountSummary, cells_of_genes: np.ndarray, genes: pd.Index
) -> list[Finding]:
    # Genes of few cells have the same counts by chance.
    telling = np.flatnonzero(cells_of_genes >= ENOUGH)
    _, first, group = np.unique(summary.keys[telling], return_index=True, return_inverse=True)
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
        f"adata = adata[:, ~adata.var_names.isin({listed(names)})].copy()"
    )
    return [Finding("warning", Kind.IDENTICAL_GENES, text)]


def _lone_peaks(
    summary: CountSummary, totals: np.ndarray, genes: pd.Index, layer: str | None
) -> list[Finding]:
    full = totals[totals > 0]
    if len(full) < ENOUGH or full.max() > EXTREME * np.median(full):
        return []  # such a cell has them, and is found itself
    largest, second = summary.peaks
    lone = np.flatnonzero((largest >= PEAK) & (largest >= ABOVE * second))
    if len(lone) < max(FEWEST_PEAKS, PEAKS * len(genes)):
        return []  # a rare cell has such genes, too
    highest = lone[np.argmax(largest[lone])]
    place = "" if layer is None else f", layer={layer!r}"
    text = (
        f"{len(lone):,} of {len(genes):,} genes have one cell with {PEAK} counts or more, and at "
        f"most 1/{ABOVE} of it in any other cell (highest: {genes[highest]!r}, "
        f"{largest[highest]:.0f}). Molecules that were amplified much look so, when their barcodes "
        "are misread. Such genes pass for highly variable; choose genes by a method that clips: "
        f"sc.experimental.pp.highly_variable_genes(adata{place}, flavor='pearson_residuals', "
        "n_top_genes=2000)"
    )
    return [Finding("warning", Kind.LONE_COUNTS, text)]


# -- cells -------------------------------------------------------------------------------------


def _totals(totals: np.ndarray, cells: pd.Index, place: str) -> list[Finding]:
    """Find the spread of the library sizes; empty cells are not judged here."""
    full = np.flatnonzero(totals > 0)
    if not len(full):
        return []
    low, high = full[np.argmin(totals[full])], full[np.argmax(totals[full])]
    median = float(np.median(totals[full]))
    findings = [
        Finding(
            "info",
            Kind.TOTAL_COUNTS,
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
        findings.append(Finding("warning", Kind.TOTAL_COUNTS, text))
    if median > EXTREME * totals[low]:
        text = (
            f"Cell {cells[low]!r} has {totals[low]:,.0f} counts; the median is "
            f"{median / totals[low]:,.0f} times that ({median:,.0f}). So few say little of what a "
            f"cell is. Leave such cells out: adata = adata[{sums} >= {-_floor(-median / EXTREME)}]"
            ".copy()"
        )
        findings.append(Finding("warning", Kind.TOTAL_COUNTS, text))
    return findings


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
    return [Finding("warning", Kind.NORMALISATION, text)]


def _multiples(
    survey: Survey, factors: np.ndarray, cells: pd.Index, layer: str | None, place: str
) -> list[Finding]:
    fit = "Fit those: scvae.fit(adata, layer='counts')"
    if (text := told_multiples(survey, layer, place, fit)) is not None:
        return [Finding("warning", Kind.MULTIPLES, text)]
    scaled, full = np.flatnonzero(factors > 1), int((survey.genes_of_cells > 0).sum())
    if len(scaled) <= full / 2:
        return []
    first = scaled[0]
    text = (
        f"In {len(scaled):,} of {full:,} cells all values of {place} are multiples of a whole "
        f"number above 1 (first: {factors[first]} in cell {cells[first]!r}): they look like counts "
        "times a factor, whose noise is not that of counts. Divide every cell by its factor, or "
        "give the counts as they were: scvae.fit(adata, layer=...)"
    )
    return [Finding("warning", Kind.NORMALISATION, text)]
