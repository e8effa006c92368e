"""What is known of cells and genes besides counts: encodings, and an error for every fault."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from scvae.data.read.choice import look
from scvae.data.read.covariates import Covariates, column, learn_covariates
from scvae.data.read.genes import choose_genes, match_genes
from scvae.data.read.library import library_sizes
from scvae.errors import DataError

law = settings(deadline=None, derandomize=True, max_examples=100)
CELLS = [f"c{i}" for i in range(6)]


def obs_of(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=CELLS)


OBS = obs_of(
    donor=["b", "a", "b", "a", "c", "c"],
    chip=pd.Categorical(["y", "x", "y", "x", "y", "x"], categories=["y", "unused", "x"]),
    lane=[2, 10, 2, 10, 2, 10],
    treated=[True, False, True, False, False, True],
    age=[30.0, 40, 50, 60, 70, 80],
    reads=[1, 2, 3, 4, 5, 6],
)


def learned(obs: pd.DataFrame, batch: str | None, covariates: object) -> Covariates:
    """Return the encoding that is learned, which reads the cells it was learned of as they are."""
    encoded = learn_covariates(obs, batch, covariates)  # type: ignore[arg-type]
    again = encoded.covariates.read(obs)
    np.testing.assert_array_equal(encoded.design, again.design)
    np.testing.assert_array_equal(encoded.codes, again.codes)
    return encoded.covariates


def failure(obs: pd.DataFrame, batch: str | None = None, covariates: object = None) -> str:
    with pytest.raises(DataError) as caught:
        learn_covariates(obs, batch, covariates)
    return str(caught.value)


# -- learning --------------------------------------------------------------------------------------


def test_batch_and_covariates_are_learned() -> None:
    found = learned(OBS, "donor", ["chip", "age", "treated"])
    assert found.batch == "donor"
    assert dict(found.categories) == {
        "donor": ["a", "b", "c"],
        "chip": ["y", "x"],
        "treated": ["False", "True"],
    }
    assert found.numbers == {"age": (55.0, pytest.approx(OBS["age"].std(ddof=0)))}
    assert (found.n_batches, found.batches, found.width) == (3, ["a", "b", "c"], 8)


def test_nothing_to_learn() -> None:
    found = learned(OBS, None, None)
    assert (found.n_batches, found.batches, found.width) == (1, [], 0)
    assert found.read(OBS).design.shape == (6, 0)
    assert found.read(OBS).codes.tolist() == [0] * 6


def test_one_covariate_may_be_given_as_a_string() -> None:
    assert learned(OBS, None, "age") == learned(OBS, None, ["age"])
    assert list(learned(OBS, None, ("age", "chip")).categories) == ["chip"]


def test_design_is_one_hot_then_standardised() -> None:
    found = learned(OBS, "donor", ["reads", "chip"])
    design = found.read(OBS).design
    assert design.dtype == np.float32
    assert design.shape == (6, found.width)
    np.testing.assert_array_equal(design[:, :3].argmax(1), [1, 0, 1, 0, 2, 2])
    np.testing.assert_array_equal(design[:, 3:5], np.eye(2)[[0, 1, 0, 1, 0, 1]])
    np.testing.assert_allclose(design[:, 5].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(design[:, 5].std(), 1, rtol=1e-6)
    assert (np.diff(design[:, 5]) > 0).all()


def test_codes_are_positions_in_the_batches() -> None:
    found = learned(OBS, "donor", None)
    codes = found.read(OBS).codes
    assert codes.dtype == np.int64
    assert [found.batches[code] for code in codes] == OBS["donor"].tolist()


@law
@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=9))
def test_rows_out_follow_rows_in(order: list[int], rows: list[int]) -> None:
    found = learned(OBS.iloc[order], "donor", ["chip", "age"])
    assert found == learned(OBS, "donor", ["chip", "age"])
    np.testing.assert_array_equal(found.read(OBS.iloc[rows]).design, found.read(OBS).design[rows])
    np.testing.assert_array_equal(found.read(OBS.iloc[rows]).codes, found.read(OBS).codes[rows])


def test_numbers_use_the_fitted_mean_and_deviation() -> None:
    found = learned(OBS, None, "age")
    other = obs_of(age=[55.0] * 6)
    np.testing.assert_array_equal(found.read(other).design, np.zeros((6, 1)))


@pytest.mark.parametrize("name", ["donor", "chip", "lane", "treated"])
def test_categories_are_matched_as_strings(name: str) -> None:
    found = learned(OBS, name, None)
    for dtype in (str, "category", object):
        as_type = OBS.assign(**{name: OBS[name].astype(str).astype(dtype)})
        np.testing.assert_array_equal(found.read(as_type).codes, found.read(OBS).codes)
        assert sorted(learned(as_type, name, None).batches) == sorted(found.batches)


def test_categories_that_look_the_same_are_one() -> None:
    mixed = pd.Categorical([1, 1, "1", "1", 2, 2], categories=[1, "1", 2])
    found = learned(obs_of(lane=mixed), "lane", None)
    assert found.batches == ["1", "2"]
    assert found.read(obs_of(lane=mixed)).codes.tolist() == [0, 0, 0, 0, 1, 1]


@law
@given(
    st.lists(st.sampled_from([1, 1.0, True, "1", "a", "b", 2.5]), min_size=6, max_size=6),
    st.sampled_from([object, "category", str]),
)
def test_every_cell_has_the_category_of_its_name(values: list[Any], dtype: Any) -> None:
    lane = pd.Series(values, dtype=object).astype(dtype)
    names = lane.astype(str).tolist()
    assume(len(set(names)) > 1)
    covariates = learned(obs_of(lane=lane.to_numpy()), None, "lane")
    positions = covariates.read(obs_of(lane=lane.to_numpy())).design.argmax(axis=1)
    assert [covariates.categories["lane"][i] for i in positions] == names
    assert sorted(covariates.categories["lane"]) == sorted(set(names))


def test_categories_of_whole_floats_are_whole_numbers() -> None:
    lane = pd.Series([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    for dtype in (float, int, "category"):
        assert learned(obs_of(lane=lane.astype(dtype).array), "lane", None).batches == ["1", "2"]


@law
@given(st.lists(st.integers(0, 2), max_size=7))
def test_cells_of_a_batch_are_encoded_as_typical_cells_of_it_are_read(codes: list[int]) -> None:
    covariates = learned(OBS, "donor", ["chip", "age", "treated"])
    array = np.array(codes, dtype=np.int64)
    typical = pd.DataFrame({"donor": [covariates.batches[code] for code in codes]}, dtype=object)
    typical = typical.assign(chip="y", age=55.0, treated=False)
    np.testing.assert_array_equal(covariates.encode(array), covariates.read(typical).design)
    assert covariates.others == ["chip", "treated", "age"]
    np.testing.assert_array_equal(Covariates().encode(array), np.zeros((len(codes), 0)))


def test_unused_categories_are_dropped_and_the_order_is_kept() -> None:
    assert learned(OBS, "chip", None).batches == ["y", "x"]
    seen = OBS[OBS["donor"].isin(["a", "b"])].assign(donor=lambda o: o["donor"].astype("category"))
    assert learned(seen, "donor", None).batches == ["a", "b"]


def test_the_encoding_survives_json() -> None:
    found = learned(OBS, "donor", ["chip", "age", "lane"])
    again = Covariates.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    np.testing.assert_array_equal(again.read(OBS).design, found.read(OBS).design)
    empty = Covariates()
    assert Covariates.from_json(json.loads(json.dumps(empty.to_json()))) == empty


def test_the_table_is_not_touched() -> None:
    before = OBS.copy(deep=True)
    learned(OBS, "donor", ["chip", "age"]).read(OBS)
    pd.testing.assert_frame_equal(OBS, before)


# -- what is wrong with a column -------------------------------------------------------------------


def test_an_absent_column_is_answered_with_a_near_one() -> None:
    message = failure(OBS, batch="doner")
    assert "adata.obs has no column 'doner' (given as batch)" in message
    assert "did you mean batch='donor'?" in message
    assert "['donor', 'chip', 'lane', 'treated', 'age', 'reads']" in failure(OBS, batch="zzzzzz")
    assert "no column 'agee' (given as covariates)" in failure(OBS, covariates=["agee"])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_values_are_counted_and_the_remedy_runs(missing: object) -> None:
    obs = OBS.assign(donor=["b", "a", missing, "a", missing, "b"])
    message = failure(obs, batch="donor")
    assert "(given as batch) is missing for 2 of 6 cells (first: 'c2')" in message
    remedy = re.search(r"adata = (adata\[.*\]\.copy\(\))", message)
    assert remedy
    kept = eval(remedy[1], {"adata": AnnData(np.ones((6, 2)), obs=obs)})
    assert learned(kept.obs, "donor", None).batches == ["a", "b"]


def test_missing_numbers_and_missing_categories_are_found() -> None:
    assert "missing for 1 of 6" in failure(OBS.assign(age=[1, 2, np.nan, 4, 5, 6]), None, "age")
    codes = pd.Categorical.from_codes([0, 1, -1, 0, 1, 0], ["a", "b"])
    assert "missing for 1 of 6" in failure(OBS.assign(donor=codes), "donor")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_numbers_are_named(value: float) -> None:
    message = failure(OBS.assign(age=[1, 2, 3, value, 5, 6]), None, "age")
    assert "adata.obs['age'] is infinite at cell 'c3'" in message


def test_one_category_is_refused() -> None:
    message = failure(obs_of(donor=["a"] * 6), "donor")
    assert "adata.obs['donor'] (given as batch) has one category, 'a'" in message
    unused = pd.Categorical(["a"] * 6, categories=["a", "b"])
    assert "has one category, 'a'" in failure(obs_of(donor=unused), "donor")
    assert "given as covariates" in failure(obs_of(donor=["a"] * 6), None, "donor")


@pytest.mark.parametrize("value", [0.0, 1.1, -1e12])
def test_a_number_without_spread_is_refused(value: float) -> None:
    message = failure(obs_of(age=[value] * 6), None, "age")
    assert f"adata.obs['age'] (given as covariates) is {value:g} for every cell" in message


@pytest.mark.parametrize(("common", "single"), [(["x", "z"], "y"), ([7, 8], 5), ([7.0, 8.0], 5.5)])
def test_a_batch_of_one_cell_is_refused_and_the_remedy_runs(common: list, single: object) -> None:
    obs = obs_of(donor=[*common, single, *common, common[0]])
    message = failure(obs, "donor")
    assert f"1 batches with one cell (first: '{single}')" in message
    remedy = re.search(r"adata = (adata\[.*\]\.copy\(\))", message)
    assert remedy
    kept = eval(remedy[1], {"adata": AnnData(np.ones((6, 2)), obs=obs)})
    assert learned(kept.obs, "donor", None).batches == [
        f"{c:g}" if isinstance(c, float) else str(c) for c in common
    ]


def test_a_lone_category_of_a_covariate_is_allowed() -> None:
    obs = obs_of(chip=["x", "x", "y", "x", "x", "x"])
    assert learned(obs, None, "chip").categories == {"chip": ["x", "y"]}


@pytest.mark.parametrize(
    ("batch", "covariates"),
    [("donor", ["donor"]), (None, ["age", "age"]), (None, ["chip", "chip"])],
)
def test_a_column_given_twice_is_refused(batch: str | None, covariates: list[str]) -> None:
    message = failure(OBS, batch, covariates)
    assert f"{covariates[-1]!r} is given twice" in message
    found = re.search(r"scvae\.fit\(adata, (.*)\)", message)
    assert found
    assert learned(OBS, **{"batch": None, "covariates": None, **eval(f"dict({found[1]})")})


def test_two_columns_of_one_name_are_refused() -> None:
    twice = pd.concat([OBS[["donor"]], OBS[["donor"]]], axis=1)
    assert "several columns named 'donor'" in failure(twice, "donor")
    with pytest.raises(DataError, match="several columns"):
        column(twice, "donor", "batch")


def test_unseen_categories_are_named() -> None:
    found = learned(OBS, "donor", "chip")
    other = OBS.assign(donor=["a", "zoe", "b", "a", "yan", "zoe"])
    with pytest.raises(DataError, match=r"2 categories .*\['yan', 'zoe'\].*\['a', 'b', 'c'\]"):
        found.read(other)
    with pytest.raises(DataError, match="has no column 'chip'"):
        found.read(OBS.drop(columns="chip"))


@pytest.mark.parametrize("values", [["a", "b"] * 3, ["1", "2", "3", "4", "5", "six"]])
def test_text_where_a_number_was_fitted_is_an_error_of_the_data(values: list[str]) -> None:
    found = learned(OBS, None, "age")
    with pytest.raises(DataError, match="age"):
        found.read(obs_of(age=values))


# -- genes -----------------------------------------------------------------------------------------

GENES = ["CD3D", "LYZ", "MS4A1", "NKG7"]


def genes_of(names: list[str]) -> AnnData:
    return AnnData(np.ones((2, len(names))), var=pd.DataFrame(index=pd.Index(names, dtype=object)))


@law
@given(st.permutations([*GENES, "extra1", "extra2"]), st.permutations(GENES))
def test_genes_are_matched_by_name_in_any_order(held: list[str], asked: list[str]) -> None:
    adata = genes_of(held)
    assert adata.var_names[match_genes(adata, asked)].tolist() == asked


def test_the_same_genes_in_the_same_order_need_no_positions() -> None:
    assert match_genes(genes_of(GENES), GENES) is None
    assert choose_genes(genes_of(GENES), None) is None
    assert match_genes(genes_of(GENES), GENES[:3]).tolist() == [0, 1, 2]


def test_missing_genes_are_named() -> None:
    with pytest.raises(DataError, match=r"lacks 2 of the 4 genes .*\['LYZ', 'NKG7'\]"):
        match_genes(genes_of(["MS4A1", "CD3D"]), GENES)


@pytest.mark.parametrize("asked", [None, "highly_variable", ["CD3D"]])
def test_duplicated_gene_names_are_refused(asked: object) -> None:
    adata = genes_of(["CD3D", "LYZ", "CD3D"])
    with pytest.raises(DataError, match=r"1 duplicated genes \(first: 'CD3D'\).*make_unique\(\)"):
        choose_genes(adata, asked)
    with pytest.raises(DataError, match="duplicated"):
        match_genes(adata, ["CD3D"])
    adata.var_names_make_unique()
    assert choose_genes(adata, None) is None


def test_genes_are_chosen_by_a_boolean_column() -> None:
    adata = genes_of(GENES)
    adata.var["highly_variable"] = [True, False, False, True]
    assert choose_genes(adata, "highly_variable").tolist() == [0, 3]


def test_an_absent_column_of_genes_says_how_to_make_it() -> None:
    with pytest.raises(DataError, match=r"'highly_variable'.*highly_variable_genes\(adata"):
        choose_genes(genes_of(GENES), "highly_variable")
    with pytest.raises(DataError, match=r"no column 'mine' \(given as genes\)\.$"):
        choose_genes(genes_of(GENES), "mine")


@pytest.mark.parametrize(
    "mask",
    [
        [False] * 4,
        [2, 0, 1, 0],
        ["yes", "no", "yes", "no"],
        pd.array([True, None, False, True], dtype="boolean"),
    ],
    ids=["none", "integers", "strings", "missing"],
)
def test_a_column_of_genes_that_is_no_mask_is_refused(mask: object) -> None:
    adata = genes_of(GENES)
    adata.var["mine"] = mask
    with pytest.raises(DataError, match=r"adata.var\['mine'\].* must be boolean"):
        choose_genes(adata, "mine")


@pytest.mark.parametrize("kind", [list, tuple, pd.Index, np.array])
def test_genes_are_chosen_by_name(kind: type) -> None:
    assert choose_genes(genes_of(GENES), kind(["NKG7", "CD3D"])).tolist() == [3, 0]


def test_a_gene_asked_for_twice_is_refused() -> None:
    with pytest.raises(DataError, match="LYZ"):
        choose_genes(genes_of(GENES), ["LYZ", "CD3D", "LYZ"])


def test_no_genes_are_no_choice() -> None:
    with pytest.raises(DataError, match="genes"):
        choose_genes(genes_of(GENES), [])


# -- library sizes ---------------------------------------------------------------------------------

COUNTS = np.array([[1, 0, 2], [0, 5, 0], [255, 255, 255]], dtype=np.uint8)


def counted(**columns: object) -> AnnData:
    return AnnData(sparse.csr_matrix(COUNTS), obs=pd.DataFrame(columns, index=["a", "b", "c"]))


def library_of(adata: AnnData, name: str) -> np.ndarray:
    return library_sizes(adata, look(adata).require().totals, name)


@pytest.mark.parametrize("name", ["observed", "latent"])
def test_observed_libraries_are_row_sums_of_narrow_counts(name: str) -> None:
    found = library_of(counted(), name)
    assert found.dtype == np.float64
    assert found.tolist() == [3, 5, 765]


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64, "category", str])
def test_a_column_of_totals_is_taken(dtype: object) -> None:
    adata = counted(total=pd.Series([3, 50, 765.0], index=["a", "b", "c"]).astype(dtype))
    assert library_of(adata, "total").tolist() == [3, 50, 765]


def test_totals_may_differ_from_the_sums_by_rounding() -> None:
    assert library_of(counted(total=[3 * (1 - 1e-7), 5, 765]), "total")[0] < 3


@pytest.mark.parametrize("value", [2, 0, -5, np.inf, "many"])
def test_totals_below_the_cells_own_counts_are_refused(value: object) -> None:
    adata = counted(total=[3, value, 765])
    with pytest.raises(DataError) as caught:
        library_of(adata, "total")
    found = adata.obs["total"].iloc[1]
    expected = f"adata.obs['total'] (given as library_size) is {found} at cell 'b', which has 5"
    assert expected in str(caught.value)


def test_the_remedy_for_totals_runs() -> None:
    adata = counted(total=[1, 1, 1])
    with pytest.raises(DataError) as caught:
        library_of(adata, "total")
    remedy = re.search(r"adata\.obs\['total_counts'\] = .*", str(caught.value))
    assert remedy
    exec(remedy[0], {"adata": adata})
    assert library_of(adata, "total_counts").tolist() == [3, 5, 765]


def test_an_absent_or_incomplete_column_of_totals_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"'totl' \(given as library_size\); did you mean library_size='total'"
    ):
        library_of(counted(total=[3, 5, 765]), "totl")
    with pytest.raises(DataError, match="missing for 1 of 3 cells"):
        library_of(counted(total=[3, np.nan, 765]), "total")


@pytest.mark.parametrize("name", ["observed", "latent", "total"])
def test_empty_cells_are_counted_and_named(name: str) -> None:
    adata = counted(total=[3, 5, 765])
    with pytest.raises(DataError, match=r"2 of 3 cells have no counts .*'b'.*filter_cells\(adata"):
        library_sizes(adata, np.array([1.0, 0, 0]), name)
