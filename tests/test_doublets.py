"""Doublets: made as sums within batches, told from cells, called at the rate that is stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.analysis import doublets
from scvae.analysis.doublets import _pairs, _threshold, sums_of_two


def test_made_doublets_are_sums_of_two_cells_of_a_batch(
    fitted: tuple[AnnData, scvae.Model],
) -> None:
    adata, model = fitted
    dataset = model.read(adata)
    pairs = _pairs(dataset.batch.numpy(), np.random.default_rng(0))
    assert len(pairs) == adata.n_obs
    assert (pairs[:, 0] != pairs[:, 1]).all()
    batch = adata.obs["batch"].to_numpy()
    assert (batch[pairs[:, 0]] == batch[pairs[:, 1]]).all()
    made = sums_of_two(dataset, pairs).cells(torch.arange(len(pairs)))
    counts = adata.X.toarray()
    assert np.array_equal(made.x.numpy(), counts[pairs[:, 0]] + counts[pairs[:, 1]])
    total = counts.sum(1)
    expected = np.log(total[pairs[:, 0]] + total[pairs[:, 1]])
    assert made.log_library.numpy()[:, 0] == pytest.approx(expected, rel=1e-5)


def test_planted_doublets_of_two_types_have_the_highest_scores() -> None:
    adata = scvae.simulate(400, 100, n_types=3, n_batches=1, seed=2)
    types, counts = adata.obs["cell_type"].to_numpy(), adata.X.toarray()
    rng = np.random.default_rng(0)
    pairs = [
        (rng.choice(np.flatnonzero(types == "type_0")), rng.choice(np.flatnonzero(types == other)))
        for other in ("type_1", "type_2")
        for _ in range(15)
    ]
    both = np.vstack([counts, [counts[i] + counts[j] for i, j in pairs]])
    mixed = AnnData(sparse.csr_matrix(both), var=adata.var)
    model = scvae.fit(mixed, n_hidden=32, max_steps=300, progress=False)
    found = doublets(model, mixed, expected_rate=0.07)
    score = found.table["score"].to_numpy()
    ranks = np.argsort(np.argsort(score))[400:]
    assert ranks.mean() / len(score) > 0.85
    called = found.table["is_doublet"].to_numpy()
    assert called[:400].mean() < 0.05
    assert "None is removed" in str(found)


def test_the_threshold_keeps_the_stated_rate_where_the_mixture_is_known() -> None:
    rng = np.random.default_rng(0)
    single, made = rng.normal(size=90_000), rng.normal(3, 1, size=20_000)
    measured = np.concatenate([single, rng.normal(3, 1, size=10_000)])
    threshold, wrong = _threshold(measured, made, 0.1, 0.02)
    assert wrong <= 0.02
    assert (single >= threshold).mean() == pytest.approx(0.02, abs=0.003)
    assert threshold == pytest.approx(2.05, abs=0.1)  # of the normal distribution


def test_nothing_is_written_unless_asked(fitted: tuple[AnnData, scvae.Model]) -> None:
    adata, model = fitted
    adata = adata.copy()
    before = set(adata.obs)
    found = doublets(model, adata)
    assert set(adata.obs) == before
    doublets(model, adata, key_added="two")
    assert set(adata.obs) == before | {"two", "two_score"}
    assert np.array_equal(adata.obs["two_score"], found.table["score"])


@pytest.mark.parametrize("options", [{"expected_rate": 0}, {"false_positive_rate": 1.0}])
def test_rates_are_shares(fitted: tuple[AnnData, scvae.Model], options: dict) -> None:
    adata, model = fitted
    with pytest.raises(scvae.ConfigError, match="a share between 0 and 1"):
        doublets(model, adata, **options)
    with pytest.raises(scvae.ConfigError, match="too few single cells"):
        doublets(model, adata, expected_rate=0.6)
