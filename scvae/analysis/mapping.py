"""Whether a query lies as near to a reference as the reference's own samples lie to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.analysis.remoteness import (
    FEWEST,
    FEWEST_SAMPLES,
    Beside,
    Remoteness,
    compare_values,
    remoteness,
)
from scvae.arguments import check_name, check_seed, check_share, shown
from scvae.data.read.covariates import column as column_of
from scvae.data.read.covariates import names_of_cells
from scvae.data.read.forms import check_anndata
from scvae.data.read.labels import labels_of
from scvae.errors import ConfigError, DataError
from scvae.models.embedding import Embedding
from scvae.models.label.predict import FALSE_ALARMS, demand_reference
from scvae.models.model import Model

if TYPE_CHECKING:
    from anndata import AnnData

MOST_CELLS = 1_000  # of a sample
MOST_NEIGHBOURHOODS = 20
ALL = "all"
QUERY = "query"


@dataclass(frozen=True)
class MappingCheck:
    """What `mapping_check` found; it prints itself.

    Attributes
    ----------
    table
        A row a sample of the query and neighbourhood, after one of "all" neighbourhoods together:
        ``sample``, ``neighbourhood``, ``n_cells``, ``n_samples`` of the reference that are there,
        ``ratio`` of its distance to theirs, ``limit``, the ratio above which it is called far,
        ``p`` of the ratio, ``is_far``, and ``far``, the share of its cells that are farther than
        95 % of the reference's. Ratio, limit and p are NaN where fewer than ten cells are, or
        fewer than three samples of the reference.
    own
        The ``ratio`` of the samples of the reference, with ``neighbourhood`` and ``beside``, the
        sample of the query that was asked about.
    false_alarms
        Share of samples like those of the reference that is called far.

    Examples
    --------
    >>> import pandas as pd
    >>> import scvae
    >>> row = {"sample": "d9", "n_cells": 80, "n_samples": 4, "ratio": 1.1, "limit": 1.5, "p": 0.2}
    >>> row |= {"neighbourhood": "all", "is_far": False, "far": 0.06}
    >>> rows = pd.DataFrame([row, row | {"neighbourhood": "T cells"}])
    >>> print(scvae.analysis.MappingCheck(rows, rows[["neighbourhood", "ratio"]], 0.05))
    d9 (80 cells): not found farther than the reference's own 4 samples are from each other: 1.10
    times their distance, p = 0.2, where less than 1.50 times could not be told; far in 0 of 1
    neighbourhoods, of which 0.1 are by chance; 6% of its cells are farther than 95 % of theirs.
    """

    table: pd.DataFrame
    own: pd.DataFrame
    false_alarms: float

    def __str__(self) -> str:
        samples = self.table.groupby("sample", sort=False, observed=True)
        return "\n".join(_sentence(rows, self.false_alarms) for _, rows in samples)


def _sentence(rows: pd.DataFrame, false_alarms: float) -> str:
    """Return what is to be said of one sample."""
    whole, tested = rows.iloc[0], rows.iloc[1:].dropna(subset="p")
    start = f"{whole['sample']} ({whole['n_cells']:,} cells)"
    if not len(tested):
        return (
            f"{start}: cannot be judged, as in no neighbourhood it has {FEWEST} cells beside "
            f"{FEWEST_SAMPLES} samples of the reference with as many."
        )
    how = "farther than" if whole["is_far"] else "not found farther than"
    n_far, expected = int(tested["is_far"].sum()), false_alarms * len(tested)
    return (
        f"{start}: {how} the reference's own {whole['n_samples']} samples are from each other: "
        f"{whole['ratio']:.2f} times their distance, p = {whole['p']:.2g}, where less than "
        f"{whole['limit']:.2f} times could not be told; far in {n_far} of {len(tested)} "
        f"neighbourhoods, of which {expected:.1f} are by chance; {whole['far']:.0%} of its cells "
        "are farther than 95 % of theirs."
    )


def mapping_check(
    model: Model,
    query: AnnData,
    reference: AnnData | None = None,
    *,
    sample: str | None = None,
    labels: str | None = None,
    batch: str | None = None,
    layer: str | None = None,
    false_alarms: float = FALSE_ALARMS,
    seed: int = 0,
) -> MappingCheck:
    """Return whether a query lies farther from the reference than its samples from each other.

    Each sample of the query is asked, in each neighbourhood of the embedding and in all together,
    how far its cells are from the nearest cells of the reference, as each sample of the reference
    is with itself left out (as mapQC of Sikkema et al., 2025, asks; for the test see
    `scvae.analysis.remoteness`). Types that the reference lacks lie far, and so
    does a batch effect that the mapping did not take out. Cells are embedded without the alignment,
    which batches of the reference have and new ones do not. What lies no farther may still be
    another type: that distances are usual is all that is said.

    Parameters
    ----------
    model
        A fitted model; of a batch of the query, `Model.extend` lets it learn that first.
    query
        Cells with raw counts of the model's genes, or some of them.
    reference
        The cells that are mapped onto; None takes those that the model was saved with.
    sample
        Column of both with the sample, such as the donor: what the reference has three of at
        least, each of which might have been left out. None takes the model's batch. A query
        without the column is one sample.
    labels
        Column of reference.obs that neighbourhoods are named by; None takes none, or the labels
        that the model was saved with.
    batch
        As for `Model.embed`: "new" or "closest" for batches that the model has not seen.
    layer
        Where the counts of both are; as for `Model.embed`.
    false_alarms
        Share of samples like those of the reference that may be called far.
    seed
        Of the neighbourhoods, and of the 1,000 cells that are taken of larger samples.

    Raises
    ------
    DataError
        If the reference has fewer than three samples of ten cells, or the query no cells.
    ConfigError
        If there is neither a reference nor one that the model carries.

    Examples
    --------
    >>> import numpy as np
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=600, n_genes=50)
    >>> adata.obs["donor"] = np.arange(600) % 6
    >>> reference, query = (adata[adata.obs["donor"].isin(d)] for d in ([0, 1, 2, 3], [4, 5]))
    >>> model = scvae.fit(reference.copy(), batch="donor", max_steps=50, progress=False)
    >>> found = scvae.analysis.mapping_check(model, query, reference, batch="new")
    >>> found.table["sample"].unique().tolist()
    ['4', '5']
    """
    false_alarms = check_share("false_alarms", false_alarms, FALSE_ALARMS)
    draw = np.random.default_rng(check_seed(seed))
    column = check_name("sample", sample, "donor", or_none=True) or model.origin.covariates.batch
    check_anndata(query)
    model = _without_alignment(model)
    cells = _cells_of(model, reference, column, labels, layer)
    some = _some_of_each(cells.sample, draw)
    cells = Cells(cells.x[some], cells.sample[some], cells.name[some])
    _check_samples(cells.sample, column)
    samples, codes = np.unique(cells.sample, return_inverse=True)
    x, own = model.embed(query, batch=batch, layer=layer), _samples_of(query.obs, column)
    if not len(x):
        raise DataError("query has no cells; mapping_check needs ten of a sample.")
    asked = {name: draw.permutation(np.flatnonzero(own == name)) for name in dict.fromkeys(own)}
    taken = {name: x[rows[:MOST_CELLS]] for name, rows in asked.items()}
    further = np.concatenate([*taken.values()])
    n = max(1, min(MOST_NEIGHBOURHOODS, len(some) // (FEWEST * len(samples))))
    known = remoteness(cells.x, codes, len(samples), further, n, int(seed))
    names = _names(cells.name, known)
    tables = [
        _rows(name, len(asked[name]), known.beside(part), names, samples, false_alarms)
        for name, part in taken.items()
    ]
    table, of_reference = (
        pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True)
    )
    return MappingCheck(table, of_reference, false_alarms)


def _without_alignment(model: Model) -> Model:
    """Return the model as it embeds before batches are aligned, which those of the reference are
    and a new one is not: beside them it would lie far for that alone."""
    bare, known = Embedding(model.embedding.coordinates), model.reference
    return Model(model.vae, bare, model.architecture, model.origin, model.record, known)


# -- the reference ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Cells of a reference: embedding ``(n, d)``, sample and label (or "") of every one."""

    x: np.ndarray
    sample: np.ndarray
    name: np.ndarray


def _cells_of(
    model: Model, adata: AnnData | None, column: str | None, labels: str | None, layer: str | None
) -> Cells:
    """Return the cells of a reference that was given, or that the model carries."""
    if column is None:
        raise ConfigError(
            "The model has no batches, so that `sample` must say what the samples are: "
            "scvae.analysis.mapping_check(model, query, reference, sample='donor')"
        )
    if adata is None:
        return _carried(model, column, labels)
    check_anndata(adata)
    sample = column_of(adata.obs, column, "sample")
    name = np.full(adata.n_obs, "", dtype=object)
    if labels is not None:
        found = labels_of(adata.obs, check_name("labels", labels, "cell_type"))
        there = found.codes >= 0
        name[there] = np.array(found.names, dtype=object)[found.codes[there]]
    return Cells(model.embed(adata, layer=layer), names_of_cells(sample).to_numpy(), name)


def _carried(model: Model, column: str, labels: str | None) -> Cells:
    """Return the cells that the model was saved with, by their batches."""
    known = demand_reference(model.reference)
    if column != model.origin.covariates.batch or labels not in (None, known.column):
        raise ConfigError(
            f"sample={shown(column)}, labels={shown(labels)}, but of the cells that the model was "
            f"saved with {model.origin.covariates.batch!r} and {known.column!r} are known alone: "
            "give the reference, scvae.analysis.mapping_check(model, query, reference, ...)"
        )
    loc, batch = known.loc.to(model.device), known.batch.to(model.device)
    x = model.embedding.mean(model.views, loc, batch).cpu().numpy()
    label = np.array([*known.names, ""], dtype=object)  # -1 is the last
    sample = np.array(model.batches, dtype=object)[known.batch.numpy()]
    return Cells(x, sample, label[known.label.numpy()])


def _some_of_each(sample: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return rows of at most a thousand cells of each sample with ten, in random order."""
    order = draw.permutation(len(sample))
    place = pd.Series(sample[order]).groupby(sample[order]).cumcount().to_numpy()
    sizes = pd.Series(sample).map(pd.Series(sample).value_counts()).to_numpy()
    kept: np.ndarray = order[(place < MOST_CELLS) & (sizes[order] >= FEWEST)]
    return kept


def _check_samples(sample: np.ndarray, column: str | None) -> None:
    found = sorted(set(sample))
    if len(found) < FEWEST_SAMPLES:
        raise DataError(
            f"The reference has {len(found)} samples of {FEWEST} cells in {column!r} "
            f"({found[:3]}); how far samples are from each other takes {FEWEST_SAMPLES}. Give the "
            "column of a finer division, if there is one: sample='donor'"
        )


def _names(name: np.ndarray, known: Remoteness) -> list[str]:
    """Return the name of every neighbourhood: its number, and the label of most of its cells."""
    found = []
    for k in range(len(known.centre)):
        own = pd.Series(name[known.neighbourhood == k])
        own = own[own != ""]
        found.append(f"{k}: {own.mode()[0]}" if len(own) else str(k))
    return found


# -- the query -------------------------------------------------------------------------------------


def _samples_of(obs: pd.DataFrame, column: str | None) -> np.ndarray:
    """Return the sample of every cell of the query."""
    if column is None or column not in obs:
        return np.full(len(obs), QUERY, dtype=object)
    return names_of_cells(column_of(obs, column, "sample")).to_numpy()


def _rows(
    sample: str,
    n_cells: int,
    beside: Beside,
    names: list[str],
    samples: np.ndarray,
    false_alarms: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of one sample, and those of the samples of the reference beside it."""
    value, own = beside.values()
    counts, far = beside.counts(), beside.far()
    rows, others = [], []
    for k, name in [(slice(None), ALL), *((slice(k, k + 1), name) for k, name in enumerate(names))]:
        found = compare_values(value[k], own[:, k], counts[k], false_alarms)
        here = np.isin(beside.neighbourhood, np.arange(len(names))[k])
        rows.append(
            {
                "sample": sample,
                "neighbourhood": name,
                "n_cells": n_cells if name == ALL else int(counts[k].sum()),
                "n_samples": int(np.isfinite(own[:, k]).any(1).sum()),
                "ratio": found.ratio,
                "limit": found.limit,
                "p": found.p,
                "is_far": bool(found.p < false_alarms),
                "far": float(far[here].mean()) if here.any() else np.nan,
            }
        )
        others.append(
            pd.DataFrame(
                {
                    "sample": samples,
                    "neighbourhood": name,
                    "ratio": found.own,
                    "beside": sample,
                }
            )
        )
    return pd.DataFrame(rows), pd.concat(others, ignore_index=True)
