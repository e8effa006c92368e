"""What was done to counts that are none any more: normalised, logarithms taken, scaled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from scvae.data.read.ties import SAMPLE, are_functions_of_genes, ties_in_cells

SAME_SUM = 1e-3  # relative spread of the sums that normalisation to one total leaves
SAME_VALUE = 1e-5  # relative error of a float32 that went through a logarithm and back
ENOUGH = 3  # cells that a pattern must hold in
SAMPLE_VALUES = 2**16  # of a piece
# Share of a cell's fractions that are alike: functions of counts have more than .5, estimates as
# SoupX makes them .1 at most.
MANY_TIES = 0.3
NEARLY = 0.02  # of a count: no function of counts is so near to whole numbers in all values
MOST, ONES = 0.9, 0.1  # of the cells that were divided; of the values that are one count


def by_row(ufunc: np.ufunc, values: np.ndarray, indptr: np.ndarray, empty: float) -> np.ndarray:
    """Return the reduction of the stored values of every row of a CSR; `empty` where are none."""
    full = np.diff(indptr) > 0
    out = np.full(len(full), empty, dtype=values.dtype)
    if full.any():
        out[full] = ufunc.reduceat(values, indptr[:-1][full])
    return out


@dataclass(frozen=True)
class Traces:
    """What normalisation leaves in the cells that have a non-integer value and no other fault.

    Attributes
    ----------
    sums, exp_sums
        Sum of x and of exp(x) - 1 over all genes, ``(m,)``.
    multiples, exp_multiples
        Whether all x, or all exp(x) - 1, are multiples of the smallest one above zero.
    varied
        Whether the cell has different values, without which multiples say nothing.
    in_cells
        What `ties_in_cells` found in the first cells.
    values
        The values of the first cells.
    first
        The first cells.
    """

    sums: np.ndarray
    exp_sums: np.ndarray
    multiples: np.ndarray
    exp_multiples: np.ndarray
    varied: np.ndarray
    in_cells: np.ndarray
    values: np.ndarray
    first: sparse.csr_matrix

    @classmethod
    def of(cls, rows: sparse.csr_matrix, kept: int = SAMPLE) -> Traces:
        """Return the traces in some cells, none of them empty, so many of which are kept."""
        x, indptr = rows.data.astype(np.float64), rows.indptr
        with np.errstate(over="ignore"):
            exp = np.expm1(x)
        smallest, largest = (by_row(ufunc, x, indptr, 0.0) for ufunc in (np.minimum, np.maximum))
        return cls(
            by_row(np.add, x, indptr, 0.0),
            by_row(np.add, exp, indptr, 0.0),
            _multiples(x, indptr),
            _multiples(exp, indptr),
            largest > smallest * (1 + SAME_VALUE),
            ties_in_cells(rows[:SAMPLE]),
            x[:SAMPLE_VALUES],
            rows[:kept],
        )

    @classmethod
    def joined(cls, parts: list[Traces]) -> Traces:
        def of_all(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])

        return cls(
            of_all("sums"),
            of_all("exp_sums"),
            of_all("multiples"),
            of_all("exp_multiples"),
            of_all("varied"),
            of_all("in_cells"),
            of_all("values"),
            sparse.vstack([part.first for part in parts], format="csr"),
        )

    @property
    def nearly_whole(self) -> bool:
        """Whether the values are whole numbers but for noise, as a detour through logarithms in
        half precision leaves."""
        near = np.rint(self.values)
        return bool((near >= 1).all() and (np.abs(self.values - near) <= NEARLY).all())

    @property
    def by_cell(self) -> bool:
        """Whether the values of a cell are functions of its counts, the same few."""
        fractions, ties = self.in_cells.sum(axis=0)
        return bool(ties > MANY_TIES * fractions)

    @cached_property
    def by_gene(self) -> bool:
        """Whether the values are functions of counts, one for every gene: divided by its spread."""
        return are_functions_of_genes(self.first)


def _multiples(x: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    smallest = np.repeat(by_row(np.minimum, x, indptr, 1.0), np.diff(indptr))
    with np.errstate(invalid="ignore"):
        ratio = x / smallest
        whole = np.abs(ratio - np.rint(ratio)) <= SAME_VALUE * ratio
    return by_row(np.logical_and, whole, indptr, True)


def are_estimates(traces: Traces, n_cells: int) -> bool:
    """Return whether values may be estimates of counts, as corrections for ambient RNA give them.

    A function of counts, such as a logarithm in any base, makes one value of all ones of a cell,
    and has ties among genes where these were divided by numbers of their own.
    """
    if traces.nearly_whole:
        return True
    if not traces.in_cells[:, 0].any() or traces.by_cell or traces.by_gene:
        return False
    return recognise(traces, n_cells) is None and divided_by(traces, n_cells) is None


@dataclass(frozen=True)
class Normalisation:
    """What was probably done to counts.

    Attributes
    ----------
    logarithm
        Whether log(1 + x) was taken last.
    total
        The total that every cell was scaled to; None if the totals differ.
    scaled
        Whether the smallest value of every cell, taken for one count, makes all values counts.
    """

    logarithm: bool
    total: float | None
    scaled: bool


def recognise(traces: Traces, n_cells: int) -> Normalisation | None:
    """Return what was done to counts, judged by their traces, or None.

    Parameters
    ----------
    n_cells
        Cells that are not empty; most of them must show traces.
    """
    if len(traces.sums) < max(ENOUGH, n_cells / 2):
        return None
    for logarithm in (True, False):
        sums = traces.exp_sums if logarithm else traces.sums
        scaled = _hold(traces.exp_multiples if logarithm else traces.multiples, traces.varied)
        total = _same(sums)
        if total is not None or scaled:
            return Normalisation(logarithm, total, scaled)
    return None


def divided_by(traces: Traces, n_cells: int) -> float | None:
    """Return the one number that counts were divided by, if there is one: by 1,000, say.

    Parameters
    ----------
    n_cells
        As for `recognise`.
    """
    was = recognise(traces, n_cells)
    if len(traces.sums) < MOST * n_cells or (was and (was.logarithm or was.total is not None)):
        return None
    unit = float(traces.values.min())
    ratio = traces.values / unit
    are_whole = bool((np.abs(ratio - np.rint(ratio)) <= SAME_VALUE * ratio).all())
    ones, twos = (float(np.mean((ratio > k - 0.5) & (ratio < k + 0.5))) for k in (1, 2))
    is_one_count = unit < 1 and ones >= max(ONES, twos / 2)  # no decimals, no shares of reads
    return float(f"{1 / unit:.6g}") if are_whole and is_one_count else None


def _same(sums: np.ndarray) -> float | None:
    """Return the one value of all sums, if there is one."""
    median = float(np.median(sums))
    return median if np.isfinite(median) and np.ptp(sums) <= SAME_SUM * median else None


def _hold(multiples: np.ndarray, varied: np.ndarray) -> bool:
    return bool(varied.sum() >= ENOUGH and multiples[varied].all())
