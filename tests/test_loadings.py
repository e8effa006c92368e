"""Loadings: the map of the embedding itself, gene by gene."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData

import scvae
from scvae.analysis import interpret, loadings


def test_loadings_make_the_coordinates(trained: tuple[AnnData, scvae.Model]) -> None:
    adata, model = trained
    axes, (view,) = model.embedding.coordinates, model.views
    with torch.no_grad():
        z = model.vae.encode(model.read(adata).cells(torch.arange(50))).mean
        roots = view.profile(z, axes.covariates.expand(len(z), -1), axes.genes)
        x = (roots / axes.unit).numpy()
        coordinates = axes([view], z).numpy()
    weights = loadings(model)
    seen = [
        (adata.var_names if i < adata.n_vars else ["(other genes)"])[i] for i in axes.genes.tolist()
    ]
    assert list(weights.index) == seen
    made = x / np.linalg.norm(x, axis=1, keepdims=True) ** 0.5 @ weights.to_numpy()
    centred = [x - x.mean(0) for x in (made, coordinates)]
    assert centred[0] == pytest.approx(centred[1], abs=1e-4)


def test_an_axis_rises_with_the_genes_of_largest_weight_and_their_set(
    trained: tuple[AnnData, scvae.Model],
) -> None:
    _, model = trained
    weights = loadings(model)
    sets = {"top": weights["1"].nlargest(6).index, "low": weights["1"].nsmallest(6).index}
    first = interpret(model, sets, n_genes=4).loc["1"]
    assert first["rises_with"].split(", ") == list(weights["1"].nlargest(4).index)
    assert first["falls_with"].split(", ") == list(weights["1"].nsmallest(4).index)
    assert (first["set_rising"], first["set_falling"]) == ("top", "low")
    assert first["auc_rising"] == first["auc_falling"] == 1.0


def test_the_auc_is_the_share_of_pairs_in_order(trained: tuple[AnnData, scvae.Model]) -> None:
    _, model = trained
    weights = loadings(model)
    chosen = weights.index[[1, 5, 20, 33]]
    found = interpret(model, {"one": chosen})
    inside = weights.index.isin(chosen)
    for axis in weights:
        own, others = weights[axis][inside].to_numpy(), weights[axis][~inside].to_numpy()
        pairs = np.sign(own[:, None] - others[None]) / 2 + 0.5
        assert found.loc[axis, "auc_rising"] == pytest.approx(pairs.mean())


@pytest.mark.parametrize(
    ("sets", "message"),
    [(["ISG15"], "names and genes of sets"), ({"few": ["gene_0", "x"]}, "at least 3 are needed")],
)
def test_sets_that_cannot_be_scored_are_refused(
    trained: tuple[AnnData, scvae.Model], sets: object, message: str
) -> None:
    with pytest.raises(scvae.ConfigError, match=message):
        interpret(trained[1], sets)


def test_axes_of_older_files_have_none() -> None:
    from cells import FILES

    for path in FILES.glob("*.scvae"):
        model = scvae.load(path)
        if model.embedding.spec.coordinates == "latent":
            with pytest.raises(scvae.ConfigError, match="older file"):
                loadings(model)
            return
    pytest.fail("no older file")
