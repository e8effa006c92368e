"""The cells that the models in tests/files were fitted on, and what they were embedded to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

FILES = Path(__file__).parent / "files"


def fitted_cells() -> AnnData:
    """Return 40 cells of 30 genes in two batches."""
    with np.load(FILES / "cells.npz") as held:
        counts, genes = held["counts"].astype(np.float32), held["genes"]
        columns = {name: held[name] for name in ("batch", "library_size")}
    obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(len(counts))])
    return AnnData(counts, obs, pd.DataFrame(index=genes))
