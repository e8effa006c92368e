"""What is odd or not in a matrix of counts, added up over its pieces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from scvae.data.read.normalisation import by_row

SMALL = 2  # counts up to which peaks are not told apart: most are, and it would take time


@dataclass(frozen=True)
class CountSummary:
    """What is odd or not in a matrix of counts, and sums of it.

    Attributes
    ----------
    factors
        Greatest whole number that divides all counts of a cell, ``(n,)``; 1 if all are equal.
    keys
        A number for every gene, ``(g,)`` uint64: genes with the same counts have the same one,
        and in another matrix a gene with the same key has the same counts.
    gene_totals
        Counts of every gene, float64 ``(g,)``.
    peaks
        The largest and the second largest count of every gene, ``(2, g)``; at least `SMALL`.
    """

    factors: np.ndarray
    keys: np.ndarray
    gene_totals: np.ndarray
    peaks: np.ndarray


class SummaryOfPieces:
    """Parts of a `CountSummary`, added up over the pieces of a matrix."""

    def __init__(self, n_genes: int) -> None:
        self.factors: list[np.ndarray] = []
        self.sums = np.zeros((2, n_genes), dtype=np.uint64)
        self.peaks = np.full((2, n_genes), SMALL, dtype=np.float64)

    def add(self, piece: sparse.csr_matrix, whole: sparse.csr_matrix, start: int) -> None:
        """Add the rows of the matrix from `start` on; `whole` are the same as uint64."""
        self.add_parts(_factors(piece), _sums(whole, start), _peaks(piece))

    def add_parts(self, factors: np.ndarray, sums: np.ndarray, peaks: np.ndarray) -> None:
        """Add what was told of the next rows: the common factor of every row, and of every gene its
        sums, weighted and plain, and its two largest counts."""
        self.factors.append(factors)
        self.sums += sums
        self.peaks = _joined_peaks(self.peaks, peaks)

    def summary(self) -> CountSummary:
        keys, totals = self.sums
        factors = np.concatenate([*self.factors, np.zeros(0, dtype=np.int64)])
        return CountSummary(factors, keys, totals.astype(np.float64), self.peaks)


def _sums(piece: sparse.csr_matrix, start: int) -> np.ndarray:
    """Return the sums over the rows of count x random number of the cell, and of the counts.

    Sums modulo 2^64 of different columns agree once in about 10^19 pairs."""
    weights = np.ones((2, piece.shape[0]), dtype=np.uint64)
    weights[0] = random_numbers(start, start + piece.shape[0])
    return np.asarray(weights @ piece)


def random_numbers(start: int, stop: int) -> np.ndarray:
    """Return the numbers of rows `start` to `stop`, by splitmix64, whatever the pieces are."""
    z = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _factors(piece: sparse.csr_matrix) -> np.ndarray:
    """Return the common factor of every row; only rows without a single count can have one."""
    factors = np.ones(piece.shape[0], dtype=np.int64)
    rows = np.flatnonzero(by_row(np.minimum, piece.data, piece.indptr, 0) > 1)
    if len(rows):
        few = piece[rows]
        whole = few.data.astype(np.int64)
        common = by_row(np.gcd, whole, few.indptr, 1)
        factors[rows] = np.where(common < by_row(np.maximum, whole, few.indptr, 1), common, 1)
    return factors


def common_divisor(values: np.ndarray, known: int) -> int:
    """Return the greatest whole number that divides all of some counts above zero, and `known`,
    that of others; 0 of none."""
    if known == 1 or not len(values):
        return known
    return 1 if values.min() == 1 else math.gcd(known, int(np.gcd.reduce(values.astype(np.int64))))


def _peaks(piece: sparse.csr_matrix) -> np.ndarray:
    """Return the two largest counts of every gene, ``(2, g)``, at least `SMALL`."""
    large = np.flatnonzero(piece.data > SMALL)  # taken by number, which is faster than by a mask
    counts, genes = piece.data[large].astype(np.float64), piece.indices[large]
    first, second = np.full((2, piece.shape[1]), SMALL, dtype=np.float64)
    np.maximum.at(first, genes, counts)
    is_first = counts == first[genes]
    np.maximum.at(second, genes[~is_first], counts[~is_first])
    is_tied = np.bincount(genes[is_first], minlength=len(first)) > 1
    return np.stack([first, np.where(is_tied, first, second)])


def _joined_peaks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the two largest of every column of both."""
    first = np.maximum(a[0], b[0])
    return np.stack([first, np.maximum(np.minimum(a[0], b[0]), np.maximum(a[1], b[1]))])
