"""Reading counts: one matrix from every format, nothing touched on the way, every fault named."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scvae.data.read import source
from scvae.data.read.choice import look
from scvae.errors import DataError, ScvaeWarning

law = settings(deadline=None, derandomize=True, max_examples=120)
DTYPES = [np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
DTYPES += [np.dtype(kind) for kind in ("bool", "float16", "float32", "float64")]
GOOD = np.array([[0, 3, 0, 1], [0, 0, 0, 0], [7, 0, 100, 0], [0, 0, 0, 2], [1, 1, 0, 5]])
LOGGED = np.log1p(GOOD).astype(np.float32)


def named(matrix: Any, **more: Any) -> AnnData:
    """Return an AnnData of `matrix` with cells c0, c1, ... and genes g0, g1, ..."""
    shape = more.pop("shape", None) or matrix.shape
    obs = pd.DataFrame(index=[f"c{i}" for i in range(shape[0])])
    var = pd.DataFrame(index=[f"g{i}" for i in range(shape[1])])
    return AnnData(matrix, obs=obs, var=var, **more)


def read_counts(
    adata: AnnData, layer: str | None = None, columns: np.ndarray | None = None, **more: Any
) -> tuple[sparse.csr_matrix, str | None]:
    """Return the counts that are chosen, and where they were, warning of the choice."""
    choice = look(adata, layer, columns, **more)
    return choice.require().counts, choice.layer


def assert_reads(adata: AnnData, expected: np.ndarray, **options: Any) -> None:
    """Assert that the counts come as clean CSR of narrow integers, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScvaeWarning)
        counts, layer = read_counts(adata, **options)
    assert layer == options.get("layer")
    assert isinstance(counts, sparse.csr_matrix)
    assert counts.dtype.kind in "iu"
    assert counts.dtype.itemsize <= 2
    assert counts.has_canonical_format or "columns" in options
    assert counts.nnz == np.count_nonzero(expected)
    np.testing.assert_array_equal(counts.toarray(), expected)


# -- every format ----------------------------------------------------------------------------------

Convert = Callable[[np.ndarray], Any]
CONVERSIONS: dict[str, Convert] = {
    "dense": np.asarray,
    "dense by column": np.asfortranarray,
    "np.matrix": np.asmatrix,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "csc array": sparse.csc_array,
}


# scipy has no sparse matrix of half precision.
CASES = [(k, d) for k in CONVERSIONS for d in DTYPES if not (k[:2] == "cs" and d == np.float16)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
def test_every_format_and_number_type_reads_the_same(kind: str, dtype: np.dtype) -> None:
    matrix = GOOD.astype(dtype)
    assert_reads(named(CONVERSIONS[kind](matrix)), matrix.astype(np.int64))


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
@pytest.mark.parametrize("block_values", [1, 8, 2**25], ids=lambda b: f"blocks of {b}")
def test_a_file_in_backed_mode_reads_the_same(
    kind: str, block_values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK_VALUES", block_values)
    named(CONVERSIONS[kind](GOOD.astype(np.float32))).write_h5ad(tmp_path / "counts.h5ad")
    adata = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    assert_reads(adata, GOOD)
    assert_reads(adata, GOOD[:, [3, 0]], columns=np.array([3, 0]))
    assert_reads(adata[[4, 0, 2]], GOOD[[4, 0, 2]])
    assert adata.isbacked
    adata.file.close()


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_a_view_reads_as_its_copy(kind: str) -> None:
    view = named(CONVERSIONS[kind](GOOD))[[4, 0, 2], [3, 1]]
    assert_reads(view, GOOD[[4, 0, 2]][:, [3, 1]])
    assert view.is_view


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
@pytest.mark.parametrize("columns", [[2], [3, 0], [1, 1], [3, 2, 1, 0], []])
def test_columns_come_in_the_order_asked_for(kind: str, columns: list[int]) -> None:
    array = np.array(columns, dtype=np.int64)
    assert_reads(named(CONVERSIONS[kind](GOOD)), GOOD[:, array], columns=array)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_a_layer_reads_like_x(kind: str) -> None:
    adata = named(LOGGED, layers={"raw": CONVERSIONS[kind](GOOD)})
    assert_reads(adata, GOOD, layer="raw")


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_no_cell_reads_as_no_row(kind: str) -> None:
    assert_reads(named(CONVERSIONS[kind](GOOD))[:0].copy(), GOOD[:0])


@law
@given(st.data())
def test_blocks_do_not_show(data: st.DataObject) -> None:
    n, g = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    cells = st.lists(st.integers(0, 300), min_size=n * g, max_size=n * g)
    matrix = np.array(data.draw(cells)).reshape(n, g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_VALUES", data.draw(st.integers(1, 30)))
        counts, _ = read_counts(named(matrix.astype(np.float32)))
    np.testing.assert_array_equal(counts.toarray(), matrix)


@pytest.mark.parametrize("largest", [255, 256, 32_767, 32_768, 2**31 - 1, 2**31, 2**53])
def test_a_large_count_is_kept_exactly(largest: int) -> None:
    counts, _ = read_counts(named(np.array([[0.0, largest], [1, 0]])))
    assert counts.toarray().tolist() == [[0, largest], [1, 0]]


# -- matrices out of order -------------------------------------------------------------------------


def disordered(kind: type, dtype: type = np.float32) -> Any:
    """Return a matrix with unsorted indices, an entry in two parts, and stored zeros."""
    indices = np.array([2, 0, 2, 1, 0, 1], dtype=np.int32)
    values = np.array([4, 1, 3, 0, 5, 0], dtype=dtype)
    return kind((values, indices, np.array([0, 3, 4, 6], dtype=np.int32)), shape=(3, 3))


ORDERED = np.array([[1, 0, 7], [0, 0, 0], [5, 0, 0]])


def digest(matrix: Any) -> str:
    arrays = (matrix.data, matrix.indices, matrix.indptr) if sparse.issparse(matrix) else (matrix,)
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array])
def test_disordered_rows_are_put_in_order(kind: type, dtype: type) -> None:
    assert_reads(named(disordered(kind, dtype)), ORDERED)


@pytest.mark.parametrize("kind", [sparse.csc_matrix, sparse.csc_array])
def test_disordered_columns_are_put_in_order(kind: type) -> None:
    assert_reads(named(disordered(kind)), ORDERED.T)


@pytest.mark.parametrize(
    "build",
    [
        lambda: disordered(sparse.csr_matrix),
        lambda: disordered(sparse.csc_matrix),
        lambda: sparse.csr_matrix(GOOD.astype(np.float32)),
        lambda: sparse.csc_matrix(GOOD),
        lambda: GOOD.astype(np.float32),
    ],
    ids=["disordered csr", "disordered csc", "csr", "csc", "dense"],
)
def test_the_users_matrix_is_not_touched(build: Callable[[], Any]) -> None:
    matrix = build()
    adata = named(matrix)
    before, kind = digest(adata.X), type(adata.X)
    counts, _ = read_counts(adata)
    read_counts(adata, columns=np.array([2, 0]))
    assert digest(adata.X) == digest(matrix) == before
    assert type(adata.X) is kind
    assert list(adata.layers) == list(adata.obs) == list(adata.uns) == []
    counts.data[:] = 0
    assert digest(adata.X) == before


# -- faults ----------------------------------------------------------------------------------------

FAULTS = {
    np.nan: "NaN",
    np.inf: "infinite",
    -np.inf: "infinite",
    -1.0: "negative",
    -0.5: "negative",
    0.5: "non-integer",
    1.3863: "non-integer",
    1e6 + 0.5: "non-integer",
}


def failure(adata: AnnData, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_counts(adata, **options)
    return str(caught.value)


@law
@given(st.data(), st.sampled_from(list(FAULTS)), st.sampled_from(["dense", "csr", "csc"]))
def test_a_fault_anywhere_is_found_and_named(data: st.DataObject, value: float, kind: str) -> None:
    n, g = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    row, column = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, g - 1))
    entries = st.lists(st.integers(0, 3), min_size=n * g, max_size=n * g)
    matrix = np.array(data.draw(entries), dtype=np.float64).reshape(n, g)
    matrix[row, column] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_VALUES", data.draw(st.integers(1, 60)))
        message = failure(named(CONVERSIONS[kind](matrix)))
    expected = f"{FAULTS[value]} values (first: {value:.6g} at cell 'c{row}', gene 'g{column}')"
    assert f"adata.X has {expected}" in message


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
@pytest.mark.parametrize("value", FAULTS)
def test_a_fault_in_a_file_is_found(kind: str, value: float, tmp_path: Path) -> None:
    matrix = GOOD.astype(np.float64)
    matrix[3, 2] = value
    named(CONVERSIONS[kind](matrix)).write_h5ad(tmp_path / "counts.h5ad")
    adata = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    assert f"{FAULTS[value]} values (first: {value:.6g} at cell 'c3', gene 'g2')" in failure(adata)
    adata.file.close()


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_the_first_fault_is_the_first_by_row(kind: str) -> None:
    matrix = GOOD.astype(np.float64)
    matrix[4, 0], matrix[2, 3], matrix[2, 2] = np.nan, -1, 0.25
    assert "first: 0.25 at cell 'c2', gene 'g2'" in failure(named(CONVERSIONS[kind](matrix)))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_negative_integers_are_found(dtype: type) -> None:
    matrix = GOOD.astype(dtype)
    matrix[2, 1] = -4
    assert "negative values (first: -4 at cell 'c2', gene 'g1')" in failure(named(matrix))


@pytest.mark.parametrize("matrix", [np.array([[1e30, 0]]), np.array([[2**63, 1]], np.uint64)])
def test_a_value_beyond_any_count_is_refused(matrix: np.ndarray) -> None:
    assert "cell 'c0', gene 'g0'" in failure(named(matrix))


def test_a_fault_in_a_gene_that_is_left_out_still_counts() -> None:
    matrix = GOOD.astype(np.float64)
    matrix[0, 3] = 0.5
    assert "cell 'c0', gene 'g3'" in failure(named(matrix), columns=np.array([0, 1]))


def test_a_fault_in_a_view_has_the_views_names() -> None:
    matrix = GOOD.astype(np.float64)
    matrix[2, 3] = 0.5
    assert "cell 'c2', gene 'g3'" in failure(named(matrix)[[4, 2]][:, [3, 0]])


def test_two_halves_of_one_count_are_a_count() -> None:
    halves = sparse.csr_matrix(([0.5, 1.5], [1, 1], [0, 2, 2]), shape=(2, 2))
    assert_reads(named(halves), np.array([[0, 2], [0, 0]]))


def test_a_missing_layer_is_answered_with_those_there_are() -> None:
    message = failure(named(GOOD, layers={"counts": GOOD, "spliced": GOOD}), layer="count")
    assert "adata.layers has no 'count'" in message
    assert "'counts', 'spliced'" in message
    assert "none" in failure(named(GOOD), layer="counts")


# -- remedies --------------------------------------------------------------------------------------


def follow(message: str, adata: AnnData) -> np.ndarray:
    """Run the one call of scvae.fit that `message` gives, and return the counts it finds."""
    call = re.search(r"scvae\.fit\(.*\)", message)
    assert call, message

    def fit(adata: AnnData, *, layer: str | None = None) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return read_counts(adata, layer)[0].toarray()

    found: np.ndarray = eval(call[0], {"scvae": SimpleNamespace(fit=fit), "adata": adata})
    return found


@pytest.mark.parametrize(
    ("x", "state"),
    [(LOGGED, "holds non-integer values"), (-GOOD, "holds negative values"), (None, "is empty")],
    ids=["logged", "negative", "none"],
)
def test_counts_in_a_layer_are_used_with_a_warning(x: np.ndarray | None, state: str) -> None:
    layers = {"spliced": GOOD * 2, "scaled": LOGGED, "counts": GOOD}
    adata = named(x, layers=layers, shape=GOOD.shape)
    with pytest.warns(UserWarning, match=f"adata.X {state}; using the raw counts") as caught:
        counts, layer = read_counts(adata)
    assert layer == "counts"
    np.testing.assert_array_equal(counts.toarray(), GOOD)
    assert len(caught) == 1
    np.testing.assert_array_equal(follow(str(caught[0].message), adata), GOOD)


PARTS = {"ambiguous": GOOD // 50, "spliced": GOOD, "unspliced": GOOD // 3}


@pytest.mark.parametrize("x", [LOGGED, None, GOOD * 0, (GOOD > 0) * 1], ids=str)
def test_layers_of_which_none_is_plain_are_listed_with_what_they_look_like(x: Any) -> None:
    adata = named(x, layers={**PARTS, "scaled": LOGGED}, shape=GOOD.shape)
    message = failure(adata)
    assert "'spliced' has whole numbers up to 100, 4 in a median cell" in message
    assert "'ambiguous' has whole numbers up to 2, 0 in a median cell" in message
    assert "scaled" not in message
    np.testing.assert_array_equal(follow(message, adata), GOOD)
    (sum_of_parts,) = re.findall(r"adata\.layers\['counts'\] = [^.]*(?:\.layers[^.]*)*", message)
    exec(sum_of_parts, {"adata": adata})
    with pytest.warns(UserWarning, match=re.escape("adata.layers['counts']")):
        counts, _ = read_counts(adata)
    np.testing.assert_array_equal(counts.toarray(), sum(PARTS.values()))


@pytest.mark.parametrize("name", ["unspliced", "ambiguous", "a mask"])
def test_a_part_of_the_counts_or_a_mask_is_not_taken_for_all_of_them(name: str) -> None:
    layer = (GOOD > 0) * 1 if name == "a mask" else GOOD
    message = failure(named(LOGGED, layers={name: layer}))
    assert f"not plain: {name!r} has " in message
    assert ("0 and 1 alone" in message) == (name == "a mask")


@pytest.mark.parametrize("name", ["counts", "umi", "spliced"])
@pytest.mark.parametrize(
    ("x", "state"), [(GOOD * 0, "holds zeros alone"), ((GOOD > 0) * 1, "holds 0 and 1 alone")]
)
def test_zeros_and_masks_in_x_give_way_to_counts(name: str, x: np.ndarray, state: str) -> None:
    adata = named(x, layers={name: sparse.csr_matrix(GOOD), "mask": (GOOD > 0) * 1})
    with pytest.warns(UserWarning, match=f"adata.X {state}; using the raw counts") as caught:
        counts, layer = read_counts(adata)
    assert layer == name
    np.testing.assert_array_equal(counts.toarray(), GOOD)
    np.testing.assert_array_equal(follow(str(caught[0].message), adata), GOOD)


@pytest.mark.parametrize("layers", [{}, {"mask": (GOOD > 2) * 1}, {"scaled": LOGGED}])
def test_an_x_of_0_and_1_is_taken_where_no_counts_are(layers: dict[str, np.ndarray]) -> None:
    assert_reads(named((GOOD > 0) * 1, layers=layers), (GOOD > 0) * 1)


def test_an_x_of_zeros_points_at_counts_in_raw() -> None:
    adata = named(GOOD * 0)
    adata.raw = named(GOOD)
    message = failure(adata)
    assert "adata.X holds zeros alone and no layer holds counts; adata.raw holds some" in message
    np.testing.assert_array_equal(follow(message, adata), GOOD)


def test_a_layer_of_another_name_is_found() -> None:
    layers = {"empty": np.zeros_like(GOOD), "scaled": LOGGED, "umi": sparse.csc_matrix(GOOD)}
    with pytest.warns(UserWarning, match=re.escape("adata.layers['umi']")):
        counts, layer = read_counts(named(LOGGED, layers=layers), columns=np.array([3, 0]))
    assert layer == "umi"
    np.testing.assert_array_equal(counts.toarray(), GOOD[:, [3, 0]])


def test_good_counts_in_x_win_over_a_layer_in_silence() -> None:
    assert_reads(named(GOOD, layers={"counts": GOOD * 2}), GOOD)


def test_an_explicit_bad_layer_is_not_replaced_but_the_good_one_is_named() -> None:
    adata = named(LOGGED, layers={"scaled": LOGGED, "counts": GOOD})
    message = failure(adata, layer="scaled")
    assert "adata.layers['scaled'] has non-integer values (first: 1.38629 at cell 'c0'" in message
    assert "adata.layers['counts'] holds some" in message
    np.testing.assert_array_equal(follow(message, adata), GOOD)


def test_an_explicit_bad_layer_beside_good_counts_in_x() -> None:
    adata = named(GOOD, layers={"scaled": LOGGED})
    message = failure(adata, layer="scaled")
    assert "adata.X holds some" in message
    np.testing.assert_array_equal(follow(message, adata), GOOD)


def test_raw_counts_in_raw_are_named() -> None:
    adata = named(LOGGED)
    adata.raw = named(GOOD)
    message = failure(adata)
    assert "adata.raw holds some" in message
    np.testing.assert_array_equal(follow(message, adata), GOOD)


TRANSFORMED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log2": lambda x: np.log2(1 + x),
    "root": lambda x: np.sqrt(x),
    "log of shares": lambda x: np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4),
    "log2 of shares": lambda x: np.log2(1 + x / x.sum(axis=1, keepdims=True) * 1e4),
    "a factor a cell": lambda x: x * np.linspace(0.3, 0.9, len(x))[:, None],
}


@law
@given(
    st.integers(0, 999), st.sampled_from(list(CONVERSIONS)), st.sampled_from([np.float32, float])
)
def test_estimates_of_counts_may_be_rounded(seed: int, kind: str, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1.0, 4.0, size=(20, 30)))
    estimates = (counts * rng.uniform(0.6, 1.0, counts.shape)).astype(dtype)
    adata = named(CONVERSIONS[kind](estimates))
    message = failure(adata)
    assert "(of SoupX, decontX, CellBender, salmon, alevin, RSEM, proseg)" in message
    assert "scvae.fit(adata, counts='rounded')" in message
    found = look(adata, counts="rounded").require()
    np.testing.assert_array_equal(found.counts.toarray(), np.rint(estimates))
    assert found.estimates + found.rounded == (estimates != np.rint(estimates)).sum()
    np.testing.assert_allclose(found.after - found.before, (np.rint(estimates) - estimates).sum())


@law
@given(
    st.integers(0, 999), st.sampled_from(list(TRANSFORMED)), st.sampled_from([np.float32, float])
)
def test_a_function_of_counts_is_not_to_be_rounded(seed: int, name: str, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1.0, 4.0, size=(20, 30))) + (np.arange(30) == 0)
    assert "rounded" not in failure(named(TRANSFORMED[name](counts).astype(dtype)))


def test_without_counts_anywhere_the_message_says_what_is_needed() -> None:
    adata = named(LOGGED, layers={"scaled": LOGGED})
    adata.raw = named(LOGGED)
    message = failure(adata)
    assert "needs raw counts: whole numbers, zero or more" in message
    assert "holds some" not in message


@pytest.mark.parametrize("layers", [{}, {"scaled": LOGGED}, {"empty": np.zeros_like(GOOD)}])
def test_no_x_and_no_counts_is_an_error_of_the_data(layers: dict[str, np.ndarray]) -> None:
    message = failure(named(None, layers=layers, shape=GOOD.shape))
    assert "adata.X is empty and no layer holds counts" in message


def test_no_x_and_a_bad_explicit_layer_is_an_error_of_the_data() -> None:
    adata = named(None, layers={"scaled": LOGGED}, shape=GOOD.shape)
    assert "adata.layers['scaled'] has non-integer values" in failure(adata, layer="scaled")


def test_an_x_of_zeros_is_not_offered_as_counts() -> None:
    adata = named(np.zeros_like(GOOD), layers={"scaled": LOGGED})
    assert "adata.X holds some" not in failure(adata, layer="scaled")


def test_the_remedy_is_written_as_the_users_own_call() -> None:
    adata = named(LOGGED, layers={"scaled": LOGGED, "counts": GOOD})
    message = failure(adata, layer="scaled", call="model.embed(adata")
    assert "model.embed(adata, layer='counts')" in message


@pytest.mark.filterwarnings("error", "ignore::Warning:anndata")  # its own are not ours to mend
def test_a_layer_is_read_from_a_file_too(tmp_path: Path) -> None:
    named(LOGGED, layers={"counts": sparse.csr_matrix(GOOD)}).write_h5ad(tmp_path / "a.h5ad")
    adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert_reads(adata, GOOD, layer="counts")
    adata.file.close()
