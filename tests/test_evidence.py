"""Estimates of log p(x) and what is uncertain about them."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import scvae
from scvae import ConfigError, DataError
from scvae.models.judge.evidence import DRAWS, mean_over_cells

Given = tuple[AnnData, scvae.Model]
law = settings(deadline=None, derandomize=True, max_examples=60)
SEEDS = range(60)


@pytest.fixture(scope="module")
def one_latent() -> tuple[AnnData, scvae.Model]:
    """A model of one latent, where importance sampling works well, and 30 cells."""
    adata = scvae.simulate(200, 40, seed=2)
    model = scvae.fit(adata, n_latent=1, n_hidden=32, max_steps=400, progress=False)
    return adata[:30].copy(), model


def test_the_error_is_the_spread_over_seeds(one_latent: Given) -> None:
    adata, model = one_latent
    found = [model.log_likelihood(adata, samples=400, seed=s, return_error=True) for s in SEEDS]
    values, errors = np.array([v for v, _ in found]), np.array([e for _, e in found])
    assert values.shape == errors.shape == (60, 30)
    spread, told = values.std(axis=0, ddof=1), np.sqrt(np.square(errors).mean(axis=0))
    assert (errors > 0).all()
    # The spread of 60 draws is known to 9 %; over 30 cells the deviations average out.
    assert np.median(told / spread) == pytest.approx(1, abs=0.1)
    assert np.abs(np.log(told / spread)).max() < 0.6
    assert np.corrcoef(told, spread)[0, 1] > 0.9


def test_the_error_falls_with_the_root_of_the_samples(
    one_latent: Given,
) -> None:
    adata, model = one_latent
    few, many = (model.log_likelihood(adata, samples=k, return_error=True)[1] for k in (500, 8000))
    assert np.median(few / many) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("samples", [2, 100, 130])
def test_asking_for_the_error_changes_no_value(one_latent: Given, samples: int) -> None:
    adata, model = one_latent
    value, error = model.log_likelihood(adata, samples=samples, return_error=True)
    np.testing.assert_array_equal(value, model.log_likelihood(adata, samples=samples))
    assert (value.shape, error.shape) == ((30,), (30,))
    assert (error <= 1.001).all()  # one draw with all the weight: the most that it can tell


def test_an_error_needs_two_samples(one_latent: Given) -> None:
    adata, model = one_latent
    assert np.isfinite(model.log_likelihood(adata, samples=1)).all()
    with pytest.raises(ConfigError, match=r"samples=1,.*two"):
        model.log_likelihood(adata, samples=1, return_error=True)
    with pytest.raises(ConfigError, match=r"samples=1,.*two"):
        model.mean_log_likelihood(adata, samples=1)


# -- the mean over cells ---------------------------------------------------------------------------


def test_the_mean_counts_every_cell_the_same(one_latent: Given, monkeypatch: Any) -> None:
    """Minibatches of 7, 7, 7 and 9 cells weigh as many cells as they have."""
    adata, model = one_latent
    monkeypatch.setattr("scvae.models.fitted.CHUNK_VALUES", 8 * DRAWS * adata.n_vars)
    found = model.mean_log_likelihood(adata, samples=4000, seed=3)
    values = model.log_likelihood(adata, samples=4000, seed=3)
    assert found.n_cells == 30
    assert found.value == pytest.approx(values.mean(), abs=5 * found.monte_carlo_error)
    assert found.sampling_error == pytest.approx(values.std(ddof=1) / 30**0.5, rel=0.01)


@pytest.mark.parametrize("samples", [2, 20, 200])
def test_the_monte_carlo_error_is_the_spread_of_the_mean_over_seeds(
    one_latent: Given, samples: int
) -> None:
    adata, model = one_latent
    found = [model.mean_log_likelihood(adata, samples=samples, seed=seed) for seed in SEEDS]
    spread = np.std([mean.value for mean in found], ddof=1)
    told = np.sqrt(np.mean([mean.monte_carlo_error**2 for mean in found]))
    assert told == pytest.approx(spread, rel=0.3)  # 3 standard errors of the spread


def test_the_monte_carlo_error_is_right_where_the_estimates_are_normal() -> None:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.01, 0.2, 50)
    found = [mean_over_cells(*(-400 + errors * rng.normal(size=(2, 50)))) for _ in range(2000)]
    spread = np.std([mean.value for mean in found])
    told = np.sqrt(np.mean([mean.monte_carlo_error**2 for mean in found]))
    assert told == pytest.approx(spread, rel=0.06)


def test_the_sampling_error_is_the_spread_of_the_mean_over_sets_of_cells() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        cells = rng.gamma(2.0, 3.0, 50)
        found.append(mean_over_cells(*(cells + 0.1 * rng.normal(size=(2, 50)))))
    spread = np.std([mean.value for mean in found])
    told = np.mean([mean.sampling_error for mean in found])
    assert told == pytest.approx(spread, rel=0.06)


@law
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 1000))
def test_parts_weigh_as_many_cells_as_they_have(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(2, n)) for n in sizes]
    whole = mean_over_cells(*np.concatenate(parts, axis=1))
    means = [mean_over_cells(*part) for part in parts]
    shares = np.array(sizes) / sum(sizes)
    assert whole.value == pytest.approx(shares @ [m.value for m in means])
    errors = shares * [m.monte_carlo_error for m in means]
    assert whole.monte_carlo_error == pytest.approx(math.sqrt((errors**2).sum()))
    assert whole.n_cells == sum(sizes)


def test_one_cell_has_no_sampling_error_and_none_has_no_mean(
    one_latent: Given,
) -> None:
    adata, model = one_latent
    one = model.mean_log_likelihood(adata[:1])
    assert math.isnan(one.sampling_error)
    assert one.monte_carlo_error > 0
    with pytest.raises(DataError, match="no cells"):
        model.mean_log_likelihood(adata[:0])


def test_nothing_is_written_and_no_random_state_touched(
    one_latent: Given,
) -> None:
    adata, model = one_latent
    state, before = torch.get_rng_state(), pickle.dumps([adata.X, adata.obs, dict(adata.obsm)])
    first = model.mean_log_likelihood(adata, samples=10, seed=5)
    assert model.mean_log_likelihood(adata, samples=10, seed=5) == first
    assert model.mean_log_likelihood(adata, samples=10, seed=6) != first
    assert pickle.dumps([adata.X, adata.obs, dict(adata.obsm)]) == before
    assert torch.equal(torch.get_rng_state(), state)
