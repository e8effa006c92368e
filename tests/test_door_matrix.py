"""Laws of the door: which matrix holds the counts, and what is said where none does."""

from __future__ import annotations

import re
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.errors import ScvaeWarning
from tests.test_door import QUICK, cells, pasted, refusal


def first_call(message: str) -> str:
    """Return a message up to the first of its calls that make the data right."""
    return re.split(r", then |\. To choose|\. Choose", message)[0]


def fractions(adata: AnnData) -> Any:
    """Return the counts less a share of ambient ones, different in every value."""
    x = adata.X.toarray()
    return sparse.csr_matrix(x * np.random.default_rng(3).uniform(0.6, 1.0, x.shape))


# -- parts of the counts -----------------------------------------------------------------------

PIPELINES = [
    ("spliced", "unspliced"),
    ("spliced", "unspliced", "ambiguous"),
    ("mature", "nascent", "ambiguous"),
    ("exon", "intron", "spanning"),
]


def of_parts(names: tuple[str, ...]) -> AnnData:
    adata = cells()
    adata.layers.update({name: cells(seed=i).X for i, name in enumerate(names)})
    return adata


@pytest.mark.parametrize("names", PIPELINES)
def test_an_x_that_is_a_part_of_the_counts_is_told_and_summed_by_the_call(
    names: tuple[str, ...],
) -> None:
    adata = of_parts(names)
    with pytest.warns(ScvaeWarning, match="a part of the counts") as caught:
        model = scvae.fit(adata, **QUICK)
    assert any(names[0] in text for text in model.record.warnings)
    assert any("a part of" in found.text for found in scvae.check(adata).warnings)
    mended = pasted(first_call(str(caught[0].message)), adata)
    assert (mended.layers["counts"] != sum(adata.layers[name] for name in names)).nnz == 0
    assert scvae.fit(mended, layer="counts", **QUICK).record.warnings == []
    assert scvae.fit(adata, layer=names[0], **QUICK).record.warnings == []


@pytest.mark.parametrize("names", PIPELINES)
def test_parts_of_the_counts_are_summed_by_the_call(names: tuple[str, ...]) -> None:
    adata = of_parts(names)
    adata.X = np.log1p(adata.X)
    mended = pasted(first_call(refusal(scvae.fit, adata)), adata)
    assert (mended.layers["counts"] != sum(adata.layers[name] for name in names)).nnz == 0


def test_an_x_of_all_parts_is_not_told() -> None:
    adata = of_parts(("spliced", "unspliced"))
    adata.X = adata.layers["spliced"] + adata.layers["unspliced"]
    assert scvae.fit(adata, **QUICK).record.warnings == []


# -- names that promise counts -----------------------------------------------------------------


@pytest.mark.parametrize("names", [("counts", "raw_counts"), ("raw_counts", "counts")])
def test_layers_that_promise_counts_and_differ_are_listed(names: tuple[str, str]) -> None:
    adata = cells()
    adata.layers[names[0]], adata.layers[names[1]] = adata.X.copy(), (adata.X * 0.5).rint()
    adata.X = np.log1p(adata.X)
    message = refusal(scvae.fit, adata)
    assert f"Choose one: scvae.fit(adata, layer={names[0]!r})" in message
    assert all(repr(name) in message for name in names)


def test_layers_that_promise_counts_and_are_the_same_are_one() -> None:
    adata = cells()
    adata.layers["raw_counts"], adata.layers["counts"] = adata.X.copy(), adata.X.toarray()
    adata.X = np.log1p(adata.X)
    with pytest.warns(ScvaeWarning, match="raw_counts"):
        scvae.fit(adata, **QUICK)


# -- adata.raw ---------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, "raw"])
@pytest.mark.parametrize("empty", [False, True])
def test_counts_in_raw_are_reached_where_a_layer_has_its_name(asked: Any, empty: bool) -> None:
    adata = cells()
    adata.raw = adata
    adata.X = adata.X * 0 if empty else np.log1p(adata.X)
    adata.layers["raw"] = np.log1p(adata.raw.X)
    mended = pasted(first_call(refusal(scvae.fit, adata, layer=asked)), adata)
    assert scvae.fit(mended, layer="counts", **QUICK).origin.layer == "counts"


def test_a_raw_that_is_not_there_is_said() -> None:
    assert refusal(scvae.fit, cells(), layer="raw").startswith("adata.raw is None")


# -- values that are no numbers ----------------------------------------------------------------


@pytest.mark.parametrize("layer", ["counts", "raw"])
def test_objects_are_made_numbers_where_they_are(layer: str) -> None:
    adata = cells()
    held = adata.X.toarray().astype(object)
    adata.raw = AnnData(held, adata.obs, adata.var)
    adata.layers["counts"] = held
    if layer == "raw":
        del adata.layers["counts"]
    mended = pasted(first_call(refusal(scvae.fit, adata, layer=layer)), adata)
    assert scvae.fit(mended, layer="counts", **QUICK).origin.layer == "counts"


# -- NaN ---------------------------------------------------------------------------------------


def with_nan(*places: Any) -> AnnData:
    adata = cells()
    x = adata.X.toarray()
    for place in places:
        x[place] = np.nan
    return AnnData(x, adata.obs, adata.var)


@pytest.mark.parametrize("layer", [None, "counts"])
def test_cells_of_nan_alone_are_left_out_by_the_call(layer: Any) -> None:
    adata = with_nan(3, 17)
    adata.layers["counts"] = adata.X.copy()
    mended = pasted(first_call(refusal(scvae.fit, adata, layer=layer)), adata)
    assert mended.shape == (78, 20)
    scvae.fit(mended, layer=layer, **QUICK)


def test_parts_without_a_gene_in_common_are_not_the_call_to_keep_none() -> None:
    other = cells(seed=1)
    other.var_names = [f"ENSG{i:011d}" for i in range(20)]
    parts = [AnnData(part.X.toarray(), part.obs, part.var) for part in (cells(), other)]
    adata = anndata.concat(parts, join="outer", index_unique="-")
    message = refusal(scvae.fit, adata)
    assert "notna" not in message
    assert all(name in message for name in ("Gene0", "ENSG00000000000"))


def test_nan_here_and_there_are_no_join() -> None:
    message = refusal(scvae.fit, with_nan((3, 4), (10, 5), (40, 6)))
    assert "outer join" not in message


# -- fractions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["soupx", "decontX_counts", "cellbender", "corrected"])
def test_estimates_in_a_layer_are_named_where_x_is_none(name: str) -> None:
    adata = cells()
    adata.layers[name], adata.X = fractions(adata), np.log1p(adata.X)
    call = f"scvae.fit(adata, layer={name!r}, counts='rounded')"
    assert call in refusal(scvae.fit, adata)
    assert call in scvae.check(adata).errors[0].text
    with pytest.warns(ScvaeWarning) as caught:
        scvae.fit(adata, counts="rounded", **QUICK)
    assert call in str(caught[0].message)
    scvae.fit(adata, layer=name, counts="rounded", **QUICK)


def test_smoothed_values_in_a_layer_are_no_estimates() -> None:
    adata = cells()
    adata.layers["Ms"], adata.X = fractions(adata), np.log1p(adata.X)
    assert "Ms" not in refusal(scvae.fit, adata)


def test_all_that_cannot_be_counts_is_named() -> None:
    adata = cells()
    adata.X = fractions(adata)
    adata.X[5, 2], adata.X[7, 1] = -0.3, np.nan
    message = refusal(scvae.fit, adata)
    for said in ("non-integer", "1 negative (first: -0.3 at cell 'cell_5', gene 'Gene2')", "1 NaN"):
        assert said in message


@pytest.mark.parametrize("noise", [1e-4, 3e-3])
def test_counts_with_noise_are_rounded_to_what_they_were(noise: float) -> None:
    adata, noisy = cells(), cells()
    noisy.X.data += np.random.default_rng(0).normal(0, noise, noisy.X.nnz).astype(np.float32)
    assert "counts='rounded'" in refusal(scvae.fit, noisy)
    assert not any("gene by gene" in found.text for found in scvae.check(noisy).findings)
    scvae.fit(noisy, counts="rounded", **QUICK)
    scvae.fit(adata, **QUICK)
    np.testing.assert_array_equal(noisy.obsm["X_scvae"], adata.obsm["X_scvae"])
