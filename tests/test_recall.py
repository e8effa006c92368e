"""The cells that a fit held out are found again by what was recorded of them."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

import scvae
from scvae.models.budget import split
from scvae.models.judge.recall import held_out_rows

Fitted = tuple[AnnData, scvae.Model]


def test_cells_that_were_held_out_are_found_again(fitted: Fitted) -> None:
    adata, model = fitted
    rows = held_out_rows(model, model.record, adata)
    np.testing.assert_array_equal(rows, split(adata, 0.1, 0)[1].numpy())
    assert held_out_rows(model, model.record, adata[::-1]) is None
    assert held_out_rows(model, model.record, adata[:149]) is None


def test_cells_held_out_by_a_column_are_found_again(simulated: AnnData) -> None:
    adata = simulated.copy()
    marks = np.random.default_rng(5).permutation(150)
    adata.obs["other"], adata.obs["held"] = marks >= 130, marks < 20
    options = {"n_latent": 3, "n_hidden": 8, "max_steps": 5, "progress": False}
    model = scvae.fit(adata, validation="held", **options)
    found = held_out_rows(model, model.record, adata)
    np.testing.assert_array_equal(found, np.flatnonzero(adata.obs["held"]))
    assert held_out_rows(model, model.record, adata[:, ::-1].copy()) is not None
    del adata.obs["held"]
    assert held_out_rows(model, model.record, adata) is None
