"""Cells of a batch that no model has seen: the mean over the known, or the likeliest of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scvae
from scvae import ConfigError, DataError
from scvae.data.read.covariates import Covariates
from scvae.data.read.unseen import UNSEEN, encode_unseen
from scvae.modalities.modality import of_batch
from scvae.models.alignment import Alignment

Fitted = tuple[AnnData, scvae.Model]
KNOWN = Covariates("run", {"run": ["a", "b", "c"], "sex": ["f", "m"]}, {"age": (50.0, 10.0)})


def test_an_unseen_batch_is_the_mean_over_the_known() -> None:
    obs = pd.DataFrame({"run": ["x", "a"], "sex": ["m", "f"], "age": [60.0, 45.0]})
    found = encode_unseen(KNOWN, obs)
    third = 1 / 3
    expected = [[third, third, third, 0, 1, 1], [third, third, third, 1, 0, -0.5]]
    np.testing.assert_allclose(found.design, expected, rtol=1e-6)
    assert found.codes.tolist() == [UNSEEN, UNSEEN]


def test_unknown_categories_and_missing_numbers_are_means_and_absent_columns_are_told() -> None:
    obs = pd.DataFrame({"sex": pd.Categorical(["m", None, "other"]), "age": [np.nan, 40, 50]})
    found = encode_unseen(KNOWN, obs).design[:, 3:]
    np.testing.assert_allclose(found, [[0, 1, 0], [0.5, 0.5, -1], [0.5, 0.5, 0]])
    with pytest.warns(scvae.errors.ScvaeWarning, match=r"no column \['sex', 'age'\]"):
        found = encode_unseen(KNOWN, obs[[]]).design[:, 3:]
    np.testing.assert_allclose(found, np.tile([0.5, 0.5, 0], (3, 1)))


def renamed(adata: AnnData, names: dict[str, str]) -> AnnData:
    other = adata.copy()
    other.obs["batch"] = other.obs["batch"].astype(str).replace(names)
    return other


def test_a_new_batch_embeds_by_the_mean_of_the_rows_of_v(fitted: Fitted) -> None:
    """In the first layer, the mean over batches; and alignment moves none of its cells."""
    adata, model = fitted
    query = renamed(adata, {"batch_0": "x", "batch_1": "y"})
    found = model.embed(query, batch="new")
    np.testing.assert_array_equal(found, model.embed(adata, batch="new"))
    layer = model.vae.posterior.hidden.layers[0]
    with torch.no_grad():
        before = layer.covariate_weight.clone()
        layer.covariate_weight[:2] = before[:2].mean(0)
        cells = model.read(adata).cells(torch.arange(150))
        z = model.vae.encode(cells).loc
        expected = model.embedding.coordinates(model.views, z)
        layer.covariate_weight.copy_(before)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_closest_batch_is_found_by_the_counts(trained: Fitted) -> None:
    adata, model = trained
    query = renamed(adata, {"batch_0": "one", "batch_1": "other"})
    own = model.embed(adata)
    np.testing.assert_array_equal(model.embed(query, batch="closest"), own)
    alone = query[query.obs["batch"] == "other"].copy()
    del alone.obs["batch"]
    rows = (adata.obs["batch"] == "batch_1").to_numpy()
    np.testing.assert_allclose(model.embed(alone, batch="closest"), own[rows], atol=1e-6)


def test_a_known_name_takes_all_cells_as_of_it(fitted: Fitted) -> None:
    adata, model = fitted
    as_of = adata.copy()
    as_of.obs["batch"] = "batch_1"
    np.testing.assert_array_equal(model.embed(adata, batch="batch_1"), model.embed(as_of))


def test_what_is_no_batch_is_refused_with_what_is(fitted: Fitted) -> None:
    adata, model = fitted
    with pytest.raises(ConfigError, match=r"batch='newest'.*'batch_0', 'batch_1'.*batch='new'"):
        model.embed(adata, batch="newest")
    with pytest.raises(ConfigError, match="batch=3"):
        model.embed(adata, batch=3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"'x'.*model\.embed\(adata, batch='new'\)"):
        model.embed(renamed(adata, {"batch_0": "x"}))


def test_a_model_without_batches_takes_any(simulated: AnnData) -> None:
    adata = simulated.copy()
    model = scvae.fit(adata, max_steps=3, n_latent=3, progress=False)
    for batch in ("new", "closest"):
        np.testing.assert_array_equal(model.embed(adata, batch=batch), adata.obsm["X_scvae"])


def test_tables_of_batches_have_a_mean_for_the_unseen() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    found = of_batch(table, torch.tensor([1, UNSEEN, 0]))
    assert found.tolist() == [[3, 8], [2, 5], [1, 2]]


@pytest.mark.parametrize("options", [{"dispersion": "gene-batch"}, {"library_size": "latent"}])
def test_every_kind_of_model_scores_and_embeds_the_unseen(
    simulated: AnnData, options: dict[str, str]
) -> None:
    adata = simulated.copy()
    model = scvae.fit(adata, batch="batch", max_steps=3, n_latent=3, progress=False, **options)
    dataset = model.read_for(adata, None, "model.embed(adata", batch="new")
    cells = dataset.cells(torch.arange(5))
    with torch.no_grad():
        terms = model.vae.terms(cells, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(terms.log_weight).all()
    assert np.isfinite(model.embed(adata, batch="new")).all()


def test_alignment_leaves_cells_of_no_batch_where_they_are() -> None:
    draw = torch.Generator().manual_seed(0)
    offset = torch.randn(3, 2, 4, generator=draw)
    alignment = Alignment(torch.zeros(3), offset, torch.ones(3), offset, torch.ones(()))
    x = torch.randn(6, 4, generator=draw)
    moved = alignment(x, torch.tensor([0, UNSEEN, 1, UNSEEN, 0, 1])) - x
    assert (moved.abs().sum(1) > 0).tolist() == [True, False, True, False, True, True]
