"""Posterior predictive checks: against closed forms, for cells as given, and of what they find."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import stats
from torch import Generator, Tensor, nn

import scvae
from scvae import ConfigError, DataError
from scvae.core.batch import Batch
from scvae.core.distributions import Gaussian, NegativeBinomial
from scvae.core.priors import StandardNormal
from scvae.core.vae import VAE
from scvae.models import fitted as model_module
from scvae.models.judge.predictive import PredictiveCheck

Fitted = tuple[AnnData, scvae.Model]
COLUMNS = [
    f"{which}_{of}" for of in ("mean", "variance", "zeros") for which in ("observed", "predicted")
]


def dense(adata: AnnData) -> np.ndarray:
    return np.asarray(adata.X.todense(), dtype=np.float64)


# -- closed forms ----------------------------------------------------------------------------------


class Fixed(nn.Module):
    """q(z | x) = N(m, s^2) of one latent, whatever x is."""

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__()
        self.loc, self.scale = loc, scale

    def forward(self, batch: Batch) -> Gaussian:
        shape = (len(batch), 1)
        return Gaussian(torch.full(shape, self.loc), torch.full(shape, self.scale))


class LogLinear(nn.Module):
    """NB of log-mean a + w z and inverse dispersion r."""

    def __init__(self, a: Tensor, w: Tensor, log_r: Tensor) -> None:
        super().__init__()
        self.a, self.w, self.log_r = a, w, log_r

    def forward(self, z: Tensor, batch: Batch) -> NegativeBinomial:
        return NegativeBinomial(self.a + self.w * z, self.log_r)


def log_normal_moments(
    a: np.ndarray, w: np.ndarray, r: np.ndarray, loc: float, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, variance and P(0) of NB(exp(a + w z), r) over z ~ N(loc, scale^2)."""
    mean = np.exp(a + w * loc + (w * scale) ** 2 / 2)
    square = np.exp(2 * (a + w * loc) + 2 * (w * scale) ** 2)
    z = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)[:, None] * scale + loc
    zeros = (r / (r + np.exp(a + w * z))) ** r
    return mean, mean + square * (1 + 1 / r) - mean**2, zeros.mean(0)


@pytest.mark.parametrize("n", [3, 40])
def test_predictions_are_those_of_the_law_with_latents_drawn(n: int) -> None:
    """Every replicate's cells are independent draws: its variance is unbiased, however few."""
    a, w, r = np.array([-1.0, 0.0, 1.0, 2.0]), np.array([0.6, -0.4, 0.0, 0.3]), np.ones(4) * 3
    likelihood = LogLinear(*(torch.tensor(v, dtype=torch.float32) for v in (a, w, np.log(r))))
    vae = VAE(StandardNormal(1), Fixed(0.5, 0.8), likelihood)
    batches = [Batch(torch.zeros(n // 3, 4)), Batch(torch.zeros(n - n // 3, 4))]
    samples = 120_000 // n
    generator = Generator().manual_seed(0)
    check = PredictiveCheck(vae, 4, generator, samples)
    for batch in batches:
        check.add(batch)
    table = check.table(list("abcd"))
    assert list(table.index) == list("abcd")
    mean, variance, zeros = log_normal_moments(a, w, r, 0.5, 0.8)
    np.testing.assert_allclose(table["predicted_mean"], mean, rtol=0.03)
    np.testing.assert_allclose(table["predicted_variance"], variance, rtol=0.1)
    np.testing.assert_allclose(table["predicted_zeros"], zeros, atol=0.008)
    assert (table["observed_mean"] == 0).all()
    assert (table["observed_zeros"] == 1).all()


class Sharp(nn.Module):
    """The same posterior without its spread."""

    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, batch: Batch) -> Gaussian:
        q = self.posterior(batch)
        return Gaussian(q.loc, torch.full_like(q.scale, 1e-6))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_predictions_of_a_model_are_those_of_its_decoder(
    simulated: AnnData, likelihood: Any
) -> None:
    adata = simulated.copy()
    model = scvae.fit(
        adata, batch="batch", likelihood=likelihood, n_latent=4, max_steps=60, progress=False
    )
    model.vae.posterior = Sharp(model.vae.posterior)
    dataset = model.read(adata)
    cells = dataset.cells(torch.arange(150))
    with torch.no_grad():
        p = model.vae.decode(model.vae.encode(cells).loc, cells)
        means, variances = p.mean.double().numpy(), p.variance.double().numpy()
        zero = p.entry_log_prob(torch.zeros(150, 40)).exp().numpy()
    table = model.predictive_check(adata, samples=1500)
    np.testing.assert_allclose(table["predicted_mean"], means.mean(0), rtol=0.03)
    expected = variances.mean(0) + means.var(0, ddof=1)
    np.testing.assert_allclose(table["predicted_variance"], expected, rtol=0.12)
    np.testing.assert_allclose(table["predicted_zeros"], zero.mean(0), atol=0.01)


# -- what was observed -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_observed_statistics_are_those_of_the_counts(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    adata, model = fitted
    monkeypatch.setattr(model_module, "CHUNK_VALUES", chunk * adata.n_vars)
    table, x = model.predictive_check(adata), dense(adata)
    assert list(table.columns) == COLUMNS
    assert list(table.index) == list(adata.var_names)
    np.testing.assert_allclose(table["observed_mean"], x.mean(0), rtol=1e-9)
    np.testing.assert_allclose(table["observed_variance"], x.var(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(table["observed_zeros"], (x == 0).mean(0), rtol=1e-9)


def test_genes_are_matched_by_name(fitted: Fitted) -> None:
    adata, model = fitted
    expected = model.predictive_check(adata)
    pd.testing.assert_frame_equal(model.predictive_check(adata[:, ::-1].copy()), expected)


def test_of_many_cells_so_many_are_taken_at_random(fitted: Fitted, tmp_path: Path) -> None:
    adata, model = fitted
    table = model.predictive_check(adata, max_cells=31)
    counted = table["observed_mean"].to_numpy() * 31
    np.testing.assert_allclose(counted, counted.round(), atol=1e-9)
    assert not np.allclose(counted, dense(adata)[:31].sum(0))
    pd.testing.assert_frame_equal(model.predictive_check(adata, max_cells=31), table)
    other = model.predictive_check(adata, max_cells=31, seed=1)
    assert not np.allclose(other["observed_mean"], table["observed_mean"])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(model.predictive_check(backed, max_cells=31), table)
    backed.file.close()


def test_one_cell_has_no_variance(fitted: Fitted) -> None:
    adata, model = fitted
    table = model.predictive_check(adata[:1])
    assert table[["observed_variance", "predicted_variance"]].isna().all(axis=None)
    assert np.isfinite(table["predicted_mean"]).all()


# -- behaviour -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_draws(fitted: Fitted) -> None:
    adata, model = fitted
    one, same, other = (model.predictive_check(adata, seed=seed) for seed in (4, 4, 5))
    pd.testing.assert_frame_equal(one, same)
    pd.testing.assert_series_equal(one["observed_mean"], other["observed_mean"])
    assert not np.allclose(one["predicted_mean"], other["predicted_mean"])


def test_nothing_is_written_and_no_random_state_touched(fitted: Fitted) -> None:
    adata, model = fitted
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    before = pickle.dumps([adata.X, adata.obs, adata.var, dict(adata.obsm), dict(adata.uns)])
    weights = copy.deepcopy(model.vae.state_dict())
    model.predictive_check(adata, samples=2, max_cells=20)
    assert before == pickle.dumps(
        [adata.X, adata.obs, adata.var, dict(adata.obsm), dict(adata.uns)]
    )
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, weights[name])
    assert not model.vae.training


def test_no_more_is_decoded_at_once_than_memory_is_for(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = fitted
    monkeypatch.setattr(model_module, "CHUNK_VALUES", 2000)
    sizes: list[int] = []

    def counting(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        sizes.append(given[0].shape[0] * given[0].shape[1] * 40)

    hook = model.vae.likelihood.register_forward_pre_hook(counting)
    model.predictive_check(adata, samples=5)
    hook.remove()
    assert sum(sizes) == 5 * 150 * 40
    assert max(sizes) <= 2 * 2000  # equal parts may be a little over


def test_bad_calls_are_named(fitted: Fitted) -> None:
    adata, model = fitted
    with pytest.raises(DataError, match=r"^0 cells"):
        model.predictive_check(adata[:0])
    with pytest.raises(DataError, match="max_cells=0"):
        model.predictive_check(adata, max_cells=0)
    with pytest.raises(ConfigError, match="samples=0"):
        model.predictive_check(adata, samples=0)
    with pytest.raises(DataError, match="AnnData"):
        model.predictive_check(dense(adata))


@pytest.mark.slow
def test_a_wrong_law_is_found_out() -> None:
    """Poisson counts vary less than over-dispersed ones, and are seldomer zero."""
    adata = scvae.simulate(800, 60, inverse_dispersion=1.0, seed=3)
    ratios = {}
    for likelihood in ("nb", "poisson"):
        model = scvae.fit(
            adata.copy(),
            batch="batch",
            likelihood=likelihood,
            n_latent=4,
            max_steps=1000,
            progress=False,
        )
        table = model.predictive_check(adata)
        ratios[likelihood] = [
            (table[f"predicted_{name}"] / table[f"observed_{name}"]).median()
            for name in ("mean", "variance", "zeros")
        ]
    np.testing.assert_allclose(ratios["nb"], 1, atol=0.25)
    assert ratios["poisson"][0] == pytest.approx(1, abs=0.1)
    assert ratios["poisson"][1] < 0.7
    assert ratios["poisson"][2] < 0.8
