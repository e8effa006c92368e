"""Whether a type that one batch alone has stays apart: `python benchmarks/specific_type.py [SET]`.

One type at a time is removed from all batches but the one with most of it. A correction that wants
every cluster in every batch pulls such a type onto its neighbours. Printed are the best F1 of any
Leiden cluster (of eight resolutions) for the planted type, and the share of its cells' 30 nearest
neighbours that are of it, which has less noise; for scvae, scvae without alignment, scvae whose
encoder is not told the batch (encode_covariates=False), scvae without the batch, Harmony, and the
components that it corrects; and how far the alignment moved the planted cells, in distances between
types.
"""

from __future__ import annotations

import logging
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
from methods import pca
from sets import batch_column, load

from scvae.analysis.baselines import harmonise
from scvae.analysis.judging import RESOLUTIONS, leiden, nearest

FEWEST, MOST_TYPES, MOST_CELLS = 40, 4, 6_000
MULTI = ("baron_human1", "worm_embryo_sub", "kang_ifnb", "pbmc_6batch")


def best_f1(x: np.ndarray, is_type: np.ndarray) -> float:
    """Return the best F1 of any cluster for the cells of a type."""
    best = 0.0
    for resolution in RESOLUTIONS:
        clusters = leiden(x, resolution, 0)
        for cluster in np.unique(clusters):
            inside = clusters == cluster
            best = max(best, 2 * (inside & is_type).sum() / (inside.sum() + is_type.sum()))
    return float(best)


def own_neighbours(x: np.ndarray, is_type: np.ndarray) -> float:
    """Return the share of the 30 nearest neighbours of a type's cells that are of the type."""
    return float(is_type[nearest(x, 30)[is_type]].mean())


def planted(adata: anndata.AnnData) -> list[tuple[str, anndata.AnnData]]:
    """Return the set once for each of a few types, which are then in one batch alone."""
    counts = pd.crosstab(adata.obs["cell_type"].astype(str), adata.obs["batch"].astype(str))
    shared = counts[((counts > 0).sum(axis=1) > 1) & (counts.max(axis=1) >= FEWEST)]
    shared = shared.drop(index="Unassigned", errors="ignore")
    made = []
    for name in shared.sum(axis=1).sort_values().index[:MOST_TYPES]:
        is_type = adata.obs["cell_type"].astype(str) == name
        keep = ~is_type | (adata.obs["batch"].astype(str) == counts.loc[name].idxmax())
        made.append((name, adata[keep.to_numpy()].copy()))
    return made


def distance_between_types(x: np.ndarray, types: np.ndarray) -> float:
    """Return the median distance between the means of two types."""
    means = np.stack([x[types == name].mean(0) for name in np.unique(types)])
    pairs = np.linalg.norm(means[:, None] - means[None], axis=-1)
    return float(np.median(pairs[np.triu_indices(len(means), 1)]))


def measure(name: str, adata: anndata.AnnData, planted_type: str) -> dict[str, float]:

    import scvae

    types = adata.obs["cell_type"].astype(str).to_numpy()
    is_type = types == planted_type
    options = {"progress": False}
    scvae.fit(adata, batch="batch", key_added="scvae", **options)
    scvae.fit(adata, batch="batch", align=False, key_added="unaligned", **options)
    scvae.fit(adata, batch="batch", encode_covariates=False, key_added="blind", **options)
    scvae.fit(adata, key_added="no batch", **options)
    components, _ = pca(name, adata.copy(), 0)
    embeddings = {
        "scvae": adata.obsm["scvae"],
        "align=False": adata.obsm["unaligned"],
        "blind encoder": adata.obsm["blind"],
        "no batch": adata.obsm["no batch"],
        "Harmony": harmonise(components, adata.obs["batch"]),
        "PCA": components,
    }
    found = {f"F1 {method}": best_f1(x, is_type) for method, x in embeddings.items()}
    found |= {f"near {method}": own_neighbours(x, is_type) for method, x in embeddings.items()}
    moved = np.linalg.norm((adata.obsm["scvae"] - adata.obsm["unaligned"])[is_type], axis=1)
    found["moved"] = float(moved.mean()) / distance_between_types(adata.obsm["unaligned"], types)
    return {"cells": int(is_type.sum()), **found}


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)  # Harmony tells of every iteration
    for name in sys.argv[1:] or MULTI:
        adata = load(name)
        if adata.n_obs > MOST_CELLS:
            chosen = np.random.default_rng(0).choice(adata.n_obs, MOST_CELLS, replace=False)
            adata = adata[np.sort(chosen)].copy()
        assert batch_column(adata)
        table = pd.DataFrame({kind: measure(name, some, kind) for kind, some in planted(adata)}).T
        print(f"\n### {name}\n")
        print(table.round(3).T.to_markdown(), flush=True)


if __name__ == "__main__":
    main()
