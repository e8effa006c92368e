"""Which matrix of an AnnData holds the raw counts: decided here, for every verb."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae.choices import CountKind
from scvae.data.read.joins import told_nan
from scvae.data.read.source import RAW, cell_named, genes_of, is_raw, matrix_of, where_named
from scvae.data.read.survey import Survey, survey
from scvae.data.read.tally import FaultKind
from scvae.errors import DataError, warn

if TYPE_CHECKING:
    from anndata import AnnData

CALL = "scvae.fit(adata"  # the user's call, for the remedies
PROMISING = ("counts", "raw_counts", "raw", "matrix")  # names that settle which layer it is
# Parts of the counts, as RNA velocity needs them: of velocyto and alevin-fry, of kallisto-bustools,
# of those that count exons and introns.
PARTS = ("spliced", "unspliced", "mature", "nascent", "exon", "intron", "ambiguous", "spanning")
MOST = ("spliced", "mature", "exon")  # parts that are taken for all counts by mistake
FEW = tuple(part for part in PARTS if part not in MOST)  # never meant to stand for all counts
ESTIMATORS = "SoupX, decontX, CellBender, salmon, alevin, RSEM, proseg"
ESTIMATED = re.compile(
    r"soup|decont|bender|ambient|corrected|salmon|alevin|rsem|proseg|count|estimat", re.IGNORECASE
)  # names of layers of such
NO_ESTIMATES = (
    "counts='rounded' takes fractions as estimates of counts; these were normalised, or are a "
    "function of counts such as their logarithm."
)


@dataclass(frozen=True)
class Choice:
    """Where the raw counts are, or why there are none to take.

    Attributes
    ----------
    asked
        What was seen where the user asked for counts; None if there is no sound matrix.
    layer
        Where counts are taken; None is X. Where none are, what was asked for.
    taken
        What was seen there; None if no counts are taken.
    note
        What the user should know if another place was taken than the one asked for.
    error
        Why no counts are taken.
    other
        Another layer that holds counts, as far as it was looked for.
    """

    asked: Survey | None
    layer: str | None
    taken: Survey | None = None
    note: str | None = None
    error: DataError | None = None
    other: str | None = None

    def require(self) -> Survey:
        """Return what was seen of the counts that are taken, warning of the choice.

        Raises
        ------
        DataError
            If no counts are taken; the message names value, cell, gene and remedy.
        """
        if self.error is not None:
            raise self.error
        if self.note is not None:
            warn(self.note)
        assert self.taken is not None
        return self.taken


def look(
    adata: AnnData,
    layer: str | None = None,
    columns: np.ndarray | None = None,
    *,
    summarise: bool = True,
    keep: bool = True,
    thorough: bool = False,
    groups: np.ndarray | None = None,
    counts: CountKind = "whole",
    call: str = CALL,
    home: str | None = None,
) -> Choice:
    """Choose the matrix with the raw counts, looking at every value of it, once.

    Parameters
    ----------
    adata
        Cells x genes; X or a layer holds raw counts in any format that AnnData knows.
    layer
        Where to look. None looks in X; if it holds no counts, none but zeros, or 0 and 1 alone, for
        a layer that holds some. Which one must be plain: by its name, or because there is one.
    columns
        Positions of the genes to take, in this order; None takes all. Every value of any gene must
        be a count.
    summarise, keep
        As for `survey`.
    groups
        As for `survey`.
    counts
        "rounded" takes fractions that are estimates of counts as the nearest whole numbers.
    thorough
        Where the matrix asked for cannot be counts, look at all of it nevertheless.
    call
        The user's call, for the remedies.
    home
        The layer where that call looks if it is given none; None is X.
    """
    estimates = counts == "rounded"
    detail: Any = {"summarise": summarise, "keep": keep, "groups": groups, "estimates": estimates}
    try:
        matrix = matrix_of(adata, layer)
        asked = None
        if matrix is not None:
            asked = survey(matrix, columns, stop_at_fault=not thorough, **detail)
    except DataError as error:
        return Choice(None, layer, error=_placed(error, adata, layer, call))
    is_sound = asked is not None and not asked.tallies
    if asked is not None and is_sound and (layer is not None or asked.largest > 1):
        is_told = asked.rounded and not estimates
        note = _rounded(where_named(layer, adata), asked) if is_told else None
        if layer is None and note is None:
            note = _part_of_counts(adata, columns, asked, call)
        return Choice(asked, layer, asked, note=note)
    candidates = {} if layer is not None else _candidates(adata, columns, asked, **detail)
    if len(candidates) == 1 and _is_plain(*candidates.items()):
        ((other, seen),) = candidates.items()
        is_told = call == CALL and seen.estimates > 0
        note = _instead_of_x(asked, other, call, rounded=is_told)
        return Choice(asked, other, seen, note=note, other=other)
    if candidates:
        likely = max(candidates, key=lambda name: float(candidates[name].totals.sum()))
        refusal = _not_plain(asked, candidates, likely, call)
        return Choice(asked, None, error=refusal, other=likely)
    if asked is not None and is_sound and not (asked.stored == 0 and _raw_holds_counts(adata)):
        return Choice(asked, layer, asked)
    if asked is None or not asked.tallies:
        return Choice(asked, layer, error=_no_counts(adata, asked, call))
    elsewhere = None if layer is None else _layer_with_counts(adata, layer)
    whole = asked if thorough else survey(matrix, columns, summarise=False, estimates=estimates)
    refusal = _not_counts(adata, layer, whole, elsewhere, call, home)
    if estimates and FaultKind.NON_INTEGER in whole.tallies:
        refusal = DataError(f"{refusal} {NO_ESTIMATES}")
    return Choice(asked, layer, error=refusal, other=elsewhere)


# -- other places ------------------------------------------------------------------------------


def _layers(adata: AnnData, besides: str | None) -> Iterator[str]:
    """Yield the other layers, those first whose names promise counts."""
    names = [name for name in adata.layers if name != besides]
    yield from sorted(names, key=lambda name: name not in PROMISING)


def _candidates(
    adata: AnnData, columns: np.ndarray | None, asked: Survey | None, **detail: Any
) -> dict[str, Survey]:
    """Return the layers that could be the raw counts instead of X: those whose names settle it, or
    else all that hold counts: larger ones than X, and masks only if there is nothing else. Of those
    of such names that are the same, one."""
    least = 1 if asked is None or asked.tallies else asked.largest + 1
    candidates: dict[str, Survey] = {}
    for name in _layers(adata, None):
        if candidates and name not in PROMISING and next(iter(candidates)) in PROMISING:
            return candidates
        seen = _counts_in(partial(matrix_of, adata, name), columns, **detail)
        if seen is None or seen.largest < least:
            continue
        if name in PROMISING and any(_same_totals(seen, other) for other in candidates.values()):
            continue
        candidates[name] = seen
    return {name: seen for name, seen in candidates.items() if seen.largest > 1} or candidates


def _same_totals(one: Survey, other: Survey) -> bool:
    return np.array_equal(one.totals, other.totals)


def _is_plain(candidate: tuple[str, Survey]) -> bool:
    """Return whether the only candidate must be the raw counts: no mask, no part of them."""
    name, seen = candidate
    return name in PROMISING or (seen.largest > 1 and name not in FEW)


def _raw_holds_counts(adata: AnnData) -> bool:
    return adata.raw is not None and _holds_counts(lambda: adata.raw.X)


def _counts_in(
    find: Callable[[], Any], columns: np.ndarray | None = None, **detail: Any
) -> Survey | None:
    """Return what is seen of a matrix, or None, having read no more than shows it, if it holds no
    counts."""
    try:
        matrix = find()
        seen = None if matrix is None else survey(matrix, columns, stop_at_fault=True, **detail)
    except DataError:  # it is broken, or of strings, or cannot be read from its file
        return None
    return seen if seen is not None and seen.holds_counts else None


def _holds_counts(find: Callable[[], Any]) -> bool:
    return _counts_in(find, summarise=False) is not None


def _layer_with_counts(adata: AnnData, besides: str | None, **detail: Any) -> str | None:
    """Return the first other layer that holds counts, if there is one."""
    for name in _layers(adata, besides):
        if _counts_in(partial(matrix_of, adata, name), summarise=False, **detail) is not None:
            return name
    return None


# -- words -------------------------------------------------------------------------------------


def _placed(error: DataError, adata: AnnData, layer: str | None, call: str) -> DataError:
    """Return the error of a matrix that is none, with a remedy for the place where it is."""
    of_x, place = "adata.X = adata.X", where_named(layer, adata)
    if layer is None or of_x not in (text := str(error)):
        return error
    if is_raw(adata, layer):
        mended = text.replace(of_x, "adata.layers['counts'] = adata.raw[:, adata.var_names].X")
        return DataError(f"{mended}, then {call}, layer='counts')")
    return DataError(text.replace(of_x, f"{place} = {place}"))


def _part_of_counts(
    adata: AnnData, columns: np.ndarray | None, asked: Survey, call: str
) -> str | None:
    """Say that X is one of several parts of the counts, if it is."""
    parts = [name for name in PARTS if name in adata.layers]
    mine = [name for name in parts if name in MOST]
    if len(parts) < 2 or len(mine) != 1:
        return None
    others = [name for name in parts if name not in mine]
    seen = _counts_in(partial(matrix_of, adata, mine[0]), columns, summarise=False)
    if seen is None or not _same_totals(seen, asked):
        return None
    return (
        f"adata.X is adata.layers[{mine[0]!r}], a part of the counts; others are in {others}. "
        f"{_together(parts)} To choose and silence this: {call}, layer={mine[0]!r})."
    )


def _together(parts: list[str]) -> str:
    summed = " + ".join(f"adata.layers[{name!r}]" for name in parts)
    return f"Parts of the counts may be wanted together: adata.layers['counts'] = {summed}."


def _from_raw(adata: AnnData, call: str) -> str:
    """Return the call that takes the counts of adata.raw, which a layer may hide."""
    if RAW not in adata.layers:
        return f"{call}, layer='raw')"
    return f"adata.layers['counts'] = adata.raw[:, adata.var_names].X, then {call}, layer='counts')"


def _rounded(place: str, seen: Survey) -> str:
    """Say that round-off was taken off."""
    return (
        f"{seen.rounded:,} values of {place} differ from whole numbers by round-off, about a "
        "millionth; they are taken as the nearest. To make them whole and silence this: "
        f"adata.layers['counts'] = np.rint({place}), and layer='counts'."
    )


def _state(asked: Survey | None) -> str:
    """Say why X is not what is fitted."""
    if asked is None:
        return "is empty"
    if asked.first_fault is not None:
        return f"holds {asked.first_fault.kind} values"
    return "holds 0 and 1 alone" if asked.stored else "holds zeros alone"


def _no_counts(adata: AnnData, asked: Survey | None, call: str) -> DataError:
    """Return the error of an X without values, if no layer holds counts."""
    problem = f"adata.X {_state(asked)} and no layer holds counts"
    if _raw_holds_counts(adata):
        return DataError(f"{problem}; adata.raw holds some: {_from_raw(adata, call)}.")
    return DataError(f"{problem}. Give raw counts: {call}, layer=...).")


def _instead_of_x(asked: Survey | None, other: str, call: str, *, rounded: bool) -> str:
    """Say that the counts of another layer are used."""
    given = f", layer={other!r}" + (", counts='rounded'" if rounded else "")
    return (
        f"adata.X {_state(asked)}; using the raw counts in adata.layers[{other!r}]. "
        f"To choose and silence this: {call}{given})."
    )


def _not_plain(
    asked: Survey | None, candidates: dict[str, Survey], likely: str, call: str
) -> DataError:
    """Return the error of several layers that could be the raw counts, or one that hardly is."""
    looks = "; ".join(f"{name!r} has {_looks(seen)}" for name, seen in candidates.items())
    parts = [name for name in PARTS if name in candidates]
    together = f" {_together(parts)}" if len(parts) > 1 else ""
    return DataError(
        f"adata.X {_state(asked)}, and which layer holds the raw counts is not plain: {looks}."
        f"{together} Choose one: {call}, layer={likely!r})."
    )


def _looks(seen: Survey) -> str:
    if seen.largest == 1:
        return "0 and 1 alone"
    median = float(np.median(seen.totals))
    return f"whole numbers up to {seen.largest:,}, {median:,.0f} in a median cell"


def _not_counts(
    adata: AnnData,
    layer: str | None,
    seen: Survey,
    other: str | None,
    call: str,
    home: str | None,
) -> DataError:
    """Return the error of a matrix with a fault; `other` is a layer that holds counts."""
    fault = seen.first_fault
    assert fault is not None
    cell, gene = cell_named(adata, fault.row), genes_of(adata, layer)[fault.column]
    problem = (
        f"{where_named(layer, adata)} has {fault.kind} values "
        f"(first: {fault.value:.6g} at cell {cell}, gene {gene!r}){_others(adata, layer, seen)}. "
        "The counts model needs raw counts: whole numbers, zero or more"
    )
    if other is not None:
        return DataError(
            f"{problem}; adata.layers[{other!r}] holds some: {call}, layer={other!r})."
        )
    is_joined = not is_raw(adata, layer) and set(seen.tallies) == {FaultKind.NAN}
    if is_joined and (told := told_nan(adata, layer)) is not None:
        return DataError(f"{problem}. {told}")
    if layer is not None and _holds_counts(lambda: matrix_of(adata, None)):
        remedy = f"{call})" if home is None else f"{where_named(layer, adata)} = adata.X"
        return DataError(f"{problem}; adata.X holds some: {remedy}.")
    if not is_raw(adata, layer) and _raw_holds_counts(adata):
        return DataError(f"{problem}; adata.raw holds some: {_from_raw(adata, call)}.")
    place = "adata.raw[:, adata.var_names].X" if is_raw(adata, layer) else where_named(layer)
    if seen.may_be_rounded:
        given = "" if layer is None else f", layer={layer!r}"
        fitted = f"{call}{given}, counts='rounded')"
        kept = f"adata.layers['counts'] = np.rint({place}), then {call}, layer='counts')"
        return DataError(
            f"{problem}. Estimates of counts (of {ESTIMATORS}) are taken as the nearest whole "
            f"numbers by {fitted if call == CALL else kept}."
        )
    if (divisor := seen.divided_by) is not None:
        return DataError(
            f"{problem}. All are whole numbers divided by {divisor:,g}: adata.layers['counts'] = "
            f"np.rint({place} * {divisor:g}), then {call}, layer='counts')."
        )
    if call == CALL and (named := _estimates_by_name(adata, layer)) is not None:
        return DataError(
            f"{problem}; adata.layers[{named!r}] holds fractions that may be estimates of counts "
            f"(of {ESTIMATORS}): {call}, layer={named!r}, counts='rounded')."
        )
    return DataError(f"{problem}. Load the matrix as it came from the counting pipeline.")


def _others(adata: AnnData, layer: str | None, seen: Survey) -> str:
    """Name what else cannot be counts, beside the first value that is none."""
    first = seen.first_fault
    assert first is not None
    genes = genes_of(adata, layer)
    return "".join(
        f", and {tally.number:,} {kind} (first: {tally.first.value:.6g} at cell "
        f"{cell_named(adata, tally.first.row)}, gene {genes[tally.first.column]!r})"
        for kind, tally in seen.tallies.items()
        if kind != first.kind
    )


def _estimates_by_name(adata: AnnData, besides: str | None) -> str | None:
    """Return a layer of estimates of counts, by its name and values, if there is one."""
    named = [name for name in _layers(adata, besides) if ESTIMATED.search(name)]
    find = partial(_counts_in, summarise=False, estimates=True)
    return next((n for n in named if find(partial(matrix_of, adata, n)) is not None), None)
