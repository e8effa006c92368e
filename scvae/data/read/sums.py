"""Sums of sparse counts, a block of rows at a time: scipy's own copy all counts in a wider type."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from scvae.data.hold.shards import Shards

BLOCK_ROWS = 2**16


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_ROWS) for start in range(0, n, BLOCK_ROWS))


def row_sums(counts: sparse.csr_matrix) -> np.ndarray:
    """Return the sum of every row, float64 ``(n,)``."""
    # A product is taken in the wider type; scipy's own sums of float32 are rounded on the way.
    sums, ones = np.empty(counts.shape[0]), np.ones(counts.shape[1])
    for block in _blocks(len(sums)):
        sums[block] = (counts if len(sums) <= BLOCK_ROWS else counts[block]) @ ones
    return sums


def column_sums(counts: sparse.csr_matrix | Shards, rows: np.ndarray) -> np.ndarray:
    """Return the sum of every column over the given rows, float64 ``(g,)``."""
    sums = np.zeros(counts.shape[1])
    for block in _blocks(len(rows)):
        chosen = counts[rows[block]]
        sums += np.ones(chosen.shape[0]) @ chosen
    return sums
