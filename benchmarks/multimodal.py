"""Several kinds of measurement, side by side: `python benchmarks/multimodal.py SET METHOD [SEED]`.

Every method embeds the whole set, and a mosaic of it: of a random half of the cells RNA alone is
left. Where the other kind is proteins, those that were hidden are imputed, and compared with what
was measured. Scores go to work/SET.multimodal.METHOD.SEED.json; `--table` collects them in
results/multimodal_SET.json, of which results.py writes the tables.

METHOD: scvae (both kinds), scvae_rna (RNA alone), pca (components of both, side by side), totalvi
(its defaults; the cells without proteins are a batch of their own, as it asks; run first, it leaves
the cells that it held out, of which scvae's ELBO is then told, too), multivi (its defaults, the
whole set alone), wnn (weighted neighbours of both components by muon, the whole set alone; a graph
without coordinates, of which Leiden's clusters can be judged and nothing else). The peers need an
environment with scvi-tools, or muon.

`python benchmarks/multimodal.py SET --overconfidence` prints how sure single kinds and half of the
counts are of where a cell is, against all that is known of it.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import mudata
import numpy as np
from results import TABLES
from scipy import sparse
from scipy.stats import norm
from sets import DATA, WORK
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd

SETS = ("cbmc_cite", "pbmc10k_cite", "snareseq_dev")
COMPONENTS, NEIGHBOURS, LEVEL = 30, 30, 0.9
HELD_OUT = "held_out"  # the column that marks the cells that totalVI held out, where it has run


@dataclass
class Found:
    """What a method says: the embedding; the imputed counts of hidden cells with intervals; and the
    negative ELBO of cells that were held out, in nats, with their numbers. A method that finds a
    graph has no coordinates."""

    embedding: np.ndarray
    imputed: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    nelbo: float | None = None
    held_out: np.ndarray | None = None
    graph: Any = None


def load(name: str) -> tuple[mudata.MuData, str]:
    """Return a set, and the name of the kind beside RNA."""
    mdata = mudata.read_h5mu(DATA / f"{name}.h5mu")
    (other,) = (kind for kind in mdata.mod if kind != "rna")
    return mdata, other


def hidden_rows(n: int) -> np.ndarray:
    """Return the cells of which RNA alone is left in the mosaic, ``(n,)`` of bool."""
    hidden = np.zeros(n, dtype=bool)
    hidden[np.random.default_rng(0).permutation(n)[: n // 2]] = True
    return hidden


def mosaic(mdata: mudata.MuData, other: str, hidden: np.ndarray) -> mudata.MuData:
    """Return the same cells, of which the hidden ones lack the other kind."""
    left = mudata.MuData({"rna": mdata["rna"].copy(), other: mdata[other][~hidden].copy()})
    return left[mdata.obs_names].copy()


def dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)


# -- methods ---------------------------------------------------------------------------------------


def scvae_both(mdata: mudata.MuData, other: str, hidden: np.ndarray | None, seed: int) -> Found:
    import scvae

    given = mdata.copy() if hidden is None else mosaic(mdata, other, hidden)
    marked = hidden is None and HELD_OUT in mdata.obs
    model = scvae.fit(
        given, seed=seed, progress=False, **({"validation": HELD_OUT} if marked else {})
    )
    embedding = np.asarray(given.obsm["X_scvae"])
    if marked:
        rows = mdata.obs[HELD_OUT].to_numpy()
        return Found(embedding, nelbo=-float(model.elbo(mdata[rows].copy()).mean()))
    if hidden is None or other != "protein":
        return Found(embedding)
    tables = model.normalized(
        mdata["rna"][hidden], modality=other, background=True, return_interval=LEVEL
    )
    return Found(embedding, *(np.asarray(table, dtype=np.float64) for table in tables))


def scvae_rna(mdata: mudata.MuData, other: str, hidden: np.ndarray | None, seed: int) -> Found:
    import scvae

    rna = mdata["rna"].copy()
    scvae.fit(rna, seed=seed, progress=False)
    return Found(np.asarray(rna.obsm["X_scvae"]))


def pca(mdata: mudata.MuData, other: str, hidden: np.ndarray | None, seed: int) -> Found:
    """Components of both kinds, each divided by their deviation; a mosaic has those of RNA alone,
    and proteins that are means over the neighbours that have them."""
    from scvae.analysis.baselines import principal_components

    rna = principal_components(mdata["rna"].X, seed)
    if hidden is None:
        beside = of_other(mdata[other].X, other)
        return Found(np.hstack([rna / rna.std(), beside / beside.std()]))
    if other != "protein":
        return Found(rna)
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(rna[~hidden])
    logs = np.log1p(dense(mdata[other].X))[~hidden]
    return Found(rna, np.expm1(logs[near.kneighbors(rna[hidden])[1]].mean(1)))


def of_other(x: Any, kind: str) -> np.ndarray:
    return of_proteins(x) if kind == "protein" else of_peaks(x)


def of_proteins(x: Any) -> np.ndarray:
    """Return components of centred log-ratios."""
    logs = np.log1p(dense(x))
    logs -= logs.mean(1, keepdims=True)
    logs = (logs - logs.mean(0)) / logs.std(0)
    u, s, _ = np.linalg.svd(logs, full_matrices=False)
    return (u * s)[:, :COMPONENTS]


def of_peaks(x: Any) -> np.ndarray:
    """Return components of TF-IDF, the first, which is depth, left out."""
    ones = (x > 0).astype(np.float32)
    idf = np.log1p(ones.shape[0] / (1 + np.asarray(ones.sum(0)).ravel()))
    depth = np.maximum(1, np.asarray(ones.sum(1)).ravel())
    weighed = (sparse.diags(1e4 / depth) @ ones @ sparse.diags(idf)).tocsr()
    u, s, _ = randomized_svd(weighed.log1p(), COMPONENTS + 1, random_state=0)
    return (u * s)[:, 1:]


def totalvi(mdata: mudata.MuData, other: str, hidden: np.ndarray | None, seed: int) -> Found:
    import scvi

    scvi.settings.seed = seed
    adata = mdata["rna"].copy()
    proteins = dense(mdata[other].X)
    adata.obs["measured"] = "all"
    if hidden is not None:
        proteins[hidden] = 0
        adata.obs["measured"] = np.where(hidden, "no", "yes")
    adata.obsm["protein"] = proteins
    scvi.model.TOTALVI.setup_anndata(
        adata,
        batch_key=None if hidden is None else "measured",
        protein_expression_obsm_key="protein",
    )
    model = scvi.model.TOTALVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    if hidden is None:
        nelbo = float(model.history["elbo_validation"].to_numpy().min())
        held_out = np.sort(model.validation_indices)
        return Found(model.get_latent_representation(), nelbo=nelbo, held_out=held_out)
    _, imputed = model.get_normalized_expression(
        indices=np.flatnonzero(hidden),
        transform_batch="yes",
        n_samples=25,
        return_mean=True,
        include_protein_background=True,
    )
    return Found(model.get_latent_representation(), np.asarray(imputed, dtype=np.float64))


def multivi(mdata: mudata.MuData, other: str, hidden: np.ndarray | None, seed: int) -> Found:
    import scvi

    if hidden is not None:
        return Found(np.zeros((mdata.n_obs, 0)))
    scvi.settings.seed = seed
    mdata = mudata.MuData({"rna": mdata["rna"].copy(), other: mdata[other].copy()})
    layers = {"rna_layer": "rna", "atac_layer": other, "batch_key": None}
    scvi.model.MULTIVI.setup_mudata(mdata, modalities=layers)
    model = scvi.model.MULTIVI(mdata, n_genes=mdata["rna"].n_vars, n_regions=mdata[other].n_vars)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return Found(model.get_latent_representation())


def wnn(mdata: mudata.MuData, other: str, hidden: np.ndarray | None, seed: int) -> Found:
    nowhere = np.zeros((mdata.n_obs, 0))
    if hidden is not None:
        return Found(nowhere)
    import muon
    import scanpy as sc

    sparse.csr_array.getnnz = sparse.csr_array._getnnz  # muon calls it, newer scipy has none
    from scvae.analysis.baselines import principal_components

    rna, beside = principal_components(mdata["rna"].X, seed), of_other(mdata[other].X, other)
    parts = {}
    for kind, found in (("rna", rna), (other, beside)):
        parts[kind] = sc.AnnData(np.zeros((len(found), 1)), obs=mdata[kind].obs[[]])
        parts[kind].obsm["X_pca"] = found
        sc.pp.neighbors(parts[kind], use_rep="X_pca", random_state=seed)
        for name, graph in parts[kind].obsp.items():
            parts[kind].obsp[name] = sparse.csr_matrix(graph)  # whose rows have two axes
    both = mudata.MuData(parts)
    muon.pp.neighbors(both, random_state=seed)
    return Found(nowhere, graph=both.obsp["connectivities"])


METHODS: dict[str, Callable[..., Found]] = {
    "scvae": scvae_both,
    "scvae_rna": scvae_rna,
    "pca": pca,
    "totalvi": totalvi,
    "multivi": multivi,
    "wnn": wnn,
}

TITLES = {
    "scvae": "scvae, both kinds",
    "scvae_rna": "scvae, RNA alone",
    "pca": "components of both; of RNA, and the mean of 30 neighbours",
    "totalvi": "totalVI",
    "multivi": "MultiVI",
    "wnn": "WNN, a graph",
}
SHOWN = {
    ("whole", "biology"): "whole: biology",
    ("whole", "Leiden"): "Leiden",
    ("whole", "isolated F1"): "isolated F1",
    ("whole", "nelbo"): "held out",
    ("mosaic", "biology"): "mosaic: biology",
    ("mosaic", "mixing"): "mixing",
    ("imputed", "pearson"): "imputed: r",
    ("imputed", "rmse"): "error",
    ("imputed", "coverage"): "in 90 %",
}

# -- scores ----------------------------------------------------------------------------------------


def of_imputation(found: Found, truth: np.ndarray) -> dict[str, float]:
    """Return how near imputed counts are to those that were measured, in means over proteins."""
    assert found.imputed is not None
    guess, logs = np.log1p(found.imputed), np.log1p(truth)
    r = [np.corrcoef(a, b)[0, 1] if a.std() else 0.0 for a, b in zip(guess.T, logs.T, strict=True)]
    scores = {
        "pearson": float(np.mean(r)),
        "rmse": float(np.sqrt(((guess - logs) ** 2).mean(0)).mean()),
        "rmse of the mean": float(logs.std(0).mean()),
    }
    if found.low is not None and found.high is not None:
        inside = (truth >= found.low) & (truth <= found.high)
        scores |= {"coverage": float(inside.mean())}
        scores |= {f"coverage {k}": float(v) for k, v in enumerate(inside.mean(0))}
    return scores


def isolated(x: np.ndarray, types: np.ndarray, parts: np.ndarray) -> float:
    """Return the F1 of isolated types, as scib defines it (Luecken et al., Nature Methods 2022).

    Of every type that is in the fewest parts, the best F1 of any Leiden cluster over resolutions;
    the mean over these types. Without parts, every type is as isolated as the others.
    """
    from scvae.analysis.judging import RESOLUTIONS, leiden

    found = [(types == kind, len(set(parts[types == kind]))) for kind in np.unique(types)]
    fewest = min(n for _, n in found)
    best = np.zeros(sum(n == fewest for _, n in found))
    for resolution in RESOLUTIONS:
        clusters = leiden(x, resolution, 0)
        own = [max(_f1(is_of, clusters)) for is_of, n in found if n == fewest]
        best = np.maximum(best, own)
    return float(best.mean())


def of_graph(graph: Any, types: np.ndarray) -> dict[str, float]:
    """Return how well Leiden's clusters of a weighted graph tell the types, at the best resolution,
    as `scvae.analysis.judge` does with the neighbours of an embedding."""
    import igraph

    from scvae.analysis.judging import RESOLUTIONS, agreement, igraph_draws

    edges = sparse.triu(graph, k=1).tocoo()
    pairs = np.stack([edges.row, edges.col], axis=1)
    whole = igraph.Graph(n=graph.shape[0], edges=pairs, edge_attrs={"weight": edges.data})
    options: dict[str, Any] = {"weights": "weight", "n_iterations": 4}
    with igraph_draws(0):
        clusters = [
            whole.community_leiden("modularity", resolution=resolution, **options).membership
            for resolution in RESOLUTIONS
        ]
    nmi, ari = max((agreement(types, np.array(one)) for one in clusters), key=sum)
    return {"Leiden NMI": float(nmi), "Leiden ARI": float(ari)}


def _f1(is_of: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the F1 of every cluster as a guess of which cells are of a type."""
    sizes, hits = np.bincount(clusters), np.bincount(clusters, weights=is_of)
    found: np.ndarray = 2 * hits / (sizes + is_of.sum())
    return found


def overconfidence(name: str, seed: int) -> None:
    """Print how sure single kinds are of where a cell is, and how sure they may be.

    For every kind, the share of latents of which a draw by all kinds lies within the central 50 and
    90 % of the posterior by this kind alone. Were both exact, these were the shares: less, and the
    kind is too sure of itself. The means by all kinds, which vary less than draws, are to lie
    within more often. So by half of the counts, drawn binomially, against all of them. Latents that
    no cell moves, of variance above .9 in the mean, are left out: they agree in knowing nothing.
    "Joint no wider" is the share of latents of which all kinds are at least as sure.
    """
    import scvae

    mdata, _ = load(name)
    model = scvae.fit(mdata, seed=seed, progress=False)
    whole, kinds = model.read(mdata), [*model.modalities]
    said = {kind: said_of(model, whole.only([i])) for i, kind in enumerate(kinds)}
    said["half of the counts"] = said_of(model, model.read(thinned(mdata, seed)))
    mean, spread = said_of(model, whole)
    moved = np.square(spread).mean(0) < 0.9
    drawn = mean + spread * np.random.default_rng(seed).normal(size=mean.shape)
    for what, (loc, scale) in said.items():
        found = {"joint no wider": float((spread <= scale * (1 + 1e-5))[:, moved].mean())}
        for of, at in (("draws", drawn), ("means", mean)):
            z = np.abs((at - loc) / scale)[:, moved]
            for level in (0.5, 0.9):
                inside = z <= norm.ppf((1 + level) / 2)
                found[f"{of} within {level:.0%}"] = float(inside.mean())
        print(name, what, f"{moved.sum()} of {len(moved)} latents", json.dumps(found), flush=True)


def said_of(model: Any, dataset: Any) -> np.ndarray:
    """Return mean and deviation of the posterior of every cell, ``(2, n, d)``."""
    import torch

    from scvae.core.inference import moments

    def answer(cells: Any) -> torch.Tensor:
        q = moments(model.vae.encode(cells))
        return torch.stack([q.loc, q.scale], dim=1)

    found: np.ndarray = model.over(dataset, answer).swapaxes(0, 1)
    return found


def thinned(mdata: mudata.MuData, seed: int) -> mudata.MuData:
    """Return the same cells with half of their counts, at least one of each kind."""
    rng, given = np.random.default_rng(seed), mdata.copy()
    for adata in given.mod.values():
        whole = sparse.csr_matrix(adata.X)
        half = whole.copy()
        half.data = rng.binomial(whole.data.astype(int), 0.5).astype(np.float32)
        empty = np.asarray(half.sum(1)).ravel() == 0
        adata.X = (half + sparse.diags(empty.astype(np.float32)) @ whole).tocsr()
    return given


def run(name: str, method: str, seed: int) -> None:
    """Embed a set and its mosaic, score both, and write the scores."""
    from scvae.analysis import judge

    mdata, other = load(name)
    types = mdata.obs["cell_type"].astype(str).to_numpy()
    hidden = hidden_rows(mdata.n_obs)
    peers = WORK / f"{name}.multimodal.held_out.npy"
    if method == "scvae" and peers.exists():
        mdata.obs[HELD_OUT] = np.isin(np.arange(mdata.n_obs), np.load(peers))
    start = time.perf_counter()
    whole = METHODS[method](mdata, other, None, seed)
    scores: dict[str, Any] = {"seconds": time.perf_counter() - start}
    scores["whole"] = (
        judge(whole.embedding, types) if whole.graph is None else of_graph(whole.graph, types)
    )
    if whole.nelbo is not None:
        scores["whole"]["nelbo"] = whole.nelbo
    WORK.mkdir(exist_ok=True)
    if whole.held_out is not None:
        np.save(peers, whole.held_out)
    of_batch = mdata.obs.get("batch", default=types)  # without batches, no type is more isolated
    parts = np.asarray(of_batch).astype(str)
    if whole.graph is None:
        scores["whole"]["isolated F1"] = isolated(whole.embedding, types, parts)
    alone = method == "scvae_rna"  # of which the mosaic hides nothing
    part = whole if alone else METHODS[method](mdata, other, hidden, seed)
    if part.embedding.shape[1]:
        scores["mosaic"] = judge(part.embedding, types, hidden.astype(str))
    if part.imputed is not None:
        scores["imputed"] = of_imputation(part, dense(mdata[other].X)[hidden])
    (WORK / f"{name}.multimodal.{method}.{seed}.json").write_text(json.dumps(scores, indent=1))
    print(name, method, seed, json.dumps(scores), flush=True)


def shown(runs: list[dict[str, Any]], what: str, key: str) -> str | list[float]:
    """Return a score of all runs that have it; of nats, which have too many digits, the median."""
    found = [run[what][key] for run in runs if key in run.get(what, {})]
    return (f"{median(found):,.1f}" if key == "nelbo" else found) if found else ""


def collect() -> None:
    """Write a table for every set of which there are runs, a row a method, of all its seeds."""
    for name in SETS:
        rows = []
        for method in METHODS:
            paths = sorted(WORK.glob(f"{name}.multimodal.{method}.*.json"))
            runs = [json.loads(path.read_text()) for path in paths]
            for one in runs:
                one["whole"]["Leiden"] = (
                    one["whole"]["Leiden NMI"] / 2 + one["whole"]["Leiden ARI"] / 2
                )
            cells = [shown(runs, *place) for place in SHOWN]
            if runs:
                rows.append([TITLES[method], *cells])
        if rows:
            table = {"columns": [name, *SHOWN.values()], "rows": rows}
            path = TABLES / f"multimodal_{name}.json"
            path.write_text(json.dumps(table, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=SETS, nargs="?")
    parser.add_argument("method", choices=METHODS, nargs="?")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--table", action="store_true", help="collect what was run")
    asked = "how sure kinds are: SET [METHOD SEED]"
    parser.add_argument("--overconfidence", action="store_true", help=asked)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.table:
        collect()
    elif given.overconfidence and given.set is not None:
        overconfidence(given.set, given.seed)
    elif given.method is None:
        parser.error("name a set and a method")
    else:
        run(given.set, given.method, given.seed)


if __name__ == "__main__":
    main()
