"""Whether differential expression keeps its word: `python benchmarks/differential.py STEP ...`.

    plant       write cells of `kang_ifnb` with planted effects to work/differential; there, run
                `differential_peers.py` in environments that have pydeseq2, scanpy, scvi-tools
    score       type-I error of all splits of control donors; power, false discoveries and coverage
                of effects planted by binomial thinning, of scvae and of the peers that have run
    known MODEL ranks of interferon genes, and time of all groups with the null

Each step prints tables, and keeps them in results/ for `results.py`.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import results
from scipy import sparse, stats
from sets import DATA, WORK

from scvae.analysis import glm
from scvae.analysis.decision import tested_arm
from scvae.analysis.design import Design, make_design, permutations

TYPES = ("CD14+ Monocytes", "CD4 T cells", "B cells", "NK cells", "Dendritic cells")
PLANTS, PERMUTATIONS = 2, 40
KNOWN = ("ISG15", "IFIT1", "IFIT3", "MX1", "ISG20")
LEAST_CELLS, LEAST_TOTAL, SHARE = 10, 100, 0.1  # of donors; of genes that are changed
EFFECTS = (0.5, 1.0, 2.0)  # log2
FOLDER = WORK / "differential"
PEERS = ("pydeseq2", "Wilcoxon", "scvi-tools")


def controls(adata: anndata.AnnData, kind: str) -> anndata.AnnData:
    """Return untreated cells of a type, of donors that have ten."""
    own = adata[(adata.obs["cell_type"] == kind) & (adata.obs["condition"] == "ctrl")].copy()
    sizes = own.obs["donor"].astype(str).value_counts()
    kept = sizes.index[sizes >= LEAST_CELLS]
    return own[own.obs["donor"].astype(str).isin(kept)].copy()


def summed(cells: anndata.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Return sums over the cells of donors, ``(donors, g)``, and the names of these."""
    names, codes = np.unique(cells.obs["donor"].astype(str), return_inverse=True)
    members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    return (members @ sparse.csr_matrix(cells.X)).toarray().astype(float), names


# -- planted effects -----------------------------------------------------------------------------


def plant(adata: anndata.AnnData) -> None:
    """Write cells of which a tenth of the genes is thinned in one arm, with log2 fold changes."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for i, kind in enumerate(TYPES[:4]):
        cells = controls(adata, kind)
        donors = np.unique(cells.obs["donor"].astype(str))
        often = np.flatnonzero(np.asarray(cells.X.sum(axis=0)).ravel() >= LEAST_TOTAL)
        for k in range(PLANTS):
            rng = np.random.default_rng(100 * i + k)
            treated = rng.choice(donors, len(donors) // 2, replace=False)
            chosen = rng.choice(often, int(SHARE * len(often)), replace=False)
            lfc = np.zeros(cells.n_vars)
            lfc[chosen] = rng.choice([-1, 1], len(chosen)) * rng.choice(EFFECTS, len(chosen))
            arm = cells.obs["donor"].astype(str).isin(treated).to_numpy()
            x = sparse.csr_matrix(cells.X).tocoo()
            keep = 2.0 ** -np.maximum(np.where(arm[x.row], -lfc[x.col], lfc[x.col]), 0)
            data = rng.binomial(x.data.astype(int), keep).astype(np.float32)
            out = anndata.AnnData(sparse.csr_matrix((data, (x.row, x.col)), shape=x.shape))
            out.obs_names, out.var_names = cells.obs_names, cells.var_names
            out.obs["donor"] = cells.obs["donor"].astype(str).to_numpy()
            out.obs["arm"], out.var["lfc"] = np.where(arm, "b", "a"), lfc
            out[out.X.sum(axis=1) > 0].copy().write_h5ad(FOLDER / f"{kind} {k}.h5ad")


def tested(counts: np.ndarray, design: Design, most: int) -> pd.DataFrame:
    """Return what `scvae.analysis.compare` decides, of the genes counted, by their numbers."""
    rows = np.flatnonzero(((counts >= 5).sum(0) >= len(counts) // 2) & (counts.sum(0) >= 15))
    y, size = counts[:, rows].T, glm.size_factors(counts)
    found = tested_arm(y, design, size)
    arms = permutations(design, most, np.random.default_rng(0))
    again = [tested_arm(y, design.permuted(arm), size).p for arm in arms]
    fdr = glm.adjust_by_permutations(found.p, again)
    half = stats.t.ppf(0.975, found.df) * found.error
    columns = {"p": found.p, "fdr": fdr, "lfc": found.coefficient, "half": half}
    table = pd.DataFrame(columns, index=rows)
    table[["lfc", "half"]] /= np.log(2)
    return table


def power() -> pd.DataFrame:
    rows = []
    for path in sorted(FOLDER.glob("*.h5ad")):
        cells = anndata.read_h5ad(path)
        counts, names = summed(cells)
        treated = set(cells.obs["donor"][cells.obs["arm"] == "b"])
        arm = np.isin(names, list(treated)).astype(int)
        design = make_design(arm, names.astype(str), np.empty((len(arm), 0)))[0]
        found = {"scvae": tested(counts, design, PERMUTATIONS)}
        for peer in PEERS:
            table = path.with_suffix(f".{peer}.csv")
            if table.exists():
                read = pd.read_csv(table).set_index("gene").loc[cells.var_names]
                found[peer] = read.set_axis(np.arange(cells.n_vars))
        lfc = cells.var["lfc"].to_numpy()
        kind = path.stem.rsplit(" ", 1)[0]
        rows += [{"type": kind, "method": m} | scored(t, lfc) for m, t in found.items()]
    return pd.DataFrame(rows).groupby(["type", "method"]).mean().reset_index()


def scored(table: pd.DataFrame, lfc: np.ndarray) -> dict[str, float]:
    true, hit = lfc[table.index], table["fdr"] < 0.05
    changed = true != 0
    found = {
        "found": float(hit.sum()),
        "power": float((hit & changed).sum() / (lfc != 0).sum()),
        "FDP": float((hit & ~changed).sum() / max(1, hit.sum())),
    }
    if "half" not in table:
        return found
    covered, seen = (table["lfc"] - true).abs() < table["half"], table["fdr"].notna()
    return found | {
        "coverage": float(covered[seen].mean()),
        "coverage of changed": float(covered[seen & changed].mean()),
    }


# -- nothing differs -----------------------------------------------------------------------------


def splits(n: int) -> Iterator[np.ndarray]:
    """Yield all ways to put half of n donors into an arm, of mirror images one."""
    for others in itertools.combinations(range(1, n), n // 2 - 1):
        yield np.isin(np.arange(n), [0, *others]).astype(int)


def type_one(adata: anndata.AnnData) -> pd.DataFrame:
    rows = []
    for kind in TYPES:
        counts, names = summed(controls(adata, kind))
        p, any_found = {}, {"by Benjamini and Hochberg": [], "by permutations, too": []}
        rows_of = np.flatnonzero(((counts >= 5).sum(0) >= len(counts) // 2) & (counts.sum(0) >= 15))
        y, size = counts[:, rows_of].T, glm.size_factors(counts)
        designs = {
            tuple(arm): make_design(arm, names.astype(str), np.empty((len(arm), 0)))[0]
            for arm in splits(len(names))
        }
        for key, design in designs.items():
            p[key] = tested_arm(y, design, size).p
        for key in designs:  # permutations of a split are the other splits
            rest = [other for name, other in p.items() if name != key]
            for label, fdr in zip(
                any_found,
                (glm.adjust(p[key]), glm.adjust_by_permutations(p[key], rest)),
                strict=True,
            ):
                any_found[label].append(bool((fdr < 0.05).any()))
        share = [float((values < 0.05).mean()) for values in p.values()]
        spread = {"share of p < .05": np.mean(share), "least": min(share), "most": max(share)}
        none = {f"splits without any, {k}": 1 - float(np.mean(v)) for k, v in any_found.items()}
        rows.append({"type": kind, "donors": len(names), "splits": len(p)} | spread | none)
    return pd.DataFrame(rows)


# -- known genes ---------------------------------------------------------------------------------


def known_genes(adata: anndata.AnnData, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    import scvae

    if not path.exists():
        scvae.fit(adata, batch="donor", progress=False).save(path)
    model, start, cpu = scvae.load(path), time.perf_counter(), time.process_time()
    found = scvae.analysis.compare(model, adata, "condition", groups="cell_type", replicate="donor")
    seconds = time.perf_counter() - start, time.process_time() - cpu
    table = found.table
    rank = {
        "by p": table.groupby("group")["p"].rank(method="first"),
        "by lfc_low": table.groupby("group")["lfc_low"].rank(ascending=False, method="first"),
    }
    rows = table["gene"].isin(KNOWN)
    ranks = pd.concat(
        table[rows]
        .assign(rank=r, order=name)
        .pivot(index=["order", "group"], columns="gene", values="rank")
        for name, r in rank.items()
    )
    times = pd.DataFrame([dict(zip(("wall seconds", "CPU seconds"), seconds, strict=True))])
    return ranks.reset_index(), pd.concat([times, found.null], axis=1)


def keep(name: str, title: str, table: pd.DataFrame) -> None:
    """Print a table, and keep it as a file of results that RESULTS.md shows."""
    print(f"\n### {title}\n\n{table.round(3).to_markdown(index=False)}", flush=True)
    rows = [[text(value) for value in row] for row in table.itertuples(index=False)]
    results.keep(results.TABLES / f"{name}.json", {"columns": list(table), "rows": rows})


def text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if np.isnan(value) else f"{value:.0f}" if value % 1 == 0 else results.number(value, 3)


def main() -> None:
    warnings.filterwarnings("ignore")
    step, *rest = sys.argv[1:] or ["score"]
    adata = anndata.read_h5ad(DATA / "kang_ifnb.h5ad")
    if step == "plant":
        plant(adata)
    elif step == "score":
        keep("differential_null", "type-I error", type_one(adata))
        keep("differential_planted", "planted effects", power())
    else:
        ranks, null = known_genes(adata, Path(rest[0]))
        keep("differential_known", "ranks of interferon genes", ranks)
        keep("differential_time", "all groups, with the null", null)


if __name__ == "__main__":
    main()
