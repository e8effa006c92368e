"""Markers: by the least effect over batches, in the form that scanpy draws."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scvae
from scvae.analysis import markers
from scvae.analysis.markers import _of_group
from scvae.analysis.samples import Samples


def of_shares(rows: dict[tuple[str, str], list[float]]) -> tuple[Samples, np.ndarray]:
    """Return samples of groups and batches whose denoised shares are those given."""
    keys = list(rows)
    table = pd.DataFrame({"group": [k[0] for k in keys], "replicate": [k[1] for k in keys]})
    shares = np.array([rows[k] for k in keys])
    return Samples(table.assign(arm=0, cells=10), np.zeros(0), shares, 0 * shares), shares


def test_the_score_is_the_least_effect_over_batches_rest_and_nearest() -> None:
    rows = {
        ("a", "1"): [8.0, 8.0, 8.0],
        ("a", "2"): [8.0, 1.0, 8.0],  # the second gene marks in batch 1 alone
        ("b", "1"): [1.0, 1.0, 4.0],  # the nearest group, which has much of the third
        ("b", "2"): [1.0, 1.0, 4.0],
        ("c", "1"): [1.0, 1.0, 0.0001],
        ("c", "2"): [1.0, 1.0, 0.0001],
    }
    samples, shares = of_shares(rows)
    found = _of_group("a", ["a", "b", "c"], samples, shares, np.array(["x", "y", "z"]))
    score = found.set_index("gene")["score"]
    assert list(found["gene"]) == ["x", "z", "y"]
    assert found["nearest"].unique().tolist() == ["b"]
    assert score["x"] == pytest.approx(3)
    assert score["y"] == pytest.approx(0)
    assert score["z"] == pytest.approx(1)


def test_a_group_without_company_is_compared_with_all_others() -> None:
    samples, shares = of_shares({("a", "1"): [4.0], ("b", "2"): [1.0], ("b", "3"): [3.0]})
    found = _of_group("a", ["a", "b"], samples, shares, np.array(["x"]))
    assert found["score"].item() == pytest.approx(1)


def test_true_markers_come_first(trained: tuple[AnnData, scvae.Model]) -> None:
    adata, model = trained
    found = markers(model, adata, "cell_type")
    types, truth = adata.obs["cell_type"].to_numpy(), np.asarray(adata.layers["expression"])
    for name, table in found.groupby("group"):
        others = [truth[types == t].mean(0) for t in np.unique(types) if t != name]
        ratio = np.log2(truth[types == name].mean(0) / np.max(others, axis=0))
        ratio = pd.Series(ratio, adata.var_names)
        assert ratio[table["gene"][:5]].mean() > ratio.quantile(0.85)
        assert table["expressing"].head(5).mean() > table["expressing_rest"].head(5).mean()


def test_scanpy_draws_what_is_written(trained: tuple[AnnData, scvae.Model]) -> None:
    import scanpy as sc

    adata, model = trained
    adata = adata.copy()
    before = set(adata.uns)
    found = markers(model, adata, "cell_type", key_added="rank_genes_groups")
    assert set(adata.uns) == before | {"rank_genes_groups"}
    names = adata.uns["rank_genes_groups"]["names"]
    assert list(names["type_1"][:9]) == list(found[found["group"] == "type_1"]["gene"][:9])
    drawn = sc.pl.rank_genes_groups_dotplot(
        adata, n_genes=2, return_fig=True, show=False, dendrogram=False
    )
    assert set(drawn.var_names) <= set(adata.var_names)
    assert len(drawn.var_names) == 8


def test_groups_of_few_cells_are_none(trained: tuple[AnnData, scvae.Model]) -> None:
    adata, model = trained
    with pytest.raises(scvae.DataError, match="two are needed"):
        markers(model, adata, "cell_type", min_cells=500)
