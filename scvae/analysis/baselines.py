"""Embeddings to set beside one of a model: principal components, and Harmony on them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

N_COMPONENTS = 30
MOST_GENES = 2_000  # as usual; of fewer, all are taken
FEWEST_CELLS = 30  # of a cluster of Harmony
TOTAL, LARGEST = 1e4, 10  # counts that a cell is scaled to; standard deviations that are let be


def principal_components(counts: Any, seed: int = 0) -> np.ndarray:
    """Return thirty principal components of scaled log-normalised counts, ``(n, 30)``.

    Parameters
    ----------
    counts
        Raw counts, dense or CSR, ``(n, g)``; of more than 2,000 genes the most variable are taken.
    seed
        Of the decomposition.
    """
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(counts.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=TOTAL)
    sc.pp.log1p(adata)
    if adata.n_vars > MOST_GENES:
        sc.pp.highly_variable_genes(adata, n_top_genes=MOST_GENES)
        adata = adata[:, adata.var["highly_variable"]].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scaling makes a sparse matrix dense, which is meant
        sc.pp.scale(adata, max_value=LARGEST)
    n_components = min(N_COMPONENTS, adata.n_obs - 1, adata.n_vars - 1)
    sc.pp.pca(adata, n_comps=n_components, random_state=seed)
    return np.asarray(adata.obsm["X_pca"])


def has_harmony() -> bool:
    """Return whether harmonypy can be imported."""
    try:
        import harmonypy  # noqa: F401
    except ImportError:
        return False
    return True


def harmonise(components: np.ndarray, batches: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return components corrected by harmonypy for batches ``(n,)``, in the shape they came in."""
    import harmonypy

    obs = pd.DataFrame({"batch": np.asarray(batches).astype(str)})
    one = {"nclust": 1} if len(obs) < FEWEST_CELLS else {}  # which it would round to none
    state = np.random.get_state()  # noqa: NPY002  # some versions seed it
    try:
        done = harmonypy.run_harmony(
            components, obs, "batch", random_state=seed, verbose=False, **one
        )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    corrected = np.asarray(done.Z_corr)
    return corrected if corrected.shape[0] == len(obs) else corrected.T
