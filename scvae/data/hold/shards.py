"""Counts that stay on disk while a model trains: read in blocks, shuffled in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Generator, Tensor

from scvae.data.hold.counts import Counts, narrowest
from scvae.data.hold.parts import equal_parts

HELD = 4  # groups of cells in memory at once: in use, next, being read, being put in order
BLOCK_ENTRIES = 2**17  # non-zeros of a block, about: a megabyte in a file
BLOCKS = 256  # that a group of cells is mixed from at least, where it has as many cells
FEWEST_BLOCKS = 64  # and where larger ones save decoding
CHUNKS = 4  # that a block is as long as, then: one more is decoded, as ends lie within chunks
RUN_ENTRIES = 2**20  # non-zeros read by one call, about
GAP_ENTRIES = 2**13  # of rows that are read and left, rather than reading twice
READERS = 4  # threads that read: one waits for the disk, or decodes, while others copy
Range = tuple[int, int]  # rows from a first to before a last one


@dataclass(frozen=True)
class Shards:
    """A cells x genes matrix of counts on disk.

    Consecutive rows are read fast, rows here and there slowly. An epoch therefore takes blocks of
    consecutive rows, as many at a time as memory may hold, and the cells of those in a random
    order. Every such group of cells takes one block at random of each stretch of the file, and so
    has cells of all that the file is sorted by in their shares. Blocks from anywhere would not:
    one group would have more of a type, the next fewer, and training would follow them.

    Attributes
    ----------
    read
        Returns, for each of some ranges in order, the rows from a first to before a last one, as
        CSR of whole numbers or as they are held.
    shape
        Numbers of cells and genes.
    entries
        Number of non-zeros.
    longest, largest
        Non-zeros of the fullest row, and the largest count.
    memory
        Bytes that counts may take in memory.
    chunk
        Rows that are decoded to read one of them, about; 0 where none but that one is.
    """

    read: Callable[[Sequence[Range]], Sequence[sparse.csr_matrix | Counts]]
    shape: tuple[int, int]
    entries: int
    longest: int
    largest: int
    memory: int
    chunk: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def _entries_of_a_row(self) -> float:
        return max(self.entries / max(len(self), 1), 1.0)

    @property
    def group(self) -> int:
        """Cells that are read, mixed and handed out together."""
        entry = narrowest(self.n_genes).itemsize + narrowest(self.largest).itemsize
        of_a_row = self._entries_of_a_row * entry + 8
        return max(2, int(self.memory / HELD / of_a_row))

    @property
    def block(self) -> int:
        """Consecutive rows that stay together in a group."""
        near = min(int(BLOCK_ENTRIES / self._entries_of_a_row), self.group // BLOCKS)
        decoded = min(CHUNKS * self.chunk, self.group // FEWEST_BLOCKS)
        return max(1, near, decoded)

    def __getitem__(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return the given rows, in their order, in memory."""
        held = self.take(torch.from_numpy(np.asarray(rows, dtype=np.int64)))
        arrays = (held.values.numpy(), held.indices.numpy(), held.indptr.numpy())
        return sparse.csr_matrix(arrays, shape=(len(rows), self.n_genes))

    def windows(self, lengths: Sequence[int]) -> list[slice]:
        """Return which minibatches, of these numbers of cells, are read and mixed together: as many
        as memory may hold, in equal numbers."""
        most = max(1, self.group // max(1, *lengths))
        ends = np.linspace(0, len(lengths), -(-len(lengths) // most) + 1).round().astype(int)
        return [slice(start, stop) for start, stop in pairwise(ends.tolist())]

    def shuffled(self, rows: Tensor, size: int, generator: Generator) -> Tensor:
        """Return the given rows in a random order whose minibatches are read in blocks."""
        lengths = [len(part) for part in equal_parts(rows, size)]
        n_groups = len(self.windows(lengths))
        rows = rows.sort().values
        begin = int(torch.randint(self.block, (1,), generator=generator))  # other blocks each time
        blocks = [rows[:begin], *rows[begin:].split(self.block)]
        order = _spread(len(blocks), n_groups, generator)
        groups = torch.cat([blocks[i] for i in order.tolist()]).tensor_split(n_groups)
        return torch.cat([g[torch.randperm(len(g), generator=generator)] for g in groups])

    def take(self, rows: Tensor, *, pinned: bool = False) -> Counts:
        """Return the given rows, in their order, in memory; `pinned` as for `Counts.take`."""
        ordered, order = rows.sort()
        with ThreadPoolExecutor(READERS, thread_name_prefix="scvae-read") as readers:
            parts = list(chain(*readers.map(self._read, self._calls(ordered))))
            return Counts.of_parts(parts, order, readers, pinned=pinned)

    def _calls(self, rows: Tensor) -> Iterator[list[Tensor]]:
        """Yield sorted rows in runs, each of rows near each other; those read by one call."""
        most = max(1, int(RUN_ENTRIES / self._entries_of_a_row))
        far = max(1, int(GAP_ENTRIES / self._entries_of_a_row))
        cuts = (rows.diff() > far).nonzero()[:, 0] + 1
        call: list[Tensor] = []
        for run in chain(*(near.split(most) for near in rows.tensor_split(cuts))):
            if call and sum(map(len, call)) + len(run) > most:
                yield call
                call = []
            call.append(run)
        yield call

    def _read(self, runs: list[Tensor]) -> list[Counts]:
        ranges = [(int(run[0]), int(run[-1]) + 1) if len(run) else (0, 0) for run in runs]
        return [
            self._chosen(given, run - first)
            for run, (first, _), given in zip(runs, ranges, self.read(ranges), strict=True)
        ]

    def _chosen(self, given: sparse.csr_matrix | Counts, rows: Tensor) -> Counts:
        read = given if isinstance(given, Counts) else Counts.from_csr(given, largest=self.largest)
        return read if len(read) == len(rows) else read.take(rows)


def _spread(n: int, groups: int, generator: Generator) -> Tensor:
    """Return n numbers so that every group of consecutive ones has one of each stretch of them."""
    stretches = torch.rand(-(-n // groups), groups, generator=generator)
    group_of = stretches.argsort(dim=1).flatten()[:n]  # neighbours go to different groups
    return group_of.argsort(stable=True)
