"""Laws of the door: batches and covariates as files, tables and joins leave them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scvae
from tests.test_door import QUICK, cells, finding, pasted, refusal


def with_column(values: Any, name: str = "batch", n: int = 80) -> AnnData:
    adata = cells(n)
    adata.obs[name] = pd.Series(list(values), index=adata.obs_names)
    return adata


def told(adata: AnnData, words: str, **options: Any) -> list[str]:
    return [found.text for found in scvae.check(adata, **options).warnings if words in found.text]


# -- names -------------------------------------------------------------------------------------

ALIKE = [
    ("caf\u00e9", "cafe\u0301"),
    ("b1", "b1\u200b"),
    ("b1", "\ufeffb1"),
    ("1", "01"),
    ("2", "2.0"),
    ("\u00b5M", "\u03bcM"),
]


@pytest.mark.parametrize("pair", ALIKE)
def test_categories_that_look_the_same_are_made_one_by_the_call(pair: tuple[str, str]) -> None:
    adata = with_column([*pair, "other", pair[0]] * 20)
    text = finding(adata, "spaces or case", batch="batch")
    assert pasted(text, adata).obs["batch"].nunique() == 2
    model = scvae.fit(with_column([pair[0], "other"] * 40), batch="batch", **QUICK)
    query = with_column([pair[1], "other"] * 10, n=20)
    model.embed(pasted(refusal(model.embed, query), query))


def test_categories_that_only_resemble_each_other_are_several() -> None:
    adata = with_column(["b1", "b10", "b-1", "b_1"] * 20)
    assert not told(adata, "spaces or case", batch="batch")


@pytest.mark.parametrize(
    "word", ["not available", "not_provided", "unassigned", "n.a.", "#N/A", "-", "?", "No Data"]
)
def test_words_for_what_is_not_known_are_left_out_by_the_call(word: str) -> None:
    adata = with_column(["x", "y", "x", word] * 20)
    assert pasted(finding(adata, "nothing is known", batch="batch"), adata).n_obs == 60


def test_a_column_of_another_case_is_named() -> None:
    assert "did you mean batch='batch'?" in refusal(
        scvae.fit, with_column("ab" * 40), batch="BATCH"
    )


def test_names_of_columns_in_one_text_are_several() -> None:
    adata = with_column("ab" * 40, "a")
    adata.obs["n"] = np.arange(80.0)
    message = refusal(scvae.fit, adata, covariates="a, n")
    assert "covariates=['a', 'n']" in message
    column = refusal(scvae.fit, adata, covariates=adata.obs["n"])
    assert "covariates='n'" in column


def test_a_set_of_names_has_one_order() -> None:
    names = [f"Gene{i}" for i in range(12)]
    model = scvae.fit(cells(), genes=set(names), **QUICK)
    assert model.origin.genes == sorted(names)


# -- batches of one cell -----------------------------------------------------------------------


def test_names_of_cells_as_batches_are_not_the_call_to_keep_none() -> None:
    message = refusal(scvae.fit, with_column(range(80)), batch="batch")
    assert "adata = " not in message
    assert "scvae.fit(adata)" in message


def test_one_batch_beside_lone_cells_is_merged_by_the_call() -> None:
    adata = with_column(["x"] * 70 + [f"s{i}" for i in range(10)])
    mended = pasted(refusal(scvae.fit, adata, batch="batch").partition(", or ")[0], adata)
    assert scvae.fit(mended, batch="batch", **QUICK).origin.covariates.batches == ["others", "x"]


# -- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{:.1f}", "{:.1f}%", "{:.1f} %", "{:.2e}"])
@pytest.mark.parametrize("comma", [False, True])
@pytest.mark.parametrize("word", [None, "nan", "unknown"])
def test_numbers_as_text_in_any_writing_are_made_numbers_by_the_calls(
    form: str, comma: bool, word: str | None
) -> None:
    values = [form.format(i / 4 + 1) for i in range(80)]
    values = [text.replace(".", ",") for text in values] if comma else values
    adata = with_column([word or values[0], *values[1:]], "age")
    if word is not None:
        adata = pasted(finding(adata, "nothing is known", covariates="age"), adata)
    mended = pasted(finding(adata, "numbers as text", covariates="age"), adata)
    numbers = mended.obs["age"].to_numpy()
    np.testing.assert_allclose(numbers[-5:], np.arange(75, 80) / 4 + 1, rtol=0.01)
    assert list(scvae.fit(mended, covariates="age", **QUICK).origin.covariates.numbers) == ["age"]


@pytest.mark.parametrize("name", ["sex", "library", "mouse", "orig.ident", "dataset", "cell_type"])
def test_labels_as_numbers_are_known_by_the_name_of_their_column(name: str) -> None:
    adata = with_column([1, 2, 3, 5] * 20, name)
    mended = pasted(finding(adata, "labels and not amounts", covariates=name), adata)
    assert list(scvae.fit(mended, covariates=name, **QUICK).origin.covariates.categories) == [name]


@pytest.mark.parametrize(("name", "is_label"), [("donor_id", True), ("sample_depth", False)])
def test_many_labels_as_numbers_are_told_where_their_name_ends_so(
    name: str, is_label: bool
) -> None:
    adata = with_column([1000 + i // 4 for i in range(160)], name, n=160)
    assert bool(told(adata, "labels and not amounts", covariates=name)) == is_label


# -- covariates of a query ---------------------------------------------------------------------


@pytest.mark.parametrize("lacks", [True, False])
@pytest.mark.parametrize("name", ["age", "donor"])
def test_a_covariate_that_a_query_does_not_know_is_given_by_the_call(
    name: str, lacks: bool
) -> None:
    adata = with_column(np.arange(80.0), "age")
    adata.obs["donor"] = ["x", "y"] * 40
    model = scvae.fit(adata, covariates=["age", "donor"], **QUICK)
    query = adata[:20].copy()
    query.obs[name] = np.nan
    if lacks:
        del query.obs[name]
    message = refusal(model.embed, query)
    call = re.search(r"adata\.obs\[.*\] = .*$", message)
    assert call is not None
    assert model.embed(pasted(call[0], query)).shape[0] == 20
