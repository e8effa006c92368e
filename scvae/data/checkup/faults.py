"""Values that cannot be counts: how many, of which kind, and how they came about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvae.data.checkup.report import Finding, Kind, Level
from scvae.data.read.choice import ESTIMATORS
from scvae.data.read.normalisation import Normalisation, recognise
from scvae.data.read.source import genes_of, where_named
from scvae.data.read.survey import Survey
from scvae.data.read.tally import FaultKind

if TYPE_CHECKING:
    from anndata import AnnData

MOST_JOINED = 0.95  # of the cells, of which the others are counts
CENTRED = 0.05  # share of negative values from where on they are no slip


def explain(
    adata: AnnData, layer: str | None, seen: Survey, other: str | None, *, used: bool
) -> list[Finding]:
    """Find how many values of which kind cannot be counts, and how they came about.

    Parameters
    ----------
    layer
        Where they are; None is X.
    seen
        Survey of them.
    other
        A layer that holds counts, if there is one.
    used
        Whether these values would be fitted, for want of others.
    """
    place, genes = where_named(layer, adata), genes_of(adata, layer)
    kinds = [
        f"{tally.number:,} {kind} (first: {tally.first.value:.6g} at cell "
        f"{adata.obs_names[tally.first.row]!r}, gene {genes[tally.first.column]!r})"
        for kind, tally in seen.tallies.items()
    ]
    text = f"Of {seen.stored:,} values of {place} that are not zero, {'; '.join(kinds)}."
    level: Level = "warning" if used else "info"
    history = _history(adata, layer, seen, other)
    origin = [Finding(level, Kind.NORMALISATION, history)] if history else []
    return [Finding("info", Kind.VALUES, text), *origin]


def _history(adata: AnnData, layer: str | None, seen: Survey, other: str | None) -> str | None:
    place = where_named(layer, adata)
    negative = seen.tallies.get(FaultKind.NEGATIVE)
    if negative is not None and negative.number > CENTRED * seen.stored:
        return (
            f"{negative.number / seen.stored:.0%} of the values of {place} that are not zero are "
            "negative, as z-scores and residuals are; counts cannot be had back from them. "
            f"{_remedy(adata, other, None)}"
        )
    if seen.traces is None:
        return None
    was = recognise(seen.traces, adata.n_obs)
    if was is not None:
        return f"{_deed(place, was)} {_remedy(adata, other, _undo(layer, was))}"
    if (joined := _joined(adata, seen)) is not None:
        return f"{joined} {_remedy(adata, other, None)}"
    if seen.divided_by is not None:
        return None
    if seen.may_be_rounded:
        given = "" if layer is None else f", layer={layer!r}"
        if other is not None:
            return None
        return (
            f"{place} shows no sign of normalisation, as estimates of counts do (of {ESTIMATORS}); "
            f"scvae.fit(adata{given}, counts='rounded') takes the nearest whole numbers."
        )
    if seen.traces.by_cell:
        return (
            f"{place} looks like a function of counts, such as their logarithm or root: values of "
            f"a cell are the same few. {_remedy(adata, other, None)}"
        )
    if seen.traces.by_gene:
        return (
            f"{place} looks divided gene by gene, by its spread as sc.pp.scale(adata, zero_center="
            "False) does or by its length: pairs of genes have the same ratio in many cells. "
            f"Counts cannot be had back. {_remedy(adata, other, None)}"
        )
    return None


def _joined(adata: AnnData, seen: Survey) -> str | None:
    """Say that counts and values of another kind were joined, if so: cells with either."""
    fault, traces = seen.first_fault, seen.traces
    if fault is None or traces is None or set(seen.tallies) != {FaultKind.NON_INTEGER}:
        return None
    some, full = len(traces.sums), int((seen.genes_of_cells > 0).sum())
    was = recognise(traces, some)
    if some > MOST_JOINED * full or (was is None and not traces.by_cell):
        return None
    done = f"{'log-' if was.logarithm else ''}normalised" if was else "like a function of counts"
    return (
        f"{some:,} of {full:,} cells (first: {adata.obs_names[fault.row]!r}) look {done}, the "
        "others hold counts, as if parts were joined of which some were normalised."
    )


def _deed(place: str, was: Normalisation) -> str:
    values = f"exp({place}) - 1" if was.logarithm else place
    done = "log-normalised" if was.logarithm else "normalised"
    if was.total is not None:
        return f"{place} looks {done}: {values} sums to {was.total:,.6g} in every cell."
    return (
        f"{place} looks {done}, with genes left out afterwards: {values} holds multiples of one "
        "number in every cell."
    )


def _undo(layer: str | None, was: Normalisation) -> str | None:
    """Return the code that makes counts of normalised values, if there is a way."""
    if not was.scaled:
        return None
    frame = "adata.to_df()" if layer is None else f"adata.to_df({layer!r})"
    values = f"np.expm1({frame})" if was.logarithm else frame
    return (
        f"x = {values}; "
        "adata.layers['counts'] = x.div(x[x > 0].min(axis=1), axis=0).round().fillna(0).to_numpy()"
    )


def _remedy(adata: AnnData, other: str | None, undo: str | None) -> str:
    if other is not None:
        return f"adata.layers[{other!r}] holds counts."
    if adata.raw is not None:
        return "Look into adata.raw for the counts."
    if undo is None:
        return "Load the matrix as it came from the counting pipeline."
    return (
        "Load the matrix as it came from the counting pipeline; or undo it, if the smallest value "
        f"of every cell was one count: {undo}"
    )
