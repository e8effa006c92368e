"""What other packages find in cells with planted effects: `python differential_peers.py FOLDER`.

FOLDER is one that `differential.py` wrote cells into. Run it with the Python of every environment
that has a peer; those that are installed there each leave a table beside the cells: pydeseq2 (of
counts summed over donors), scanpy's Wilcoxon and scvi-tools' differential expression (of cells).
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

EPOCHS = 60


def deseq(cells: anndata.AnnData) -> pd.DataFrame:
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    donors = cells.obs.groupby("donor", observed=True)["arm"].first()
    counts = pd.DataFrame(cells.X.toarray(), cells.obs["donor"].astype(str), cells.var_names)
    summed = counts.groupby(level=0).sum().astype(int)
    meta = pd.DataFrame({"arm": donors.astype(str)}).loc[summed.index]
    data = DeseqDataSet(counts=summed, metadata=meta, design="~arm", quiet=True, n_cpus=1)
    data.deseq2()
    result = DeseqStats(data, contrast=["arm", "b", "a"], quiet=True, n_cpus=1)
    result.summary()
    found = result.results_df
    half = 1.96 * found["lfcSE"]
    return pd.DataFrame({"fdr": found["padj"], "lfc": found["log2FoldChange"], "half": half})


def wilcoxon(cells: anndata.AnnData) -> pd.DataFrame:
    import scanpy as sc

    cells = cells.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.tl.rank_genes_groups(cells, "arm", groups=["b"], reference="a", method="wilcoxon")
    found = sc.get.rank_genes_groups_df(cells, "b").set_index("names").loc[cells.var_names]
    return pd.DataFrame({"fdr": found["pvals_adj"], "lfc": found["logfoldchanges"]})


def scvi_change(cells: anndata.AnnData) -> pd.DataFrame:
    import scvi

    scvi.settings.seed = 0
    cells = cells.copy()
    scvi.model.SCVI.setup_anndata(cells, batch_key="donor")
    model = scvi.model.SCVI(cells)
    model.train(max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False)
    found = model.differential_expression(
        groupby="arm", group1="b", group2="a", mode="change", fdr_target=0.05, silent=True
    ).loc[cells.var_names]
    fdr = np.where(found["is_de_fdr_0.05"], 0.0, 1.0)
    return pd.DataFrame({"fdr": fdr, "lfc": found["lfc_mean"]}, index=cells.var_names)


METHODS: dict[str, tuple[str, Callable[[anndata.AnnData], pd.DataFrame]]] = {
    "pydeseq2": ("pydeseq2", deseq),
    "Wilcoxon": ("scanpy", wilcoxon),
    "scvi-tools": ("scvi", scvi_change),
}


def main() -> None:
    warnings.filterwarnings("ignore")
    for path in sorted(Path(sys.argv[1]).glob("*.h5ad")):
        for name, (package, method) in METHODS.items():
            out = path.with_suffix(f".{name}.csv")
            if importlib.util.find_spec(package) and not out.exists():
                cells = anndata.read_h5ad(path)
                table = method(cells)
                table.rename_axis("gene").to_csv(out)
                print(out.name, int((table["fdr"] < 0.05).sum()), flush=True)


if __name__ == "__main__":
    main()
