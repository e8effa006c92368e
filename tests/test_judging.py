"""Biology and mixing where they are known: of perfect, random and torn embeddings."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hashes import digests
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.stats import entropy
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae.analysis import baselines, judge, null_batch
from scvae.analysis.judging import _lisi, kept, leiden, mixing

N, TYPES = 300, 3


@pytest.fixture(scope="module")
def islands() -> tuple[np.ndarray, np.ndarray]:
    """Three groups of cells, far apart, and their names."""
    types = np.repeat(np.array(["a", "b", "c"]), N // TYPES)
    centres = 100 * np.eye(TYPES, 4)
    noise = np.random.default_rng(0).standard_normal((N, 4))
    return np.repeat(centres, N // TYPES, axis=0) + noise, types


def halves(seed: int = 0) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(N) < 0.5, "x", "y")


def test_types_that_lie_apart_and_batches_that_do_not_are_perfect(islands) -> None:
    x, types = islands
    scores = judge(x, types, halves())
    partitions = [scores[f"{how} {by}"] for how in ("k-means", "Leiden") for by in ("NMI", "ARI")]
    assert partitions == pytest.approx([1, 1, 1, 1])
    assert scores["silhouette"] > 0.97
    assert scores["biology"] == pytest.approx(np.mean([*partitions, scores["silhouette"]]))
    assert scores["mixing"] > 0.9  # some thirty neighbours are not half and half by chance


def test_types_given_at_random_are_not_found(islands) -> None:
    scores = judge(islands[0], np.random.default_rng(1).permutation(islands[1]))
    assert abs(scores["k-means ARI"]) < 0.02
    assert abs(scores["Leiden ARI"]) < 0.02
    assert scores["silhouette"] == pytest.approx(0.5, abs=0.03)
    assert "mixing" not in scores


def test_batches_that_lie_apart_within_types_do_not_mix(islands) -> None:
    x, types = islands
    batches = halves()
    torn = x + 30 * (batches == "x")[:, None]
    assert mixing(torn, types, batches) < 0.01
    assert mixing(np.roll(torn, 1, axis=1) * 7, types, batches) == pytest.approx(
        mixing(torn, types, batches)
    )  # neither axes nor units matter
    assert np.isnan(mixing(x, types, types))  # every type in one batch: nothing to mix


def test_the_neighbourhood_index_is_that_of_weights_of_perplexity_thirty() -> None:
    rng = np.random.default_rng(0)
    x, codes = rng.standard_normal((120, 3)), rng.integers(0, 2, 120)
    distance, near = NearestNeighbors(n_neighbors=90).fit(x).kneighbors()
    expected = []
    for d, neighbours in zip(distance**2, near, strict=True):

        def excess(beta: float, d: np.ndarray = d) -> float:
            return float(entropy(np.exp(-beta * (d - d[0]))) - np.log(30))

        p = np.exp(-brentq(excess, 1e-9, 1e3) * d)
        shares = np.bincount(codes[neighbours], p / p.sum(), minlength=2)
        expected.append(1 / np.square(shares).sum())
    np.testing.assert_allclose(_lisi(x, codes, 2), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "types", "said"),
    [
        (np.zeros((5, 2)), ["a"] * 5, "1 types of 5 cells"),
        (np.zeros((5, 2)), list("abcde"), "5 types of 5 cells"),
        (np.zeros((5, 2)), ["a"] * 4, r"\[4, 5\] rows"),
    ],
)
def test_what_cannot_be_judged_is_said(x: np.ndarray, types: list[str], said: str) -> None:
    with pytest.raises(scvae.DataError, match=said):
        judge(x, np.array(types))


def test_few_cells_are_judged_without_an_error() -> None:
    x = np.random.default_rng(0).standard_normal((6, 2))
    scores = judge(x, np.array(list("aabbcc")), np.array(list("xyxyxy")))
    assert 0 <= scores["biology"] <= 1
    assert np.isnan(scores["mixing"])


def test_random_states_of_the_process_stay_what_they_are(islands) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = leiden(islands[0], 2.0, 0)
    baselines.harmonise(islands[0], halves())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    random.random()
    np.testing.assert_array_equal(leiden(islands[0], 2.0, 0), first)
    assert len(np.unique(leiden(islands[0], 0.1, 0))) == TYPES


def test_the_share_of_neighbours_kept_is_known() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 5))
    assert kept(x, 3 * x @ np.linalg.qr(rng.standard_normal((5, 5)))[0]) == 1
    by_chance = 30 / 399
    assert kept(x, rng.standard_normal((400, 5))) == pytest.approx(by_chance, rel=0.15)


# -- what is set beside --------------------------------------------------------------------------


def test_components_are_those_of_scaled_logarithms() -> None:
    counts = np.random.default_rng(0).poisson(2.0, (80, 50))
    logs = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    scaled = np.minimum((logs - logs.mean(0)) / logs.std(0, ddof=1), 10)
    u, s, _ = np.linalg.svd(scaled - scaled.mean(0), full_matrices=False)
    found = baselines.principal_components(csr_matrix(counts))
    assert found.shape == (80, 30)
    np.testing.assert_allclose(np.abs(found), np.abs(u * s)[:, :30], atol=2e-3)


@pytest.mark.parametrize(("n", "g"), [(12, 2_100), (40, 8)])
def test_components_of_few_cells_or_many_genes(n: int, g: int) -> None:
    counts = np.random.default_rng(0).poisson(1.0, (n, g))
    counts[:, 0] = 0
    found = baselines.principal_components(csr_matrix(counts))
    assert found.shape == (n, min(30, n - 1, g - 1))
    assert np.isfinite(found).all()


def test_harmony_takes_out_a_shift_between_batches(islands) -> None:
    x, batches = islands[0], halves()
    torn = x / 10 + 3 * np.outer(batches == "x", [0, 0, 0, 1])
    mended = baselines.harmonise(torn, batches)
    assert mended.shape == torn.shape
    gaps = [np.ptp([y[batches == b, 3].mean() for b in "xy"]) for y in (torn, mended)]
    assert gaps[1] < 0.2 * gaps[0]


def test_harmony_takes_few_cells() -> None:
    x = np.random.default_rng(0).standard_normal((12, 4))
    assert np.isfinite(baselines.harmonise(x, np.arange(12) % 2)).all()


# -- the null-batch test -------------------------------------------------------------------------


def test_the_null_batch_is_that_of_fits_by_hand(fitted: tuple[AnnData, scvae.Model]) -> None:
    adata, model = fitted
    before = digests(adata)
    small = adata[:130].copy()
    small.obs["batch"] = "batch_0"
    found = null_batch(model, small, seed=3)
    fake = np.where(np.random.default_rng(3).random(130) < 0.5, "b", "a")
    small.obs["half"] = pd.Categorical(fake)
    options = {"n_latent": 5, "n_hidden": 16, "max_steps": 20, "progress": False}
    by_hand = {}
    for key, batch, seed in (("plain", None, 3), ("given", "half", 3), ("other", None, 4)):
        scvae.fit(small, batch=batch, seed=seed, key_added=key, **options)
        by_hand[key] = small.obsm[key]
    assert found.kept == kept(by_hand["plain"], by_hand["given"])
    assert found.by_chance == kept(by_hand["plain"], by_hand["other"])
    components = baselines.principal_components(small.X, 3)
    assert found.kept_by_harmony == kept(components, baselines.harmonise(components, fake, 3))
    assert found.n_cells == 130
    assert f"keeps {found.kept:.0%} of the 30" in str(found)
    assert digests(adata) == before


def test_a_batch_of_few_cells_is_not_split(fitted: tuple[AnnData, scvae.Model]) -> None:
    adata, model = fitted
    with pytest.raises(scvae.DataError, match="has 2 cells; the null-batch test needs 100"):
        null_batch(model, adata[:3])
