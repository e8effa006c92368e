"""The verbs that analyses are made of: rows follow cells, and amounts are what the network says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import Tensor

import scvae
from scvae import ConfigError, DataError
from scvae.data.hold.cells import Cells

Fitted = tuple[AnnData, scvae.Model]
ORDER = np.array([149, 3, 3, 70, 0, 12])


def counted(cells: Cells) -> Tensor:
    return torch.stack([cells.x.sum(1), cells.batch.float()], dim=1)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_rows_follow_the_cells_that_were_read(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    adata, model = fitted
    monkeypatch.setattr("scvae.models.fitted.CHUNK_VALUES", size * adata.n_vars)
    dataset, numbers = model.read(adata[ORDER]), []
    found = model.over(dataset, lambda cells: numbers.append(cells.rows) or counted(cells))
    assert torch.cat(numbers).tolist() == list(range(len(ORDER)))
    codes = adata.obs["batch"].cat.codes.to_numpy()
    np.testing.assert_array_equal(found[:, 0], np.asarray(adata.X.sum(1)).ravel()[ORDER])
    np.testing.assert_array_equal(found[:, 1], codes[ORDER])


def test_no_more_values_are_asked_for_at_once_than_memory_is_for(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = fitted
    monkeypatch.setattr("scvae.models.fitted.CHUNK_VALUES", 60 * adata.n_vars)
    sizes: list[int] = []
    found = model.over(model.read(adata), lambda cells: sizes.append(len(cells)), samples=6)
    assert found is None
    assert sum(sizes) == adata.n_obs
    assert max(sizes) == 10


def test_what_a_function_returns_is_written_where_it_is_asked_to(fitted: Fitted) -> None:
    adata, model = fitted
    dataset, out = model.read(adata), np.full((adata.n_obs, 2, 3), np.nan)
    returned = model.over(
        dataset, lambda cells: counted(cells)[:, :, None].expand(-1, 2, 3), out=out
    )
    assert returned is out
    np.testing.assert_array_equal(out[:, :, 2], model.over(dataset, counted))


def test_the_network_is_evaluated_and_left_as_it_was(fitted: Fitted) -> None:
    adata, model = fitted
    modes: list[tuple[bool, bool]] = []
    model.vae.train()
    try:
        model.over(
            model.read(adata),
            lambda cells: modes.append((model.vae.training, torch.is_grad_enabled())),
        )
        assert model.vae.training
    finally:
        model.vae.eval()
    assert set(modes) == {(False, False)}


def test_the_amount_of_a_gene_is_its_share_of_the_library(fitted: Fitted) -> None:
    adata, model = fitted
    dataset = model.read(adata)
    own = model.amount(dataset, batch="own")
    np.testing.assert_allclose(own.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        own, model.normalized(adata, batch="own", library_size=1.0), rtol=1e-6
    )
    each = [model.amount(adata, batch=name) for name in model.batches]
    codes = adata.obs["batch"].cat.codes.to_numpy()
    np.testing.assert_allclose(own, np.choose(codes[:, None], each), rtol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-5
    np.testing.assert_allclose(model.amount(adata), np.mean(each, 0), rtol=1e-5)
    np.testing.assert_allclose(
        model.amount(dataset, batch=model.batches), model.amount(dataset), rtol=1e-6
    )


def test_amounts_of_draws_are_those_of_latents_of_the_posterior(fitted: Fitted) -> None:
    adata, model = fitted
    dataset = model.read(adata[:20])
    draws = model.amount(dataset, samples=400, batch="own", seed=3)
    assert (draws.shape, draws.dtype) == ((20, 400, adata.n_vars), np.float32)
    np.testing.assert_array_equal(draws, model.amount(dataset, samples=400, batch="own", seed=3))
    generator = torch.Generator().manual_seed(8)

    def mean(cells: Cells) -> Tensor:
        z = model.vae.encode(cells).sample((4000,), generator=generator)
        return model.vae.likelihood.expression(z, cells.s).mean(0)

    error = 4 * draws.std(1) * (1 / 400 + 1 / 4000) ** 0.5
    assert (np.abs(draws.mean(1) - model.over(dataset, mean)) <= error + 1e-7).mean() > 0.99


def test_bad_questions_are_named(fitted: Fitted) -> None:
    adata, model = fitted
    with pytest.raises(ConfigError, match=r"modality='atac'.*'rna'"):
        model.amount(adata, "atac")
    with pytest.raises(ConfigError, match=r"batch='x'.*batch_0"):
        model.amount(adata, batch=["batch_0", "x"])
    with pytest.raises(ConfigError, match="samples=0"):
        model.amount(adata, samples=0)
    with pytest.raises(ConfigError, match=r"dataset=.*model\.read\(adata\)"):
        model.over(adata, counted)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="function=3"):
        model.over(model.read(adata), 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did not return a tensor"):
        model.over(model.read(adata), len)  # type: ignore[arg-type]
    for wrong in (lambda cells: cells.x[1:], lambda cells: cells.x.sum()):
        with pytest.raises(ConfigError, match=r"150 cells.*\(150, \.\.\.\)"):
            model.over(model.read(adata), wrong)
    with pytest.raises(ConfigError, match=r"out has shape \(3,\), but the result has \(150, 2\)"):
        model.over(model.read(adata), counted, out=np.empty(3))
    with pytest.raises(DataError, match="lacks 1 of the 40 genes"):
        model.read(adata[:, 1:])
    logged = adata.copy()
    logged.X = logged.X.log1p()
    logged.layers["raw"] = adata.X
    with pytest.warns(UserWarning, match=r"model\.read\(adata, layer='raw'\)"):
        model.read(logged)
