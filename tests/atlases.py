"""Cells in files whose counts do not fit into the memory that they may take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.data.hold.shards import Shards
from scvae.data.read.survey import survey

N, G = 300, 40
SMALL = 30_000  # bytes: groups of some eighty cells


def simulated() -> AnnData:
    adata = scvae.simulate(N, G, seed=3)
    adata.X = sparse.csr_matrix(adata.X)
    adata.X.eliminate_zeros()
    return adata


def staying(*paths: Path, memory: int = SMALL, **options: Any) -> Any:
    """Open files whose counts do not fit into memory."""
    cells = scvae.on_disk(list(paths), **options)
    cells.memory = memory
    return cells


def shards_of(*paths: Path, memory: int = SMALL, columns: np.ndarray | None = None) -> Shards:
    held = survey(staying(*paths, memory=memory).X, columns, keep=True).held
    assert isinstance(held, Shards)
    return held
