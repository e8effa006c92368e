"""Laws of the door: genes in the rows, counts times a constant, groups that are held out whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.cli import main
from scvae.data.checkup.orientation import turned
from tests.test_door import QUICK, cells, finding, pasted, refusal

SYMBOLS = ["ACTB", "B2M", "GAPDH", "MALAT1", "RPL3", "RPS6", "MT-CO1", "CD3D", "LYZ", "NKG7"]
NAMES: dict[str, list[str]] = {
    "human symbols": [*SYMBOLS, *(f"GENE{i}" for i in range(90))],
    "mouse symbols": [
        *(name.capitalize().replace("Mt-", "mt-") for name in SYMBOLS),
        *(f"Gene{i}" for i in range(90)),
    ],
    "human ids": [f"ENSG{i:011d}" for i in range(100)],
    "mouse ids with versions": [f"ENSMUSG{i:011d}.{i % 7}" for i in range(100)],
    "fly ids": [f"FBgn{i:07d}" for i in range(100)],
    "worm ids": [f"WBGene{i:08d}" for i in range(100)],
    "any": [f"feature_{i}" for i in range(100)],
}


def _barcodes(n: int, form: str) -> list[str]:
    letters = np.random.default_rng(0).choice(list("ACGT"), (n, 16))
    return [form.format("".join(row), i=i) for i, row in enumerate(letters)]


CELLS: dict[str, list[str]] = {
    "barcodes": _barcodes(40, "{}-1"),
    "of samples": _barcodes(40, "donor1#{}-1"),
    "in parts": _barcodes(40, "lib_{}_ACGTACGT"),
    "numbers": [str(i) for i in range(40)],
    "wells": [f"P1_A{i:02d}" for i in range(40)],
}


def named(cell: str, gene: str) -> AnnData:
    x = np.random.default_rng(0).poisson(2.0, (40, 100)).astype(np.float32)
    return AnnData(
        sparse.csr_matrix(x), pd.DataFrame(index=CELLS[cell]), pd.DataFrame(index=NAMES[gene])
    )


@pytest.mark.parametrize("gene", NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_genes_in_the_rows_are_told_where_a_name_tells_it(cell: str, gene: str) -> None:
    adata = named(cell, gene)
    is_told = gene != "any" or cell in ("barcodes", "of samples", "in parts")
    assert not turned(adata)
    assert len(turned(adata.T.copy())) == is_told


def test_genes_in_the_rows_are_turned_by_the_call() -> None:
    adata = named("barcodes", "human symbols")
    wrong = adata.T.copy()
    with pytest.warns(UserWarning, match="Cells belong in the rows"):
        model = scvae.fit(wrong, **QUICK)
    assert model.record.warnings is not None
    assert finding(wrong, "Cells belong in the rows") in model.record.warnings
    mended = pasted(finding(wrong, "Cells belong in the rows"), wrong)
    assert list(mended.obs_names) == list(adata.obs_names)
    np.testing.assert_array_equal(mended.X.toarray(), adata.X.toarray())
    assert not turned(mended)


def test_the_rows_are_told_before_a_column_of_theirs_is_missed() -> None:
    wrong = named("barcodes", "human symbols").T.copy()
    with pytest.warns(UserWarning, match="Cells belong in the rows"):
        assert "no column 'donor'" in refusal(scvae.fit, wrong, batch="donor")


@pytest.mark.parametrize("names", ["human ids", "human symbols"])
def test_perturbed_genes_in_the_rows_are_no_genes_there(names: str) -> None:
    adata = named("barcodes", names)
    adata.obs_names = NAMES[names][:40]
    assert not turned(adata)


# -- multiples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 1000])
@pytest.mark.parametrize("layer", [None, "multiplied", "raw"])
def test_counts_times_a_constant_are_divided_by_the_call(factor: int, layer: Any) -> None:
    adata, exact = cells(), cells()
    adata.X = adata.X * factor
    adata.layers["multiplied"], adata.raw = adata.X.copy(), adata
    with pytest.warns(UserWarning, match=f"multiples of {factor:,}:"):
        scvae.fit(adata, layer=layer, **QUICK)
    mended = pasted(finding(adata, f"multiples of {factor:,}:", layer=layer), adata)
    np.testing.assert_array_equal(mended.layers["counts"].toarray(), exact.X.toarray())
    assert not scvae.check(mended, layer="counts").warnings


@pytest.mark.parametrize("factor", [2, 10])
@pytest.mark.parametrize("layer", [None, "multiplied", "raw"])
@pytest.mark.parametrize("genes", [20, 12])
def test_a_query_of_counts_times_a_constant_is_divided_by_the_call(
    factor: int, layer: Any, genes: int
) -> None:
    model = scvae.fit(cells(), **QUICK)
    query = cells()[:, ::-1][:, :genes].copy()
    expected = model.embed(query)
    query.X = query.X * factor
    query.layers["multiplied"], query.raw = query.X.copy(), query
    with pytest.warns(UserWarning, match=f"multiples of {factor}:") as told:
        model.embed(query, layer=layer)
    (text,) = [str(one.message) for one in told if "multiples" in str(one.message)]
    assert text.endswith("model.embed(adata, layer='counts')")
    call = re.search(r"adata\.layers\['counts'\] = .*(?=\. If the fit)", text)
    assert call is not None
    np.testing.assert_array_equal(model.embed(pasted(call[0], query), layer="counts"), expected)


@pytest.mark.filterwarnings("error:All values")
def test_a_query_of_few_cells_or_of_counts_is_not_told_of_multiples() -> None:
    model = scvae.fit(cells(), **QUICK)
    few = cells()[:9].copy()
    few.X = few.X * 2
    for query in (few, cells()):
        assert len(model.embed(query)) == len(query)


@pytest.mark.parametrize("rest", [0, 1, 3, 5])
def test_one_value_that_is_no_multiple_makes_them_counts(rest: int) -> None:
    adata = cells()
    adata.X = adata.X * 2
    adata.X[3, 4] = rest
    found = [f.text for f in scvae.check(adata).warnings if "are multiples of 2:" in f.text]
    assert len(found) == (rest == 0)


@pytest.mark.parametrize("divisor", [2, 4, 10, 1000, 1e4, 1e5])
@pytest.mark.parametrize("dtype", [np.float32, float])
@pytest.mark.parametrize("layer", [None, "some"])
def test_counts_divided_by_a_constant_are_made_whole_by_the_call(
    divisor: float, dtype: type, layer: Any
) -> None:
    adata, exact = cells(), cells()
    adata.X = sparse.csr_matrix((exact.X.astype(float) / divisor).astype(dtype))
    adata.layers["some"] = adata.X.copy()
    message = refusal(scvae.fit, adata, layer=layer)
    assert f"divided by {divisor:,g}" in message
    call = re.search(r"adata\.layers\['counts'\] = .*\)(?=, then)", message)
    assert call is not None
    mended = pasted(call[0], adata)
    np.testing.assert_array_equal(mended.layers["counts"].toarray(), exact.X.toarray())


def test_shares_in_two_decimals_are_no_whole_numbers_divided() -> None:
    rng = np.random.default_rng(0)
    shares = rng.gamma(0.3, 9.0, (80, 200)).round(2)
    assert "divided by" not in refusal(scvae.fit, AnnData(shares))


# -- groups held out -------------------------------------------------------------------------------


def grouped() -> AnnData:
    adata = cells(120)
    adata.obs["donor"] = np.repeat(["a", "b", "c"], 40)
    adata.obs["site"] = np.tile(["x", "y"], 60)
    adata.obs["held"] = adata.obs["donor"] == "b"
    return adata


@pytest.mark.parametrize("role", ["batch", "covariates"])
def test_a_group_that_is_held_out_whole_is_told_and_left_out_by_the_call(role: str) -> None:
    adata = grouped()
    options: dict[str, Any] = {role: "donor", "validation": "held"}
    with pytest.warns(UserWarning, match="holds out all 40 cells of 1 categories"):
        model = scvae.fit(adata, **options, **QUICK)
    text = finding(adata, "holds out all", **options)
    assert "'b'" in text
    assert model.record.warnings is not None
    assert text in model.record.warnings
    mended = pasted(text, adata)
    assert set(mended.obs["donor"]) == {"a", "c"}


def test_a_share_of_every_group_is_not_told() -> None:
    adata = grouped()
    adata.obs["held"] = np.arange(120) % 10 == 0
    for options in ({"batch": "donor"}, {"batch": "site", "covariates": "donor"}):
        texts = [f.text for f in scvae.check(adata, validation="held", **options).findings]
        assert not any("holds out all" in text for text in texts)


def test_a_small_category_that_the_share_holds_out_is_told() -> None:
    adata = grouped()
    rows = scvae.models.budget.split(adata, 0.1, 0)[1].numpy()
    donor = adata.obs["donor"].to_numpy(dtype=object)
    donor[rows[:2]] = "rare"
    adata.obs["donor"] = donor
    text = finding(adata, "holds out all 2 cells", covariates="donor")
    assert "scvae.fit(adata, seed=1)" in text


@pytest.mark.parametrize("validation", ["absent", 0, 2.0])
def test_check_refuses_what_fit_does(validation: Any) -> None:
    with pytest.raises(scvae.ScvaeError) as caught:
        scvae.fit(grouped(), validation=validation)
    assert str(caught.value) in [
        f.text for f in scvae.check(grouped(), validation=validation).errors
    ]


def test_the_command_line_tells_of_groups_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tmp_path / "in.h5ad")
    grouped().write_h5ad(source)
    assert main(["check", source, "--batch", "donor", "--validation", "held"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--validation held holds out all 40 cells" in told
    assert "leave validation out: scvae fit" in told
