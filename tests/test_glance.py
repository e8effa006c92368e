"""The compiled look at counts tells what the plain look tells, which is its oracle."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from scvae.data.read import survey as module
from scvae.data.read.glance import glance
from scvae.data.read.sums import column_sums
from scvae.data.read.survey import Survey, survey

N, G = 300, 40


def counts(seed: int = 0) -> sparse.csr_matrix:
    """Return counts, some rows of which have a common factor, a single value, or none, and some
    columns ties, or none."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(0.3, 3.0, (1, G)) * rng.gamma(2.0, 0.5, (N, 1)))
    x[::7] *= 6
    x[::11] = 0
    x[::13] = np.eye(1, G, 3, dtype=int) * 4
    x[:, 5], x[:, 6] = 0, x[:, 7]
    x[20:24, 8] = x.max() + 5
    return sparse.csr_matrix(x.astype(np.float32))


def both(monkeypatch: pytest.MonkeyPatch, x: Any, **options: Any) -> tuple[Survey, Survey, int]:
    """Return what both looks tell, and how many pieces the compiled one took."""
    monkeypatch.setattr(module, "PIECE_VALUES", 700)
    monkeypatch.setattr(module, "COMPILE_FROM", 2**60)
    plain = survey(x, **options)
    monkeypatch.setattr(module, "COMPILE_FROM", 0)
    taken, kept = 0, module._Seen.add_plain

    def add_plain(self: Any, *given: Any) -> bool:
        nonlocal taken
        is_plain = kept(self, *given)
        taken += is_plain
        return is_plain

    monkeypatch.setattr(module._Seen, "add_plain", add_plain)
    return plain, survey(x, **options), taken


def assert_same(one: Any, other: Any) -> None:
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("summary", "traces") and a is not None:
            assert_same(a, b)
        elif sparse.issparse(a):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a.toarray(), b.toarray())
        elif isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        elif sparse.issparse(b):
            raise AssertionError(field.name)
        else:
            assert repr(a) == repr(b), field.name  # NaN is not itself


@pytest.mark.parametrize("summarise", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("columns", [None, "rising", "any"])
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("estimates", [True, False])
def test_plain_counts(
    summarise: bool,
    keep: bool,
    columns: str | None,
    groups: bool,
    estimates: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = None if columns is None else np.array([3, 5, 6, 7, 8, 30])
    options: dict[str, Any] = {
        "columns": chosen[::-1].copy() if columns == "any" and chosen is not None else chosen,
        "groups": np.arange(N) % 4 if groups else None,
        **{"summarise": summarise, "keep": keep, "estimates": estimates},
    }
    one, other, taken = both(monkeypatch, counts(), **options)
    assert taken > 3
    assert_same(one, other)
    assert (other.summary is not None) == summarise
    assert (other.kept is not None) == keep


@pytest.mark.parametrize(  # every type once: the look is compiled for each pair
    ("dtype", "index"),
    [
        *[(dtype, "i4") for dtype in ("f4", "f8", "i1", "i8", "u1", "u4")],
        *[(dtype, "i8") for dtype in ("i2", "i4", "u2", "u8", "?")],
    ],
)
def test_plain_counts_of_every_type(
    dtype: str, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = counts()
    x.data = np.minimum(x.data, 100).astype(dtype)
    x.indices, x.indptr = x.indices.astype(index), x.indptr.astype(index)
    one, other, taken = both(monkeypatch, x, keep=True)
    assert (taken > 3) == (dtype != "?")
    assert_same(one, other)


ODD = {
    "nan": np.nan,
    "infinite": np.inf,
    "negative": -1.0,
    "fraction": 2.5,
    "round-off": 3.0000002,
    "zero": 0.0,
    "2^31": 2.0**31,
    "2^53 + 2": 2.0**53 + 2,
    "2^63": 2.0**63,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("where", [0, 1000, -1])
@pytest.mark.parametrize("estimates", [True, False])
@pytest.mark.parametrize("stop_at_fault", [True, False])
def test_values_that_are_odd(
    odd: str, where: int, estimates: bool, stop_at_fault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = counts().astype(np.float64)
    x.data[where] = ODD[odd]
    options: dict[str, Any] = {"estimates": estimates, "stop_at_fault": stop_at_fault}
    one, other, taken = both(monkeypatch, x, keep=True, groups=np.arange(N) % 4, **options)
    assert taken < -(-x.nnz // 700)
    assert_same(one, other)


@pytest.mark.parametrize("case", ["twice", "unsorted", "empty rows", "no rows", "no values"])
def test_matrices_that_are_odd(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = counts()
    x.indices = x.indices.copy()
    row = np.flatnonzero(np.diff(x.indptr) > 3)[50]
    first = x.indptr[row]
    if case == "twice":
        x.indices[first + 1] = x.indices[first]
    elif case == "unsorted":
        x.indices[first : first + 2] = x.indices[first : first + 2][::-1].copy()
    elif case == "empty rows":
        x = sparse.vstack([x, sparse.csr_matrix((2_000, G), dtype=x.dtype)], format="csr")
    elif case == "no rows":
        x = x[:0]
    else:
        x = sparse.csr_matrix((N, G), dtype=np.float32)
    if case in ("twice", "unsorted"):
        x.has_canonical_format = x.has_sorted_indices = False
    one, other, _ = both(monkeypatch, x, keep=True)
    assert_same(one, other)


def test_the_counts_of_the_user_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    x = counts()
    before = (x.data.copy(), x.indices.copy(), x.indptr.copy())
    monkeypatch.setattr(module, "COMPILE_FROM", 0)
    survey(x, keep=True, groups=np.arange(N) % 4)
    for now, then in zip((x.data, x.indices, x.indptr), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_few_values_are_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise AssertionError

    monkeypatch.setattr(module, "_glance", refused)
    survey(counts())


@pytest.mark.parametrize("index", [-1, G])
def test_columns_that_are_not_there_are_left_alone(index: int) -> None:
    indices, data = np.array([3, index] if index > 0 else [index, 3]), np.ones(2, np.float32)
    of_rows, of_genes = np.zeros((3, 1), np.int64), np.zeros((5, G), np.int64)
    given = (np.array([0, 2]), indices, data, np.arange(G), np.ones(1, np.int64), np.zeros(0, int))
    assert not glance(*given, of_rows, of_genes, np.zeros((1, 0)), np.zeros(3, np.int64))
    assert not of_genes.any()


def test_totals_of_large_counts_in_float32_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    x = counts()
    x.data[:2] = 20_000_001, 16_777_216
    one, other, taken = both(monkeypatch, x)
    assert taken > 3
    assert_same(one, other)
    np.testing.assert_array_equal(one.totals, x.astype(np.float64).sum(1).A1)
    np.testing.assert_array_equal(
        column_sums(x, np.arange(N)), np.asarray(x.astype(np.float64).sum(0)).ravel()
    )


def test_columns_that_are_named_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, _ = both(monkeypatch, counts(), columns=np.array([3, 3, 5]), keep=True)
    assert_same(one, other)


def test_groups_that_cannot_be_are_refused() -> None:
    for groups in (np.arange(N) - 1, np.arange(N - 1)):
        with pytest.raises(ValueError, match="groups"):
            survey(counts(), groups=groups)


def test_indices_in_the_other_order_of_bytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    x = counts()
    swapped = counts()
    swapped.indices, swapped.indptr = x.indices.astype(">i4"), x.indptr.astype(">i4")
    one, other, _ = both(monkeypatch, swapped, keep=True)
    assert_same(one, other)
    assert_same(one, survey(x, keep=True))
