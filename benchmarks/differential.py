"""Whether differential expression keeps its word: `python benchmarks/differential.py [MODEL]`.

Of `kang_ifnb`: type-I error, with control donors split at random into two arms; power, false
discoveries and coverage with effects planted by binomial thinning of one arm's counts; and, where
MODEL is a file of a model of all genes (or is to become one), ranks of known interferon genes and
the time of all groups with the null. pydeseq2 stands beside where it is installed.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse, stats
from sets import DATA

from scvae.analysis import glm

TYPES = ("CD14+ Monocytes", "CD4 T cells", "B cells", "NK cells", "Dendritic cells")
SPLITS, PLANTS = 20, 3
KNOWN = ("ISG15", "IFIT1", "IFIT3", "MX1", "ISG20")
LEAST_TOTAL, SHARE = 100, 0.1  # of genes that are changed
EFFECTS = (0.5, 1.0, 2.0)  # log2


def donors_of(adata: anndata.AnnData, kind: str) -> np.ndarray:
    """Return sums of counts of a type's cells by control donor, ``(donors, g)``."""
    own = ((adata.obs["cell_type"] == kind) & (adata.obs["condition"] == "ctrl")).to_numpy()
    _, codes = np.unique(adata.obs["donor"][own].astype(str), return_inverse=True)
    members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    return (members @ adata.X[own]).toarray()[np.bincount(codes) >= 10]


def halves(n: int, rng: np.random.Generator) -> np.ndarray:
    arm = np.zeros(n)
    arm[rng.permutation(n)[: n // 2]] = 1
    return arm


def tested(counts: np.ndarray, arm: np.ndarray) -> pd.DataFrame:
    """Return p, fdr, lfc and its interval of the genes counted, by their numbers."""
    rows = np.flatnonzero(((counts >= 5).sum(0) >= len(counts) // 2) & (counts.sum(0) >= 15))
    y, size = counts[:, rows].T, glm.size_factors(counts)
    design = np.column_stack([np.ones(len(arm)), arm])
    full = glm.fit(y, design, size)
    null = glm.fit_means(y, design[:, :1], size, full.dispersion)
    found = glm.f_test(full, y, design, -1, null)
    lfc, half = found.coefficient, stats.t.ppf(0.975, found.df) * found.error
    columns = {"p": found.p, "fdr": glm.adjust(found.p), "lfc": lfc, "half": half}
    table = pd.DataFrame(columns, index=rows)
    table[["lfc", "half"]] /= np.log(2)
    return table


def deseq(counts: np.ndarray, arm: np.ndarray) -> pd.DataFrame | None:
    """Return the same of pydeseq2, or None where it is not installed."""
    try:
        from pydeseq2.dds import DeseqDataSet
        from pydeseq2.ds import DeseqStats
    except ImportError:
        return None
    meta = pd.DataFrame({"arm": np.where(arm > 0, "b", "a")})
    meta.index = [f"s{i}" for i in range(len(arm))]
    table = pd.DataFrame(counts.astype(int), index=meta.index)
    table.columns = table.columns.astype(str)
    data = DeseqDataSet(counts=table, metadata=meta, design="~arm", quiet=True, n_cpus=1)
    data.deseq2()
    result = DeseqStats(data, contrast=["arm", "b", "a"], quiet=True, n_cpus=1)
    result.summary()
    columns = {"pvalue": "p", "padj": "fdr", "log2FoldChange": "lfc", "lfcSE": "half"}
    found = result.results_df.rename(columns=columns)[list(columns.values())]
    found["half"] *= 1.96
    return found.set_axis(np.arange(len(found)))


def type_one(adata: anndata.AnnData) -> pd.DataFrame:
    rows = []
    for kind in TYPES:
        counts, rng = donors_of(adata, kind), np.random.default_rng(0)
        found = [tested(counts, halves(len(counts), rng)) for _ in range(SPLITS)]
        share = [float((table["p"] < 0.05).mean()) for table in found]
        none = [not (table["fdr"] < 0.05).any() for table in found]
        spread = {"least": min(share), "most": max(share), "splits without any": np.mean(none)}
        rows.append({"type": kind, "donors": len(counts), "share": np.mean(share)} | spread)
    return pd.DataFrame(rows)


def planted(counts: np.ndarray, arm: np.ndarray, rng: np.random.Generator) -> tuple:
    """Return thinned counts and log2 fold changes of a tenth of the genes."""
    often = np.flatnonzero(counts.sum(0) >= LEAST_TOTAL)
    chosen = rng.choice(often, int(SHARE * len(often)), replace=False)
    lfc = np.zeros(counts.shape[1])
    lfc[chosen] = rng.choice([-1, 1], len(chosen)) * rng.choice(EFFECTS, len(chosen))
    keep = np.where(arm[:, None] > 0, 2.0 ** np.minimum(lfc, 0), 2.0 ** -np.maximum(lfc, 0))
    return rng.binomial(counts.astype(int), keep).astype(float), lfc


def power(adata: anndata.AnnData) -> pd.DataFrame:
    rows = []
    for kind in TYPES[:4]:
        original, rng = donors_of(adata, kind), np.random.default_rng(1)
        for _ in range(PLANTS):
            arm = halves(len(original), rng)
            counts, lfc = planted(original, arm, rng)
            for name, table in (("scvae", tested(counts, arm)), ("pydeseq2", deseq(counts, arm))):
                if table is not None:
                    rows.append({"type": kind, "method": name} | scored(table, lfc))
    return pd.DataFrame(rows).groupby(["type", "method"]).mean()


def scored(table: pd.DataFrame, lfc: np.ndarray) -> dict[str, float]:
    true = lfc[table.index]
    hit, covered = table["fdr"] < 0.05, (table["lfc"] - true).abs() < table["half"]
    seen, changed = table["p"].notna(), true != 0
    return {
        "power": float((hit & changed).sum() / (lfc != 0).sum()),
        "FDP": float((hit & ~changed).sum() / max(1, hit.sum())),
        "p < .05 of unchanged": float((table["p"] < 0.05)[seen & ~changed].mean()),
        "coverage": float(covered[seen].mean()),
        "coverage of changed": float(covered[seen & changed].mean()),
    }


def known_genes(adata: anndata.AnnData, path: Path) -> pd.DataFrame:
    import scvae

    if not path.exists():
        scvae.fit(adata, batch="donor", progress=False).save(path)
    model, start = scvae.load(path), time.perf_counter()
    found = scvae.analysis.compare(model, adata, "condition", groups="cell_type", replicate="donor")
    print(f"\n{time.perf_counter() - start:.0f} s for all groups with the null\n\n{found}\n")
    rank = found.table.groupby("group")["p"].rank(method="first")
    chosen = found.table["gene"].isin(KNOWN)
    return found.table[chosen].assign(rank=rank).pivot(index="group", columns="gene", values="rank")


def main() -> None:
    warnings.filterwarnings("ignore")
    adata = anndata.read_h5ad(DATA / "kang_ifnb.h5ad")
    print("### Type-I error\n\n" + type_one(adata).round(3).to_markdown(), flush=True)
    print("\n### Planted effects\n\n" + power(adata).round(3).to_markdown(), flush=True)
    if len(sys.argv) > 1:
        print("\n### Known genes\n\n" + known_genes(adata, Path(sys.argv[1])).to_markdown())


if __name__ == "__main__":
    main()
