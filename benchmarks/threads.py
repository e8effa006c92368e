"""How far embedding and clusters move with the number of threads, beside another seed, and beside
another start of Leiden on the same embedding.

Run with the number of threads alone changed, then compare:

    for n in 1 2; do OMP_NUM_THREADS=$n python benchmarks/threads.py fit FOLDER; done
    python benchmarks/threads.py compare FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import scanpy as sc
import torch
from anndata import AnnData
from sets import batch_column, load
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

import scvae

SETS = ("pbmc3k", "pancreas")
NEIGHBOURS = 15


def fit(folder: Path) -> None:
    """Fit every set with this number of threads, and with one also by another seed."""
    n = torch.get_num_threads()
    for name in SETS:
        for seed in (0, 1)[: 2 if n == 1 else 1]:
            adata = scvae.datasets.pancreas() if name == "pancreas" else load(name)
            torch.set_num_threads(n)  # sc.pp.neighbors sets it to the number of cores
            model = scvae.fit(adata, batch=batch_column(adata), seed=seed, progress=False)
            np.savez(
                folder / f"{name}_{n}_{seed}.npz",
                embedding=adata.obsm["X_scvae"],
                clusters=clusters_of(adata.obsm["X_scvae"]),
                elbo=model.record.elbo_held_out,
            )


def clusters_of(embedding: np.ndarray, start: int = 0) -> np.ndarray:
    """Return the clusters of Leiden."""
    adata = AnnData(obsm={"X_scvae": embedding})
    sc.pp.neighbors(adata, use_rep="X_scvae")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=start)
    return adata.obs["leiden"].astype(str).to_numpy(dtype=str)


def kept_neighbours(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of the nearest neighbours of a cell that both embeddings name."""
    found = [
        NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x).kneighbors(return_distance=False)
        for x in (one, other)
    ]
    pairs = zip(*found, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in pairs]))


def compare(folder: Path) -> None:
    """Print what moves between 1 and 2 threads, and between two seeds."""
    for name in SETS:
        runs = {key: np.load(folder / f"{name}_{key}.npz") for key in ("1_0", "2_0", "1_1")}
        one = runs["1_0"]
        starts = [
            adjusted_rand_score(one["clusters"], clusters_of(one["embedding"], start))
            for start in (1, 2, 3)
        ]
        print(f"{name}, other starts of Leiden: ARI {', '.join(f'{ari:.3f}' for ari in starts)}")
        for what, key in (("2 threads", "2_0"), ("seed 1", "1_1")):
            base, other = runs["1_0"], runs[key]
            moved = np.linalg.norm(base["embedding"] - other["embedding"], axis=1)
            print(
                f"{name}, {what}: same bits {np.array_equal(base['embedding'], other['embedding'])}"
                f", median cell moved {np.median(moved):.3g} of "
                f"{np.linalg.norm(base['embedding'].std(0)):.3g}, neighbours kept "
                f"{kept_neighbours(base['embedding'], other['embedding']):.0%}, ARI of Leiden "
                f"{adjusted_rand_score(base['clusters'], other['clusters']):.3f} "
                f"({len(set(base['clusters']))} and {len(set(other['clusters']))} clusters), "
                f"held-out ELBO {base['elbo']:.2f} and {other['elbo']:.2f}"
            )


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    {"fit": fit, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
