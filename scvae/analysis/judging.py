"""Two numbers for an embedding, biology and mixing, from metrics averaged over their own noise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from scvae.errors import DataError

RESOLUTIONS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
SEEDS = 5
MOST_CELLS, MOST_OF_SILHOUETTE = 5_000, 3_000
PERPLEXITY, NEAREST = 30, 90
FEWEST_OF_BATCH, FEWEST_OF_TYPE = 5, 40
NEIGHBOURS = 30  # of which a share is kept


def judge(x: np.ndarray, types: np.ndarray, batches: np.ndarray | None = None) -> dict[str, float]:
    r"""Return how well an embedding keeps types together, and mixes the batches within them.

    *Biology* is the mean of five scores: NMI and ARI of k-means (ten starts) and of Leiden (best of
    eight resolutions by NMI) against the types, each a mean over five seeds, and the silhouette by
    type, :math:`(s + 1) / 2`. *Mixing* is CiLISI (Andreatta et al., "Semi-supervised integration of
    single-cell transcriptomics data", Nature Communications 2024): the LISI of the batches within
    every type (Korsunsky et al., "Fast, sensitive and accurate integration of single-cell data with
    Harmony", Nature Methods 2019), scaled so that 1 is what the type's own composition allows.

    On one and the same embedding, Leiden at one seed moves its ARI by up to 0.3: believe nothing
    below the spread over seeds.

    Parameters
    ----------
    x
        The embedding, ``(n, d)``; of more than 5,000 cells, so many are taken at random.
    types
        Type of every cell, ``(n,)``, at least two.
    batches
        Batch of every cell, ``(n,)``; None leaves mixing out.

    Returns
    -------
    dict
        ``k-means NMI``, ``k-means ARI``, ``Leiden NMI``, ``Leiden ARI``, ``silhouette``, and their
        mean ``biology``; ``mixing``, NaN if no type of 40 cells is in two batches.

    Raises
    ------
    DataError
        If the lengths differ, or there are fewer than two types, or as many as cells.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> scores = scvae.analysis.judge(adata.obsm["z"], adata.obs["cell_type"], adata.obs["batch"])
    >>> 0 < scores["biology"] <= 1
    True
    """
    x, types = np.asarray(x, dtype=np.float64), np.asarray(types).astype(str)
    batches = None if batches is None else np.asarray(batches).astype(str)
    _check(x, types, batches)
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:MOST_CELLS])
    scores = biology(x[chosen], types[chosen])
    if batches is not None:
        scores["mixing"] = mixing(x[chosen], types[chosen], batches[chosen])
    return scores


def _check(x: np.ndarray, types: np.ndarray, batches: np.ndarray | None) -> None:
    lengths = {len(values) for values in (x, types, batches) if values is not None}
    if len(lengths) > 1:
        raise DataError(f"x, types and batches have {sorted(lengths)} rows; give one a cell.")
    n_types = len(np.unique(types))
    if not 2 <= n_types < len(x):
        raise DataError(
            f"types holds {n_types} types of {len(x)} cells; an embedding can be judged by two or "
            "more types, of more than one cell."
        )


# -- biology -------------------------------------------------------------------------------------


def biology(x: np.ndarray, types: np.ndarray) -> dict[str, float]:
    """Return the five scores of cell types, and their mean."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    n_types, graph = len(np.unique(types)), _graph(x)
    by_kmeans, by_leiden = [], []
    for seed in range(SEEDS):
        clusters = KMeans(n_types, n_init=10, random_state=seed).fit_predict(x)
        by_kmeans.append(agreement(types, clusters))
        found = [agreement(types, _communities(graph, r, seed)) for r in RESOLUTIONS]
        by_leiden.append(max(found))
    names = ("k-means NMI", "k-means ARI", "Leiden NMI", "Leiden ARI")
    means = np.hstack([np.mean(by_kmeans, axis=0), np.mean(by_leiden, axis=0)])
    scores = dict(zip(names, map(float, means), strict=True))
    chosen = np.random.default_rng(0).permutation(len(x))[:MOST_OF_SILHOUETTE]
    scores["silhouette"] = (float(silhouette_score(x[chosen], types[chosen])) + 1) / 2
    scores["biology"] = float(np.mean(list(scores.values())))
    return scores


def agreement(types: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Return NMI and ARI of two partitions."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return normalized_mutual_info_score(types, clusters), adjusted_rand_score(types, clusters)


def leiden(x: np.ndarray, resolution: float, seed: int) -> np.ndarray:
    """Return Leiden clusters of the graph of 15 nearest neighbours, ``(n,)``."""
    return _communities(_graph(x), resolution, seed)


def _graph(x: np.ndarray, n_neighbors: int = 15) -> Any:
    import igraph

    near = nearest(x, min(n_neighbors, len(x) - 1))
    pairs = np.stack([np.repeat(np.arange(len(x)), near.shape[1]), near.ravel()], axis=1)
    return igraph.Graph(n=len(x), edges=pairs).simplify()


def _communities(graph: Any, resolution: float, seed: int) -> np.ndarray:
    with igraph_draws(seed):
        found = graph.community_leiden("modularity", resolution=resolution, n_iterations=4)
    return np.array(found.membership)


@contextmanager
def igraph_draws(seed: int) -> Iterator[None]:
    """Let igraph draw from a generator of this seed, and from Python's own again after it."""
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


# -- mixing --------------------------------------------------------------------------------------


def mixing(x: np.ndarray, types: np.ndarray, batches: np.ndarray) -> float:
    """Return CiLISI, from 0 (batches lie apart within types) to 1."""
    values, weights = [], []
    for kind in np.unique(types):
        rows = np.flatnonzero(types == kind)
        names, codes, sizes = np.unique(batches[rows], return_inverse=True, return_counts=True)
        sizes = sizes[sizes >= FEWEST_OF_BATCH]
        if len(sizes) < 2 or len(rows) < FEWEST_OF_TYPE:
            continue
        best = 1 / np.square(sizes / sizes.sum()).sum()
        found = _lisi(x[rows], codes, len(names)).mean()
        values.append(np.clip((found - 1) / (best - 1), 0, 1.1))
        weights.append(len(rows))
    return float(np.average(values, weights=weights)) if values else float("nan")


def _lisi(x: np.ndarray, codes: np.ndarray, n_codes: int) -> np.ndarray:
    """Return the inverse Simpson index of the codes around every row (Korsunsky et al., 2019)."""
    from sklearn.neighbors import NearestNeighbors

    k = min(NEAREST, len(x) - 1)
    distance, near = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    scale = np.square(distance[:, min(PERPLEXITY, k) - 1 : min(PERPLEXITY, k)])
    weights = _perplexed(np.square(distance) / (scale + 1e-12), min(PERPLEXITY, k / 3))
    shares = np.stack([(weights * (codes[near] == code)).sum(1) for code in range(n_codes)])
    return 1 / np.square(shares).sum(0)


def _perplexed(squared: np.ndarray, perplexity: float) -> np.ndarray:
    """Return weights exp(-beta d^2) of every row, of this perplexity, by bisection."""
    low, high = np.zeros(len(squared)), np.full(len(squared), 1e4)
    for _ in range(60):
        beta = np.sqrt(np.maximum(low, 1e-4) * high)[:, None]
        weights = np.exp(-beta * squared)
        weights /= weights.sum(1, keepdims=True)
        entropy = -(weights * np.log(weights + 1e-300)).sum(1)
        too_wide = entropy > np.log(perplexity)
        low, high = np.where(too_wide, beta[:, 0], low), np.where(too_wide, high, beta[:, 0])
    return weights


# -- neighbours ----------------------------------------------------------------------------------


def nearest(x: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest other rows of every row, ``(n, k)``."""
    from sklearn.neighbors import NearestNeighbors

    found: np.ndarray = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    return found


def kept(before: np.ndarray, after: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Return the share of the k nearest neighbours in one embedding that are so in another."""
    pairs = zip(nearest(before, k), nearest(after, k), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs]))
