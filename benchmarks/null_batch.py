"""What correction does where there is nothing to correct: `benchmarks/null_batch.py [SET ...]`.

One batch of every set is split at random into two that do not differ. A correction should leave
its cells where they were. Printed, for scvae (batch given, against no batch), another seed of scvae
(what chance alone changes), scvae without alignment, the alignment alone (against the same network
without), and Harmony (against its own components):
the share of every cell's 30 nearest neighbours kept, the ARI of the Leiden clusters before and
after, and the genes that differ between the fake batches in `model.normalized` (FDR 0.05).
"""

from __future__ import annotations

import logging
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
from methods import pca
from scipy.stats import false_discovery_control, mannwhitneyu
from sets import SETS, batch_column, load
from sklearn.metrics import adjusted_rand_score

from scvae.analysis.baselines import harmonise
from scvae.analysis.judging import kept, leiden

MOST_CELLS = 5_000
SPLITS = (0, 1, 2)


def one_batch(name: str) -> anndata.AnnData:
    """Return the largest batch of a set, at most so many cells of it."""
    adata = load(name)
    if batch_column(adata):
        adata = adata[adata.obs["batch"] == adata.obs["batch"].mode()[0]].copy()
    if adata.n_obs > MOST_CELLS:
        chosen = np.random.default_rng(0).choice(adata.n_obs, MOST_CELLS, replace=False)
        adata = adata[np.sort(chosen)].copy()
    return adata


def different_genes(values: pd.DataFrame, fake: np.ndarray) -> int:
    """Return how many genes differ between the fake batches at a false discovery rate of 0.05."""
    first, second = values[fake == "a"], values[fake == "b"]
    p = mannwhitneyu(first, second, axis=0).pvalue
    return int((false_discovery_control(np.nan_to_num(p, nan=1.0)) < 0.05).sum())


def compare(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    clusters = adjusted_rand_score(leiden(before, 1.0, 0), leiden(after, 1.0, 0))
    return {"kept": kept(before, after), "ARI": clusters}


def measure(name: str, split: int) -> dict[str, dict[str, float]]:

    import scvae

    adata = one_batch(name)
    fake = np.where(np.random.default_rng(split).random(adata.n_obs) < 0.5, "a", "b")
    adata.obs["fake"] = pd.Categorical(fake)
    options = {"progress": False}
    scvae.fit(adata, seed=split, key_added="plain", **options)
    scvae.fit(adata, seed=split + 100, key_added="other", **options)
    model = scvae.fit(adata, batch="fake", seed=split, key_added="given", **options)
    scvae.fit(adata, batch="fake", align=False, seed=split, key_added="unaligned", **options)
    plain = adata.obsm["plain"]
    found = {
        "scvae": compare(plain, adata.obsm["given"]),
        "scvae, align=False": compare(plain, adata.obsm["unaligned"]),
        "scvae, no batch, another seed": compare(plain, adata.obsm["other"]),
        "alignment alone": compare(adata.obsm["unaligned"], adata.obsm["given"]),
    }
    found["scvae"]["genes"] = different_genes(model.normalized(adata), fake)
    components, _ = pca(name, adata.copy(), split)
    found["Harmony"] = compare(components, harmonise(components, fake, split))
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)  # Harmony tells of every iteration
    for name in sys.argv[1:] or SETS:
        runs = [pd.DataFrame(measure(name, split)).T for split in SPLITS]
        stacked = pd.concat(runs, keys=SPLITS)
        table = stacked.groupby(level=1, sort=False).median()
        print(f"\n### {name}, median of {len(SPLITS)} splits\n")
        print(table.round(3).to_markdown(), flush=True)


if __name__ == "__main__":
    main()
