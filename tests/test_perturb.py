"""Latent arithmetic: the shift of the others, decoded; and baselines that stand beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData

import scvae
from scvae.analysis import perturb


@pytest.fixture
def treated(trained: tuple[AnnData, scvae.Model]) -> tuple[AnnData, scvae.Model]:
    adata, model = trained
    adata = adata.copy()
    adata.obs["stim"] = np.where(np.arange(adata.n_obs) % 2, "b", "a")
    return adata, model


def test_baselines_are_those_of_sums_of_counts(treated: tuple[AnnData, scvae.Model]) -> None:
    adata, model = treated
    found = perturb(model, adata, "stim", groups="cell_type", target="type_2")
    counts, types, stim = adata.X.toarray(), adata.obs["cell_type"], adata.obs["stim"]

    def logs(name: str, arm: str) -> np.ndarray:
        total = counts[((types == name) & (stim == arm)).to_numpy()].sum(0)
        return np.log(1e4 * total / total.sum() + 0.1)

    others = ("type_0", "type_1", "type_3")
    shift = np.mean([logs(name, "b") - logs(name, "a") for name in others], axis=0)
    control, observed = logs("type_2", "a"), logs("type_2", "b")
    assert found.table["mean_shift"].to_numpy() == pytest.approx(control + shift, rel=1e-4)
    assert found.table["observed"].to_numpy() == pytest.approx(observed, rel=1e-4)
    error = np.sqrt(((control - observed) ** 2).mean())
    assert found.errors["no_change"] == pytest.approx(error, rel=1e-4)
    assert ("does not beat" in str(found)) == (not found.beats_baselines)


def test_the_prediction_decodes_the_mean_shift_of_latents(
    treated: tuple[AnnData, scvae.Model],
) -> None:
    adata, model = treated
    found = perturb(model, adata, "stim", groups="cell_type", target="type_1")
    types, stim = adata.obs["cell_type"].to_numpy(), adata.obs["stim"].to_numpy()
    with torch.no_grad():
        cells = model.read(adata).cells(torch.arange(adata.n_obs))
        z = model.vae.encode(cells).mean
        delta = torch.stack(
            [
                z[(types == name) & (stim == "b")].mean(0)
                - z[(types == name) & (stim == "a")].mean(0)
                for name in ("type_0", "type_2", "type_3")
            ]
        ).mean(0)
        own = (types == "type_1") & (stim == "a")
        ways = [model.decoder.expression(at, cells.s)[own].mean(0) for at in (z, z + delta)]
    expected = torch.log(ways[1] + 1e-5) - torch.log(ways[0] + 1e-5)
    seen = (found.table["model"] - found.table["control"]).to_numpy()
    assert seen == pytest.approx(expected.numpy(), abs=1e-4)


def test_without_treated_cells_there_is_no_error(treated: tuple[AnnData, scvae.Model]) -> None:
    adata, model = treated
    left_out = (adata.obs["cell_type"] == "type_1") & (adata.obs["stim"] == "b")
    found = perturb(model, adata[~left_out].copy(), "stim", groups="cell_type", target="type_1")
    assert found.errors.isna().all()
    assert found.table[["model", "mean_shift"]].notna().all(axis=None)
    assert "nothing tells" in str(found)


def test_what_cannot_be_predicted_is_refused(treated: tuple[AnnData, scvae.Model]) -> None:
    adata, model = treated
    with pytest.raises(scvae.DataError, match="no reference cells"):
        perturb(model, adata, "stim", groups="cell_type", target="type_9")
    with pytest.raises(scvae.DataError, match="to learn from"):
        perturb(model, adata, "stim", groups="cell_type", target="type_1", min_cells=900)
