"""Simulated counts have the moments that their truth states, and the truth stays beside them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from scvae import simulate
from scvae.errors import ConfigError


def counts_of(adata: AnnData) -> np.ndarray:
    return adata.X.toarray().astype(np.float64)


def means_of(adata: AnnData) -> np.ndarray:
    """Return l_n rho_ng, the mean of every count before dropout."""
    return adata.obs["library_size"].to_numpy()[:, None] * adata.layers["expression"].astype(float)


def z_score(values: np.ndarray) -> float:
    """Return the mean of `values` in units of its standard error."""
    return float(values.mean() / (values.std() / np.sqrt(values.size)))


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate(4000, 60, inverse_dispersion=2.0, seed=1)


# -- what is returned ------------------------------------------------------------------------------


def test_every_stated_slot_is_there(adata: AnnData) -> None:
    assert adata.shape == (4000, 60)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == adata.layers["expression"].dtype == adata.obsm["z"].dtype == np.float32
    assert list(adata.obs) == ["cell_type", "batch", "library_size"]
    assert list(adata.var) == ["inverse_dispersion"]
    assert adata.obsm["z"].shape == (4000, 4)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique


def test_counts_are_whole_and_no_cell_is_empty() -> None:
    for library in (0.01, 1.0, 100.0):
        counts = counts_of(simulate(200, 20, library_size=library, dropout=0.5))
        assert (counts == np.floor(counts)).all()
        assert counts.min() >= 0
        assert counts.sum(axis=1).min() >= 1


def test_the_arguments_are_kept() -> None:
    given = {"n_cells": 30, "n_genes": 7, "n_types": 2, "n_batches": 3, "n_latent": 5}
    given |= {"library_size": 90.0, "library_spread": 0.1, "batch_effect": 0.2, "dropout": 0.25}
    given |= {"inverse_dispersion": 4.0, "seed": 8}
    assert simulate(**given).uns["truth"] == given
    assert simulate(30, 7).uns["truth"] | given == given


def test_the_truth_can_be_written_to_a_file(adata: AnnData, tmp_path: object) -> None:
    adata[:50].copy().write_h5ad(f"{tmp_path}/simulated.h5ad")


def test_the_same_seed_gives_the_same_cells_and_another_gives_others() -> None:
    first, again, other = (simulate(50, 20, seed=seed) for seed in (3, 3, 4))
    for slot in (counts_of, means_of, lambda a: a.obsm["z"], lambda a: a.var.to_numpy()):
        np.testing.assert_array_equal(slot(first), slot(again))
        assert not np.array_equal(slot(first), slot(other))
    assert first.obs.equals(again.obs)


def test_global_random_states_are_not_touched() -> None:
    before = str(np.random.get_state()), random.getstate()  # noqa: NPY002
    simulate(20, 5)
    assert (str(np.random.get_state()), random.getstate()) == before  # noqa: NPY002


# -- moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("median", "spread"), [(2000.0, 0.3), (500.0, 0.0), (100.0, 0.8)])
def test_library_sizes_are_log_normal_of_the_stated_median(median: float, spread: float) -> None:
    adata = simulate(4000, 5, library_size=median, library_spread=spread)
    log_library = np.log(adata.obs["library_size"])
    error = spread / np.sqrt(4000)
    assert log_library.mean() == pytest.approx(np.log(median), abs=5 * error + 1e-12)
    assert log_library.std() == pytest.approx(spread, abs=4 * error + 1e-12)


def test_cells_have_their_library_size_on_average(adata: AnnData) -> None:
    off = counts_of(adata).sum(axis=1) - adata.obs["library_size"].to_numpy()
    assert abs(z_score(off)) < 5
    np.testing.assert_allclose(adata.layers["expression"].sum(axis=1), 1, rtol=1e-5)


def test_every_gene_has_its_mean_and_its_negative_binomial_variance(adata: AnnData) -> None:
    mean, r = means_of(adata), adata.var["inverse_dispersion"].to_numpy()
    off, variance = counts_of(adata) - mean, mean + mean**2 / r
    standard = off / np.sqrt(variance)
    for g in range(adata.n_vars):
        assert abs(z_score(standard[:, g])) < 5
        assert abs(z_score(standard[:, g] ** 2 - 1)) < 5
    assert z_score(off**2 - mean) > 20  # far from Poisson: the test can tell


def test_counts_are_poisson_as_the_inverse_dispersion_grows() -> None:
    adata = simulate(2000, 40, inverse_dispersion=1e7)
    mean = means_of(adata)
    standard = (counts_of(adata) - mean) ** 2 / mean
    assert abs(z_score(standard - 1)) < 5


def test_inverse_dispersions_have_the_stated_median_and_spread() -> None:
    log_r = np.log(simulate(2, 4000, inverse_dispersion=3.0).var["inverse_dispersion"])
    assert log_r.mean() == pytest.approx(np.log(3), abs=5 * 0.5 / np.sqrt(4000))
    assert log_r.std() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.6])
def test_the_stated_share_of_counts_is_replaced_by_zero(dropout: float) -> None:
    adata = simulate(3000, 50, dropout=dropout, seed=2)
    mean, r = means_of(adata), adata.var["inverse_dispersion"].to_numpy()
    zero = dropout + (1 - dropout) * (1 + mean / r) ** -r
    surplus = (counts_of(adata) == 0) - zero
    assert abs(surplus.sum()) < 5 * np.sqrt((zero * (1 - zero)).sum())
    assert abs(z_score(counts_of(adata) - (1 - dropout) * mean)) < 5


def test_types_have_shares_of_one_half_a_third() -> None:
    adata = simulate(5000, 3, n_types=4)
    shares = adata.obs["cell_type"].value_counts(normalize=True)[[f"type_{t}" for t in range(4)]]
    np.testing.assert_allclose(shares, np.array([12, 6, 4, 3]) / 25, atol=5 * 0.5 / np.sqrt(5000))
    assert (adata.obs.groupby(["cell_type", "batch"], observed=False).size() > 0).all()


@pytest.mark.parametrize("n_types", [1, 5, 12])
def test_every_type_is_there_even_among_few_cells(n_types: int) -> None:
    assert simulate(12, 4, n_types=n_types).obs["cell_type"].nunique() == n_types


def test_cells_lie_around_the_centre_of_their_type(adata: AnnData) -> None:
    z = adata.obsm["z"].astype(float)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    centres = np.stack([z[types == t].mean(axis=0) for t in range(types.max() + 1)])
    off = z - centres[types]
    assert off.std() == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0])
def test_expression_is_log_linear_in_z_with_the_stated_batch_effect(effect: float) -> None:
    # log rho = a + zW + B[s] up to a number per cell, which centring over the genes removes.
    adata = simulate(300, 800, n_batches=3, batch_effect=effect, seed=4)
    log_rho = np.log(adata.layers["expression"].astype(float))
    log_rho -= log_rho.mean(axis=1, keepdims=True)
    batches = np.eye(3)[adata.obs["batch"].cat.codes]
    design = np.hstack([adata.obsm["z"].astype(float), batches])
    coefficients, *_ = np.linalg.lstsq(design, log_rho, rcond=None)
    np.testing.assert_allclose(design @ coefficients, log_rho, atol=1e-4)
    contrast = (coefficients[4] - coefficients[5]) / np.sqrt(2)
    assert contrast.std() == pytest.approx(effect, abs=4 * effect / np.sqrt(2 * 800) + 1e-5)


# -- arguments that cannot be ----------------------------------------------------------------------


SIZES = ["n_cells", "n_genes", "n_types", "n_batches", "n_latent"]


@pytest.mark.parametrize("name", [*SIZES, "library_size", "inverse_dispersion"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}, but it must be positive"):
        simulate(**{name: value})


@pytest.mark.parametrize("name", ["library_spread", "batch_effect", "dropout"])
def test_spreads_must_not_be_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=-0.1"):
        simulate(**{name: -0.1})
    assert simulate(5, 3, **{name: 0.0}).shape == (5, 3)


@pytest.mark.parametrize("name", ["library_size", "inverse_dispersion", "dropout", "batch_effect"])
def test_numbers_must_be_numbers(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=nan"):
        simulate(5, 3, **{name: float("nan")})


@pytest.mark.parametrize("dropout", [1.0, 1.5])
def test_dropout_is_a_probability_below_one(dropout: float) -> None:
    with pytest.raises(ConfigError, match=f"dropout={dropout}, but it is a probability below 1"):
        simulate(dropout=dropout)
