"""Map cells of runs and donors that were held out, and name them: `python benchmarks/mapping.py`.

For every set one batch is the query and the others the reference, labels and all. Prints a row a
method: accuracy and macro F1 of the types that the reference has, expected calibration error (15
bins of equal width), the share of known cells that is called unknown, and where a type is taken out
of the reference, the AUROC of its strangeness. Beside it logistic regression on log counts of the
same genes, which is trained anew for half of them; ours is not. A model that was fitted with the
labels names cells by itself, without counts of the reference; so does the file of one that was not.

`python benchmarks/mapping.py --methods regression transfer labels --seeds 3` tells these apart.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sets import load
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

import scvae
from scvae.analysis.labels import transfer
from scvae.models.label.reference import make_reference

BINS = 15
UNLABELLED = ("Unassigned", "unknown", "nan")


@dataclass(frozen=True)
class Task:
    """What is held out of a set: a batch of a column, and perhaps a type of the reference."""

    name: str
    column: str
    batch: str
    type: str | None = None

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
    return pd.DataFrame({"label": model.classes_[p.argmax(1)], "probability": p.max(1)})


def scores(table: pd.DataFrame, query: AnnData, known: set[str]) -> dict[str, float]:
    """Return what is printed of one method."""
    truth, said = query.obs["cell_type"].to_numpy(), table["label"].astype(str).to_numpy()
    is_known = np.isin(truth, list(known))
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
            found["AUROC"] = roc_auc_score(~is_known, table["strangeness"])
    return found


Tables = dict[str, tuple[pd.DataFrame, AnnData]]  # what was said of which query


def of_regression(reference: AnnData, query: AnnData, half: AnnData, seed: int) -> Tables:
    return {
        "logistic regression": (regression(reference, query), query),
        "the same, half of the genes": (regression(reference, half), half),
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


METHODS = {
    "regression": of_regression,
    "transfer": of_transfer,
    "robust": partial(of_transfer, robust=True),
    "labels": of_labels,
}


def rows(task: Task, seed: int, methods: list[str]) -> dict[str, dict[str, float]]:
    """Return the scores of every method of one task."""
    reference, query = task.split()
    known, half = set(reference.obs["cell_type"]), half_of(query, seed)
    tables = [METHODS[name](reference, query, half, seed) for name in methods]
    return {name: scores(*said, known) for found in tables for name, said in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=[task.name for task in TASKS])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    for task in (task for task in TASKS if task.name in given.sets):
        tables = [pd.DataFrame(rows(task, seed, given.methods)).T for seed in range(given.seeds)]
        left_out = "" if task.type is None else f", without {task.type}"
        print(f"\n### {task.name}: {task.column} {task.batch}{left_out}\n")
        middle = pd.concat(tables).groupby(level=0, sort=False).median()
        print(middle.round(3).to_markdown(), flush=True)


if __name__ == "__main__":
    main()
