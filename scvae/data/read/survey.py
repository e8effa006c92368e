"""One look at every value of a matrix, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from scvae.data.read.normalisation import Traces, by_row
from scvae.data.read.source import Fault, FaultKind, are_counts, blocks, canonical, fault_at
from scvae.data.read.sums import row_sums

SMALL = 2  # counts up to which peaks are not told apart: most are, and it would take time
PIECE_VALUES = 2**22  # non-zeros looked at together, about: 32 MiB as float64


@dataclass(frozen=True)
class Tally:
    """How many values of a kind cannot be counts, and the first of them by cell and gene."""

    number: int
    first: Fault


@dataclass(frozen=True)
class CountSummary:
    """What is known of a matrix of counts.

    Attributes
    ----------
    totals
        Counts of every cell, float64 ``(n,)``.
    factors
        Greatest whole number that divides all counts of a cell, ``(n,)``; 1 if all are equal.
    keys
        A number for every gene, ``(g,)``: genes with the same counts have the same one.
    largest
        The largest count.
    peaks
        The largest and the second largest count of every gene, ``(2, g)``; at least `SMALL`.
    """

    totals: np.ndarray
    factors: np.ndarray
    keys: np.ndarray
    largest: int
    peaks: np.ndarray


@dataclass(frozen=True)
class Survey:
    """What one look at every value of a matrix tells.

    Attributes
    ----------
    genes_of_cells
        Genes with a value in every cell, of those asked for, ``(n,)``.
    cells_of_genes
        Cells with a value of every gene asked for, ``(g,)``.
    stored
        Values that are not zero, of all genes.
    tallies
        Values that cannot be counts, of all genes, by their kind.
    traces
        Traces of normalisation, of all genes; None if every value is a count.
    counts
        Summary of the genes asked for; None if any value cannot be a count.
    """

    genes_of_cells: np.ndarray
    cells_of_genes: np.ndarray
    stored: int
    tallies: dict[FaultKind, Tally]
    traces: Traces | None
    counts: CountSummary | None

    @property
    def first_fault(self) -> Fault | None:
        """The first value by cell and gene that cannot be a count."""
        firsts = [tally.first for tally in self.tallies.values()]
        return min(firsts, key=lambda fault: (fault.row, fault.column), default=None)


def survey(
    matrix: Any, columns: np.ndarray | None = None, *, stop_at_fault: bool = False
) -> Survey:
    """Look at every value of a matrix of any kind once, without keeping it in memory.

    Parameters
    ----------
    matrix
        Cells x genes, dense or sparse, in memory or in a file.
    columns
        Positions of the genes to summarise; None takes all. Faults are found in all genes.
    stop_at_fault
        Look no further than the first piece with a value that cannot be a count.
    """
    summary, stored = _Summary(matrix.shape[1] if columns is None else len(columns)), 0
    tallies: dict[FaultKind, Tally] = {}
    traces: list[Traces] = []
    start = 0
    for rows in (piece for block in blocks(matrix) for piece in _pieces(block)):
        piece = canonical(rows)
        good = are_counts(piece.data)
        if not good.all():
            _tally(tallies, piece, good, start)
            traces.append(_traces(piece, good))
        summary.add(piece if columns is None else piece[:, columns], sound=not tallies)
        stored += piece.nnz
        start += piece.shape[0]
        if tallies and stop_at_fault:
            break
    return summary.survey(stored, tallies, Traces.joined(traces) if traces else None)


def survey_counts(counts: sparse.csr_matrix) -> Survey:
    """Do as `survey` with counts that were checked while they were read."""
    summary = _Summary(counts.shape[1])
    for piece in _pieces(counts):
        summary.add(piece, sound=True)
    return summary.survey(counts.nnz, {}, None)


def _pieces(block: sparse.csr_matrix) -> Iterator[sparse.csr_matrix]:
    n = block.shape[0]
    step = max(1, n * PIECE_VALUES // max(block.nnz, 1))
    if step >= n:
        yield block
        return
    for start in range(0, n, step):
        yield block[start : start + step]


# -- values that cannot be counts --------------------------------------------------------------


def _tally(
    tallies: dict[FaultKind, Tally], piece: sparse.csr_matrix, good: np.ndarray, start: int
) -> None:
    positions = np.flatnonzero(~good)
    values = piece.data[positions]
    nan, infinite = np.isnan(values), np.isinf(values)
    negative = (values < 0) & ~infinite
    other = ~(nan | infinite | negative)
    # The same kinds as those of a Fault, many at a time.
    kinds = {
        FaultKind.NAN: nan,
        FaultKind.INFINITE: infinite,
        FaultKind.NEGATIVE: negative,
        FaultKind.NON_INTEGER: other,
    }
    for kind, mask in kinds.items():
        if mask.any():
            found = int(mask.sum())
            first = fault_at(piece, int(positions[np.argmax(mask)]), start)
            before = tallies.get(kind)
            tallies[kind] = Tally(
                found + (before.number if before else 0), before.first if before else first
            )


def _traces(piece: sparse.csr_matrix, good: np.ndarray) -> Traces:
    """Return the traces in the rows that have non-integers and no other fault."""
    with np.errstate(invalid="ignore"):
        sane = np.isfinite(piece.data) & (piece.data > 0)
    whole = by_row(np.logical_and, good, piece.indptr, True)
    positive = by_row(np.logical_and, sane, piece.indptr, True)
    return Traces.of(piece[np.flatnonzero(~whole & positive)])


# -- counts ------------------------------------------------------------------------------------


class _Summary:
    """Sums over the pieces of a matrix."""

    def __init__(self, n_genes: int) -> None:
        self.genes_of_cells: list[np.ndarray] = []
        self.cells_of_genes = np.zeros(n_genes, dtype=np.int64)
        self.totals: list[np.ndarray] = []
        self.factors: list[np.ndarray] = []
        self.keys = np.zeros(n_genes, dtype=np.uint64)
        self.peaks = np.full((2, n_genes), SMALL, dtype=np.float64)
        self.rows, self.largest = 0, 0

    def add(self, piece: sparse.csr_matrix, *, sound: bool) -> None:
        """Add the next rows; `sound` if no value up to their end cannot be a count."""
        self.genes_of_cells.append(np.diff(piece.indptr))
        self.cells_of_genes += np.bincount(piece.indices, minlength=len(self.cells_of_genes))
        if sound:
            self.totals.append(row_sums(piece))
            self.factors.append(_factors(piece))
            self.largest = max(self.largest, int(piece.data.max()) if piece.nnz else 0)
            self.keys += self._keys(piece)
            self.peaks = _joined_peaks(self.peaks, _peaks(piece))
        self.rows += piece.shape[0]

    def _keys(self, piece: sparse.csr_matrix) -> np.ndarray:
        """Return the part of the pieces' rows in the sum of count x random number of the cell.

        Sums modulo 2^64 of different columns agree once in about 10^19 pairs."""
        numbers = _random_numbers(self.rows, self.rows + piece.shape[0])
        unsigned = (piece.data.astype(np.uint64), piece.indices, piece.indptr)
        return numbers @ sparse.csr_matrix(unsigned, shape=piece.shape)

    def survey(self, stored: int, tallies: dict[FaultKind, Tally], traces: Traces | None) -> Survey:
        counts = None
        if not tallies:
            totals, factors = np.concatenate(self.totals), np.concatenate(self.factors)
            counts = CountSummary(totals, factors, self.keys, self.largest, self.peaks)
        genes = np.concatenate(self.genes_of_cells)
        return Survey(genes, self.cells_of_genes, stored, tallies, traces, counts)


def _random_numbers(start: int, stop: int) -> np.ndarray:
    """Return the numbers of rows `start` to `stop`, by splitmix64, whatever the pieces are."""
    z = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _factors(piece: sparse.csr_matrix) -> np.ndarray:
    """Return the common factor of every row; only rows without a single count can have one."""
    factors = np.ones(piece.shape[0], dtype=np.int64)
    smallest = by_row(np.minimum, piece.data, piece.indptr, 1)
    rows = np.flatnonzero(smallest > 1)
    if len(rows):
        few = piece[rows]
        whole = few.data.astype(np.int64)
        common = by_row(np.gcd, whole, few.indptr, 1)
        factors[rows] = np.where(common < by_row(np.maximum, whole, few.indptr, 1), common, 1)
    return factors


def _peaks(piece: sparse.csr_matrix) -> np.ndarray:
    """Return the two largest counts of every gene, ``(2, g)``, at least `SMALL`."""
    is_large = piece.data > SMALL
    counts, genes = piece.data[is_large].astype(np.float64), piece.indices[is_large]
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
