"""One look at every value of a matrix, a bounded number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
from scipy import sparse

from scvae.data.hold.counts import COMPILED, narrowest
from scvae.data.hold.shards import Shards
from scvae.data.read.normalisation import Traces, are_estimates, by_row, divided_by
from scvae.data.read.row_counts import shards_of
from scvae.data.read.source import blocks
from scvae.data.read.stored import StoredMatrix
from scvae.data.read.structure import canonical
from scvae.data.read.summary import CountSummary, SummaryOfPieces, common_divisor, random_numbers
from scvae.data.read.sums import row_sums
from scvae.data.read.tally import (
    Fault,
    FaultKind,
    Tally,
    added,
    fractions_of,
    nearest,
    settled,
    tally,
    wrong_values,
)
from scvae.data.read.ties import SAMPLE

MOST_SUMS = 2**24  # of groups x genes: 128 MiB
PIECE_VALUES = 2**22  # non-zeros looked at together, about: 32 MiB as float64
COMPILE_FROM = 2**23  # of so many on: fewer are looked at before a compiled look at them is loaded


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
    totals
        Counts of every cell in the genes asked for, float64 ``(n,)``; here and below, without
        those after the first value that cannot be a count.
    largest
        The largest count in the genes asked for.
    summary
        More about them; None if it was not asked for, or if a value cannot be a count.
    kept
        The counts themselves as CSR of the narrowest integers, or where they stay on disk; None if
        they were not asked for, or if a value cannot be one.
    of_groups
        Counts of every gene in every group of cells, ``(b, g)``; None without groups.
    rounded
        Values that differed from whole numbers by round-off, and are taken as those.
    estimates
        Fractions that were taken as the nearest whole numbers, as was asked for.
    before
        Sum of all values before that, of all genes, if it was asked for.
    after
        Sum of all values after it, of all genes.
    divisor
        Greatest whole number that divides all counts, of all genes; 0 without any.
    """

    genes_of_cells: np.ndarray
    cells_of_genes: np.ndarray
    stored: int
    tallies: dict[FaultKind, Tally]
    traces: Traces | None
    totals: np.ndarray
    largest: int
    summary: CountSummary | None
    kept: sparse.csr_matrix | Shards | None
    of_groups: np.ndarray | None = None
    rounded: int = 0
    estimates: int = 0
    before: float = 0.0
    after: float = 0.0
    divisor: int = 0

    @property
    def held(self) -> Any:
        """The counts that were kept, ``(n, g)``, in memory or on disk."""
        assert self.kept is not None
        return self.kept

    @property
    def counts(self) -> sparse.csr_matrix:
        """The counts that were kept, ``(n, g)``, read into memory where they are not."""
        held = self.held
        return held[np.arange(len(held))] if isinstance(held, Shards) else held

    @property
    def first_fault(self) -> Fault | None:
        """The first value by cell and gene that cannot be a count."""
        firsts = [tally.first for tally in self.tallies.values()]
        return min(firsts, key=lambda fault: (fault.row, fault.column), default=None)

    @property
    def may_be_rounded(self) -> bool:
        """Whether all faults are fractions that show no sign of a normalisation."""
        return (
            self.traces is not None
            and set(self.tallies) == {FaultKind.NON_INTEGER}
            and are_estimates(self.traces, len(self.genes_of_cells))
        )

    @property
    def divided_by(self) -> float | None:
        """The number that whole numbers were divided by, all by the same, if there is one."""
        if self.traces is None or set(self.tallies) != {FaultKind.NON_INTEGER}:
            return None
        return divided_by(self.traces, int((self.genes_of_cells > 0).sum()))

    @property
    def holds_counts(self) -> bool:
        """Whether all values can be counts, and not all are zero."""
        return self.stored > 0 and not self.tallies


def survey(
    matrix: Any,
    columns: np.ndarray | None = None,
    *,
    stop_at_fault: bool = False,
    summarise: bool = True,
    keep: bool = False,
    groups: np.ndarray | None = None,
    estimates: bool = False,
) -> Survey:
    """Look at every value of a matrix of any kind, once.

    Parameters
    ----------
    matrix
        Cells x genes, dense or sparse, in memory or in a file.
    columns
        Positions of the genes to summarise; None takes all. Faults are found in all genes.
    stop_at_fault
        Look no further than the first piece with a value that cannot be a count.
    summarise
        Tell what `CountSummary` does, too.
    keep
        Return the counts, too; else, or where they stay on disk, no more of them is in memory than
        a piece.
    groups
        Group of every cell, ``(n,)``, to sum counts over; None has none.
    estimates
        Take fractions for the nearest whole numbers, unless they look like a function of counts.

    Raises
    ------
    DataError
        If `matrix` is broken, or does not hold numbers.
    """
    stays = isinstance(matrix, StoredMatrix) and matrix.stays
    is_kept, keep = keep, keep and not stays
    _check_groups(groups, matrix.shape[0])
    seen = _Seen(matrix.shape[1], columns, summarise, groups)
    for block in blocks(matrix):
        is_canonical = True
        for rows in _pieces(block):
            is_plain = seen.add_plain(rows, estimates)
            if not is_plain:
                clean = canonical(rows)
                is_canonical &= clean is rows
                chosen = seen.add(clean, estimates)
            if seen.tallies and stop_at_fault:
                return seen.survey()
            if keep and columns is not None and not seen.tallies:
                seen.kept.append(_narrowed(rows[:, columns] if is_plain else chosen))
        if keep and columns is None and not seen.tallies:
            # Not piece by piece: it shares its indices.
            counts = block if is_canonical else canonical(block)
            counts = settled(counts)[0] if seen.rounded else counts
            seen.kept.append(_narrowed(nearest(counts) if seen.fractions else counts))
    found = seen.survey()
    if not (is_kept and stays) or found.tallies:
        return found
    sizes = (found.genes_of_cells, found.largest)
    return replace(found, kept=shards_of(matrix, columns, *sizes, rounds=bool(seen.fractions)))


def _check_groups(groups: np.ndarray | None, n: int) -> None:
    """Raise ValueError for what compiled code would follow outside of its memory."""
    if groups is not None and len(groups) and (len(groups) < n or groups.min() < 0):
        raise ValueError(f"groups must be {n} codes, zero or more")


def _pieces(block: sparse.csr_matrix) -> Iterator[sparse.csr_matrix]:
    n = block.shape[0]
    step = max(1, n * PIECE_VALUES // max(block.nnz, 1))
    if step >= n:
        yield block
        return
    for start in range(0, n, step):
        yield _rows(block, start, min(start + step, n))


def _rows(block: sparse.csr_matrix, start: int, stop: int) -> sparse.csr_matrix:
    """Return consecutive rows without a copy of their values."""
    first, last = int(block.indptr[start]), int(block.indptr[stop])
    indptr = block.indptr[start : stop + 1] - first
    arrays = (block.data[first:last], block.indices[first:last], indptr)
    return sparse.csr_matrix(arrays, shape=(stop - start, block.shape[1]))


def _narrowed(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the same counts as the narrowest integers."""
    dtype = narrowest(int(counts.data.max()) if counts.nnz else 0)
    arrays = (counts.data.astype(dtype), counts.indices, counts.indptr)
    return sparse.csr_matrix(arrays, shape=counts.shape)


@cache
def _glance() -> Callable[..., bool] | None:
    """Return the compiled look at plain counts, or None where this machine cannot compile it."""
    try:
        from scvae.data.read.glance import glance
    except (ImportError, RuntimeError):
        return None
    return cast("Callable[..., bool]", glance)


def _traces(piece: sparse.csr_matrix, wrong: np.ndarray, before: list[Traces]) -> Traces:
    """Return the traces in the rows that have non-integers and no other fault; `before` are those
    of the rows before."""
    good = np.ones(piece.nnz, dtype=bool)
    good[wrong] = False
    with np.errstate(invalid="ignore"):
        sane = np.isfinite(piece.data) & (piece.data > 0)
    whole = by_row(np.logical_and, good, piece.indptr, True)
    positive = by_row(np.logical_and, sane, piece.indptr, True)
    kept = max(0, SAMPLE - sum(part.first.shape[0] for part in before))
    return Traces.of(piece[np.flatnonzero(~whole & positive)], kept)


class _Seen:
    """What was seen of the pieces of a matrix so far."""

    def __init__(
        self, width: int, columns: np.ndarray | None, summarise: bool, groups: np.ndarray | None
    ) -> None:
        self.columns, n_genes = columns, width if columns is None else len(columns)
        self.is_once = columns is None or len(np.unique(columns)) == n_genes
        self.places = np.arange(width) if columns is None else np.full(width, -1)
        if columns is not None:
            self.places[columns] = np.arange(n_genes)
        self.genes_of_cells: list[np.ndarray] = []
        self.cells_of_genes = np.zeros(n_genes, dtype=np.int64)
        self.rows, self.stored, self.largest = 0, 0, 0
        self.rounded = 0
        self.fractions: dict[FaultKind, Tally] = {}
        self.before, self.after, self.divisor = 0.0, 0.0, 0
        self.tallies: dict[FaultKind, Tally] = {}
        self.traces: list[Traces] = []
        self.totals: list[np.ndarray] = []
        self.groups = _Groups(groups, n_genes) if _is_small(groups, n_genes) else None
        self.summary = SummaryOfPieces(n_genes) if summarise else None
        self.kept: list[sparse.csr_matrix] = []

    def add_plain(self, piece: sparse.csr_matrix, estimates: bool) -> bool:
        """Add the next rows by one compiled pass, if nothing about them is odd; return whether that
        was so. Few values are not worth compiling for."""
        worth = self.stored >= COMPILE_FROM and piece.data.dtype in COMPILED
        glance = _glance() if worth and self.is_once and not self.tallies else None
        if glance is None:
            return False
        n, (grouped, sums) = piece.shape[0], (np.zeros(0, dtype=np.int64), np.zeros((1, 0)))
        if self.groups is not None:
            grouped = self.groups.groups[self.rows : self.rows + n].astype(np.int64)
            sums = np.zeros_like(self.groups.sums)
        of_rows, whole = np.empty((3, n), dtype=np.int64), np.empty(3, dtype=np.int64)
        of_genes = np.zeros((5, len(self.cells_of_genes)), dtype=np.int64)
        weights = random_numbers(self.rows, self.rows + n).view(np.int64)
        given = (piece.indptr.astype(np.int64), piece.indices, piece.data, self.places)
        if not glance(*given, weights, grouped, of_rows, of_genes, sums, whole):
            return False
        everything, divisor, largest = whole.tolist()
        self.genes_of_cells.append(of_rows[0])
        self.cells_of_genes += of_genes[0]
        self.totals.append(of_rows[1].astype(np.float64))
        self.divisor = math.gcd(self.divisor, divisor)
        self.largest = max(self.largest, largest)
        if self.summary is not None:
            self.summary.add_parts(of_rows[2], of_genes[1:3].view(np.uint64), of_genes[3:])
        if self.groups is not None:
            self.groups.sums += sums
        if estimates:
            self.before, self.after = self.before + everything, self.after + everything
        self.stored += piece.nnz
        self.rows += n
        return True

    def add(self, piece: sparse.csr_matrix, estimates: bool) -> sparse.csr_matrix:
        """Add the next rows, which are canonical; return those of the genes asked for, without
        round-off, and without fractions if these are estimates."""
        wrong = wrong_values(piece.data)
        if len(wrong):
            piece, rounded = settled(piece)
            self.rounded += rounded
        if estimates:
            piece = self.nearest(piece)
        wrong = wrong_values(piece.data) if len(wrong) else wrong
        chosen = piece if self.columns is None else piece[:, self.columns]
        self._add(piece, chosen, wrong)
        return chosen

    def nearest(self, piece: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return the next rows with whole numbers for fractions, which are remembered."""
        fractions = fractions_of(piece.data)
        with np.errstate(invalid="ignore", over="ignore"):
            self.before += float(piece.data.sum(dtype=np.float64))
        if len(fractions):
            self.fractions = added(self.fractions, tally(piece, fractions, self.rows))
            self.traces.append(_traces(piece, wrong_values(piece.data), self.traces))
            piece = nearest(piece)
        with np.errstate(invalid="ignore", over="ignore"):
            self.after += float(piece.data.sum(dtype=np.float64))
        return piece

    def _add(self, piece: sparse.csr_matrix, chosen: sparse.csr_matrix, wrong: np.ndarray) -> None:
        """Add the next rows, of all genes and of those asked for; `wrong` are the positions of what
        cannot be counts."""
        if len(wrong):
            self.tallies = added(self.tallies, tally(piece, wrong, self.rows))
            self.traces.append(_traces(piece, wrong, self.traces))
        self.genes_of_cells.append(np.diff(chosen.indptr))
        self.cells_of_genes += np.bincount(chosen.indices, minlength=len(self.cells_of_genes))
        if not self.tallies:
            self.divisor = common_divisor(piece.data, self.divisor)
            self.totals.append(row_sums(chosen))
            self.largest = max(self.largest, int(chosen.data.max()) if chosen.nnz else 0)
            self._add_sums(chosen)
        self.stored += piece.nnz
        self.rows += piece.shape[0]

    def _add_sums(self, chosen: sparse.csr_matrix) -> None:
        if self.summary is None and self.groups is None:
            return
        unsigned = (chosen.data.astype(np.uint64), chosen.indices, chosen.indptr)
        whole = sparse.csr_matrix(unsigned, shape=chosen.shape)
        if self.summary is not None:
            self.summary.add(chosen, whole, self.rows)
        if self.groups is not None:
            self.groups.add(whole, self.rows)

    def survey(self) -> Survey:
        traces = Traces.joined(self.traces) if self.traces else None
        if self.fractions and traces is not None and not are_estimates(traces, self.rows):
            self.tallies = added(self.tallies, self.fractions)
        is_sound = not self.tallies
        return Survey(
            np.concatenate(self.genes_of_cells),
            self.cells_of_genes,
            self.stored,
            self.tallies,
            traces,
            np.concatenate([*self.totals, np.zeros(0)]),
            self.largest,
            self.summary.summary() if is_sound and self.summary is not None else None,
            _stacked(self.kept) if is_sound and self.kept else None,
            None if self.groups is None else self.groups.sums,
            self.rounded,
            sum(found.number for found in self.fractions.values()),
            self.before,
            self.after,
            self.divisor,
        )


def _stacked(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


# -- counts ------------------------------------------------------------------------------------


def _is_small(groups: np.ndarray | None, n_genes: int) -> bool:
    """Return whether there are groups, few enough for a number per gene and group."""
    return groups is not None and len(groups) > 0 and (groups.max() + 1) * n_genes <= MOST_SUMS


class _Groups:
    """Counts of every gene in every group of cells, added up over the pieces of a matrix."""

    def __init__(self, groups: np.ndarray | None, n_genes: int) -> None:
        assert groups is not None
        self.groups = groups
        self.sums = np.zeros((int(groups.max()) + 1, n_genes))

    def add(self, piece: sparse.csr_matrix, start: int) -> None:
        """Add the rows of the matrix, of uint64, from `start` on."""
        n = piece.shape[0]
        ones = np.ones(n, dtype=np.uint64)
        places = (self.groups[start : start + n], np.arange(n))
        member = sparse.csr_matrix((ones, places), shape=(len(self.sums), n))
        self.sums += (member @ piece).toarray()
