"""A query of the reference's kind passes as often as stated; a shifted or foreign one does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

import scvae
from scvae import ConfigError, DataError
from scvae.analysis import MappingCheck, mapping_check
from scvae.analysis.mapping import _names
from scvae.analysis.remoteness import Remoteness, compare_values, remoteness

TYPES = np.random.default_rng(5).normal(size=(4, 5)) * 3


def sample(draw: np.random.Generator, shift: float = 0.3, n: int = 120) -> np.ndarray:
    """Return cells of four types, each of which the sample moves."""
    kind = draw.integers(4, size=n)
    moved = TYPES + shift * draw.normal(size=TYPES.shape)
    return moved[kind] + draw.normal(size=(n, 5))


def known(draw: np.random.Generator, query: np.ndarray, m: int = 5) -> Remoteness:
    x, code = np.concatenate([sample(draw) for _ in range(m)]), np.repeat(np.arange(m), 120)
    order = draw.permutation(len(x))
    return remoteness(x[order], code[order], m, query, 6, 0)


def p_of(draw: np.random.Generator, query: np.ndarray) -> float:
    beside = known(draw, query).beside(query)
    return compare_values(*beside.values(), beside.counts(), 0.05).p


# -- the test --------------------------------------------------------------------------------------


def test_one_neighbourhood_is_judged_by_student_s_test_of_one_more_value() -> None:
    own, value = np.array([[0.1], [0.4], [0.2], [np.nan]]), np.array([0.9])
    found = compare_values(value, own, np.ones(1), 0.05)
    kept = own[:3, 0]
    t = (0.9 - kept.mean()) / (kept.std(ddof=1) * np.sqrt(1 + 1 / 3))
    assert found.p == pytest.approx(stats.t.sf(t, 2))
    assert found.ratio == pytest.approx(np.exp(0.9 - kept.mean()))
    at_limit = compare_values(np.log([found.limit]) + kept.mean(), own, np.ones(1), 0.05)
    assert at_limit.p == pytest.approx(0.05)
    assert np.isnan(found.own[3])


def test_alike_neighbourhoods_say_together_what_one_says() -> None:
    own, value = np.random.default_rng(0).normal(size=(5, 1)), np.array([1.0])
    one = compare_values(value, own, np.ones(1), 0.1)
    many = compare_values(value.repeat(3), own.repeat(3, 1), np.array([5, 1, 2]), 0.1)
    assert (many.p, many.ratio, many.limit) == pytest.approx((one.p, one.ratio, one.limit))


@pytest.mark.parametrize("own", [np.full((4, 2), np.nan), np.zeros((2, 2))])
def test_fewer_than_three_samples_judge_nothing(own: np.ndarray) -> None:
    found = compare_values(np.zeros(2), own, np.ones(2), 0.05)
    assert np.isnan([found.p, found.ratio, found.limit]).all()
    assert len(found.own) == len(own)


def test_false_alarms_are_as_many_as_stated() -> None:
    draw = np.random.default_rng(0)
    p = np.array([p_of(draw, sample(draw)) for _ in range(80)])
    for rate in (0.1, 0.3, 0.5):  # within what chance does to 80 draws in 999 of 1,000 cases
        low, high = stats.binom.ppf([0.0005, 0.9995], 80, rate)
        assert low <= (p < rate).sum() <= high


def test_what_is_moved_farther_than_samples_are_is_found() -> None:
    draw = np.random.default_rng(0)
    p = [p_of(draw, sample(draw) + 1.5) for _ in range(10)]
    assert max(p) < 0.01


def test_distances_are_to_the_ten_nearest_of_all_other_samples() -> None:
    draw = np.random.default_rng(0)
    query = sample(draw)
    r = known(draw, query)
    beside = r.beside(query)
    for i in range(0, len(r.x), 100):
        others = np.concatenate([r.x[r.sample != r.sample[i]], query])
        nearest = np.sort(np.linalg.norm(others - r.x[i], axis=1))[:10]
        assert beside.of_reference[i] == pytest.approx(np.log(nearest.mean()))
    nearest = np.sort(np.linalg.norm(r.x - query[3], axis=1))[:10]
    assert beside.distance[3] == pytest.approx(np.log(nearest.mean()))
    here = r.neighbourhood == 2
    limit = np.sort(beside.of_reference[here])[int(0.95 * here.sum())]
    far, near = beside.far()[beside.neighbourhood == 2], beside.distance[beside.neighbourhood == 2]
    assert far[near > limit].all()
    assert not far[near < limit * 0.95].any()


def test_cells_of_a_type_that_the_reference_lacks_count_where_they_are_nearest() -> None:
    draw = np.random.default_rng(0)
    query = np.concatenate([sample(draw), np.full((60, 5), 30.0) + draw.normal(size=(60, 5))])
    r = known(draw, query)
    beside = r.beside(query)
    assert beside.counts().sum() == len(query)
    value, own = beside.values()
    assert (np.isfinite(own).sum(0) >= 3)[np.isfinite(value)].all()
    assert beside.far()[120:].all()


# -- of a model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> AnnData:
    adata = scvae.simulate(1200, 60, seed=1)
    adata.obs["donor"] = [f"donor {i}" for i in np.arange(1200) % 6]
    return adata


@pytest.fixture(scope="module")
def model(reference: AnnData) -> scvae.Model:
    own = reference[reference.obs["donor"] != "donor 5"].copy()
    return scvae.fit(own, batch="donor", max_steps=150, progress=False)


def ratio_of_all(found: MappingCheck) -> pd.DataFrame:
    return found.table[found.table["neighbourhood"] == "all"].set_index("sample")


def test_a_donor_like_the_others_passes_and_others_do_not(
    model: scvae.Model, reference: AnnData
) -> None:
    own = reference[reference.obs["donor"] != "donor 5"].copy()
    like = reference[reference.obs["donor"] == "donor 5"].copy()
    permuted, foreign = like.copy(), like.copy()
    permuted.X = permuted.X[:, np.random.default_rng(0).permutation(60)]
    kind = (foreign.obs["cell_type"] == "type_1").to_numpy()
    counts = foreign.X.toarray()
    counts[kind] = counts[kind][:, ::-1]
    foreign.X = counts
    query = together({"like": like, "permuted": permuted, "foreign": foreign})
    found = mapping_check(model, query, own, labels="cell_type", batch="new")
    whole = ratio_of_all(found)
    assert whole["is_far"].to_dict() == {"like": False, "permuted": True, "foreign": True}
    assert whole.loc["like", "far"] < 0.12 < whole.loc["foreign", "far"] < whole["far"].max()
    assert (whole["n_cells"] == 200).all()
    assert (whole["n_samples"] == 5).all()
    lines = str(found).splitlines()
    assert "like (200 cells): not found farther than the reference's own 5 samples" in lines[0]
    assert "permuted (200 cells): farther than" in lines[1]
    names = found.table["neighbourhood"].iloc[1:].str.split(": ").str[1]
    assert set(names.dropna()) == {"type_0", "type_1", "type_2", "type_3"}
    tested = found.table.dropna(subset="p")
    assert ((tested["ratio"] > tested["limit"]) == tested["is_far"]).all()
    again = mapping_check(model, query[::-1].copy(), own, batch="new", seed=1)
    assert ratio_of_all(again)["is_far"].to_dict() == whole["is_far"].to_dict()


def together(parts: dict[str, AnnData]) -> AnnData:
    import anndata

    for name, part in parts.items():
        part.obs["donor"] = name
    return anndata.concat(parts, index_unique="-")


def test_a_file_with_its_reference_says_the_same(
    model: scvae.Model, reference: AnnData, tmp_path: Path
) -> None:
    own = reference[reference.obs["donor"] != "donor 5"].copy()
    like = reference[reference.obs["donor"] == "donor 5"]
    model.save(tmp_path / "atlas.scvae", reference=own, labels="cell_type")
    atlas = scvae.load(tmp_path / "atlas.scvae")
    one = mapping_check(model, like, own, labels="cell_type", batch="new")
    two = mapping_check(atlas, like, batch="new")
    pd.testing.assert_frame_equal(one.table, two.table, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"sample='plate'.*'donor' and 'cell_type' are known"):
        mapping_check(atlas, like, sample="plate", batch="new")


def test_samples_of_few_cells_and_none_are_told(model: scvae.Model, reference: AnnData) -> None:
    own = reference[reference.obs["donor"] != "donor 5"].copy()
    few = mapping_check(model, own[:5], own)
    assert not few.table["is_far"].any()
    assert "cannot be judged" in str(few)
    with pytest.raises(ConfigError, match="no ratio to draw"):
        scvae.plot.mapping_check(few)
    with pytest.raises(DataError, match="query has no cells"):
        mapping_check(model, own[:0], own)


def test_what_is_missing_is_named(model: scvae.Model, reference: AnnData) -> None:
    own = reference[reference.obs["donor"] != "donor 5"].copy()
    with pytest.raises(ConfigError, match="carries no labelled cells"):
        mapping_check(model, own)
    with pytest.raises(DataError, match=r"no column 'plate' \(given as sample\)"):
        mapping_check(model, own, own, sample="plate")
    two = own[own.obs["donor"].isin(["donor 0", "donor 1"])].copy()
    with pytest.raises(DataError, match=r"2 samples of 10 cells in 'donor'.*takes 3"):
        mapping_check(model, own, two)
    with pytest.raises(ConfigError, match="false_alarms=0, but it must be a share"):
        mapping_check(model, own, own, false_alarms=0)


def test_neighbourhoods_are_named_by_most_of_their_cells() -> None:
    code = np.array([0, 0, 0, 1, 2, 2])
    r = Remoteness(np.zeros((6, 1)), code, code, np.zeros((3, 1)), np.zeros((6, 3, 10)))
    names = np.array(["b", "b", "a", "", "a", ""], dtype=object)
    assert _names(names, r) == ["0: b", "1", "2: a"]


def test_the_picture_shows_every_ratio() -> None:
    row = {"n_cells": 30, "n_samples": 3, "limit": 1.5, "far": 0.1, "sample": "q"}
    rows = [
        row | {"neighbourhood": "all", "ratio": 1.2, "p": 0.2, "is_far": False},
        row | {"neighbourhood": "0: B", "ratio": 2.0, "p": 0.01, "is_far": True},
        row | {"neighbourhood": "1", "ratio": np.nan, "p": np.nan, "is_far": False},
    ]
    own = pd.DataFrame({"sample": ["a", "b", "a"], "neighbourhood": ["all", "0: B", "1"]})
    own["ratio"], own["beside"] = [0.9, 1.1, np.nan], "q"
    ax = scvae.plot.mapping_check(MappingCheck(pd.DataFrame(rows), own, 0.05))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["all", "0: B"]
    reference, query = ax.collections[:2]
    assert np.allclose(reference.get_offsets(), [[0.9, 0], [1.1, 1]])
    assert np.allclose(query.get_offsets(), [[1.2, 0], [2.0, 1]])
    assert [bool(face[3]) for face in query.get_facecolors()] == [False, True]
    with pytest.raises(ConfigError, match="found='x'"):
        scvae.plot.mapping_check("x")  # type: ignore[arg-type]
