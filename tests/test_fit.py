"""scvae.fit: what it writes, what it leaves alone, what it finds, and what it refuses.

No test here knows a default of the network or of the schedule: they may change.
"""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hashes import digest, digests
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae import ConfigError, DataError, ScvaeError, TrainingError
from scvae.cli.info import facts_of
from scvae.models.embedding import fit_embedding
from scvae.models.plan import PURPOSES, generator_of

QUICK: dict[str, Any] = {"max_steps": 3, "n_latent": 4, "n_hidden": 16, "progress": False}


def fit(adata: AnnData, **arguments: Any) -> scvae.Model:
    return scvae.fit(adata, **{**QUICK, **arguments})


def embedding(adata: AnnData, **arguments: Any) -> np.ndarray:
    fit(adata, **arguments)
    return adata.obsm["X_scvae"]


@pytest.fixture
def adata(simulated: AnnData) -> AnnData:
    return simulated.copy()


# -- weights, and what is read back ---------------------------------------------------------------


def weights(model: scvae.Model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.vae.state_dict().items()}


def assert_same_weights(one: scvae.Model, other: scvae.Model) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_same(left: Any, right: Any, where: str = "uns") -> None:
    """Compare what was written with what was read back, through every nested mapping."""
    if isinstance(left, Mapping):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}[{key!r}]")
    else:
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=where)


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["X_scvae", "X_mine"])
def test_writes_the_embedding_and_its_description_and_nothing_else(
    adata: AnnData, key: str
) -> None:
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.uns["mine"] = {"kept": [1, 2]}
    adata.obsp["near"] = sparse.eye(adata.n_obs, format="csr")
    before = digests(adata)
    fit(adata, batch="batch", n_latent=6, key_added=key)
    assert digests(adata, besides=(key, "scvae")) == before
    assert set(adata.obsm) == {"z", "X_pca", key}
    assert set(adata.uns) == {"truth", "mine", "scvae"}
    written = adata.obsm[key]
    assert (written.dtype, written.shape) == (np.float32, (adata.n_obs, 6))
    assert np.isfinite(written).all()
    assert written.std() > 0


def test_a_second_fit_replaces_the_first(adata: AnnData) -> None:
    first = embedding(adata, seed=1)
    second = embedding(adata, seed=2, n_latent=3)
    assert (first.shape[1], second.shape[1]) == (4, 3)
    assert adata.uns["scvae"]["seed"] == 2


def test_description_survives_h5ad(adata: AnnData, tmp_path: Path) -> None:
    adata.obs["depth"] = np.arange(adata.n_obs) / 7
    fit(adata, batch="batch", covariates=["cell_type", "depth"])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert_same(adata.uns["scvae"], back.uns["scvae"])
    np.testing.assert_array_equal(adata.obsm["X_scvae"], back.obsm["X_scvae"])


def test_description_without_covariates_survives_h5ad(adata: AnnData, tmp_path: Path) -> None:
    fit(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert_same(adata.uns["scvae"], anndata.read_h5ad(tmp_path / "cells.h5ad").uns["scvae"])


def test_description_says_how_the_fit_went(adata: AnnData) -> None:
    fit(adata, batch="batch", seed=7, batch_size=50, validation=0.2)
    uns = adata.uns["scvae"]
    assert (uns["seed"], uns["batch_size"], uns["batch"]) == (7, 50, "batch")
    assert (uns["n_train"], uns["n_held_out"]) == (120, 30)
    assert list(uns["batches"]) == ["batch_0", "batch_1"]
    assert uns["elbo_held_out"] == max(uns["history"]["validation"])
    assert uns["versions"]["scvae"] == scvae.__version__


@pytest.mark.parametrize("covariates", [None, ["library_size", "cell_type"]], ids=str)
def test_the_description_tells_what_info_and_the_summary_tell(
    adata: AnnData, covariates: list[str] | None
) -> None:
    model = fit(adata, batch="batch", covariates=covariates)
    uns, facts = adata.uns["scvae"], facts_of(model)
    data = dict(model.summary().sections["Data"])
    told = {name: np.atleast_1d(uns[name]).tolist() for name in ("batches", "covariates")}
    assert told == {name: facts[name] for name in told}
    assert told["covariates"] == ([] if covariates is None else ["cell_type", "library_size"])
    kinds = dict.fromkeys(("cell_type",), "category") | {"library_size": "number"}
    shown = [f"{name!r} ({kinds[name]})" for name in told["covariates"]]
    assert data.get("covariates", "") == ", ".join(shown)
    assert (uns["batch"], uns["layer"]) == (facts["batch_column"], facts["layer"])
    assert (uns["library_size"], uns["seed"]) == (facts["library_size"], facts["seed"])
    assert uns["elbo_held_out"] == facts["held_out_elbo"]


def test_a_view_made_in_the_call_is_told_that_its_result_is_lost(adata: AnnData) -> None:
    adata.var["highly_variable"] = np.arange(adata.n_vars) < 8
    with pytest.warns(UserWarning, match=r"is a view.*genes='highly_variable'") as warned:
        fit(adata[:, adata.var["highly_variable"]])
    assert [warning.filename for warning in warned] == [__file__]
    assert "X_scvae" not in adata.obsm
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(adata[:, :8].copy())


@pytest.mark.filterwarnings("ignore:adata is a view")
def test_a_view_gets_the_slots_and_its_parent_does_not(simulated: AnnData) -> None:
    parent = simulated.copy()
    before = digests(parent)
    view = parent[::2]
    fit(view, batch="batch")
    assert view.obsm["X_scvae"].shape == (75, 4)
    assert digests(parent) == before


# -- chance ----------------------------------------------------------------------------------------


def repeats(n: int, **arguments: Any) -> list[np.ndarray]:
    """Embed the same data n times, each time with the arrays elsewhere in memory."""
    kept, found = [], []
    for i in range(n):
        cells = scvae.simulate(101, 37, seed=3)
        found.append(embedding(cells, **arguments))
        kept.append(np.empty(1 + 997 * i, dtype=np.uint8))
    return found


@pytest.mark.parametrize("n_latent", [10, 90], ids=["few latents", "more latents than rank"])
def test_same_seed_same_embedding_to_the_last_bit(n_latent: int) -> None:
    first, *others = repeats(6, n_latent=n_latent)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_same_seed_same_weights_to_the_last_bit(simulated: AnnData) -> None:
    one, other = (fit(simulated.copy(), batch="batch", max_steps=10) for _ in range(2))
    assert_same_weights(one, other)


def test_same_seed_same_file_to_the_last_byte(simulated: AnnData, tmp_path: Path) -> None:
    for name in ("one", "other"):
        fit(simulated.copy(), batch="batch").save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_another_seed_is_another_fit(simulated: AnnData) -> None:
    one, other = (embedding(simulated.copy(), seed=seed) for seed in (0, 1))
    assert np.abs(one - other).max() > 1e-3


def test_a_purpose_draws_numbers_of_its_own() -> None:
    drawn = [
        tuple(torch.randint(2**62, (3,), generator=generator_of(purpose, seed)).tolist())
        for seed in (0, 1, 2**32 - 1)
        for purpose in PURPOSES
    ]
    assert len({*drawn}) == len(drawn) == 3 * len(PURPOSES)


def test_the_embedding_depends_on_no_draw_of_the_training(
    simulated: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []

    def recorded(*given: Any) -> Any:
        states.append(given[-1].get_state())
        return fit_embedding(*given)

    monkeypatch.setattr("scvae.models.made.fit_embedding", recorded)
    for steps in (2, 5):
        fit(simulated.copy(), max_steps=steps)
    assert torch.equal(*states)


def test_the_seed_decides_on_split_weights_and_noise(simulated: AnnData) -> None:
    one, other = (fit(simulated.copy(), seed=seed, learning_rate=1e-12) for seed in (0, 1))
    left, right = weights(one), weights(other)
    for name in ("posterior.head.linear.weight", "likelihood.share.weight"):
        assert np.abs(left[name] - right[name]).max() > 1e-2
    shares = "likelihood.share.bias"  # before training: the genes' shares in the training cells
    assert 1e-4 < np.abs(left[shares] - right[shares]).max() < 1
    assert one.record.history.train != other.record.history.train


def test_global_random_states_are_neither_read_nor_changed(simulated: AnnData) -> None:
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        found.append(fit(simulated.copy(), batch="batch"))
        assert random.getstate() == before[0]
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])
    assert_same_weights(*found)


def test_does_not_depend_on_torchs_default_type(simulated: AnnData) -> None:
    expected = fit(simulated.copy(), batch="batch")
    torch.set_default_dtype(torch.float64)
    try:
        found = fit(simulated.copy(), batch="batch")
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_weights(found, expected)


def test_trains_where_gradients_are_switched_off(simulated: AnnData) -> None:
    expected = fit(simulated.copy(), batch="batch")
    with torch.no_grad():
        found = fit(simulated.copy(), batch="batch")
    assert_same_weights(found, expected)


# -- where the counts come from --------------------------------------------------------------------


def shuffled_entries(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the same matrix with unsorted indices, stored zeros, and every count in two halves."""
    coo = x.tocoo()
    half = np.floor(coo.data / 2)
    rows = np.tile(coo.row, 2)
    columns, data = np.tile(coo.col, 2), np.concatenate([half, coo.data - half])
    order = np.lexsort((np.random.default_rng(0).random(len(rows)), rows))
    indptr = np.concatenate([[0], np.bincount(rows, minlength=x.shape[0]).cumsum()])
    return sparse.csr_matrix((data[order], columns[order], indptr), shape=x.shape)


FORMS: dict[str, Callable[[sparse.csr_matrix], Any]] = {
    "csr float64": lambda x: x.astype(np.float64),
    "csr int8": lambda x: x.astype(np.int8),
    "csr int64": lambda x: x.astype(np.int64),
    "csr uint16": lambda x: x.astype(np.uint16),
    "csr array": sparse.csr_array,
    "csr as it came": shuffled_entries,
    "csc": lambda x: x.tocsc(),
    "csc int64": lambda x: x.tocsc().astype(np.int64),
    "dense": lambda x: x.toarray(),
    "dense float64": lambda x: x.toarray().astype(np.float64),
    "dense int8": lambda x: x.toarray().astype(np.int8),
    "dense int64": lambda x: x.toarray().astype(np.int64),
    "dense uint16": lambda x: x.toarray().astype(np.uint16),
    "dense by columns": lambda x: np.asfortranarray(x.toarray()),
}


def small_counts(adata: AnnData) -> AnnData:
    """Return `adata` with counts that int8 holds."""
    adata.X.data = np.minimum(adata.X.data, 127)
    return adata


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_counts_changes_no_weight(adata: AnnData, form: str) -> None:
    adata = small_counts(adata)
    other = adata.copy()
    other.X = FORMS[form](adata.X.copy())
    before = digest(other.X)
    expected, found = fit(adata, batch="batch"), fit(other, batch="batch")
    assert_same_weights(found, expected)
    np.testing.assert_allclose(other.obsm["X_scvae"], adata.obsm["X_scvae"], rtol=0, atol=1e-5)
    assert digest(other.X) == before


@pytest.mark.filterwarnings("ignore:adata is a view")
def test_a_view_is_fitted_as_its_copy(simulated: AnnData) -> None:
    rows, columns = np.arange(149, 20, -1), np.arange(39, 3, -1)
    view = simulated.copy()[rows, columns]
    assert view.is_view
    copied = simulated[rows, columns].copy()
    assert_same_weights(fit(view, batch="batch"), fit(copied, batch="batch"))


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_file_opened_in_backed_mode_is_fitted_as_in_memory(
    adata: AnnData, tmp_path: Path, form: str, mode: str
) -> None:
    adata.X = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}[form]
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    content = path.read_bytes()
    backed = anndata.read_h5ad(path, backed=mode)
    found, expected = fit(backed, batch="batch"), fit(adata, batch="batch")
    assert_same_weights(found, expected)
    assert backed.obsm["X_scvae"].shape == (150, 4)
    assert backed.isbacked
    backed.file.close()
    if mode == "r":
        assert path.read_bytes() == content


def test_a_backed_view_is_refused_before_training(
    adata: AnnData, tmp_path: Path, no_training: None
) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    view = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")[::2]
    with pytest.raises(ScvaeError, match="to_memory"):
        fit(view)


def test_layer_is_read_and_remembered(adata: AnnData) -> None:
    expected = fit(adata.copy())
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X * 2
    assert_same_weights(fit(adata, layer="raw"), expected)
    assert adata.uns["scvae"]["layer"] == "raw"


def test_normalised_x_with_a_counts_layer_warns_and_uses_it(adata: AnnData) -> None:
    expected = fit(adata.copy())
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    with pytest.warns(UserWarning, match=r"non-integer.*adata\.layers\['counts'\]") as caught:
        found = fit(adata)
    assert_same_weights(found, expected)
    assert adata.uns["scvae"]["layer"] == "counts"
    assert "scvae.fit(adata, layer='counts')" in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning shows a line of scvae, not the user's"


def test_without_x_a_counts_layer_is_used(adata: AnnData) -> None:
    expected = fit(adata.copy())
    adata.layers["counts"], adata.X = adata.X.copy(), None
    with pytest.warns(UserWarning, match=r"adata\.X is empty.*counts"):
        assert_same_weights(fit(adata), expected)


# -- which cells, genes and covariates -------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 11, 44, 45])
def test_a_last_minibatch_of_one_cell_trains(simulated: AnnData, batch_size: int) -> None:
    adata = simulated[:50].copy()
    model = fit(adata, batch="batch", batch_size=batch_size, validation=0.1, max_steps=4)
    assert model.record.n_train == 45
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert np.isfinite(model.record.history.train).all()


@pytest.mark.parametrize("n", [10, 11, 12])
@pytest.mark.parametrize("n_latent", [3, 30])
def test_a_handful_of_cells_is_enough(n: int, n_latent: int) -> None:
    adata = scvae.simulate(n, 20)
    model = fit(adata, n_latent=n_latent, max_steps=20)
    assert adata.obsm["X_scvae"].shape == (n, n_latent)
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert model.record.final_beta == 1
    assert model.record.n_train + model.record.n_held_out == n


def test_genes_by_column_and_by_name_agree(adata: AnnData) -> None:
    chosen = list(adata.var_names[5:30])
    adata.var["highly_variable"] = adata.var_names.isin(chosen)
    by_column = fit(adata, genes="highly_variable")
    by_name, by_index = fit(adata, genes=chosen), fit(adata, genes=pd.Index(chosen))
    as_subset = fit(adata[:, chosen].copy())
    assert by_column.origin.genes == by_name.origin.genes == chosen
    for other in (by_name, by_index, as_subset):
        assert_same_weights(other, by_column)


def with_totals(adata: AnnData, beyond: float) -> AnnData:
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() * (1 + beyond)
    return adata


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("library_size", ["observed", "latent", "total"])
@pytest.mark.parametrize("encode_covariates", [False, True])
def test_every_variant_trains(
    adata: AnnData, likelihood: str, dispersion: str, library_size: str, encode_covariates: bool
) -> None:
    model = fit(
        with_totals(adata, beyond=0.5),
        batch="batch",
        likelihood=likelihood,
        dispersion=dispersion,
        library_size=library_size,
        encode_covariates=encode_covariates,
    )
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert np.isfinite(model.record.elbo_held_out)
    a = model.architecture.rna
    assert a is not None
    assert (a.likelihood, a.dispersion) == (likelihood, dispersion)
    assert (a.latent_library, a.outside) == (library_size == "latent", library_size == "total")


def test_covariates_of_both_kinds_reach_the_network(adata: AnnData) -> None:
    adata.obs["depth"] = np.arange(adata.n_obs, dtype=np.int32)
    model = fit(adata, batch="batch", covariates=["cell_type", "depth"])
    covariates = model.origin.covariates
    assert list(covariates.categories) == ["batch", "cell_type"]
    assert list(covariates.numbers) == ["depth"]
    assert model.architecture.n_covariates == 2 + 4 + 1
    assert covariates.numbers["depth"][0] == pytest.approx(74.5)


def test_one_covariate_needs_no_list(simulated: AnnData) -> None:
    one, other = (fit(simulated.copy(), covariates=c) for c in ("cell_type", ["cell_type"]))
    assert_same_weights(one, other)


BATCH_TYPES: dict[str, Callable[[np.ndarray], Any]] = {
    "string": lambda codes: np.array(["a", "b"], dtype=object)[codes],
    "pandas string": lambda codes: pd.array(np.array(["a", "b"])[codes], dtype="string"),
    "categorical": lambda codes: pd.Categorical.from_codes(codes, ["x", "y"]),
    "unused category": lambda codes: pd.Categorical.from_codes(codes, ["x", "y", "never"]),
    "integer": lambda codes: codes,
    "nullable integer": lambda codes: pd.array(codes, dtype="Int64"),
    "boolean": lambda codes: codes.astype(bool),
}


@pytest.mark.parametrize("kind", BATCH_TYPES)
def test_the_type_of_the_batch_column_changes_nothing(adata: AnnData, kind: str) -> None:
    codes = (adata.obs["batch"] == "batch_1").to_numpy().astype(int)
    expected = fit(adata.copy(), batch="batch")
    adata.obs["donor"] = BATCH_TYPES[kind](codes)
    found = fit(adata, batch="donor")
    assert len(found.batches) == 2
    assert_same_weights(found, expected)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_validation_as_a_share(adata: AnnData, share: float) -> None:
    summary = fit(adata, validation=share).record
    expected = min(max(1, round(share * 150)), 148)
    assert (summary.n_held_out, summary.n_train) == (expected, 150 - expected)


def test_validation_cells_by_column_are_never_trained_on(adata: AnnData) -> None:
    """One step leaves no choice among weights: they may depend on the training cells alone."""
    held_out = np.arange(150) % 5 == 0
    adata.obs["held_out"] = held_out
    other = adata.copy()
    other.X = adata.X.multiply(1 + 2.0 * held_out[:, None]).tocsr()
    one, two = (fit(each, validation="held_out", max_steps=1) for each in (adata, other))
    assert one.record.n_held_out == 30
    assert one.record.elbo_held_out != two.record.elbo_held_out
    assert_same_weights(one, two)


def test_a_batch_may_be_held_out_whole(adata: AnnData) -> None:
    adata.obs["held_out"] = (adata.obs["batch"] == "batch_1").to_numpy()
    fit(adata, batch="batch", validation="held_out", dispersion="gene-batch")
    assert np.isfinite(adata.obsm["X_scvae"]).all()


def test_shares_of_batches_are_those_of_the_cells_trained_on(adata: AnnData) -> None:
    adata.obs["held_out"] = (adata.obs["batch"] == "batch_1").to_numpy()
    model = fit(adata, batch="batch", validation="held_out")
    assert model.origin.batch_shares == [1.0, 0.0]
    assert set(model.sample(50).obs["batch"]) == {"batch_0"}


# -- the objective ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 10, 11, 41, 79])
@pytest.mark.parametrize("n", [10, 60])
def test_the_stated_objective_is_the_trained_one(steps: int, n: int) -> None:
    adata = scvae.simulate(n, 10)
    assert fit(adata, max_steps=steps).record.final_beta == 1
    assert adata.uns["scvae"]["final_beta"] == 1


def test_early_stopping_never_stops_below_the_full_objective(adata: AnnData) -> None:
    model = fit(adata, max_steps=120, learning_rate=0.3)
    assert model.record.history.stopped_early
    assert model.record.final_beta == 1


def test_training_raises_the_held_out_bound(adata: AnnData) -> None:
    untrained = fit(adata, max_steps=1, learning_rate=1e-12).record.elbo_held_out
    learned = fit(adata, max_steps=150).record.elbo_held_out
    assert learned > untrained + 5  # nats per cell


def test_without_early_stopping_all_steps_are_taken(adata: AnnData) -> None:
    history = fit(adata, max_steps=120, learning_rate=0.3, early_stopping=False).record.history
    assert history.step[-1] == 120
    assert not history.stopped_early


# -- what is found in the data ---------------------------------------------------------------------


def share_of_other_batches(embedded: np.ndarray, batch: pd.Series, k: int = 15) -> float:
    near = NearestNeighbors(n_neighbors=k).fit(embedded).kneighbors(return_distance=False)
    codes = pd.Categorical(batch).codes
    return float((codes[near] != codes[:, None]).mean())


def test_cell_types_are_recovered(trained: tuple[AnnData, scvae.Model]) -> None:
    adata, _ = trained
    clusters = KMeans(4, n_init=10, random_state=0).fit_predict(adata.obsm["X_scvae"])
    assert adjusted_rand_score(adata.obs["cell_type"], clusters) >= 0.9


def test_batches_mix_when_they_are_given_and_only_then(trained: tuple[AnnData, Any]) -> None:
    adata, _ = trained
    batch = adata.obs["batch"]
    shares = batch.value_counts(normalize=True)
    expected = 1 - float((shares**2).sum())
    alone = adata.copy()
    scvae.fit(alone, max_steps=400, progress=False)
    assert share_of_other_batches(adata.obsm["X_scvae"], batch) > 0.8 * expected
    assert share_of_other_batches(alone.obsm["X_scvae"], batch) < 0.2 * expected


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("training started on bad input")

    monkeypatch.setattr(torch.Tensor, "backward", fail)


def set_value(value: float) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.X = adata.X.toarray()
        adata.X[3, 7] = value

    return change


def set_log(adata: AnnData) -> None:
    adata.X = adata.X.log1p()


def set_log_layer(adata: AnnData) -> None:
    adata.layers["log"], adata.layers["counts"] = adata.X.log1p(), adata.X.copy()
    adata.X = None


def set_log_and_raw(adata: AnnData) -> None:
    adata.raw = adata.copy()
    set_log(adata)


def set_empty_cell(adata: AnnData) -> None:
    adata.X = adata.X.toarray()
    adata.X[5] = 0


def set_duplicated_genes(adata: AnnData) -> None:
    adata.var_names = ["CD3D", "CD3D", *adata.var_names[2:]]


def set_batch(value: Any, rows: slice) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        column = adata.obs["batch"].astype(object)
        column.iloc[rows] = value
        adata.obs["batch"] = column

    return change


def set_column(name: str, values: Any) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.obs[name] = values if np.isscalar(values) else np.resize(values, adata.n_obs)

    return change


def nothing(adata: AnnData) -> None:
    pass


# What is done to the data, what is asked, the error, and its message's name, value and remedy.
REFUSED: dict[str, tuple[Callable[[AnnData], None], dict[str, Any], type, tuple[str, ...]]] = {
    "log": (set_log, {}, DataError, ("adata.X", "non-integer", "cell_", "gene_", "raw counts")),
    "log layer": (
        set_log_layer,
        {"layer": "log"},
        DataError,
        ("adata.layers['log']", "non-integer", "scvae.fit(adata, layer='counts')"),
    ),
    "log, raw": (
        set_log_and_raw,
        {},
        DataError,
        ("adata.X", "non-integer", "scvae.fit(adata, layer='raw')"),
    ),
    "negative": (set_value(-2), {}, DataError, ("negative", "-2", "'cell_3'", "'gene_7'")),
    "NaN": (set_value(np.nan), {}, DataError, ("NaN", "nan", "'cell_3'", "'gene_7'")),
    "inf": (set_value(np.inf), {}, DataError, ("infinite", "inf", "'cell_3'", "'gene_7'")),
    "-inf": (set_value(-np.inf), {}, DataError, ("infinite", "-inf", "'cell_3'", "'gene_7'")),
    "half": (set_value(0.5), {}, DataError, ("non-integer", "0.5", "'cell_3'", "'gene_7'")),
    "empty cell": (set_empty_cell, {}, DataError, ("1 of 150", "'cell_5'", "sc.pp.filter_cells")),
    "duplicated genes": (
        set_duplicated_genes,
        {},
        DataError,
        ("adata.var_names", "'CD3D'", "adata.var_names_make_unique()"),
    ),
    "no such layer": (nothing, {"layer": "raw"}, DataError, ("'raw'", "'expression'", "layer=")),
    "no such batch": (nothing, {"batch": "donor"}, DataError, ("'donor'", "batch", "cell_type")),
    "near miss": (nothing, {"batch": "bach"}, DataError, ("'bach'", "did you mean batch='batch'")),
    "batch as list": (nothing, {"batch": ["batch"]}, ScvaeError, ("batch", "['batch']")),
    "missing batch": (
        set_batch(None, slice(4, 6)),
        {"batch": "batch"},
        DataError,
        ("adata.obs['batch']", "2 of 150", "'cell_4'", "adata[adata.obs['batch'].notna()].copy()"),
    ),
    "NaN batch": (
        set_column("b", [np.nan, 1.0, 2.0]),
        {"batch": "b"},
        DataError,
        ("adata.obs['b']", "50 of 150", "'cell_0'", ".notna()"),
    ),
    "one batch": (
        set_column("b", "only"),
        {"batch": "b"},
        DataError,
        ("adata.obs['b']", "one category", "'only'", "Leave it out"),
    ),
    "batch of one cell": (
        set_batch("solo", slice(9, 10)),
        {"batch": "batch"},
        DataError,
        ("adata.obs['batch']", "'solo'", ".value_counts()).astype(int) > 1].copy()"),
    ),
    "batch twice": (
        nothing,
        {"batch": "batch", "covariates": "batch"},
        DataError,
        ("'batch'", "twice", "once"),
    ),
    "constant covariate": (
        set_column("c", 2.5),
        {"covariates": "c"},
        DataError,
        ("adata.obs['c']", "2.5", "Leave it out"),
    ),
    "infinite covariate": (
        set_column("c", [1.0, np.inf]),
        {"covariates": "c"},
        DataError,
        ("adata.obs['c']", "infinite", "'cell_1'"),
    ),
    "unknown gene": (nothing, {"genes": ["gene_1", "TP53"]}, DataError, ("'TP53'", "genes")),
    "gene twice": (
        nothing,
        {"genes": ["gene_1", "gene_2", "gene_3", "gene_2"]},
        ScvaeError,
        ("genes", "'gene_2'"),
    ),
    "no genes": (nothing, {"genes": []}, ScvaeError, ("genes=[]",)),
    "no such gene column": (
        nothing,
        {"genes": "highly_variable"},
        DataError,
        ("adata.var", "'highly_variable'", "sc.pp.highly_variable_genes(adata)"),
    ),
    "gene column of numbers": (
        nothing,
        {"genes": "inverse_dispersion"},
        DataError,
        ("adata.var['inverse_dispersion']", "boolean"),
    ),
    "unknown library size": (
        nothing,
        {"library_size": "latnt"},
        ScvaeError,
        ("library_size", "'latnt'", "'latent'", "'observed'"),
    ),
    "library size below the counts": (
        set_column("total", 1.0),
        {"library_size": "total"},
        DataError,
        ("adata.obs['total']", "1.0", "'cell_0'", "adata.X.sum(axis=1)"),
    ),
    "likelihood": (
        nothing,
        {"likelihood": "gaussian"},
        ConfigError,
        ("likelihood='gaussian'", "'nb'", "'zinb'", "'poisson'"),
    ),
    "dispersion": (
        nothing,
        {"dispersion": "cell"},
        ConfigError,
        ("dispersion='cell'", "'gene'", "'gene-batch'", "'gene-cell'"),
    ),
    "device": (nothing, {"device": "gpu"}, ConfigError, ("device='gpu'", "'cpu'", "'cuda'")),
    "device of no use": (nothing, {"device": "meta"}, ConfigError, ("device='meta'", "'cpu'")),
    "batch_size": (nothing, {"batch_size": 400}, ConfigError, ("batch_size=400", "135", "fewer")),
    "batch_size 0": (nothing, {"batch_size": 0}, ConfigError, ("batch_size=0", "at least")),
    "seed -1": (nothing, {"seed": -1}, ConfigError, ("seed=-1", "seed=0")),
    "n_latent 0": (nothing, {"n_latent": 0}, ConfigError, ("n_latent=0", "at least 1")),
    "n_latent 2.5": (nothing, {"n_latent": 2.5}, ConfigError, ("n_latent=2.5",)),
    "n_hidden -1": (nothing, {"n_hidden": -1}, ConfigError, ("n_hidden=-1", "at least 1")),
    "n_layers 0": (nothing, {"n_layers": 0}, ConfigError, ("n_layers=0", "at least 1")),
    "max_steps 0": (nothing, {"max_steps": 0}, ConfigError, ("max_steps=0", "at least 1")),
    "max_steps 2.5": (nothing, {"max_steps": 2.5}, ConfigError, ("max_steps=2.5",)),
    "validation 0": (nothing, {"validation": 0}, ConfigError, ("validation=0", "validation=0.1")),
    "validation 1.5": (nothing, {"validation": 1.5}, ConfigError, ("validation=1.5", "share")),
    "validation NaN": (nothing, {"validation": np.nan}, ConfigError, ("validation=nan", "share")),
    "validation by name": (
        nothing,
        {"validation": "cell_type"},
        DataError,
        ("adata.obs['cell_type']", "validation", "boolean"),
    ),
    "validation of mixed values": (
        set_column("v", np.array([True, "no"], dtype=object)),
        {"validation": "v"},
        DataError,
        ("adata.obs['v']", "boolean"),
    ),
    "validation of all": (
        set_column("v", True),
        {"validation": "v"},
        DataError,
        ("adata.obs['v']", "two to train on"),
    ),
    "rate 0": (nothing, {"learning_rate": 0}, ConfigError, ("learning_rate=0", "positive")),
    "rate -1": (nothing, {"learning_rate": -1.0}, ConfigError, ("learning_rate=-1.0", "positive")),
    "rate NaN": (nothing, {"learning_rate": np.nan}, ConfigError, ("learning_rate=nan", "=8e-3")),
    "key_added": (nothing, {"key_added": 5}, ConfigError, ("key_added", "5")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name_value_and_remedy(
    adata: AnnData, case: str, no_training: None
) -> None:
    change, arguments, error, parts = REFUSED[case]
    change(adata)
    before = digests(adata)
    with pytest.raises(error) as caught:
        fit(adata, **arguments)
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert digests(adata) == before


def test_too_few_cells_are_refused(no_training: None) -> None:
    with pytest.raises(DataError, match=r"9 cells.*at least 10"):
        fit(scvae.simulate(9, 20))


def test_too_few_genes_are_refused(adata: AnnData, no_training: None) -> None:
    with pytest.raises(DataError, match=r"1 genes.*at least 2"):
        fit(adata[:, :1].copy())


@pytest.mark.parametrize("value", [np.ones((20, 5)), pd.DataFrame(np.ones((20, 5))), "cells.loom"])
def test_what_is_no_anndata_is_refused(value: Any) -> None:
    with pytest.raises(ScvaeError, match="AnnData"):
        fit(value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
def test_cuda_that_is_not_there_is_refused(adata: AnnData, no_training: None) -> None:
    with pytest.raises(ConfigError, match=r"device='cuda'.*device='cpu'"):
        fit(adata, device="cuda")


def test_genes_without_counts_are_kept_with_a_warning(adata: AnnData) -> None:
    adata.X = adata.X.toarray()
    adata.X[:, [4, 9]] = 0
    with pytest.warns(UserWarning, match=r"2 genes .*'gene_4'.*sc\.pp\.filter_genes") as caught:
        model = fit(adata)
    assert model.architecture.n_genes == 40
    assert caught[0].filename == __file__
    assert np.isfinite(adata.obsm["X_scvae"]).all()


def test_sound_counts_raise_no_warning(adata: AnnData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(adata, batch="batch")
    assert "X_scvae" in adata.obsm


# -- failures on the way ---------------------------------------------------------------------------


def test_diverging_training_writes_nothing(adata: AnnData) -> None:
    before = digests(adata)
    with pytest.raises(TrainingError, match=r"was not finite.*learning_rate="):
        fit(adata, learning_rate=1e8, max_steps=50)
    assert digests(adata) == before


@pytest.mark.parametrize(
    ("where", "error"),
    [
        (
            "scvae.train.optimizer.AdamW.step",
            MemoryError,
        ),  # Ctrl-C there ends training and no more
        ("scvae.Model.embed_dataset", MemoryError),
        ("scvae.Model.embed_dataset", KeyboardInterrupt),
    ],
)
def test_a_failure_on_the_way_writes_nothing(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    before = digests(adata)
    monkeypatch.setattr(where, fail)
    with pytest.raises(error):
        fit(adata, batch="batch")
    assert digests(adata) == before


@pytest.mark.parametrize("name", ["n_latent", "n_hidden", "max_steps", "batch_size", "seed"])
def test_numpys_whole_numbers_are_whole_numbers(adata: AnnData, tmp_path: Path, name: str) -> None:
    expected = fit(adata.copy(), **{name: 5})
    found = fit(adata, **{name: np.int64(5)})
    assert_same_weights(found, expected)
    found.save(tmp_path / "model")
    assert_same_weights(scvae.load(tmp_path / "model"), expected)


def test_numpys_float_is_a_learning_rate(adata: AnnData, tmp_path: Path) -> None:
    fit(adata, learning_rate=np.float32(1e-3)).save(tmp_path / "model")
    assert scvae.load(tmp_path / "model").record.seed == 0


def test_the_progress_bar_is_on_standard_error_alone(
    adata: AnnData, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(adata, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "scvae.fit" in shown.err
    fit(adata, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("batch_size", [None, 7])
def test_streamed_counts_give_the_same_bits(batch_size: int | None) -> None:
    embeddings = []
    for stream in (None, True):
        adata = scvae.simulate(n_cells=150, n_genes=30)
        model = scvae.fit(
            adata, stream=stream, batch_size=batch_size, max_steps=30, progress=False, n_latent=4
        )
        embeddings.append(adata.obsm["X_scvae"])
    assert model.record.counts == "streamed from host memory"
    np.testing.assert_array_equal(*embeddings)


def test_deterministic_algorithms_are_those_of_the_gpu_alone(
    simulated: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    @contextlib.contextmanager
    def record(wanted: bool) -> Iterator[None]:
        asked.append(wanted)
        yield

    monkeypatch.setattr("scvae.models.fit.deterministic_algorithms", record)
    scvae.fit(simulated.copy(), deterministic=True, device="cpu", max_steps=2, progress=False)
    assert asked == [False]
