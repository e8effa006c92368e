"""Values that cannot be counts: of which kind, how many, and the first of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import sparse


class FaultKind(StrEnum):
    """Why a value cannot be a count; the value is the word for it."""

    NAN = "NaN"
    INFINITE = "infinite"
    NEGATIVE = "negative"
    NON_INTEGER = "non-integer"
    TOO_LARGE = "too large"


ROUND_OFF = 2e-6  # relative error of float32 after a division or a logarithm and back
LARGEST = 2**63  # what no whole number of a machine reaches
MOST_OFF = 1e-2  # however large the count
KINDS = tuple(FaultKind)
FRACTION = KINDS.index(FaultKind.NON_INTEGER)


@dataclass(frozen=True)
class Fault:
    """One value that cannot be a count."""

    row: int
    column: int
    value: float

    @property
    def kind(self) -> FaultKind:
        return KINDS[int(_kinds(np.array([self.value]))[0])]


@dataclass(frozen=True)
class Tally:
    """How many values of a kind cannot be counts, and the first of them by cell and gene."""

    number: int
    first: Fault


def wrong_values(values: np.ndarray) -> np.ndarray:
    """Return the positions of the values that cannot be counts, in their order."""
    if values.dtype.kind == "b" or (values.dtype.kind == "u" and values.dtype.itemsize < 8):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(~_are_counts(values))


def settled(rows: sparse.csr_matrix) -> tuple[sparse.csr_matrix, int]:
    """Return rows whose values that differ from whole numbers by round-off are whole, and how many
    did: the rows themselves if there are none."""
    if rows.dtype.kind != "f":
        return rows, 0
    wrong = wrong_values(rows.data)
    if not len(wrong):
        return rows, 0
    values = rows.data[wrong].astype(np.float64)
    with np.errstate(invalid="ignore"):
        nearest = np.rint(values)
        near = np.abs(values - nearest) <= np.minimum(ROUND_OFF * np.maximum(1, nearest), MOST_OFF)
        near &= (nearest >= 0) & (nearest < LARGEST)
    if not near.any():
        return rows, 0
    rows = rows.copy()
    rows.data[wrong[near]] = np.abs(nearest[near])
    rows.eliminate_zeros()
    return rows, int(near.sum())


def nearest(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return rows whose fractions are the nearest whole numbers, and all else is as it was."""
    if not len(fractions := fractions_of(rows.data)):
        return rows
    rows = rows.copy()
    rows.data[fractions] = np.rint(rows.data[fractions])
    rows.eliminate_zeros()
    return rows


def fractions_of(values: np.ndarray) -> np.ndarray:
    """Return the positions of the values whose only fault is that they are not whole."""
    if values.dtype.kind != "f":
        return np.zeros(0, dtype=np.int64)
    wrong = wrong_values(values)
    found: np.ndarray = wrong[_kinds(values[wrong].astype(np.float64)) == FRACTION]
    return found


def tally(rows: sparse.csr_matrix, wrong: np.ndarray, start: int) -> dict[FaultKind, Tally]:
    """Return the tallies of the `wrong` positions in rows of a matrix, from row `start` on."""
    kinds = _kinds(rows.data[wrong].astype(np.float64))
    tallies = {}
    for number, kind in enumerate(KINDS):
        alike = wrong[kinds == number]
        if len(alike):
            tallies[kind] = Tally(len(alike), _fault_at(rows, int(alike[0]), start))
    return tallies


def added(tallies: dict[FaultKind, Tally], more: dict[FaultKind, Tally]) -> dict[FaultKind, Tally]:
    """Return the tallies of some rows and of `more` rows after them."""
    both = {**more, **tallies}
    for kind in tallies.keys() & more.keys():
        both[kind] = Tally(tallies[kind].number + more[kind].number, tallies[kind].first)
    return {kind: both[kind] for kind in KINDS if kind in both}


def _are_counts(values: np.ndarray) -> np.ndarray:
    """Return, for every value, whether it can be a count: whole and zero or more."""
    if values.dtype.kind == "i":
        return values >= 0
    with np.errstate(invalid="ignore"):
        # NaN and infinity fail the comparison with their own floor, too, or with the bound.
        return (values >= 0) & (values == np.floor(values)) & (values < LARGEST)


def _kinds(values: np.ndarray) -> np.ndarray:
    """Return the position in `KINDS` of every value that cannot be a count."""
    wrong = [np.isnan(values), np.isinf(values), values < 0, values >= LARGEST]
    return np.select(wrong, [0, 1, 2, KINDS.index(FaultKind.TOO_LARGE)], FRACTION)


def _fault_at(rows: sparse.csr_matrix, position: int, start: int) -> Fault:
    row = int(np.searchsorted(rows.indptr, position, side="right")) - 1
    return Fault(start + row, int(rows.indices[position]), float(rows.data[position]))
