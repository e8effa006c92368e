"""What a report tells: everything measured, on copies, before a word is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.analysis.baselines import harmonise, has_harmony, principal_components
from scvae.analysis.judging import MOST_CELLS, judge, mixing
from scvae.analysis.neighbours import lay_out, neighbors
from scvae.analysis.null_batch import FEWEST_CELLS, NullBatch, largest_batch, null_batch
from scvae.analysis.samples import csr
from scvae.choices import RESOLUTION
from scvae.data.checkup.report import Finding, Kind
from scvae.data.read.source import home_in
from scvae.models.check import check
from scvae.models.judge.evidence import MeanLogLikelihood
from scvae.models.judge.recall import held_out_rows
from scvae.models.query import some_rows
from scvae.plot.cells import categorical
from scvae.plot.fits import CHECKED, agreement

if TYPE_CHECKING:
    from anndata import AnnData

    from scvae.models.model import Model

OWN, PCA, HARMONY = "scvae", "PCA", "Harmony"
MOST_OF_LIKELIHOOD = 1_000  # cells
MOST_OF_NULL = 5_000  # cells for which three fits are made without being asked for
STAGES = ("check-up", "likelihood", "predictions", "embeddings", "layouts", "scores", "null batch")
NO_HARMONY = "Harmony is not shown: harmonypy is not installed (pip install harmonypy)."

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the user asked for."""

    labels: str | None
    layer: str | None
    null_batch: bool | None
    max_cells: int
    seed: int


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of cells that were held out, and of as many that were trained on.

    Attributes
    ----------
    is_held_out
        Whether `value` is of the cells that the fit held out; else it is of cells of `adata`, and
        nobody knows which of them the fit saw.
    value, of_training
        Means over cells, with errors; None where it is unknown which cells were trained on.
    """

    is_held_out: bool
    value: MeanLogLikelihood
    of_training: MeanLogLikelihood | None


@dataclass(frozen=True)
class Measured:
    """Everything that a report tells of cells.

    Attributes
    ----------
    n_cells, n_drawn
        Cells of the data, and how many of them pictures and scores are of.
    findings
        Of `scvae.check`, without those about a fit that is over.
    likelihood
        Of held-out cells.
    predictive, n_predicted
        Table of `Model.predictive_check`, and of how many cells it is.
    layouts
        UMAP of every embedding, ``(n, 2)``, by its name.
    batches, labels, clusters
        Of the cells drawn; None where there are none.
    scores
        Scores of every embedding, by its name; empty where nothing can be scored.
    null
        Outcome of the null-batch test, or why there is none.
    notes
        What is missing, and why.
    """

    n_cells: int
    n_drawn: int
    findings: tuple[Finding, ...]
    likelihood: Likelihood
    predictive: pd.DataFrame
    n_predicted: int
    layouts: dict[str, np.ndarray]
    batches: pd.Series | None
    labels: pd.Series | None
    clusters: pd.Series
    scores: dict[str, dict[str, float]]
    null: NullBatch | str
    notes: list[str]


def measure(model: Model, adata: AnnData, asked: Asked, tell: Tell) -> Measured:
    """Return everything that a report tells; `tell` is told of every stage of `STAGES`."""
    tell(STAGES[0])
    findings = _check_up(model, adata, asked)
    tell(STAGES[1])
    held_out = held_out_rows(model, model.record, adata, layer=asked.layer)
    likelihood = _likelihood(model, adata, asked, held_out)
    tell(STAGES[2])
    judged = adata if held_out is None else adata[np.sort(held_out)]
    predictive = model.predictive_check(
        judged, layer=asked.layer, max_cells=asked.max_cells, seed=asked.seed
    )
    tell(STAGES[3])
    drawn = adata[some_rows(np.arange(adata.n_obs), asked.max_cells, asked.seed)]
    labels = None if asked.labels is None else _named(drawn.obs[asked.labels])
    batches = _batches(model, drawn)
    notes: list[str] = []
    embeddings = _embeddings(model, drawn, batches, asked, notes)
    tell(STAGES[4])
    layouts, clusters = _layouts(embeddings, asked.seed)
    tell(STAGES[5])
    scores = _scores(embeddings, labels, batches, notes)
    tell(STAGES[6])
    return Measured(
        adata.n_obs,
        drawn.n_obs,
        findings,
        likelihood,
        predictive,
        min(judged.n_obs, asked.max_cells),
        layouts,
        batches,
        labels,
        clusters,
        scores,
        _null(model, adata, asked),
        notes,
    )


def agreements(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return correlation and median ratio of a predictive check, by what they are of."""
    found = {}
    for name, label, is_log in CHECKED:
        observed, predicted = (table[f"{which}_{name}"] for which in ("observed", "predicted"))
        above = (observed > 0) & (predicted > 0)
        found[label] = agreement(observed[above].to_numpy(), predicted[above].to_numpy(), is_log)
    return found


# -- data and fit --------------------------------------------------------------------------------


def _check_up(model: Model, adata: AnnData, asked: Asked) -> tuple[Finding, ...]:
    origin = model.origin
    home = home_in(adata, origin.layer)
    found = check(
        adata,
        batch=origin.covariates.batch,
        covariates=origin.covariates.others,
        layer=home if asked.layer is None else asked.layer,
        genes=None if origin.genes == list(adata.var_names) else origin.genes,
        library_size=origin.library_size,
        counts=origin.counts,
        label=asked.labels,
    )
    return tuple(finding for finding in found.findings if finding.what is not Kind.TRAINING)


def _likelihood(
    model: Model, adata: AnnData, asked: Asked, held_out: np.ndarray | None
) -> Likelihood:
    def mean(rows: np.ndarray) -> MeanLogLikelihood:
        some = adata[some_rows(rows, MOST_OF_LIKELIHOOD, asked.seed)]
        return model.mean_log_likelihood(some, layer=asked.layer, seed=asked.seed)

    every = np.arange(adata.n_obs)
    if held_out is None:
        return Likelihood(False, mean(every), None)
    value = mean(held_out)
    trained = some_rows(np.setdiff1d(every, held_out), value.n_cells, asked.seed)
    return Likelihood(True, value, mean(trained))


# -- embeddings ----------------------------------------------------------------------------------


def _batches(model: Model, adata: AnnData) -> pd.Series | None:
    """Return the batch of every cell, if there are several in the data."""
    name = model.origin.covariates.batch
    several = name is not None and adata.obs[name].nunique() > 1
    return _named(adata.obs[name]) if several else None


def _named(values: pd.Series) -> pd.Series:
    """Return numbers, truth values and names alike as categories, of which one has a colour."""
    return pd.Series(categorical(values), index=values.index, name=values.name)


def _embeddings(
    model: Model, adata: AnnData, batches: pd.Series | None, asked: Asked, notes: list[str]
) -> dict[str, np.ndarray]:
    dataset = model.read_rna(adata, asked.layer)
    found = {OWN: model.embed_dataset(dataset)}
    found[PCA] = principal_components(csr(dataset), asked.seed)
    if batches is None:
        notes.append("There are no batches to correct for, so Harmony and mixing are left out.")
    elif has_harmony():
        found[HARMONY] = harmonise(found[PCA], batches.to_numpy(), asked.seed)
    else:
        notes.append(NO_HARMONY)
    return found


def _layouts(
    embeddings: dict[str, np.ndarray], seed: int
) -> tuple[dict[str, np.ndarray], pd.Series]:
    """Return the UMAP of every embedding, and the Leiden clusters of the model's own."""
    import scanpy as sc
    from anndata import AnnData

    names = pd.DataFrame(index=[str(i) for i in range(len(embeddings[OWN]))])
    layouts = {}
    for name, x in embeddings.items():
        graph = lay_out(neighbors(AnnData(obs=names, obsm={name: x}), name, seed=seed), seed=seed)
        layouts[name] = np.asarray(graph.obsm["X_umap"])
        if name == OWN:
            options = {"flavor": "igraph", "n_iterations": 2, "directed": False}
            sc.tl.leiden(graph, resolution=RESOLUTION, random_state=seed, **options)
            clusters = graph.obs["leiden"]
    return layouts, clusters


def _scores(
    embeddings: dict[str, np.ndarray],
    labels: pd.Series | None,
    batches: pd.Series | None,
    notes: list[str],
) -> dict[str, dict[str, float]]:
    """Return the scores of every embedding; without labels of mixing alone, over all cells."""
    known = np.ones(len(embeddings[OWN]), bool) if labels is None else labels.notna().to_numpy()
    homes = None if batches is None else batches.astype(str).to_numpy()[known]
    types = None if labels is None else labels.astype(str).to_numpy()[known]
    if types is not None and not 2 <= len(np.unique(types)) < len(types):
        notes.append("The labels name fewer than two types, or every cell: no score of biology.")
        types = None
    elif labels is None:
        notes.append("No labels were given, so there is no score of biology (labels='cell_type').")
    if types is not None:
        return {name: judge(x[known], types, homes) for name, x in embeddings.items()}
    if homes is None:
        return {}
    notes.append(
        "Without types, mixing is that of all cells together: batches that hold other types, or "
        "other shares of them, are then mixed less, and rightly so."
    )
    rows = some_rows(np.arange(len(homes)), MOST_CELLS, 0)
    one = np.zeros(len(rows), dtype=int)
    return {
        name: {"mixing": mixing(x[known][rows].astype(np.float64), one, homes[rows])}
        for name, x in embeddings.items()
    }


# -- the null-batch test -------------------------------------------------------------------------


def _null(model: Model, adata: AnnData, asked: Asked) -> NullBatch | str:
    if asked.null_batch is False:
        return "It was not run: null_batch=False."
    if asked.null_batch is None and adata.n_obs > MOST_OF_NULL:
        return (
            f"It was not run, as it fits three models and these are {adata.n_obs:,} cells, more "
            f"than {MOST_OF_NULL:,}. To run it: scvae.report(model, adata, null_batch=True), or "
            "scvae report --null-batch"
        )
    size = len(largest_batch(model, adata.obs))
    if size < FEWEST_CELLS:
        return f"It was not run: the largest batch has {size} cells, and it takes {FEWEST_CELLS}."
    return null_batch(
        model,
        adata,
        layer=asked.layer,
        max_cells=max(asked.max_cells, FEWEST_CELLS),
        seed=asked.seed,
    )
