"""Doublets and correlations beside what is known: `python benchmarks/analyses.py STEP [SET ...]`.

    doublets      droplets made of two cells that are taken out of a set, of any types in one batch;
                  area under precision and recall, of scvae (the 2,000 genes of all benchmarks) and
                  of scrublet (scanpy's, of all genes, of which it chooses)
    correlations  of genes that were drawn independently: raw, of draws from the model, of its means

Each step prints a table and keeps it in results/ for `results.py`.
"""

from __future__ import annotations

import sys
import warnings

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from differential import keep
from scipy import sparse
from sets import batch_column, load
from sklearn.metrics import average_precision_score

import scvae

SETS = ("baron_human1", "worm_embryo_sub", "pbmc_6batch", "pbmc_facs", "kang_ifnb")
SEEDS, RATE, MOST_CELLS = (101, 102, 103), 0.06, 3_000


def mixed(adata: anndata.AnnData, seed: int) -> anndata.AnnData:
    """Return cells of which some are sums of two of a batch, which are not among them."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(adata.n_obs)[:MOST_CELLS]
    n_pairs = int(RATE * len(rows) / (1 + RATE))
    batch = adata.obs["batch"].astype(str).to_numpy() if "batch" in adata.obs else None
    if batch is not None:  # neighbours in this order are of one batch, but at its ends
        rows = rows[np.argsort(batch[rows], kind="stable")]
    pairs = rows[: len(rows) // 2 * 2].reshape(-1, 2)
    alike = pairs if batch is None else pairs[batch[pairs[:, 0]] == batch[pairs[:, 1]]]
    two = alike[rng.choice(len(alike), n_pairs, replace=False)]
    single = np.setdiff1d(rows, two)
    counts = sparse.csr_matrix(adata.X)
    both = sparse.vstack([counts[single], counts[two[:, 0]] + counts[two[:, 1]]], format="csr")
    out = anndata.AnnData(both.astype(np.float32), var=adata.var.filter(["hvg"]))
    out.obs_names = [f"droplet {i}" for i in range(out.n_obs)]
    out.obs["is_two"] = np.arange(out.n_obs) >= len(single)
    if batch is not None:
        out.obs["batch"] = np.concatenate([batch[single], batch[two[:, 0]]])
    return out[rng.permutation(out.n_obs)].copy()


def doublets(names: list[str]) -> pd.DataFrame:
    rows = []
    for name in names or SETS:
        adata = load(name, whole=True)
        for seed in SEEDS:
            whole = mixed(adata, seed)
            cells = whole[:, whole.var["hvg"]].copy()
            batch = batch_column(cells)
            model = scvae.fit(cells, batch=batch, seed=seed, progress=False)
            found = scvae.analysis.doublets(model, cells, expected_rate=RATE, seed=seed)
            truth = cells.obs["is_two"].to_numpy()
            called = found.table["is_doublet"].to_numpy()
            asked = {"expected_doublet_rate": RATE, "random_state": seed}
            asked |= {"threshold": 0.5, "use_approx_neighbors": False}  # scores need no threshold
            sc.pp.scrublet(whole, batch_key=batch, **asked)
            rows.append(
                {
                    "set": name,
                    "seed": seed,
                    "cells": len(truth),
                    "scvae": average_precision_score(truth, found.table["score"]),
                    "scrublet": average_precision_score(truth, whole.obs["doublet_score"]),
                    "single cells called": called[~truth].mean(),
                    "doublets called": called[truth].mean(),
                }
            )
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def correlations() -> pd.DataFrame:
    rows = []
    for seed in (0, 1, 2):
        rng = np.random.default_rng(seed)
        size = np.exp(rng.normal(np.log(2000), 0.3, (1000, 1)))
        share = np.exp(rng.normal(size=40))
        means = size * share / share.sum()
        counts = rng.poisson(rng.gamma(2.0, means / 2.0)).astype(np.float32)
        cells = anndata.AnnData(sparse.csr_matrix(counts))
        cells.var_names = [f"gene_{i}" for i in range(40)]
        model = scvae.fit(cells, seed=seed, progress=False)
        chosen = list(cells.var_names[np.argsort(share)[5:30]])  # none of the largest shares
        table = scvae.analysis.correlations(model, cells, chosen, samples=5)
        ways = ("raw", "predictive", "denoised")
        rows.append(
            {"seed": seed}
            | {f"{way}, mean": table[way].mean() for way in ways}
            | {f"{way}, mean size": table[way].abs().mean() for way in ways}
        )
    return pd.DataFrame(rows)


def main() -> None:
    warnings.filterwarnings("ignore")
    step, *rest = sys.argv[1:] or ["doublets"]
    if step == "doublets":
        keep("doublets", "doublets", doublets(rest))
    else:
        keep("correlations", "correlations of independent genes", correlations())


if __name__ == "__main__":
    main()
