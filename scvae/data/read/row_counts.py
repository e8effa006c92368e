"""Rows of counts in files, for training: fast where nothing about them is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from scipy import sparse

from scvae.data.hold.counts import Arrays, Counts
from scvae.data.hold.shards import Range, Shards
from scvae.data.read.stored import StoredMatrix
from scvae.data.read.structure import canonical
from scvae.data.read.tally import nearest, settled


def shards_of(
    matrix: StoredMatrix,
    columns: np.ndarray | None,
    genes_of_cells: np.ndarray,
    largest: int,
    *,
    rounds: bool = False,
) -> Shards:
    """Return the counts of some genes for training, given what a look at all of them told.

    `rounds` takes fractions for the nearest whole numbers."""
    read = RowCounts(matrix, columns, largest, rounds)
    entries, longest = int(genes_of_cells.sum()), int(genes_of_cells.max(initial=0))
    shape = matrix.shape[0], read.n_genes
    chunk = int(matrix.chunk * shape[0] / max(matrix.entries, 1))
    return Shards(read, shape, entries, longest, largest, matrix.memory, chunk)


@dataclass(frozen=True)
class RowCounts:
    """Reads ranges of rows of a matrix that a look at all of it found to be counts.

    Attributes
    ----------
    matrix
        In one file or in several.
    columns
        The genes that are read, in order; None are all.
    largest
        The largest count.
    rounds
        Whether fractions are taken for the nearest whole numbers.
    """

    matrix: StoredMatrix
    columns: np.ndarray | None
    largest: int
    rounds: bool

    @cached_property
    def n_genes(self) -> int:
        """Number of genes that are read."""
        return self.matrix.shape[1] if self.columns is None else len(self.columns)

    @cached_property
    def places(self) -> list[np.ndarray | None]:
        """Of every file, the gene of each of its columns, or None where their order differs."""
        return [part.places_of(self.columns) for part in self.matrix.parts]

    @cached_property
    def first(self) -> np.ndarray:
        """The first row of every file, and the number of all rows."""
        return np.cumsum([0, *(part.n for part in self.matrix.parts)])

    def __call__(self, ranges: Sequence[Range]) -> list[sparse.csr_matrix | Counts]:
        """Return the rows of each range; those in one file are asked of it together."""
        found: list[sparse.csr_matrix | Counts] = []
        for i, those in groupby(ranges, self._file_of):
            if i is None:
                found += [self._settled(self.matrix[start:stop]) for start, stop in those]
                continue
            within = [(start - self.first[i], stop - self.first[i]) for start, stop in those]
            found += [self._counted(i, arrays) for arrays in self.matrix.parts[i].arrays(within)]
        return found

    def _file_of(self, rows: Range) -> int | None:
        """Return the number of the file that all rows of a range lie in, None if in several."""
        i = int(np.searchsorted(self.first, rows[0], side="right")) - 1
        return i if i < len(self.first) - 1 and rows[1] <= self.first[i + 1] else None

    def _counted(self, i: int, arrays: Arrays) -> sparse.csr_matrix | Counts:
        if (places := self.places[i]) is not None:
            plain = Counts.from_plain(arrays, places, self.n_genes, self.largest)
            if plain is not None:
                return plain
        return self._settled(self.matrix.parts[i].matrix(arrays))

    def _settled(self, rows: sparse.csr_matrix) -> sparse.csr_matrix:
        rows = settled(canonical(rows))[0]
        rows = nearest(rows) if self.rounds else rows
        return rows if self.columns is None else rows[:, self.columns]
