"""Values that are alike: in a cell, in a gene, in the ratio of two genes.

Counts are few different numbers, and so is what a function makes of them, whichever numbers it
divides cells and genes by. Estimates of counts are hardly ever alike, but where they were made of
few numbers, too: of reads shared in equal parts, of counts less the same little, or written in two
decimals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

SAMPLE = 256  # cells, as it takes sorting
PAIRS = 512  # of genes
PARTS = 2520  # of a read, which may be shared among 2 to 10 genes
FEW_READS = 100  # with more, a float32 does not tell parts
LITTLE = 0.02  # that was taken from a count
PREVAILS = 0.02  # share of the fractions of a cell that are one value: ones, say
MANY_WHOLE = 0.2  # share of the values of a cell whose fractions were written in two decimals
FEW_TIES = 0.1  # share of the fractions: a function of counts leaves more, all ones being alike
FEW_RATIOS, MANY_VALUES = 0.05, 0.5  # share of the ratios of genes, of the values of genes
FEWEST = 10  # ties
SAME_RATIO = 2e-6  # relative error of the ratio of two float32, powers of which were taken
# What undoes a logarithm of 1 + x, if one was taken.
INVERSES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: x,
    np.expm1,
    lambda x: np.exp2(x) - 1,
    lambda x: np.power(10.0, x) - 1,
)


def ties_in_cells(rows: sparse.csr_matrix) -> np.ndarray:
    """Return how many fractions there are in every cell, and how many of them are values that many
    have and are no plain parts of a read, nor counts less little, ``(n, 2)``."""
    n, sizes = rows.shape[0], np.diff(rows.indptr)
    row = np.repeat(np.arange(n), sizes)
    is_fraction = rows.data != np.floor(rows.data)
    row, values = row[is_fraction], rows.data[is_fraction]
    order = np.lexsort((values, row))
    row, values = row[order], values[order].astype(np.float64)
    fractions = np.bincount(row, minlength=n)
    starts = np.ones(len(values), dtype=bool)
    starts[1:] = (row[1:] != row[:-1]) | (values[1:] != values[:-1])
    alike = np.diff(np.append(np.flatnonzero(starts), len(values)))
    alike = np.repeat(alike, alike)
    # Few ties are by chance, or of genes that are as common in what was taken off; more are in
    # tables of estimates in two decimals.
    is_table = fractions <= (1 - MANY_WHOLE) * sizes
    is_decimal = is_table[row] & _are_whole(100 * values)
    prevails = (alike > 1) & (alike > np.where(is_decimal, FEW_TIES, PREVAILS) * fractions[row])
    less = np.rint(values) - values
    tied = prevails & ~_are_parts(values) & ~((less > 0) & (less < LITTLE))
    return np.stack([fractions, np.bincount(row[tied], minlength=n)], axis=1)


def ties_in_genes(rows: sparse.csr_matrix) -> np.ndarray:
    """Return how many ratios of two genes there are, and how many of them are there again in other
    cells, for every one of `INVERSES`; and the same of the values of a gene, ``(5, 2)``.

    Genes that were counted equally often in two cells have one ratio in both, whatever function of
    the counts of a cell was divided by numbers of their own. Where both cells have the same values
    it says nothing but that. And values of a gene that differ by whole numbers may be counts less
    the same amount.
    """
    columns = _fractions(rows)
    if min(columns.shape) < 2:
        return np.zeros((len(INVERSES) + 1, 2), dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        found = [_ties_of_ratios(inverse(columns)) for inverse in INVERSES]
        return np.array([*found, _ties_of_values(columns)])


def are_functions_of_genes(rows: sparse.csr_matrix) -> bool:
    """Return whether values are what every gene's own function makes of its counts."""
    looked_at, tied = ties_in_genes(rows).T
    least = np.maximum(FEWEST, np.array([FEW_RATIOS] * len(INVERSES) + [MANY_VALUES]) * looked_at)
    return bool((tied > least).any())


def _fractions(rows: sparse.csr_matrix) -> np.ndarray:
    """Return the fractions of genes that are in many cells, float64 ``(n, k)``, those in about as
    many beside each other; NaN for other values, and for parts of reads and decimals of tables."""
    values, sizes = rows.data.astype(np.float64), np.diff(rows.indptr)
    is_fraction = values != np.floor(values)
    cell = np.repeat(np.arange(len(sizes)), sizes)
    is_table = np.bincount(cell[is_fraction], minlength=len(sizes)) <= (1 - MANY_WHOLE) * sizes
    told = is_fraction & ~_are_parts(values)
    told &= ~(is_table[cell] & _are_whole(100 * values))
    cells = np.bincount(rows.indices[told], minlength=rows.shape[1])
    most = np.argsort(-cells, kind="stable")[: min(PAIRS + 1, int((cells > 1).sum()))]
    place = np.full(rows.shape[1], -1)
    place[most] = np.arange(len(most))
    told &= place[rows.indices] >= 0
    columns = np.full((len(sizes), len(most)), np.nan)
    columns[cell[told], place[rows.indices[told]]] = values[told]
    return columns


def _ties_of_ratios(columns: np.ndarray) -> tuple[int, int]:
    """Return how many ratios of neighbours there are, and how many are there again of others."""
    ratio = columns[:, :-1] / columns[:, 1:]
    # Powers of large counts overflow, and all that they divide would be alike.
    ratio[~(np.isfinite(ratio) & (ratio > 0))] = np.nan
    order = np.argsort(ratio, axis=0)
    ratio, one = (np.take_along_axis(each, order, axis=0) for each in (ratio, columns[:, :-1]))
    alike = np.diff(ratio, axis=0) <= SAME_RATIO * ratio[1:]
    is_told = alike & ~_are_whole(np.abs(np.diff(one, axis=0)), np.maximum(one[1:], one[:-1]))
    return int(np.isfinite(ratio).sum()), _in_a_tie(is_told)


def _ties_of_values(columns: np.ndarray) -> tuple[int, int]:
    """Return how many values there are in genes with several, and how many are there again, in
    genes whose values do not differ by whole numbers alone."""
    values = np.sort(columns, axis=0)
    steps, known = np.diff(values, axis=0), np.isfinite(values)
    alike = steps <= SAME_RATIO * values[1:]
    several = ~(alike | ~known[1:]).all(axis=0)
    is_told = ~(alike | ~known[1:] | _are_whole(steps, values[1:])).all(axis=0)
    return int(known[:, several].sum()), _in_a_tie(alike[:, is_told])


def _in_a_tie(alike: np.ndarray) -> int:
    """Return how many of sorted values are like the one before or after, given which are like the
    one before."""
    edge = np.zeros((1, alike.shape[1]), dtype=bool)
    return int((np.vstack([edge, alike]) | np.vstack([alike, edge])).sum())


def _are_parts(values: np.ndarray) -> np.ndarray:
    """Return whether values are reads and plain parts of one."""
    error = np.abs(PARTS * values - np.rint(PARTS * values))
    return (values < FEW_READS) & (error <= 3e-7 * PARTS * values)


def _are_whole(values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """Return whether every value is whole but for the round-off of a float32; `of` are the numbers
    that it is a difference of, at most."""
    error = np.abs(values - np.rint(values))
    whole: np.ndarray = error <= 1e-6 * (values if of is None else np.maximum(of, 1.0))
    return whole
