"""A fitted model: rows follow cells, genes follow names, bounds are bounds, files bring it back."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from container import Container
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import sparse

import scvae
from scvae import ConfigError, DataError, FileError, ScvaeError
from scvae.data.hold.cells import Cells, Dataset

LOADINGS = "embedding.coordinates.loadings"
Fitted = tuple[AnnData, scvae.Model]
law = settings(deadline=None, derandomize=True, max_examples=30)
indices = st.lists(st.integers(0, 149), min_size=1, max_size=40).map(np.array)

QUICK: dict[str, Any] = {"max_steps": 3, "n_latent": 4, "n_hidden": 16, "progress": False}


def fit(adata: AnnData, **arguments: Any) -> scvae.Model:
    return scvae.fit(adata, **{**QUICK, **arguments})


def untouched(adata: AnnData) -> bytes:
    """Return all that a method might have changed in `adata`, as bytes."""
    x = sparse.csr_matrix(adata.X)
    slots = {slot: dict(getattr(adata, slot)) for slot in ("obsm", "layers", "uns")}
    return pickle.dumps([x.data, x.indices, x.indptr, adata.obs, adata.var, slots])


# -- embed -----------------------------------------------------------------------------------------


def test_embedding_of_the_training_data_is_the_written_one(fitted: Fitted) -> None:
    adata, model = fitted
    np.testing.assert_array_equal(model.embed(adata), adata.obsm["X_scvae"])


def test_no_method_writes_to_the_data(fitted: Fitted) -> None:
    adata, model = fitted
    before = untouched(adata)
    model.embed(adata, return_std=True)
    model.normalized(adata)
    model.elbo(adata, samples=1)
    model.log_likelihood(adata, samples=2)
    assert untouched(adata) == before


def test_no_method_touches_global_random_states(fitted: Fitted) -> None:
    adata, model = fitted
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model.elbo(adata, samples=1)
    model.log_likelihood(adata, samples=2)
    model.sample(20)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_genes_are_matched_by_name(fitted: Fitted) -> None:
    adata, model = fitted
    expected = adata.obsm["X_scvae"]
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(model.embed(adata[:, order]), expected)
    extra = AnnData(
        sparse.hstack([adata.X[:, ::-1], adata.X], format="csr"),
        obs=adata.obs,
        var=pd.DataFrame(index=[*(f"other_{g}" for g in range(40)), *adata.var_names]),
    )
    np.testing.assert_array_equal(model.embed(extra), expected)
    np.testing.assert_array_equal(model.embed(extra[:, ::-1]), expected)


def test_a_model_of_some_genes_reads_them_from_all(simulated: AnnData) -> None:
    adata = simulated.copy()
    chosen = list(adata.var_names[[30, 2, 17, 5, 39, 21, 8, 1, 0, 11]])
    model = fit(adata, genes=chosen)
    assert model.origin.genes == chosen
    np.testing.assert_array_equal(model.embed(adata), adata.obsm["X_scvae"])
    np.testing.assert_array_equal(model.embed(adata[:, sorted(chosen)]), adata.obsm["X_scvae"])


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@law
@given(rows=indices)
def test_rows_out_follow_rows_in(fitted: Fitted, rows: np.ndarray) -> None:
    adata, model = fitted
    for source in (adata[rows], adata[rows].copy()):
        found = model.embed(source)
        np.testing.assert_allclose(found, adata.obsm["X_scvae"][rows], rtol=0, atol=1e-6)


@pytest.fixture(scope="session", params=["csr", "csc", "dense"])
def backed(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Any:
    adata = fitted[0].copy()
    form = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}
    adata.X = form[request.param]
    path = tmp_path_factory.mktemp("backed") / "cells.h5ad"
    adata.write_h5ad(path)
    opened = anndata.read_h5ad(path, backed="r")
    yield opened
    opened.file.close()


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@law
@given(rows=indices)
def test_rows_out_follow_rows_in_of_a_file(
    fitted: Fitted, backed: AnnData, rows: np.ndarray
) -> None:
    adata, model = fitted
    found = model.embed(backed[rows])
    np.testing.assert_allclose(found, adata.obsm["X_scvae"][rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 149])
def test_the_size_of_a_chunk_changes_nothing(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    adata, model = fitted
    whole = model.embed(adata), model.normalized(adata)
    monkeypatch.setattr("scvae.models.fitted.CHUNK_VALUES", size * adata.n_vars)
    np.testing.assert_allclose(model.embed(adata), whole[0], rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(model.normalized(adata), whole[1], rtol=1e-5)


def test_no_cells_give_no_rows(fitted: Fitted) -> None:
    adata, model = fitted
    assert model.embed(adata[:0]).shape == (0, 5)
    assert model.normalized(adata[:0]).shape == (0, 40)


def cells(model: scvae.Model, adata: AnnData) -> Cells:
    """Return all cells as the model's network sees them, with observed library sizes."""
    covariates, library = model.origin.covariates, np.asarray(adata.X.sum(axis=1)).ravel()
    encoded = covariates.read(adata.obs)
    design, codes = encoded.design, encoded.codes
    dataset = Dataset.build(sparse.csr_matrix(adata.X), design, codes, library, "cpu")
    return dataset.cells(torch.arange(adata.n_obs))


def test_the_standard_deviation_is_that_of_embedded_posterior_samples(fitted: Fitted) -> None:
    """Of a posterior that is narrow, where the embedding is linear over its width."""
    adata, model = fitted
    mean, std = model.embed(adata, return_std=True)
    assert (mean.shape, std.shape, std.dtype) == ((150, 5), (150, 5), np.float32)
    assert (std > 0).all()
    seen, views, narrow = cells(model, adata), model.views, 0.005
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        q = model.vae.encode(seen)
        embedded = torch.stack(
            [
                model.embedding.mean(views, q.loc + narrow * q.scale * noise, seen.batch)
                for noise in torch.randn(2000, *q.loc.shape, generator=draw)
            ]
        )
    close = np.isclose(embedded.std(0).numpy() / narrow, std, rtol=0.12)
    assert close.mean() > 0.98  # but where a unit switches on within that width
    np.testing.assert_allclose(embedded.mean(0).numpy(), mean, atol=0.5 * narrow * std.max())


def test_missing_genes_are_named(fitted: Fitted) -> None:
    adata, model = fitted
    with pytest.raises(DataError, match=r"lacks 2 of the 40.*'gene_3', 'gene_8'"):
        model.predictive_check(adata[:, ~adata.var_names.isin(["gene_3", "gene_8"])])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicated_genes_are_named(fitted: Fitted) -> None:
    adata, model = fitted
    doubled = anndata.concat([adata, adata[:, ["gene_4"]]], axis=1)
    doubled.obs = adata.obs.copy()
    with pytest.raises(DataError, match=r"'gene_4'.*var_names_make_unique"):
        model.embed(doubled)


METHODS: dict[str, Callable[[scvae.Model, AnnData], Any]] = {
    "embed": lambda model, adata: model.embed(adata),
    "normalized": lambda model, adata: model.normalized(adata),
    "elbo": lambda model, adata: model.elbo(adata),
    "log_likelihood": lambda model, adata: model.log_likelihood(adata),
}


@pytest.mark.parametrize("method", METHODS)
def test_unknown_batch_is_named(fitted: Fitted, method: str) -> None:
    adata, model = fitted
    other = adata.copy()
    other.obs["batch"] = other.obs["batch"].astype(str)
    other.obs.loc["cell_7", "batch"] = "donor_9"
    with pytest.raises(DataError, match=r"obs\['batch'\].*'donor_9'.*'batch_0', 'batch_1'"):
        METHODS[method](model, other)


@pytest.mark.parametrize("method", METHODS)
def test_missing_batch_column_is_named(fitted: Fitted, method: str) -> None:
    adata, model = fitted
    with pytest.raises(DataError, match=r"no column 'batch'"):
        METHODS[method](model, AnnData(adata.X, var=adata.var))


def test_a_covariate_of_words_is_refused_by_name(fitted: Fitted) -> None:
    adata, model = fitted
    other = adata.copy()
    other.obs["library_size"] = "many"
    with pytest.raises(DataError, match=r"'library_size'.*many"):
        model.embed(other)


def test_a_batch_of_whole_floats_is_the_batch_of_integers(simulated: AnnData) -> None:
    """A join or a file may turn 0, 1 into 0.0, 1.0: the batches are still the same."""
    adata = simulated.copy()
    adata.obs["donor"] = (adata.obs["batch"] == "batch_1").astype(int)
    model = fit(adata, batch="donor", encode_covariates=True)
    adata.obs["donor"] = adata.obs["donor"].astype(float)
    np.testing.assert_array_equal(model.embed(adata), adata.obsm["X_scvae"])


def test_normalised_data_are_refused(fitted: Fitted) -> None:
    adata, model = fitted
    logged = adata.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(DataError, match=r"adata\.X.*non-integer"):
        model.embed(logged)


def test_the_remedy_for_another_layer_can_be_typed(fitted: Fitted) -> None:
    """A message may only name arguments that the called method takes."""
    adata, model = fitted
    logged = adata.copy()
    logged.layers["counts"], logged.X = logged.X.copy(), logged.X.log1p()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = model.embed(logged)
    np.testing.assert_array_equal(found, adata.obsm["X_scvae"])
    if "layer" not in inspect.signature(model.embed).parameters:
        assert not [str(w.message) for w in caught if "layer=" in str(w.message)]


def test_the_remedy_for_a_wrong_layer_mends_it(simulated: AnnData) -> None:
    """The model reads the layer it was fitted on: a call with the same data cannot mend it."""
    adata = simulated.copy()
    adata.layers["counts"] = adata.X.copy()
    model = fit(adata, layer="counts")
    adata.layers["counts"] = adata.X.log1p()
    with pytest.raises(DataError) as caught:
        model.embed(adata)
    assert "adata.X holds some: model.embed(adata)." not in str(caught.value)


VERBS: dict[str, Callable[..., Any]] = {
    "model.embed(adata": lambda model, adata, **how: model.embed(adata, **how),
    "model.elbo(adata": lambda model, adata, **how: model.elbo(adata, **how),
    "model.log_likelihood(adata": lambda model, adata, **how: model.log_likelihood(adata, **how),
    "model.mean_log_likelihood(adata": (
        lambda model, adata, **how: model.mean_log_likelihood(adata, **how)
    ),
    "model.normalized(adata": lambda model, adata, **how: model.normalized(adata, **how),
    "model.predictive_check(adata": (
        lambda model, adata, **how: model.predictive_check(adata, **how)
    ),
    "scvae.plot.fit_check(model, adata": scvae.plot.fit_check,
}


@pytest.mark.parametrize("call", VERBS)
def test_errors_and_warnings_name_the_verb_that_was_called(fitted: Fitted, call: str) -> None:
    """And the line that called it."""
    adata, model = fitted
    other = adata.copy()
    other.layers["counts"], other.layers["log"] = adata.X.copy(), adata.X.log1p()
    with pytest.raises(DataError) as caught:
        VERBS[call](model, other, layer="log")
    assert f"adata.layers['counts'] holds some: {call}, layer='counts')." in str(caught.value)
    del other.layers["counts"]
    with pytest.raises(DataError) as caught:
        VERBS[call](model, other, layer="log")
    assert f"adata.X holds some: {call})." in str(caught.value)
    other.layers["counts"], other.X = adata.X.copy(), adata.X.log1p()
    with pytest.warns(UserWarning, match="To choose and silence this") as warned:
        VERBS[call](model, other)
    assert f"silence this: {call}, layer='counts')" in str(warned[0].message)
    assert warned[0].filename == __file__
    del other.layers["counts"]
    other.raw = adata.copy()
    with pytest.raises(DataError) as caught:
        VERBS[call](model, other)
    assert f"adata.raw holds some: {call}, layer='raw')." in str(caught.value)


# -- bounds ----------------------------------------------------------------------------------------


def test_bounds_rise_with_samples(trained: Fitted) -> None:
    adata, model = trained
    some = adata[:100]
    elbo = model.elbo(some, samples=50).mean()
    bounds = [model.log_likelihood(some, samples=k).mean() for k in (1, 5, 50, 500)]
    assert elbo < bounds[1] < bounds[2] < bounds[3]
    assert bounds[0] == pytest.approx(elbo, abs=1.0)  # with one sample, the bound is the ELBO


@torch.no_grad()
def log_px_on_a_grid(model: scvae.Model, seen: Cells) -> np.ndarray:
    """Integrate p(x | z) p(z) over the one latent of `model`: log p(x) of every cell."""
    z = torch.linspace(-12, 12, 4001)
    grid = z[:, None, None].expand(-1, len(seen.x), 1)
    log_joint = model.vae.decode(grid, seen).log_prob(seen.x) + model.vae.prior(seen).log_prob(grid)
    return (log_joint.logsumexp(0) + torch.log(z[1] - z[0])).numpy()


def test_with_one_latent_the_bounds_meet_the_integral(simulated: AnnData) -> None:
    model = fit(simulated.copy(), n_latent=1, max_steps=400)
    some = simulated[:20].copy()
    exact = log_px_on_a_grid(model, cells(model, some))
    np.testing.assert_allclose(model.log_likelihood(some, samples=5000), exact, rtol=0, atol=0.3)
    assert (model.elbo(some, samples=2000) < exact + 0.1).all()


def test_bounds_are_one_number_per_cell_and_follow_rows(trained: Fitted) -> None:
    adata, model = trained
    many = model.elbo(adata[:60], samples=400)
    assert many.shape == (60,)
    few = model.elbo(adata[np.arange(59, -1, -1)], samples=400, seed=1)[::-1]
    assert np.corrcoef(many, few)[0, 1] > 0.999
    assert np.abs(many - few).max() < 0.02 * np.abs(many).min() + 2


@pytest.mark.parametrize("method", ["elbo", "log_likelihood"])
def test_bounds_are_reproducible_by_seed(fitted: Fitted, method: str) -> None:
    adata, model = fitted
    bound = getattr(model, method)
    one, same, other = (bound(adata, samples=3, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("method", ["elbo", "log_likelihood"])
def test_bounds_need_a_sample(fitted: Fitted, method: str) -> None:
    adata, model = fitted
    with pytest.raises(ConfigError, match=r"samples=0.*samples=1"):
        getattr(model, method)(adata, samples=0)


def test_the_bound_is_poor_on_cells_unlike_the_training_data(trained: Fitted) -> None:
    adata, model = trained
    other = adata[:100].copy()
    rng = np.random.default_rng(0)
    dense = other.X.toarray()
    other.X = np.stack([row[rng.permutation(100)] for row in dense])
    assert model.elbo(other).mean() < model.elbo(adata[:100]).mean() - 50


# -- normalized ------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1.0, 1e4])
@pytest.mark.parametrize("batch", ["average", "own", "batch_0"])
def test_normalised_rows_sum_to_the_library_size(fitted: Fitted, total: float, batch: str) -> None:
    adata, model = fitted
    frame = model.normalized(adata, library_size=total, batch=batch)
    np.testing.assert_allclose(frame.sum(axis=1), total, rtol=1e-5)
    assert (frame.to_numpy() > 0).all()
    assert (frame.dtypes == np.float32).all()
    assert list(frame.index) == list(adata.obs_names)
    assert list(frame.columns) == list(adata.var_names)


def test_with_counts_outside_the_genes_rows_sum_below_it(simulated: AnnData) -> None:
    adata = simulated.copy()
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() * 2
    model = fit(adata, library_size="total")
    sums = model.normalized(adata).sum(axis=1) / 1e4
    assert (sums < 1).all()
    assert sums.mean() == pytest.approx(0.5, abs=0.1)


def test_average_is_the_mean_over_batches(trained: Fitted) -> None:
    adata, model = trained
    each = [model.normalized(adata, batch=name) for name in model.batches]
    pd.testing.assert_frame_equal(model.normalized(adata), sum(each) / len(each), rtol=1e-5)
    assert np.abs(each[0] - each[1]).to_numpy().max() > 1  # else the mean says nothing


def test_own_leaves_every_cell_in_its_batch(trained: Fitted) -> None:
    adata, model = trained
    own = model.normalized(adata, batch="own")
    for name in model.batches:
        rows = (adata.obs["batch"] == name).to_numpy()
        expected = model.normalized(adata, batch=name)[rows]
        pd.testing.assert_frame_equal(own[rows], expected, rtol=1e-5)


def test_without_batches_average_and_own_agree(simulated: AnnData) -> None:
    adata = simulated.copy()
    model = fit(adata, covariates="cell_type")
    average, own = (model.normalized(adata, batch=name) for name in ("average", "own"))
    pd.testing.assert_frame_equal(average, own)


def test_genes_choose_columns_in_their_order(fitted: Fitted) -> None:
    adata, model = fitted
    chosen = ["gene_30", "gene_2", "gene_2", "gene_17"]
    every = model.normalized(adata)
    pd.testing.assert_frame_equal(model.normalized(adata, genes=chosen), every[chosen])
    pd.testing.assert_frame_equal(model.normalized(adata, genes="gene_5"), every[["gene_5"]])
    assert model.normalized(adata, genes=[]).shape == (150, 0)


def test_unknown_genes_and_batches_are_named(fitted: Fitted) -> None:
    adata, model = fitted
    with pytest.raises(ConfigError, match=r"genes has 1 .*'TP53'"):
        model.normalized(adata, genes=["gene_1", "TP53"])
    with pytest.raises(ConfigError, match=r"batch='donor'.*batch_0.*batch='average'"):
        model.normalized(adata, batch="donor")


def test_normalised_expression_follows_the_true_shares(trained: Fitted) -> None:
    adata, model = trained
    found = model.normalized(adata, batch="own", library_size=1.0).to_numpy()
    truth = adata.layers["expression"]
    floor = 1e-4  # shares below one count in 10,000 are not to be seen
    correlation = np.corrcoef(np.log(found + floor).ravel(), np.log(truth + floor).ravel())[0, 1]
    assert correlation > 0.9


# -- sample ----------------------------------------------------------------------------------------


def test_samples_are_counts_of_the_models_genes(fitted: Fitted) -> None:
    _, model = fitted
    drawn = model.sample(200)
    assert drawn.shape == (200, 40)
    assert sparse.issparse(drawn.X)
    assert drawn.X.format == "csr"
    assert (drawn.X.data > 0).all()
    np.testing.assert_array_equal(drawn.X.data, np.round(drawn.X.data))
    assert list(drawn.var_names) == model.origin.genes
    assert drawn.obs_names.is_unique
    assert drawn.obsm["X_scvae"].shape == (200, 5)
    assert set(drawn.obs["batch"]) == {"batch_0", "batch_1"}


def test_samples_are_reproducible_by_seed(fitted: Fitted) -> None:
    _, model = fitted
    one, same, other = (model.sample(30, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.X.toarray(), same.X.toarray())
    np.testing.assert_array_equal(one.obsm["X_scvae"], same.obsm["X_scvae"])
    assert (one.X != other.X).nnz > 0


def means(adata: AnnData) -> np.ndarray:
    return np.asarray(adata.X.mean(axis=0)).ravel()


def test_sampled_gene_means_are_those_of_the_training_data(trained: Fitted) -> None:
    """Within a third of the counts in all: the prior is not quite where the posteriors are."""
    adata, model = trained
    drawn, truth = means(model.sample(3000)), means(adata)
    assert np.corrcoef(np.log(drawn + 0.01), np.log(truth + 0.01))[0, 1] > 0.93
    assert np.abs(drawn - truth).sum() / truth.sum() < 0.45
    assert drawn.sum() == pytest.approx(truth.sum(), rel=0.1)


def test_samples_of_a_batch_are_like_its_cells(trained: Fitted) -> None:
    adata, model = trained
    of_batch = {
        name: np.log(means(adata[adata.obs["batch"] == name]) + 0.1) for name in model.batches
    }
    for name, other in (("batch_0", "batch_1"), ("batch_1", "batch_0")):
        drawn = model.sample(2000, batch=name)
        assert set(drawn.obs["batch"]) == {name}
        found = np.log(means(drawn) + 0.1)
        near, far = (np.abs(found - of_batch[each]).mean() for each in (name, other))
        assert near < 0.6 * far


def test_batches_are_drawn_as_often_as_they_were_seen(simulated: AnnData) -> None:
    adata = simulated.copy()
    adata.obs["batch"] = np.where(np.arange(150) < 30, "rare", "common")
    drawn = fit(adata, batch="batch").sample(4000)
    share = (drawn.obs["batch"] == "rare").mean()
    assert share == pytest.approx(0.2, abs=5 * np.sqrt(0.2 * 0.8 / 4000))


def test_a_model_without_batch_draws_cells_without_one(simulated: AnnData) -> None:
    model = fit(simulated.copy(), covariates="cell_type")
    assert list(model.sample(3).obs.columns) == []
    with pytest.raises(ConfigError, match="batch='batch_0'"):
        model.sample(3, batch="batch_0")


def test_samples_of_no_cells_or_an_unknown_batch_are_refused(fitted: Fitted) -> None:
    _, model = fitted
    with pytest.raises(ConfigError, match=r"n=0.*at least one"):
        model.sample(0)
    with pytest.raises(ConfigError, match=r"batch='donor'.*'batch_0', 'batch_1'"):
        model.sample(3, batch="donor")


def test_samples_can_be_fitted_in_their_turn(trained: Fitted) -> None:
    _, model = trained
    drawn = model.sample(100)
    np.testing.assert_allclose(
        model.embed(drawn).std(0)[0], drawn.obsm["X_scvae"].std(0)[0], rtol=0.5
    )
    assert fit(drawn, batch="batch").architecture.n_genes == 100


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("library_size", ["observed", "latent", "total"])
def test_a_file_brings_the_model_back(
    simulated: AnnData, tmp_path: Path, likelihood: Any, dispersion: Any, library_size: str
) -> None:
    adata = simulated.copy()
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() * 1.5
    model = fit(
        adata,
        batch="batch",
        covariates=["cell_type", "total"],
        likelihood=likelihood,
        dispersion=dispersion,
        library_size=library_size,
        encode_covariates=True,
    )
    model.save(tmp_path / "model.scvae")
    back = scvae.load(tmp_path / "model.scvae")
    np.testing.assert_array_equal(back.embed(adata), adata.obsm["X_scvae"])
    np.testing.assert_array_equal(back.elbo(adata, samples=2), model.elbo(adata, samples=2))
    pd.testing.assert_frame_equal(back.normalized(adata), model.normalized(adata))
    assert (back.sample(20).X != model.sample(20).X).nnz == 0
    assert (back.architecture, back.origin) == (model.architecture, model.origin)
    assert back.record == model.record.without_times()
    assert repr(back) == repr(model)


@pytest.fixture
def saved(fitted: Fitted, tmp_path: Path) -> Path:
    path = tmp_path / "model.scvae"
    fitted[1].save(path)
    return path


def test_saving_again_replaces_the_file(fitted: Fitted, saved: Path) -> None:
    before = saved.read_bytes()
    fitted[1].save(str(saved))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model.scvae"]


def test_saving_where_nothing_can_be_written_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        fitted[1].save(tmp_path / "nowhere" / "model.scvae")
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str]], Any]) -> None:
    """Change tensors and header of a file in place; its checksums agree with the change."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    path.write_bytes(Container.of(path.read_bytes()).sealed().data())


WRONG: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("cells and genes\n" * 100),
    "pickle": lambda path: torch.save({"weights": torch.ones(3)}, path),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "h5ad": lambda path: scvae.simulate(20, 5).write_h5ad(path),
    "other safetensors": lambda path: save_file({"w": torch.ones(3)}, path),
    "header no JSON": lambda path: rewrite(path, lambda t, m: m.update(scvae="{")),
    "header no object": lambda path: rewrite(path, lambda t, m: m.update(scvae="[1]")),
    "header without a model": lambda path: rewrite(
        path, lambda t, m: m.update(scvae='{"format": 1}')
    ),
    "of the future": lambda path: rewrite(path, lambda t, m: m.update(scvae='{"format": 99}')),
    "a tensor too few": lambda path: rewrite(path, lambda t, m: t.pop(sorted(t)[-1])),
    "a tensor too many": lambda path: rewrite(path, lambda t, m: t.update(w=torch.ones(1))),
    "without loadings": lambda path: rewrite(path, lambda t, m: t.pop(LOADINGS)),
    "loadings of another shape": lambda path: rewrite(
        path, lambda t, m: t.update({LOADINGS: torch.ones(3, 3)})
    ),
    "a gene too few": lambda path: rewrite(
        path, lambda t, m: m.update(scvae=m["scvae"].replace('"gene_0", ', "", 1))
    ),
    "an unknown likelihood": lambda path: rewrite(
        path, lambda t, m: m.update(scvae=m["scvae"].replace('"nb"', '"gauss"', 1))
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_the_wrong_kind_is_refused(saved: Path, kind: str) -> None:
    WRONG[kind](saved)
    with pytest.raises(FileError) as caught:
        scvae.load(saved)
    assert str(saved) in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=tmp_path.name):
        scvae.load(tmp_path)


def test_loading_to_an_unknown_device_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='gpu'.*'cpu'"):
        scvae.load(saved, device="gpu")


# -- what it says of itself ------------------------------------------------------------------------


def test_repr_tells_genes_latents_likelihood_batch_and_device(fitted: Fitted) -> None:
    shown = repr(fitted[1])
    for part in ("scvae.Model", "40 genes", "5 latents", "nb", "batch='batch' (2)", "cpu"):
        assert part in shown
    assert "\n" not in shown


def test_repr_without_a_batch_speaks_of_none(simulated: AnnData) -> None:
    shown = repr(fit(simulated.copy(), likelihood="zinb", library_size="latent"))
    assert "batch" not in shown
    assert "zinb" in shown
    assert "'latent'" in shown


def test_every_error_of_the_model_is_one_of_scvaes(fitted: Fitted) -> None:
    adata, model = fitted
    for wrong in (np.ones((3, 40)), adata.to_df()):
        with pytest.raises(ScvaeError, match="AnnData"):
            model.embed(wrong)


# -- results that memory need not hold -------------------------------------------------------------


def test_expression_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    adata = scvae.simulate(n_cells=90, n_genes=20)
    model = scvae.fit(adata, max_steps=5, progress=False)
    expected = model.normalized(adata, genes=["gene_3", "gene_1"])
    shape = (90, 2)
    mapped = np.memmap(tmp_path / "a", dtype=np.float32, mode="w+", shape=shape)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        stored = file.create_dataset("x", shape, dtype=np.float32)
        for out in (np.empty(shape), mapped, stored):
            assert model.normalized(adata, genes=["gene_3", "gene_1"], out=out) is out
            np.testing.assert_array_equal(np.asarray(out, np.float32), expected.to_numpy())


def test_an_array_of_another_shape_is_refused_before_anything_is_written() -> None:
    adata = scvae.simulate(n_cells=90, n_genes=20)
    model = scvae.fit(adata, max_steps=5, progress=False)
    out = np.full((90, 19), 7.0)
    with pytest.raises(ConfigError, match=r"\(90, 19\).*\(90, 20\)"):
        model.normalized(adata, out=out)
    assert (out == 7).all()
