"""Droplets that hold two cells: told by how they lie among sums of two cells that were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.analysis.samples import csr
from scvae.arguments import check_name, check_seed, is_number, refuse
from scvae.data.hold.cells import Dataset
from scvae.errors import ConfigError, DataError
from scvae.models.model import Model

if TYPE_CHECKING:
    from anndata import AnnData

PER_CELL = 0.008 / 1_000  # doublets per cell recovered, of droplets of 10x Genomics' chemistries
MOST_EXPECTED = 0.4  # share of doublets
FEWEST_CELLS = 20  # of a batch in which pairs are drawn
NEAR = (10, 30, 100)  # neighbours of which shares are taken
COMPONENTS = 30  # of log counts, beside the embedding
FOLDS = 3  # a cell is scored by trees that did not see it


@dataclass(frozen=True)
class Doublets:
    """What `doublets` found; it prints itself.

    Attributes
    ----------
    table
        A row a cell: ``score`` (0 to 1, of being like the sum of two), ``is_doublet``.
    simulated
        Scores of the doublets that were made.
    expected_rate, threshold, false_positive_rate
        Share of doublets that is expected; score from which a cell is called; share of the single
        cells that is called, as estimated.
    detectable
        Share of the doublets that were made above the threshold: two cells of one kind look like
        one, and none can tell them.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import scvae
    >>> table = pd.DataFrame({"score": [0.1, 0.9], "is_doublet": [False, True]})
    >>> print(scvae.analysis.Doublets(table, np.array([0.8]), 0.08, 0.5, 0.01, 0.6))
    1 of 2 cells (50.0%) look like doublets; 8.0% are expected, of which 60% can be told.
    Called from a score of 0.50, where 1.0% of single cells are, as estimated. None is removed.
    """

    table: pd.DataFrame
    simulated: np.ndarray
    expected_rate: float
    threshold: float
    false_positive_rate: float
    detectable: float

    def __str__(self) -> str:
        n = int(self.table["is_doublet"].sum())
        return (
            f"{n} of {len(self.table)} cells ({n / len(self.table):.1%}) look like doublets; "
            f"{self.expected_rate:.1%} are expected, of which {self.detectable:.0%} can be told.\n"
            f"Called from a score of {self.threshold:.2f}, where "
            f"{self.false_positive_rate:.1%} of single cells are, as estimated. None is removed."
        )


def doublets(
    model: Model,
    adata: AnnData,
    *,
    expected_rate: float | None = None,
    false_positive_rate: float = 0.01,
    layer: str | None = None,
    key_added: str | None = None,
    seed: int = 0,
) -> Doublets:
    r"""Return a score of every cell of being two, and which are called so.

    As many doublets as there are cells are made: sums of the raw counts of two cells of a batch of
    the model. How many of a cell's neighbours were made (in the embedding, and in components of log
    counts), how deeply it was counted for its batch, and how many genes it expresses, is weighed by
    boosted trees that tell made from measured (after Germain et al., "Doublet identification in
    single-cell sequencing data using scDblFinder", F1000Research 2021), each cell by trees that did
    not see it. The threshold is the least at which

    .. math:: \frac{S_\mathrm{measured}(t) - r S_\mathrm{made}(t)}{1 - r}

    is at most `false_positive_rate`; S is the share of scores above t, r the expected rate.

    Parameters
    ----------
    model
        A fitted model.
    adata
        Cells with raw counts, none of them removed before for having many.
    expected_rate
        Share of doublets; None takes 0.8 % per 1,000 cells of a batch, as of droplets of 10x.
    false_positive_rate
        Share of single cells that may be called.
    layer
        Where the counts are; as for `Model.embed`.
    key_added
        Also write score and call to ``obs[key_added + "_score"]`` and ``obs[key_added]``.
    seed
        Of pairs, trees and components.

    Raises
    ------
    ConfigError
        If a rate is not between 0 and 1.
    DataError
        If no batch has 20 cells.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=300, n_genes=50)
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> scvae.analysis.doublets(model, adata).table.shape
    (300, 2)
    """
    key_added, seed = check_name("key_added", key_added, "doublet", or_none=True), check_seed(seed)
    allowed = _check_rate("false_positive_rate", false_positive_rate, 0.01)
    dataset, rng = model.read_rna(adata, layer), np.random.default_rng(seed)
    codes = dataset.batch.cpu().numpy()
    rate = (
        _usual_rate(codes)
        if expected_rate is None
        else _check_rate("expected_rate", expected_rate, 0.06)
    )
    pairs = _pairs(codes, rng)
    made = sums_of_two(dataset, pairs)
    scores = _scores(model, dataset, made, seed)
    measured, simulated = scores[: len(dataset)], scores[len(dataset) :]
    threshold, wrong = _threshold(measured, simulated, rate, allowed)
    called = measured >= threshold
    table = pd.DataFrame({"score": measured, "is_doublet": called}, index=adata.obs_names.copy())
    if key_added is not None:
        adata.obs[f"{key_added}_score"], adata.obs[key_added] = measured, called
    detectable = float((simulated >= threshold).mean())
    return Doublets(table, simulated, rate, threshold, wrong, detectable)


def _check_rate(name: str, value: float, remedy: float) -> float:
    if not is_number(value) or not 0 < float(value) < 1:
        raise refuse(name, value, "a share between 0 and 1", remedy)
    if name == "expected_rate" and float(value) > MOST_EXPECTED:
        raise ConfigError(
            f"expected_rate={value}, but with more than {MOST_EXPECTED:.0%} of doublets there are "
            "too few single cells to tell them by: expected_rate=0.06"
        )
    return float(value)


def _usual_rate(codes: np.ndarray) -> float:
    """Return the share of doublets of cells of batches ``(n,)``: the more cells, the more."""
    sizes = np.bincount(codes)
    return float(min(MOST_EXPECTED, PER_CELL * (sizes**2).sum() / sizes.sum()))


def _pairs(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return two different cells of one batch for each of n doublets, ``(n, 2)``."""
    found = []
    for code in np.unique(codes):
        own = np.flatnonzero(codes == code)
        if len(own) >= FEWEST_CELLS:
            first = rng.integers(len(own), size=len(own))
            apart = rng.integers(1, len(own), size=len(own))
            found.append(np.column_stack([own[first], own[(first + apart) % len(own)]]))
    if not found:
        raise DataError(f"No batch of adata has {FEWEST_CELLS} cells; pairs are drawn in a batch.")
    return np.concatenate(found)


def sums_of_two(dataset: Dataset, pairs: np.ndarray) -> Dataset:
    """Return doublets of the given cells ``(n, 2)``: counts and library sizes add."""
    counts, (one, other) = csr(dataset), pairs.T
    library = np.exp(dataset.log_library.double().cpu().numpy()[:, 0])
    design, codes = dataset.s.cpu().numpy()[one], dataset.batch.cpu().numpy()[one]
    summed = sparse.csr_matrix(counts[one] + counts[other])
    size = library[one] + library[other]
    return Dataset.build(summed, design, codes, size, dataset.device)


def _scores(model: Model, dataset: Dataset, made: Dataset, seed: int) -> np.ndarray:
    """Return the score of all cells and then of all doublets that were made, ``(n + m,)``.

    Each by trees that were grown without it, on rows in random order: cells of a kind lie together.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    is_made = np.arange(len(dataset) + len(made)) >= len(dataset)
    trees = HistGradientBoostingClassifier(max_depth=3, max_iter=60, random_state=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    features = _features(model, dataset, made, is_made, seed)
    predicted = cross_val_predict(trees, features, is_made, cv=folds, method="predict_proba")
    return np.asarray(predicted)[:, 1]


def _features(
    model: Model, dataset: Dataset, made: Dataset, is_made: np.ndarray, seed: int
) -> np.ndarray:
    """Return shares of made neighbours, in the embedding and in components of counts, and size."""
    from sklearn.decomposition import TruncatedSVD

    counts = sparse.vstack([csr(dataset), csr(made)], format="csr")
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    logs = sparse.diags_array(1e4 / totals) @ counts
    n_components = min(COMPONENTS, counts.shape[1] - 1)
    components = TruncatedSVD(n_components, random_state=seed).fit_transform(logs.log1p())
    embedded = np.concatenate([model.embed_dataset(dataset), model.embed_dataset(made)])
    n_expressed = np.log(np.maximum(np.diff(counts.indptr), 1))
    shares = [_made_nearby(x, is_made) for x in (embedded, components)]
    return np.column_stack([*shares, _relative_size(dataset, made), n_expressed])


def _made_nearby(x: np.ndarray, is_made: np.ndarray) -> np.ndarray:
    """Return which share of the nearest neighbours was made, for several numbers of them."""
    from sklearn.neighbors import NearestNeighbors

    most = min(max(NEAR), len(x) - 1)
    near = NearestNeighbors(n_neighbors=most).fit(x).kneighbors(return_distance=False)
    cumulative = np.cumsum(is_made[near], axis=1)
    return np.column_stack([cumulative[:, min(k, most) - 1] / min(k, most) for k in NEAR])


def _relative_size(dataset: Dataset, made: Dataset) -> np.ndarray:
    """Return the log library size less its median over the measured cells of the batch."""
    size = [part.log_library.cpu().numpy()[:, 0] for part in (dataset, made)]
    codes = [part.batch.cpu().numpy() for part in (dataset, made)]
    middle = pd.Series(size[0]).groupby(codes[0]).median()
    relative: np.ndarray = np.concatenate(size) - middle.loc[np.concatenate(codes)].to_numpy()
    return relative


def _threshold(
    measured: np.ndarray, made: np.ndarray, rate: float, allowed: float
) -> tuple[float, float]:
    """Return the least score at which few enough single cells are called, and their share."""
    above = np.unique(measured)
    share = 1 - np.searchsorted(np.sort(measured), above) / len(measured)
    of_made = 1 - np.searchsorted(np.sort(made), above) / len(made)
    wrong = np.maximum(share - rate * of_made, 0) / (1 - rate)
    too_many = np.flatnonzero(wrong > allowed)
    first = too_many[-1] + 1 if len(too_many) else 0
    if first == len(above):
        return float(np.nextafter(above[-1], np.inf)), 0.0
    return float(above[first]), float(wrong[first])
