"""Score the embeddings that methods.py wrote: `python benchmarks/quality.py [SET ...]`.

Prints one table a set with scib-metrics (not rescaled): median over the seeds, and the spread
(largest minus smallest) of the total. Needs scib-metrics.
"""

from __future__ import annotations

import json
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
from methods import METHODS
from sets import SETS, WORK, batch_column, load

SHORT = {
    "Isolated labels": "isolated",
    "Leiden NMI": "Leiden NMI",
    "Leiden ARI": "Leiden ARI",
    "KMeans NMI": "k-means NMI",
    "KMeans ARI": "k-means ARI",
    "Silhouette label": "silhouette",
    "cLISI": "cLISI",
    "BRAS": "BRAS",
    "iLISI": "iLISI",
    "KBET": "kBET",
    "Graph connectivity": "connectivity",
    "Batch correction": "batch",
    "Bio conservation": "biology",
    "Total": "total",
}


def score(adata: anndata.AnnData, embeddings: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return one row of metrics for every embedding; "total" is biology alone without batches."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    several = batch_column(adata) is not None
    bare = anndata.AnnData(obs=adata.obs[["cell_type"]].copy())
    bare.obs["batch"] = adata.obs["batch"].astype(str).to_numpy() if several else "all"
    bare.obsm.update(embeddings)
    bench = Benchmarker(
        bare,
        batch_key="batch",
        label_key="cell_type",
        embedding_obsm_keys=list(embeddings),
        bio_conservation_metrics=BioConservation(
            isolated_labels=several, nmi_ari_cluster_labels_leiden=True
        ),
        batch_correction_metrics=BatchCorrection(pcr_comparison=False) if several else None,
        pre_integrated_embedding_obsm_key=next(iter(embeddings)),
        n_jobs=1,
        progress_bar=False,
    )
    bench.prepare()
    bench.benchmark()
    table = bench.get_results(min_max_scale=False).drop("Metric Type", errors="ignore")
    table = table.rename(columns=SHORT).astype(float)
    if "total" not in table:
        table["total"] = table["biology"]
    return table


def rows(name: str) -> pd.DataFrame:
    """Return the scores and measurements of every method and seed of one set."""
    embeddings, measured = {}, {}
    for method in METHODS:
        for path in sorted(WORK.glob(f"{name}.{method}.?.npy")):
            key = path.name.removeprefix(f"{name}.").removesuffix(".npy")
            embeddings[key] = np.load(path)
            measured[key] = json.loads(path.with_suffix(".json").read_text())
    table = score(load(name), embeddings)
    return table.join(pd.DataFrame(measured).T[lambda t: t.columns.intersection(["nelbo"])])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the median over the seeds of every method, and the spread of the total."""
    method = table.index.str.rsplit(".", n=1).str[0]
    grouped = table.groupby(method, sort=False)
    summary = grouped.median()
    summary["spread"] = grouped["total"].max() - grouped["total"].min()
    summary["seeds"] = grouped.size()
    return summary


def main() -> None:
    warnings.filterwarnings("ignore")
    for name in sys.argv[1:] or SETS:
        summary = summarise(rows(name))
        print(f"\n### {name}\n")
        print(summary.round(3).to_markdown(), flush=True)


if __name__ == "__main__":
    main()
