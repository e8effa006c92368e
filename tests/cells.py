"""The cells that the models in tests/files were fitted on, and what they were embedded to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae.modalities.rna import Rna, Statistics
from scvae.models.keep.migrations import OF_RNA
from scvae.models.network import Architecture, Facts

FILES = Path(__file__).parent / "files"


def fitted_cells() -> AnnData:
    """Return 40 cells of 30 genes in two batches."""
    with np.load(FILES / "cells.npz") as held:
        counts, genes = held["counts"].astype(np.float32), held["genes"]
        columns = {name: held[name] for name in ("batch", "library_size")}
    obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(len(counts))])
    return AnnData(counts, obs, pd.DataFrame(index=genes))


def architecture_of_rna(n_genes: int, **arguments: Any) -> Architecture:
    """Return the architecture of a model of RNA alone; `arguments` are of it or of RNA."""
    of_rna = {name: arguments.pop(name) for name in OF_RNA[1:] if name in arguments}
    return Architecture({"rna": Rna(n_genes, **of_rna)}, **arguments)


def facts_of_rna(statistics: Statistics) -> Facts:
    """Return what a network of RNA alone is told of its training data."""
    loc, scale = statistics.library_loc, statistics.library_scale
    return Facts({"rna": statistics}, {"rna": loc}, {"rna": scale})
