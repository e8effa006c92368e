"""Map cells of runs and donors that were held out, and name them: `python benchmarks/mapping.py`.

For every set one batch is the query and the others the reference, labels and all. Prints a row a
method: accuracy and macro F1 of the types that the reference has, expected calibration error (15
bins of equal width), the share of known cells that is called unknown, and where a type is taken out
of the reference, the AUROC of its strangeness. Beside it logistic regression on log counts of the
same genes, which is trained anew for half of them; ours is not. A model that was fitted with the
labels names cells by itself, without counts of the reference; so does the file of one that was not.
Two peers: votes of the nearest neighbours after Harmony, and scANVI with scArches surgery, which
takes the genes that are absent as zeros and needs an environment with scvi-tools.

`python benchmarks/mapping.py --methods regression transfer labels --seeds 3` tells these apart;
scores of every seed are kept in work/mapping.json, for results.py.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass
from functools import partial

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sets import WORK, load
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import scvae
from scvae.analysis.baselines import harmonise, principal_components
from scvae.analysis.labels import transfer
from scvae.models.label.reference import make_reference

BINS = 15
NEIGHBOURS = 15
UNLABELLED = ("Unassigned", "unknown", "nan")


@dataclass(frozen=True)
class Task:
    """What is held out of a set: a batch of a column, and perhaps a type of the reference."""

    name: str
    column: str
    batch: str
    type: str | None = None

    def __str__(self) -> str:
        left_out = "" if self.type is None else f", without {self.type}"
        return f"{self.name}: {self.batch}{left_out}"

    def split(self) -> tuple[AnnData, AnnData]:
        """Return the reference and the query."""
        adata = load(self.name)
        adata.obs["batch"] = adata.obs[self.column].astype(str)
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
        adata = adata[~adata.obs["cell_type"].isin(UNLABELLED)]
        is_query = (adata.obs["batch"] == self.batch).to_numpy()
        is_left_out = (adata.obs["cell_type"] == self.type).to_numpy()
        return adata[~is_query & ~is_left_out].copy(), adata[is_query].copy()


TASKS = (
    Task("pbmc_6batch", "batch", "pbmc4k_v2"),
    Task("pbmc_6batch", "batch", "pbmc1k_v3"),
    Task("kang_ifnb", "donor", "101"),
    Task("worm_embryo_sub", "batch", "Waterston_500_minutes_batch_2"),
    Task("baron_human1", "batch", "human1_lib3"),
    Task("pbmc_6batch", "batch", "pbmc4k_v2", "B"),
    Task("pbmc_6batch", "batch", "pbmc1k_v3", "NK"),
)


def half_of(query: AnnData, seed: int) -> AnnData:
    """Return the query with half of its genes, without cells that then are empty."""
    part = query[:, np.random.default_rng(seed).random(query.n_vars) < 0.5]
    return part[np.ravel(part.X.sum(1)) > 0].copy()


def log_counts(adata: AnnData) -> sparse.csr_matrix:
    total = np.ravel(adata.X.sum(1))
    return (sparse.diags_array(1e4 / total) @ sparse.csr_matrix(adata.X)).log1p().tocsr()


def regression(reference: AnnData, query: AnnData) -> pd.DataFrame:
    """Return labels by logistic regression on log counts of the query's genes, scaled."""
    x = log_counts(reference[:, query.var_names])
    unit = np.sqrt(np.maximum(x.multiply(x).mean(0) - np.square(x.mean(0)), 1e-8))
    scale = sparse.diags_array(1 / np.ravel(unit))
    model = LogisticRegression(max_iter=60, C=0.02).fit(x @ scale, reference.obs["cell_type"])
    p = model.predict_proba(log_counts(query) @ scale)
    return likeliest(p, model.classes_)


def likeliest(p: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Return the label of every cell with its probability."""
    return pd.DataFrame({"label": labels[p.argmax(1)], "probability": p.max(1)})


def neighbours(reference: AnnData, query: AnnData, seed: int) -> pd.DataFrame:
    """Return labels by the neighbours' votes, of reference and query corrected together."""
    both = anndata.concat([reference, query])  # of the genes that both have
    z = harmonise(principal_components(both.X, seed), both.obs["batch"], seed)
    n = reference.n_obs
    votes = KNeighborsClassifier(NEIGHBOURS).fit(z[:n], reference.obs["cell_type"])
    return likeliest(votes.predict_proba(z[n:]), votes.classes_)


def scores(table: pd.DataFrame, query: AnnData, known: set[str]) -> dict[str, float]:
    """Return what is printed of one method."""
    truth, said = query.obs["cell_type"].to_numpy(), table["label"].astype(str).to_numpy()
    is_known = np.isin(truth, list(known))
    doubt = table.get("strangeness", 1 - table["probability"])
    right, sure = (said == truth)[is_known], table["probability"].to_numpy()[is_known]
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(sure[bins == b].sum() - right[bins == b].sum()) for b in range(BINS)]
    types = np.unique(truth[is_known])
    found = {
        "accuracy": right.mean(),
        "macro F1": f1_score(truth[is_known], said[is_known], labels=types, average="macro"),
        "ECE": sum(gaps) / len(right),
    }
    if "unknown" in table:
        found["false alarms"] = table["unknown"].to_numpy()[is_known].mean()
    if not is_known.all():
        found["AUROC"] = roc_auc_score(~is_known, doubt)
    return found


Tables = dict[str, tuple[pd.DataFrame, AnnData]]  # what was said of which query


def of_regression(reference: AnnData, query: AnnData, half: AnnData, seed: int) -> Tables:
    return {
        "logistic regression": (regression(reference, query), query),
        "logistic regression, half of the genes": (regression(reference, half), half),
    }


def of_transfer(
    reference: AnnData, query: AnnData, half: AnnData, seed: int, *, robust: bool = False
) -> Tables:
    model = scvae.fit(reference, batch="batch", robust=robust, seed=seed, progress=False)
    name, wider = "scvae robust" if robust else "scvae", model.extend(query, seed=seed)
    given = reference, query, "cell_type"
    found = {
        f"{name}, {place}": (transfer(model, *given, batch=place), query)
        for place in ("new", "closest")
    }
    of_half = transfer(model, reference, half, "cell_type", batch="new")
    found[f"{name}, extended"] = (transfer(wider, *given), query)
    found[f"{name}, new, half of the genes"] = (of_half, half)
    model.reference = make_reference(model, reference, "cell_type", call="")
    found[f"{name}, new, by its file"] = (model.predict(query, batch="new"), query)
    return found


def of_labels(reference: AnnData, query: AnnData, half: AnnData, seed: int) -> Tables:
    options = {"batch": "batch", "labels": "cell_type", "seed": seed, "progress": False}
    model = scvae.fit(reference, **options)
    return {
        "scvae with labels, new": (model.predict(query, batch="new"), query),
        "scvae with labels, extended": (model.extend(query, seed=seed).predict(query), query),
        "scvae with labels, new, half of the genes": (model.predict(half, batch="new"), half),
    }


def of_harmony(reference: AnnData, query: AnnData, half: AnnData, seed: int) -> Tables:
    return {
        "neighbours after Harmony": (neighbours(reference, query, seed), query),
        "neighbours after Harmony, half of the genes": (neighbours(reference, half, seed), half),
    }


def of_scanvi(reference: AnnData, query: AnnData, half: AnnData, seed: int) -> Tables:
    """Train as scvi-tools recommends for surgery, and map either query by it."""
    import scvi

    scvi.settings.seed = seed
    quiet = {"enable_progress_bar": False}
    scvi.model.SCVI.setup_anndata(reference, batch_key="batch", labels_key="cell_type")
    base = scvi.model.SCVI(
        reference,
        n_layers=2,
        encode_covariates=True,
        deeply_inject_covariates=False,
        use_layer_norm="both",
        use_batch_norm="none",
    )
    base.train(**quiet)
    model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category="Unknown")
    model.train(max_epochs=20, n_samples_per_label=100, **quiet)

    def mapped(cells: AnnData) -> pd.DataFrame:
        cells = cells.copy()
        cells.obs["cell_type"] = "Unknown"
        scvi.model.SCANVI.prepare_query_anndata(cells, model)
        wider = scvi.model.SCANVI.load_query_data(cells, model)
        wider.train(max_epochs=100, plan_kwargs={"weight_decay": 0.0}, **quiet)
        p = wider.predict(soft=True)
        return likeliest(p.to_numpy(), p.columns.to_numpy())

    return {
        "scANVI, surgery": (mapped(query), query),
        "scANVI, surgery, half of the genes": (mapped(half), half),
    }


METHODS = {
    "regression": of_regression,
    "transfer": of_transfer,
    "robust": partial(of_transfer, robust=True),
    "labels": of_labels,
    "harmony": of_harmony,
    "scanvi": of_scanvi,
}
OURS = ("regression", "transfer", "robust", "labels", "harmony")


def rows(task: Task, seed: int, methods: list[str]) -> dict[str, dict[str, float]]:
    """Return the scores of every method of one task."""
    reference, query = task.split()
    known, half = set(reference.obs["cell_type"]), half_of(query, seed)
    tables = [METHODS[name](reference, query, half, seed) for name in methods]
    return {name: scores(*said, known) for found in tables for name, said in found.items()}


def keep(task: Task, seed: int, found: dict[str, dict[str, float]]) -> None:
    """Add the scores of a seed to those that are kept."""
    path = WORK / "mapping.json"
    WORK.mkdir(exist_ok=True)
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    of_task = kept.setdefault(str(task), {})
    for name, scored in found.items():
        for score, value in scored.items():
            of_task.setdefault(name, {}).setdefault(score, {})[str(seed)] = round(float(value), 6)
    path.write_text(json.dumps(kept, indent=1), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=[task.name for task in TASKS])
    parser.add_argument("--methods", nargs="+", default=OURS, choices=METHODS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    for task in (task for task in TASKS if task.name in given.sets):
        tables = []
        for seed in range(given.seeds):
            found = rows(task, seed, given.methods)
            keep(task, seed, found)
            tables.append(pd.DataFrame(found).T)
        print(f"\n### {task}\n")
        middle = pd.concat(tables).groupby(level=0, sort=False).median()
        print(middle.round(3).to_markdown(), flush=True)


if __name__ == "__main__":
    main()
