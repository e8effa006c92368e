"""Two numbers for an embedding, biology and mixing, from metrics averaged over their own noise.

Biology is the mean of NMI and ARI of k-means (ten starts) and of Leiden (best of eight resolutions
by NMI), each over several seeds, and of the silhouette by type. Mixing is CiLISI: the LISI of the
batches within every type, scaled so that 1 is what the type's own composition allows (Andreatta et
al., Nature Communications 2024). On one and the same embedding, Leiden at one seed moves its ARI by
up to 0.3: believe nothing below the spread.
"""

from __future__ import annotations

import random

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

RESOLUTIONS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
SEEDS = 5
MOST_CELLS = 5_000
PERPLEXITY, NEAREST = 30, 90
FEWEST_OF_BATCH, FEWEST_OF_TYPE = 5, 40


def leiden(x: np.ndarray, resolution: float, seed: int, n_neighbors: int = 15) -> np.ndarray:
    """Return Leiden clusters of the graph of nearest neighbours."""
    return _communities(_graph(x, n_neighbors), resolution, seed)


def _graph(x: np.ndarray, n_neighbors: int = 15):  # type: ignore[no-untyped-def]
    import igraph

    search = NearestNeighbors(n_neighbors=n_neighbors).fit(x)
    near = search.kneighbors(return_distance=False)
    pairs = np.stack([np.repeat(np.arange(len(x)), n_neighbors), near.ravel()], axis=1)
    return igraph.Graph(n=len(x), edges=pairs).simplify()


def _communities(graph, resolution: float, seed: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    random.seed(seed)  # igraph draws from Python's own generator
    found = graph.community_leiden("modularity", resolution=resolution, n_iterations=4)
    return np.array(found.membership)


def biology(x: np.ndarray, types: np.ndarray) -> dict[str, float]:
    """Return the five scores of cell types, and their mean."""
    n_types, graph = len(np.unique(types)), _graph(x)
    by_kmeans, by_leiden = [], []
    for seed in range(SEEDS):
        clusters = KMeans(n_types, n_init=10, random_state=seed).fit_predict(x)
        by_kmeans.append(_agreement(types, clusters))
        found = [_agreement(types, _communities(graph, r, seed)) for r in RESOLUTIONS]
        by_leiden.append(max(found))
    scores = dict(
        zip(
            ("k-means NMI", "k-means ARI", "Leiden NMI", "Leiden ARI"),
            np.hstack([np.mean(by_kmeans, axis=0), np.mean(by_leiden, axis=0)]),
            strict=True,
        )
    )
    chosen = np.random.default_rng(0).permutation(len(x))[:3_000]
    scores["silhouette"] = (silhouette_score(x[chosen], types[chosen]) + 1) / 2
    scores["biology"] = float(np.mean(list(scores.values())))
    return scores


def _agreement(types: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    return normalized_mutual_info_score(types, clusters), adjusted_rand_score(types, clusters)


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


def judge(x: np.ndarray, types: np.ndarray, batches: np.ndarray | None) -> dict[str, float]:
    """Return all scores of an embedding, of at most `MOST_CELLS` cells."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:MOST_CELLS])
    x, types = np.asarray(x, dtype=np.float64)[chosen], types[chosen]
    scores = biology(x, types)
    if batches is not None:
        scores["mixing"] = mixing(x, types, batches[chosen])
    return scores
