"""Laws of the door: values of every machine and width, masked values, names and odd columns."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.data.read.choice import look
from scvae.data.read.survey import survey
from tests.test_door import QUICK, cells, finding, pasted, refusal


def _read(matrix: Any) -> np.ndarray:
    found: np.ndarray = survey(matrix, keep=True).counts.toarray()
    return found


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">i8", ">u2", "<f4"])
@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
def test_any_byte_order_is_read(dtype: str, form: str) -> None:
    exact = cells().X.toarray()
    matrix: Any = exact.astype(dtype)
    if form != "dense":
        matrix = sparse.csr_matrix(exact) if form == "csr" else sparse.csc_matrix(exact)
        matrix.data = matrix.data.astype(dtype)
    np.testing.assert_array_equal(_read(matrix), exact)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32])
@pytest.mark.parametrize("sparse_form", [sparse.csr_matrix, sparse.csc_matrix])
def test_entries_that_are_there_twice_add_up_beyond_their_type(
    dtype: Any, sparse_form: Any
) -> None:
    most = int(np.iinfo(dtype).max)
    twice = sparse_form((2, 2), dtype=dtype)
    twice.data = np.full(3, most, dtype=dtype)
    twice.indices, twice.indptr = np.array([1, 1, 1]), np.array([0, 3, 3])
    total = np.zeros((2, 2))
    total[(0, 1) if sparse_form is sparse.csr_matrix else (1, 0)] = 3 * most
    np.testing.assert_array_equal(_read(twice), total)


def test_values_that_are_masked_are_not_taken_for_what_lies_under_the_mask() -> None:
    x = cells().X.toarray()
    adata = AnnData(np.ma.masked_array(x, mask=np.zeros_like(x, dtype=bool)))
    np.testing.assert_array_equal(look(adata).require().counts.toarray(), x)
    adata = AnnData(np.ma.masked_equal(x, 3.0))
    mended = pasted(refusal(scvae.fit, adata), adata)
    np.testing.assert_array_equal(look(mended).require().counts.toarray(), np.where(x == 3, 0, x))


def test_numbers_as_objects_are_made_numbers_by_the_call() -> None:
    x = cells().X.toarray()
    adata = AnnData(pd.DataFrame(x.astype(int)).astype("Int64").to_numpy())
    mended = pasted(refusal(scvae.fit, adata), adata)
    np.testing.assert_array_equal(look(mended).require().counts.toarray(), x)


@pytest.mark.parametrize("value", [2.0**63, 1e30])
def test_a_whole_number_that_is_too_large_is_called_so(value: float) -> None:
    x = cells().X.toarray().astype(float)
    x[3, 4] = value
    assert f"too large values (first: {value:.6g} at cell '3', gene '4')" in refusal(
        scvae.fit, AnnData(x)
    )


@pytest.mark.parametrize("odd", [np.nan, None, 7, 1.5])
def test_names_of_genes_are_text(odd: Any) -> None:
    adata = cells()
    adata.var_names = pd.Index([*adata.var_names[:-1], odd], dtype=object)
    message = refusal(scvae.fit, adata)
    assert message in [f.text for f in scvae.check(adata).errors]
    assert list(pasted(message, adata).var_names)[-1] == str(odd)


@pytest.mark.parametrize("genes", [["Gene1"], "chosen", np.arange(20) == 3])
def test_one_gene_is_no_choice(genes: Any) -> None:
    adata = cells()
    adata.var["chosen"] = np.arange(20) == 3
    assert "at least" in refusal(scvae.fit, adata, genes=genes)


def test_genes_that_raw_lacks_are_left_out_by_the_call() -> None:
    adata = cells()
    adata.raw = adata[:, :12].copy()
    mended = pasted(refusal(scvae.fit, adata, layer="raw"), adata)
    assert scvae.fit(mended, layer="raw", **QUICK).architecture.n_genes == 12


# -- columns ---------------------------------------------------------------------------------------


def test_a_number_of_another_byte_order_is_the_number() -> None:
    adata, swapped = cells(), cells()
    adata.obs["dose"] = np.random.default_rng(0).normal(size=80)
    swapped.obs["dose"] = adata.obs["dose"].to_numpy().astype(">f8")
    swapped.obs["other"] = np.arange(80).astype(">i4")
    for each in (adata, swapped):
        each.obs["batch"] = ["a", "b"] * 40
        scvae.fit(each, batch="batch", covariates="dose", **QUICK)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], swapped.obsm["X_scvae"])
    assert scvae.check(swapped, batch="batch", covariates="dose").ok


def test_complex_numbers_are_made_real_by_the_call() -> None:
    adata = cells()
    adata.obs["dose"] = np.arange(80) + 1j
    mended = pasted(refusal(scvae.fit, adata, covariates="dose"), adata)
    np.testing.assert_array_equal(mended.obs["dose"], np.arange(80))


@pytest.mark.parametrize("scale", [1e-30, 1e300])
def test_numbers_beyond_float32_are_brought_to_it_by_the_call(scale: float) -> None:
    adata = cells()
    adata.obs["dose"] = scale * np.random.default_rng(0).normal(size=80)
    mended = pasted(refusal(scvae.fit, adata, covariates="dose"), adata)
    scvae.fit(mended, covariates="dose", **QUICK)
    assert np.ptp(mended.obs["dose"]) > 1


@pytest.mark.parametrize(("far", "told"), [(1e5, True), (8.0, False)])
def test_a_value_that_makes_all_others_alike_is_clipped_by_the_call(far: float, told: bool) -> None:
    adata = cells(300)
    dose = np.random.default_rng(0).normal(size=300)
    dose[0] = far
    adata.obs["dose"] = dose
    texts = [f.text for f in scvae.check(adata, covariates="dose").warnings if "Clip" in f.text]
    assert len(texts) == told
    if told:
        mended = pasted(finding(adata, "Clip", covariates="dose"), adata)
        assert not scvae.check(mended, covariates="dose").warnings


def test_several_columns_as_the_batch_are_a_batch_and_covariates() -> None:
    adata = cells()
    adata.obs["donor"], adata.obs["site"] = ["a", "b"] * 40, ["x", "x", "y", "y"] * 20
    assert "batch='donor', covariates=['site']" in refusal(
        scvae.fit, adata, batch=["donor", "site"]
    )
    for given in (["donor"], adata.obs["donor"]):
        assert refusal(scvae.fit, adata, batch=given).endswith(": batch='donor'")
    assert refusal(scvae.fit, adata, batch=["donor", "none"]).endswith("of adata.obs.")


def test_a_column_whose_name_is_a_number_is_renamed_by_the_call() -> None:
    adata = cells()
    adata.obs[0] = ["a", "b"] * 40
    mended = pasted(refusal(scvae.fit, adata, batch="0"), adata)
    assert scvae.fit(mended, batch="0", **QUICK).batches == ["a", "b"]


@pytest.mark.parametrize("names", [["a ", "b"], ["A", "b"], ["a", " B"]])
def test_categories_of_a_query_that_differ_in_spaces_or_case_are_mapped_by_the_call(
    names: list[str],
) -> None:
    adata = cells()
    adata.obs["donor"] = ["a", "b"] * 40
    model = scvae.fit(adata, batch="donor", **QUICK)
    query = adata.copy()
    query.obs["donor"] = pd.Categorical(names * 40)
    mended = pasted(refusal(model.embed, query), query)
    np.testing.assert_array_equal(model.embed(mended), model.embed(adata))
    query.obs["donor"] = "other"
    assert "replace" not in refusal(model.embed, query)


def test_numbers_that_became_text_are_the_categories_they_were() -> None:
    adata = cells()
    adata.obs["plate"] = [1.0, 2.0] * 40
    model = scvae.fit(adata, batch="plate", **QUICK)
    query = adata.copy()
    query.obs["plate"] = query.obs["plate"].astype(str)
    mended = pasted(refusal(model.embed, query), query)
    np.testing.assert_array_equal(model.embed(mended), model.embed(adata))


def test_a_query_with_its_genes_in_the_rows_is_turned_by_the_call() -> None:
    adata = cells()
    model = scvae.fit(adata, **QUICK)
    query = adata.T.copy()
    mended = pasted(refusal(model.embed, query), query)
    np.testing.assert_array_equal(model.embed(mended), model.embed(adata))


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        ([], "at least 2 genes"),
        (2000, "n_top_genes=2000"),
        ("Gene3", "genes=['Gene3', ...]"),
        ("highly_variabel", "did you mean genes='highly_variable'?"),
        (["Gene1", "Gene1", "Gene2"], "list(dict.fromkeys(genes))"),
    ],
)
def test_what_are_no_genes_is_told_with_what_are(genes: Any, words: str) -> None:
    adata = cells()
    adata.var["highly_variable"] = np.arange(20) < 12
    assert words in refusal(scvae.fit, adata, genes=genes)


@pytest.mark.parametrize("words", [("train", "test"), ("fit", "validation"), ("Held", "kept")])
def test_words_for_the_cells_held_out_are_made_marks_by_the_call(words: tuple[str, str]) -> None:
    adata = cells()
    adata.obs["split"] = [words[0], words[1], words[0], words[0]] * 20
    mended = pasted(refusal(scvae.fit, adata, validation="split"), adata)
    held = {"train": 20, "fit": 20, "Held": 60}[words[0]]
    assert scvae.fit(mended, validation="split", **QUICK).record.n_held_out == held


def test_an_array_of_the_cells_held_out_is_made_a_column_by_the_call() -> None:
    adata, held = cells(), np.arange(80) % 8 == 0
    with pytest.raises(scvae.ConfigError, match="marked by a boolean column") as caught:
        scvae.fit(adata, validation=held)  # type: ignore[arg-type]
    mended = pasted(str(caught.value).split(", then")[0], adata, held_out=held)
    assert scvae.fit(mended, validation="held_out", **QUICK).record.n_held_out == 10


# -- what the hunt for faults found ------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [{"n_latent": 10**9}, {"n_hidden": 10**8}, {"n_layers": 10**7}], ids=str
)
def test_a_network_that_memory_has_no_room_for_is_refused_before_it_is_made(
    sizes: dict[str, int],
) -> None:
    ((name, value),) = sizes.items()
    with pytest.raises(scvae.ConfigError, match=f"{name}={value}.* weights, which take"):
        scvae.fit(cells(), **{**QUICK, **sizes})  # type: ignore[arg-type]


def test_the_memory_of_a_network_is_that_of_six_copies_of_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: dict[str, Any] = {"n_hidden": 16, "n_latent": 3, "n_layers": 3, **QUICK}
    model = scvae.fit(cells(), **sizes)
    needed = 6 * 4 * sum(tensor.numel() for tensor in model.vae.state_dict().values())
    monkeypatch.setattr("scvae.models.room.free_memory", lambda: needed)
    scvae.fit(cells(), **sizes)
    monkeypatch.setattr("scvae.models.room.free_memory", lambda: needed - 1)
    with pytest.raises(scvae.ConfigError, match="n_latent=3, n_hidden=16 and n_layers=3"):
        scvae.fit(cells(), **sizes)


def test_a_column_that_is_missing_in_every_cell_is_not_the_call_to_keep_none() -> None:
    adata = cells()
    adata.obs["batch"] = np.nan
    message = refusal(scvae.fit, adata, batch="batch")
    assert message.endswith("leave it out.")
    assert "notna" not in message


@pytest.mark.parametrize("genes", [["Gene1", "NOPE"], ["NOPE", "NADA"]])
def test_fewer_genes_than_a_fit_needs_are_not_the_call_to_take(genes: list[str]) -> None:
    message = refusal(scvae.fit, cells(), genes=genes)
    assert "needs at least 2" in message
    assert "scvae.fit(adata" not in message


def test_a_layer_that_is_misspelt_is_named() -> None:
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    assert "Did you mean layer='counts'?" in refusal(scvae.fit, adata, layer="count")


def test_a_query_without_the_batch_is_embedded_by_the_call() -> None:
    adata = cells()
    adata.obs["batch"] = ["a", "b"] * 40
    model = scvae.fit(adata, batch="batch", **QUICK)
    message = refusal(model.embed, cells())
    assert message.endswith("model.embed(adata, batch='new')")
    assert len(model.embed(cells(), batch="new")) == 80


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("normalised", [True, False])
def test_parts_that_were_normalised_and_parts_that_were_not_are_told(
    share: float, normalised: bool
) -> None:
    adata, n = cells(), round(80 * (1 - share))
    x = adata.X.toarray()
    part = x[n:] / x[n:].sum(1, keepdims=True) * 1e4 if normalised else x[n:]
    adata.X = np.vstack([x[:n], np.log1p(part)])
    texts = [f.text for f in scvae.check(adata).warnings if "look" in f.text]
    if share < 0.5:
        (text,) = texts
        done = "log-normalised" if normalised else "(log-normalised|like a function of counts)"
        found = rf"{80 - n} of 80 cells \(first: 'cell_{n}'\) look {done}, the others hold counts"
        assert re.match(found, text)
    else:
        assert not any("gene by gene" in text for text in texts)
    refusal(scvae.fit, adata, counts="rounded")
