"""Genes hidden in training are as those that were not observed later, and the bound counts all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import Generator

import scvae
from scvae import ConfigError, FileError
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.hiding import FEWEST, SHARE, hiding
from scvae.models.keep.checkpoint import Checkpoint
from scvae.train.run import Run

Fitted = tuple[AnnData, scvae.Model]
QUICK: dict[str, Any] = {"max_steps": 30, "n_latent": 4, "n_hidden": 16, "progress": False}


def hidden_cells(dataset: Dataset, size: int = 150, seed: int = 0) -> list[Cells]:
    rows, generator = torch.arange(len(dataset)), Generator().manual_seed(seed)
    return list(hiding(dataset.minibatches(rows, size), generator))


def test_a_quarter_of_the_cells_keep_a_share_of_their_genes(fitted: Fitted) -> None:
    adata, model = fitted
    dataset = model.read(adata)
    found = torch.cat([c.hidden for seed in range(20) for c in hidden_cells(dataset, seed=seed)])
    shown = (~found).float().mean(1).view(20, 150)
    few = round(SHARE * 150)
    assert (shown[:, few:] == 1).all()
    assert shown[:, :few].mean() == pytest.approx((FEWEST + 1) / 2, abs=0.03)
    assert shown[:, :few].std() == pytest.approx(0.9 / 12**0.5, abs=0.05)  # even, not all alike


def test_the_rest_of_a_minibatch_is_as_it_was(fitted: Fitted) -> None:
    adata, model = fitted
    dataset = model.read(adata)
    minibatches = hidden_cells(dataset, 50)
    assert [len(cells) for cells in minibatches] == [50, 50, 50]
    bare = [dataclasses.replace(cells, hidden=None) for cells in minibatches]
    for one, other in zip(bare, dataset.minibatches(torch.arange(150), 50), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))


def test_what_is_hidden_is_encoded_as_what_was_not_observed(fitted: Fitted) -> None:
    adata, model = fitted
    (cells,) = hidden_cells(model.read(adata))
    assert cells.hidden is not None
    shown = cells.x.masked_fill(cells.hidden, 0.0).sum(1, keepdim=True)
    unobserved = Cells(
        cells.x, cells.s, ~cells.hidden, batch=cells.batch, log_library=shown.clamp(min=1).log()
    )
    with torch.no_grad():
        found, expected = model.vae.encode(cells), model.vae.encode(unobserved)
        whole = model.vae.encode(dataclasses.replace(cells, hidden=None))
    few = round(SHARE * 150)
    torch.testing.assert_close(found.loc, expected.loc, rtol=0, atol=1e-5)
    assert not torch.allclose(found.loc[:few], whole.loc[:few], atol=1e-3)


def test_the_likelihood_counts_what_is_hidden(fitted: Fitted) -> None:
    adata, model = fitted
    (cells,) = hidden_cells(model.read(adata))
    z = torch.zeros(1, 150, 5)
    with torch.no_grad():
        found = model.vae.log_likelihood(z, cells)
        expected = model.vae.log_likelihood(z, dataclasses.replace(cells, hidden=None))
    assert torch.equal(found, expected)


def embedded(**options: Any) -> np.ndarray:
    adata = scvae.simulate(150, 40, seed=1)
    scvae.fit(adata, **{**QUICK, **options})
    return np.asarray(adata.obsm["X_scvae"])


def test_a_robust_fit_is_another_and_the_same_each_time() -> None:
    one = embedded(robust=True)
    np.testing.assert_array_equal(one, embedded(robust=True))
    assert not np.allclose(one, embedded(), atol=1e-3)
    with pytest.raises(ConfigError, match=r"robust='yes', but it must be True or False"):
        embedded(robust="yes")


def test_a_robust_fit_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(checkpoint: Checkpoint, run: Run) -> None:
        if run.taken == 13:
            checkpoint._write(run)
            raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "keep", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            embedded(robust=True, checkpoint=tmp_path)
    with pytest.raises(FileError, match="another fit"):
        embedded(checkpoint=tmp_path)
    resumed = embedded(robust=True, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed, embedded(robust=True))
