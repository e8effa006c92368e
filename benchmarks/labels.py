"""What labels do to cells whose own were hidden: `python benchmarks/labels.py`.

Of every set half of the labels are hidden, of cells drawn at random, and a tenth of the others is
made wrong where asked. Prints, for fits without labels, with the half, and with its wrong tenth,
how the hidden cells lie (biology and mixing of `scvae.analysis.judge`), and how many of them, and
of those whose label was wrong, `predict` names rightly: by the labels that the fit had, or that its
file was given afterwards.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mapping import UNLABELLED
from sets import batch_column, load

import scvae
from scvae.analysis import judge
from scvae.models.label.reference import make_reference

HIDDEN, WRONG = 0.5, 0.1
SETS = ("worm_embryo_sub", "baron_human1", "pbmc_facs", "kang_ifnb", "pbmc_6batch")


def prepared(name: str, seed: int) -> tuple[AnnData, np.ndarray, np.ndarray]:
    """Return the cells of a set, which labels are hidden, and which are wrong where they are."""
    adata = load(name)
    adata.obs["truth"] = adata.obs["cell_type"].astype(str)
    adata = adata[~adata.obs["truth"].isin(UNLABELLED)].copy()
    draw = np.random.default_rng(seed)
    hidden = draw.random(adata.n_obs) < HIDDEN
    left = adata.obs["truth"][~hidden].value_counts()
    hidden |= ~adata.obs["truth"].isin(left.index[left > 1]).to_numpy()  # of one none is learned
    wrong = (draw.random(adata.n_obs) < WRONG) & ~hidden
    adata.obs["labels"] = adata.obs["truth"].where(~hidden)
    names = adata.obs["truth"].unique()
    said = np.where(wrong, draw.choice(names, adata.n_obs), adata.obs["truth"])
    adata.obs["some wrong"] = pd.Series(said, adata.obs_names).where(~hidden)
    return adata, hidden, wrong & (said != adata.obs["truth"])


def rows(name: str, seed: int) -> dict[str, dict[str, float]]:
    """Return the scores of every fit of one set."""
    adata, hidden, wrong = prepared(name, seed)
    batch, truth, found = batch_column(adata), adata.obs["truth"].to_numpy(), {}
    batches = None if batch is None else adata.obs[batch].to_numpy()[hidden]
    for fitted in (None, "labels", "some wrong"):
        options: dict[str, Any] = {"labels": fitted, "seed": seed, "progress": False}
        model = scvae.fit(adata, batch=batch, **options)
        judged = judge(adata.obsm["X_scvae"][hidden], truth[hidden], batches)
        scores = {key: judged[key] for key in ("biology", "mixing") if key in judged}
        for column in ("labels", "some wrong") if fitted is None else (fitted,):
            if fitted is None:
                model.reference = make_reference(model, adata, column, call="")
            right = model.predict(adata)["label"].astype(str).to_numpy() == truth
            scores["hidden, by " + column] = right[hidden].mean()
            if column == "some wrong":
                scores["those wrong"] = right[wrong].mean()
        found[fitted or "without"] = scores
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=SETS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in given.sets:
        tables = [pd.DataFrame(rows(name, seed)).T for seed in range(given.seeds)]
        middle = pd.concat(tables).groupby(level=0, sort=False).median()
        print(f"\n### {name}\n\n{middle.round(3).to_markdown()}", flush=True)


if __name__ == "__main__":
    main()
