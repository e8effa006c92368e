"""Integrate two runs of blood cells, tell the cells of a pancreas apart, and impute proteins.

    python tutorials/demo.py --output demo-output

The first two are compared with the common recipe without a model: log-normalised counts and PCA.
Both data sets come with scvae; nothing is downloaded. The proteins are simulated, and compared
with what is true of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from demo_cite_seq import cite_seq
from matplotlib.figure import Figure
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae import analysis, plot

EMBEDDINGS = {"PCA": "X_pca", "scvae": "X_scvae"}
N_GENES = 2_000
RESOLUTION, RESOLUTIONS = 0.25, (0.05, 0.1, 0.25, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = cite_seq(folder / "cite_seq_simulated.png")
    rows = pbmc(folder / "pbmc_before_after.png") + pancreas(folder / "pancreas.png")
    print_table(rows)
    print("\nCITE-seq, simulated:", *found, sep="\n  ")
    print("\n* at the resolution, of five, that tells the types best (NMI), for each")
    print("A type in several clusters costs ARI. Where PCA is the better choice: docs/limits.md")
    print(f"\nPictures in {folder}/: pbmc_before_after.png, pancreas.png, cite_seq_simulated.png")
    print(f"Done in {time.perf_counter() - start:.0f} seconds.")


def pbmc(picture: Path) -> list[tuple[str, list[float]]]:
    """Integrate blood cells of two chemistries; return rows for the table."""
    adata = scvae.datasets.pbmc()
    embed(adata, "PBMC")
    graphs = {name: cluster(adata, key) for name, key in EMBEDDINGS.items()}
    draw(
        picture,
        [
            ("before: PCA, by batch", graphs["PCA"], "batch"),
            ("after: scvae, by batch", graphs["scvae"], "batch"),
            ("before: Leiden clusters of PCA", graphs["PCA"], "leiden"),
            ("after: Leiden clusters of scvae", graphs["scvae"], "leiden"),
        ],
    )
    batch = adata.obs["batch"].to_numpy()
    mixing = [batch_mixing(adata.obsm[key], batch) for key in EMBEDDINGS.values()]
    return [
        ("PBMC: batch mixing (1 = perfectly mixed, 0 = apart)", mixing),
        ("PBMC: Leiden clusters", [g.obs["leiden"].nunique() for g in graphs.values()]),
    ]


def pancreas(picture: Path) -> list[tuple[str, list[float]]]:
    """Compare clusters of pancreas cells with the authors' types; return rows for the table."""
    adata = scvae.datasets.pancreas()
    embed(adata, "Pancreas")
    types = adata.obs["cell_type"]
    graphs = {name: cluster(adata, key, types) for name, key in EMBEDDINGS.items()}
    draw(
        picture,
        [
            ("scvae, by the authors' cell types", graphs["scvae"], "cell_type"),
            ("scvae, by Leiden cluster", graphs["scvae"], "leiden"),
        ],
    )
    found = [graph.obs["leiden"] for graph in graphs.values()]
    return [
        (f"Pancreas: Leiden clusters ({types.nunique()} types)*", [f.nunique() for f in found]),
        ("Pancreas: ARI with the types", [adjusted_rand_score(types, f) for f in found]),
        ("Pancreas: NMI with the types", [normalized_mutual_info_score(types, f) for f in found]),
    ]


def embed(adata: AnnData, name: str) -> None:
    """Write obsm["X_pca"] and obsm["X_scvae"], of the same genes."""
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES, batch_key="batch")
    sc.pp.pca(adata, mask_var="highly_variable")
    print(f"{name}: fitting {adata.n_obs:,} cells x {N_GENES:,} genes ...", flush=True)
    model = scvae.fit(
        adata,
        batch="batch",
        layer="counts",
        genes="highly_variable",
        progress=sys.stderr.isatty(),
    )
    history = model.record.history
    print(
        f"{name}: held-out ELBO {model.record.elbo_held_out:.1f} nats per cell "
        f"after {history.best_step} steps, {history.seconds:.0f} s on {model.device}"
    )


def cluster(adata: AnnData, key: str, types: pd.Series | None = None) -> AnnData:
    """Return the neighbour graph of an embedding with its Leiden clusters and its UMAP.

    Given types, the resolution is the one that tells them best, as comparisons of integrations take
    it (Luecken et al., "Benchmarking atlas-level data integration", Nature Methods 2022): what
    suits one embedding makes too many clusters of another.
    """
    graph = analysis.lay_out(analysis.neighbors(adata, key))
    clusters = leiden(graph, RESOLUTION)
    if types is not None:
        found = [leiden(graph, resolution) for resolution in RESOLUTIONS]
        clusters = max(found, key=lambda of_one: normalized_mutual_info_score(types, of_one))
    graph.obs["leiden"] = clusters
    return graph


def leiden(graph: AnnData, resolution: float) -> pd.Series:
    """Return Leiden clusters of a graph."""
    sc.tl.leiden(graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False)
    return graph.obs["leiden"].copy()


def batch_mixing(embedding: np.ndarray, batch: np.ndarray, k: int = 30) -> float:
    """Return the share of other-batch cells among k neighbours, over that of a perfect mixture.

    In a perfect mixture every other cell is equally likely to be a neighbour.
    """
    near = NearestNeighbors(n_neighbors=k).fit(embedding).kneighbors(return_distance=False)
    others = (batch[near] != batch[:, None]).mean()
    expected = (batch[:, None] != batch).sum() / (len(batch) * (len(batch) - 1))
    return float(others / expected)


def draw(path: Path, panels: list[tuple[str, AnnData, str]]) -> None:
    """Draw two panels a row: title, cells with a UMAP, column to colour by."""
    rows = len(panels) // 2
    figure = Figure(figsize=(10.4, 4.2 * rows), dpi=150, layout="compressed")
    axes = figure.subplots(rows, 2).ravel()
    for ax, (title, cells, column) in zip(axes, panels, strict=True):
        plot.scatter(ax, cells.obsm["X_umap"], cells.obs[column], title=title)
        ax.set(xlabel="UMAP 1", ylabel="UMAP 2")
    figure.savefig(path, bbox_inches="tight", pad_inches=0.1)


def print_table(rows: list[tuple[str, list[float]]]) -> None:
    width = max(len(label) for label, _ in rows) + 2
    print(f"\n{'':<{width}}{'PCA':>7}{'scvae':>8}")
    for label, (before, after) in rows:
        digits = "d" if isinstance(before, int) else ".2f"
        print(f"{label:<{width}}{before:>7{digits}}{after:>8{digits}}")


if __name__ == "__main__":
    main()
