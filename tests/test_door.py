"""Laws of the door: what is not plain is told, and the call in the message mends it when pasted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import scvae

QUICK: dict[str, Any] = {"max_steps": 3, "progress": False}
CALL = re.compile(r"import re; |known = |adata = |adata(\.\w+)+(\[[^\]]*\])? &?= |sc\.pp\.")


def cells(n: int = 80, g: int = 20, seed: int = 0) -> AnnData:
    x = np.random.default_rng(seed).poisson(3.0, (n, g)).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(x))
    adata.obs_names = [f"cell_{i}" for i in range(n)]
    adata.var_names = [f"Gene{i}" for i in range(g)]
    return adata


def pasted(message: str, adata: AnnData, **names: Any) -> AnnData:
    """Return what the call in `message` makes of `adata`: the longest beginning that is code."""
    start = CALL.search(message)
    assert start is not None, f"no call in: {message}"
    text = message[start.start() :]
    space = {"adata": adata.copy(), "np": np, "pd": pd, "sc": sc, **names}
    for end in range(len(text), 0, -1):
        try:
            code = compile(text[:end].rstrip(". ,;"), "remedy", "exec")
        except SyntaxError:
            continue
        exec(code, space)
        mended: AnnData = space["adata"]
        return mended
    raise AssertionError(f"no call in: {message}")


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(scvae.DataError) as caught:
        function(*arguments, **options)
    return str(caught.value)


# -- adata.raw ---------------------------------------------------------------------------------


def with_raw(adata: AnnData) -> AnnData:
    """Return log values of the last twelve genes, backwards, with the counts of all in raw."""
    some = adata[:, ::-1][:, :12].copy()
    some.raw = adata
    some.X = np.log1p(some.X)
    return some


def test_counts_in_raw_are_those_of_the_same_genes() -> None:
    adata = cells()
    some = with_raw(adata)
    model = scvae.fit(some, layer="raw", **QUICK)
    plain = adata[:, some.var_names].copy()
    other = scvae.fit(plain, **QUICK)
    np.testing.assert_array_equal(some.obsm["X_scvae"], plain.obsm["X_scvae"])
    assert model.origin.genes == list(some.var_names)
    np.testing.assert_array_equal(model.embed(some), other.embed(plain))
    assert "raw" in str(model.summary())


def test_a_query_is_read_from_raw_whatever_genes_it_kept() -> None:
    adata = cells()
    model = scvae.fit(adata, **QUICK)
    some = with_raw(adata)
    assert "layer='raw'" in refusal(model.embed, some)
    np.testing.assert_array_equal(model.embed(some, layer="raw"), model.embed(adata))


def test_check_reads_raw() -> None:
    report = scvae.check(with_raw(cells()), layer="raw")
    assert report.ok
    assert "adata.raw.X" in str(report)


# -- genes -------------------------------------------------------------------------------------

MARKS = np.arange(20) < 12


@pytest.mark.parametrize(
    "genes",
    [MARKS, list(MARKS), pd.Series(MARKS), pd.Index([f"Gene{i}" for i in range(12)]),
     pd.Series([f"Gene{i}" for i in range(12)]),
     pd.Series(MARKS, index=[f"Gene{i}" for i in range(20)])[::-1]],
)  # fmt: skip
def test_masks_series_and_indices_choose_the_genes_they_mark(genes: Any) -> None:
    assert scvae.fit(cells(), genes=genes, **QUICK).origin.genes == [f"Gene{i}" for i in range(12)]


@pytest.mark.parametrize("kind", [object, int, float, str, "category", "boolean"])
def test_a_column_that_can_only_mean_booleans_is_one(kind: Any) -> None:
    adata = cells()
    adata.var["chosen"] = pd.Series(MARKS, index=adata.var_names).astype(kind)
    adata.obs["held"] = pd.Series(np.arange(80) < 9, index=adata.obs_names).astype(kind)
    model = scvae.fit(adata, genes="chosen", validation="held", **QUICK)
    assert (model.architecture.n_genes, model.record.n_held_out) == (12, 9)


@pytest.mark.parametrize("words", [True, False])
def test_a_mark_that_is_missing_is_filled_by_the_call(words: bool) -> None:
    adata = cells()
    given = [str(mark) if words else mark for mark in MARKS.tolist()]
    adata.var["chosen"] = pd.Series([*given[:-1], None], index=adata.var_names, dtype=object)
    mended = pasted(refusal(scvae.fit, adata, genes="chosen"), adata)
    assert scvae.fit(mended, genes="chosen", **QUICK).architecture.n_genes == 12


def test_a_mask_of_another_length_is_no_list_of_names() -> None:
    assert "adata.var_names[mask]" in refusal(scvae.fit, cells(), genes=MARKS[1:])


@pytest.mark.parametrize("layer", [None, "counts", "raw"])
@pytest.mark.parametrize("by", ["column", "0/1", "names"])
def test_cells_empty_in_the_chosen_genes_are_left_out_by_the_call(layer: Any, by: str) -> None:
    adata = cells()
    x = adata.X.toarray()
    x[[3, 7], :12] = 0
    adata.X = sparse.csr_matrix(x)
    adata.var["chosen"] = MARKS.astype(int) if by == "0/1" else MARKS
    genes = list(adata.var_names[MARKS]) if by == "names" else "chosen"
    adata.raw = adata
    adata.layers["counts"] = adata.X.copy()
    message = refusal(scvae.fit, adata, genes=genes, layer=layer)
    mended = pasted(message, adata, genes=genes)
    assert mended.n_obs == 78
    model = scvae.fit(mended, genes=genes, layer=layer, **QUICK)
    query = pasted(refusal(model.embed, adata, layer=layer), adata, model=model)
    assert len(model.embed(query, layer=layer)) == 78


RENAMED: dict[str, Callable[[AnnData], Any]] = {
    "upper": lambda adata: adata.var_names.str.upper(),
    "versions": lambda adata: adata.var_names + ".3",
    "genome": lambda adata: "GRCh38_" + adata.var_names,
    "marks": lambda adata: adata.var_names.str.replace("Gene", "Gene-"),
}


@pytest.mark.parametrize("way", RENAMED)
@pytest.mark.parametrize("in_a_column", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_genes_under_other_names_are_mapped_by_the_call(
    way: str, in_a_column: bool, back: bool
) -> None:
    adata, query = cells(), cells()
    renamed = adata if back else query
    renamed.var_names = RENAMED[way](renamed)
    model = scvae.fit(adata, **QUICK)
    if in_a_column:
        query.var["gene_ids"] = list(query.var_names)
        query.var_names = [f"id_{i + 100}" for i in range(20)]
    mended = pasted(refusal(model.embed, query), query, model=model)
    np.testing.assert_array_equal(model.embed(mended), model.embed(adata))


def test_genes_of_no_likeness_are_not_mapped() -> None:
    model = scvae.fit(cells(), **QUICK)
    query = cells()
    query.var_names = [f"other_{i}" for i in range(100, 120)]
    assert "known" not in refusal(model.embed, query)


# -- kinds of features ---------------------------------------------------------------------------


def finding(adata: AnnData, words: str, **options: Any) -> str:
    """Return the one warning of `check` with these words."""
    (text,) = [f.text for f in scvae.check(adata, **options).warnings if words in f.text]
    return text


@pytest.mark.parametrize("other", ["CRISPR Guide Capture", "Multiplexing Capture", "Custom"])
def test_features_of_other_kinds_are_left_out_by_the_call(other: str) -> None:
    adata = cells()
    adata.var["feature_types"] = ["Gene Expression"] * 15 + [other] * 5
    message = refusal(scvae.fit, adata)
    assert "15 of 'Gene Expression'" in message
    assert message in [f.text for f in scvae.check(adata).errors]
    assert scvae.fit(pasted(message, adata), **QUICK).architecture.n_genes == 15
    genes = list(adata.var_names[:15])
    assert scvae.fit(adata, genes=genes, **QUICK).architecture.n_genes == 15


@pytest.mark.parametrize(
    ("kind", "taken"),
    [("Antibody Capture", "protein"), ("Peaks", "chromatin"), ("CRISPR Guide Capture", None)],
)
def test_features_of_one_other_kind_are_told_and_taken_for_it_by_the_call(
    kind: str, taken: str | None
) -> None:
    adata = cells()
    adata.var["feature_types"] = kind
    text = finding(adata, "are taken for genes")
    with pytest.warns(UserWarning, match="are taken for genes"):
        assert [*scvae.fit(adata, **QUICK).modalities] == ["rna"]
    call = re.search(r"scvae\.fit\(adata, (.*)\)$", text)
    assert (call is None) == (taken is None)
    if call is not None:
        asked = eval(f"dict({call[1]})")
        assert [*scvae.fit(adata, **asked, **QUICK).modalities] == [taken]
        assert not [f for f in scvae.check(adata, **asked).warnings if "for genes" in f.text]


@pytest.mark.parametrize("kind", ["Gene Expression", "protein_coding", "rna"])
def test_genes_of_one_kind_are_genes(kind: str) -> None:
    adata = cells()
    adata.var["feature_types"] = kind
    assert not scvae.check(adata).warnings


def test_biotypes_are_genes() -> None:
    adata = cells()
    adata.var["feature_type"] = ["protein_coding"] * 12 + ["lncRNA"] * 4 + ["IG_C_gene"] * 4
    assert scvae.check(adata).ok


@pytest.mark.parametrize(
    "name", ["ERCC-00002", "NegControlProbe_00042", "BLANK_0004", "antisense_ABC",
             "UnassignedCodeword_0001", "chr1:1000-2000", "CD4_TotalSeqB", "Intergenic_Region_1"],
)  # fmt: skip
def test_controls_are_left_out_by_the_call(name: str) -> None:
    adata = cells()
    adata.var_names = [*adata.var_names[:-1], name]
    mended = pasted(finding(adata, repr(name)), adata)
    assert list(mended.var_names) == list(adata.var_names[:-1])


@pytest.mark.parametrize("name", ["ERCC1", "ERCC6L2", "NEGR1", "CHR1", "HTORC", "DECORIN", "SIRT1"])
def test_genes_of_like_names_are_no_controls(name: str) -> None:
    adata = cells()
    adata.var_names = [*adata.var_names[:-1], name]
    assert not scvae.check(adata).warnings


@pytest.mark.parametrize("layer", [None, "counts", "raw"])
def test_genes_that_a_batch_never_measured_are_left_out_by_the_call(layer: Any) -> None:
    adata = cells(120, 40)
    x = adata.X.toarray()
    x[60:, 25:] = 0
    adata.X = sparse.csr_matrix(x)
    adata.obs["batch"] = ["a"] * 60 + ["b"] * 60
    adata.layers["counts"], adata.raw = adata.X.copy(), adata
    mended = pasted(finding(adata, "never measured", batch="batch", layer=layer), adata)
    assert list(mended.var_names) == list(adata.var_names[:25])
    assert "never measured" not in str(scvae.check(mended, batch="batch"))


# -- columns of adata.obs ------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["nan", "None", "", "NA"])
def test_names_that_say_missing_are_left_out_by_the_call(odd: str) -> None:
    adata = cells(120)
    adata.obs["batch"] = np.repeat(["b1", "b2", odd], 40)
    mended = pasted(finding(adata, repr([odd]), batch="batch"), adata)
    assert set(mended.obs["batch"]) == {"b1", "b2"}


@pytest.mark.parametrize("odd", ["b1 ", " b1", "B1"])
def test_names_that_differ_in_spaces_or_case_are_made_one(odd: str) -> None:
    adata = cells(120)
    adata.obs["batch"] = np.repeat(["b1", "b2", odd], 40)
    with pytest.warns(UserWarning, match="spaces or case"):
        scvae.fit(adata, batch="batch", **QUICK)
    mended = pasted(finding(adata, "spaces or case", batch="batch"), adata)
    assert mended.obs["batch"].nunique() == 2


@pytest.mark.parametrize("kind", [object, str, "category"])
def test_numbers_as_text_are_made_numbers_by_the_call(kind: Any) -> None:
    adata = cells()
    age = np.random.default_rng(0).normal(50, 9, 80).round(2)
    adata.obs["age"] = pd.Series(age.tolist(), index=adata.obs_names, dtype=object).astype(kind)
    mended = pasted(finding(adata, "numbers as text", covariates="age"), adata)
    model = scvae.fit(mended, covariates="age", **QUICK)
    assert list(model.origin.covariates.numbers) == ["age"]
    assert "'age' (number)" in str(model.summary())


def test_labels_as_numbers_are_made_labels_by_the_call() -> None:
    adata = cells()
    adata.obs["donor"] = np.arange(80) % 4
    mended = pasted(finding(adata, "labels and not amounts", covariates="donor"), adata)
    assert "4 categories" in str(scvae.check(mended, covariates="donor"))


@pytest.mark.parametrize(("within", "told"), [(0.1, True), (9.0, False)])
def test_a_number_that_tells_the_batch_is_said(within: float, told: bool) -> None:
    adata = cells()
    adata.obs["batch"] = ["a", "b"] * 40
    adata.obs["dose"] = np.tile([1.0, 4.0], 40) + np.random.default_rng(0).normal(0, within, 80)
    report = scvae.check(adata, batch="batch", covariates="dose")
    assert any("correlation ratio" in f.text for f in report.warnings) == told


def with_copies() -> AnnData:
    adata, rng = cells(), np.random.default_rng(0)
    adata.obs["donor"] = pd.Categorical(["a", "b"] * 40)
    adata.obs["donor_id"] = [7, 3] * 40
    adata.obs["name"] = ["x", "y"] * 40
    adata.obs["chip"] = ["c", "d", "e", "e"] * 20
    adata.obs["mito"] = rng.uniform(0, 0.1, 80)
    adata.obs["percent_mito"] = 100 * adata.obs["mito"] + 1
    adata.obs["log_mito"] = np.log(adata.obs["mito"])
    return adata


@pytest.mark.parametrize(
    ("batch", "covariates", "copies"),
    [
        (None, ["donor", "name"], ["name"]),
        ("donor", ["name"], ["name"]),
        ("donor", ["mito", "name", "percent_mito", "chip"], ["name", "percent_mito"]),
        (None, ["mito", "log_mito", "percent_mito"], ["percent_mito"]),
        (None, ["name", "donor_id"], ["donor_id"]),
        ("donor", ["donor_id"], ["donor_id"]),
        ("donor", ["chip", "mito", "log_mito"], []),
    ],
)
def test_columns_that_say_the_same_are_left_out_by_the_call(
    batch: str | None, covariates: list[str], copies: list[str]
) -> None:
    adata = with_copies()
    texts = [f.text for f in scvae.check(adata, batch=batch, covariates=covariates).warnings]
    told = [text for text in texts if "say the same of every cell" in text]
    assert [text.split("Leave ")[1].split(" out:")[0] for text in told] == list(map(repr, copies))
    assert not any(f"{name!r}] (covariate): " in text for text in texts for name in copies)
    if not told:
        return
    with pytest.warns(UserWarning, match="say the same of every cell"):
        scvae.fit(adata, batch=batch, covariates=covariates, **QUICK)
    for text in told:
        call = re.search(r"scvae\.fit\(adata, (.*)\)$", text)
        assert call is not None
        asked = eval(f"dict({call[1]})")
        model = scvae.fit(adata, **asked, **QUICK)
        assert {*model.origin.covariates.others} == {*covariates} - {*copies}
        assert not any("say the same" in warning for warning in model.record.warnings)


def test_all_batches_of_one_cell_are_left_out_by_one_call() -> None:
    adata = cells(92)
    adata.obs["batch"] = pd.Categorical([f"d{i}" for i in range(12)] + ["x", "y"] * 40)
    mended = pasted(refusal(scvae.fit, adata, batch="batch"), adata)
    assert mended.n_obs == 80
    scvae.fit(mended, batch="batch", **QUICK)


def test_a_query_in_another_unit_is_said() -> None:
    adata = cells()
    adata.obs["mito"] = np.random.default_rng(0).normal(5, 1.5, 80)
    model = scvae.fit(adata, covariates="mito", **QUICK)
    query = adata.copy()
    query.obs["mito"] /= 100
    with pytest.warns(UserWarning, match="units differ") as caught:
        model.embed(query)
    mended = pasted(str(caught[0].message), query)
    np.testing.assert_allclose(mended.obs["mito"], adata.obs["mito"])


# -- counts that are nearly counts -----------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("genes", [None, [f"Gene{i}" for i in range(12)]])
def test_round_off_is_rounded_and_told(dense: bool, genes: Any) -> None:
    adata, exact = cells(), cells()
    x = adata.X.toarray()
    noise = np.random.default_rng(1).uniform(-1e-6, 1e-6, x.shape)
    adata.X = x + noise if dense else sparse.csr_matrix(x + noise)
    before = adata.X.copy()
    with pytest.warns(UserWarning, match="by round-off"):
        scvae.fit(adata, genes=genes, **QUICK)
    scvae.fit(exact, genes=genes, **QUICK)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], exact.obsm["X_scvae"])
    assert (before != adata.X).sum() == 0


def test_fractions_are_no_round_off() -> None:
    adata = cells()
    adata.X = adata.X * np.float32(1.001)
    assert "non-integer" in refusal(scvae.fit, adata)


@pytest.mark.parametrize("layer", [None, "counts"])
def test_nan_of_an_outer_join_is_named_and_left_out_by_the_call(layer: Any) -> None:
    adata = cells()
    x = adata.X.toarray()
    x[:30, 15:] = np.nan
    adata.X = x
    adata.layers["counts"] = x.copy()
    message = refusal(scvae.fit, adata, layer=layer)
    assert "outer join" in message
    assert scvae.fit(pasted(message, adata), layer=layer, **QUICK).architecture.n_genes == 15
