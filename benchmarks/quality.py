"""Score the embeddings that methods.py wrote: `python benchmarks/quality.py [SET ...]`.

Writes work/SET.scores.json, prints one table a set (median over the seeds of a method, and half
the range of biology and mixing), and draws quality.png: one point a method, mixing against biology,
with the range of its seeds as bars. Biology and mixing are those of `scvae.analysis.judge`, which
averages over the noise of the clusterings; with `--scib`, the metrics and the total of scib-metrics
are added (which needs it installed, and runs k-means once).
"""

from __future__ import annotations

import argparse
import json
import warnings

import anndata
import numpy as np
import pandas as pd
from methods import METHODS
from sets import HERE, SETS, WORK, batch_column, load

from scvae.analysis import judge

SCIB = {
    "Isolated labels": "isolated F1",
    "cLISI": "cLISI",
    "BRAS": "BRAS",
    "KBET": "kBET",
    "Bio conservation": "scib biology",
    "Batch correction": "scib batch",
    "Total": "scib total",
}
COLOURS = {"scvae": "#d62728", "scvi": "#1f77b4", "pca": "#7f7f7f", "harmony": "#2ca02c"}


def scib(adata: anndata.AnnData, embeddings: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return a row of scib-metrics for every embedding; the total is biology without batches."""
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
    table = table.rename(columns=SCIB).astype(float)
    if "scib total" not in table:
        table["scib total"] = table["scib biology"]
    return table[[name for name in SCIB.values() if name in table]]


def rows(name: str, with_scib: bool) -> pd.DataFrame:
    """Return the scores and measurements of every method and seed of one set."""
    adata = load(name)
    types = adata.obs["cell_type"].astype(str).to_numpy()
    batches = adata.obs["batch"].astype(str).to_numpy() if batch_column(adata) else None
    embeddings, scores = {}, {}
    for method in METHODS:
        for path in sorted(WORK.glob(f"{name}.{method}.?.npy")):
            key = path.name.removeprefix(f"{name}.").removesuffix(".npy")
            embeddings[key] = np.load(path)
            measured = json.loads(path.with_suffix(".json").read_text())
            scores[key] = judge(embeddings[key], types, batches)
            scores[key] |= {k: measured[k] for k in ("nelbo", "seconds") if k in measured}
    table = pd.DataFrame(scores).T
    return table.join(scib(adata, embeddings)) if with_scib else table


def method_of(table: pd.DataFrame) -> pd.Series:
    return table.index.str.rsplit(".", n=1).str[0]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the median over the seeds of every method, and how far they spread."""
    grouped = table.groupby(method_of(table), sort=False)
    summary = grouped.median()
    for score in ("biology", "mixing"):
        if score in table:
            half = (grouped[score].max() - grouped[score].min()) / 2
            summary.insert(summary.columns.get_loc(score) + 1, "± " + score, half)
    summary["seeds"] = grouped.size()
    return summary


def draw(tables: dict[str, pd.DataFrame]) -> None:
    """Draw a panel a set, one point a method; sets of one batch along one axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 4, figsize=(15, 7.5), layout="constrained")
    for panel, (name, table) in zip(panels.flat, tables.items(), strict=False):
        several = "mixing" in table
        for place, (method, of_one) in enumerate(table.groupby(method_of(table), sort=False)):
            x = of_one["mixing"] if several else pd.Series([place], dtype=float)
            y = of_one["biology"]
            panel.errorbar(
                x.median(),
                y.median(),
                xerr=[[x.median() - x.min()], [x.max() - x.median()]] if several else None,
                yerr=[[y.median() - y.min()], [y.max() - y.median()]],
                fmt="o" if method in COLOURS else "s",
                color=COLOURS.get(method.split("_")[0]),
                label=method,
            )
        panel.set(title=name, ylabel="biology", xlabel="mixing" if several else "")
        panel.margins(0.25)
        if not several:
            panel.set_xticks([])
    handles = {}
    for panel in panels.flat:
        found, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.savefig(HERE / "quality.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--scib", action="store_true", help="add the metrics of scib-metrics")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    tables = {}
    for name in given.sets:
        tables[name] = rows(name, given.scib)
        tables[name].to_json(WORK / f"{name}.scores.json")
        print(f"\n### {name}\n")
        print(summarise(tables[name]).round(3).to_markdown(), flush=True)
    draw(tables)


if __name__ == "__main__":
    main()
