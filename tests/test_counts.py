"""Sparse counts on a device: rows out follow rows in, for any index array and any count."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Generator, Tensor

from scvae.core.batch import Batch
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.counts import Counts, narrowest
from scvae.data.hold.residence import ahead, fits
from tests.draws import seeded

law = settings(deadline=None, derandomize=True, max_examples=150)
# Around the ends of the narrow types, where a wrong one would wrap around.
EDGES = (1, 2, 127, 128, 255, 256, 32_767, 32_768, 65_535, 65_536, 2**24)
WIDTHS = (1, 2, 7, 254, 255, 256, 257, 300)


@st.composite
def matrices(draw: st.DrawFn) -> sparse.csr_matrix:
    """Draw a canonical matrix of counts, often with empty rows and columns."""
    n, g = draw(st.integers(1, 9)), draw(st.sampled_from(WIDTHS))
    cells = st.tuples(st.integers(0, n - 1), st.sampled_from([0, g // 2, g - 1]))
    entries = draw(st.dictionaries(cells, st.sampled_from(EDGES), max_size=20))
    dense = np.zeros((n, g), dtype=draw(st.sampled_from([np.int32, np.int64, np.float64])))
    for (row, column), value in entries.items():
        dense[row, column] = value
    return sparse.csr_matrix(dense)


@st.composite
def matrices_and_rows(draw: st.DrawFn) -> tuple[sparse.csr_matrix, list[int]]:
    matrix = draw(matrices())
    return matrix, draw(st.lists(st.integers(0, matrix.shape[0] - 1), max_size=25))


def index(rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


# -- counts ----------------------------------------------------------------------------------------


@law
@given(matrices_and_rows())
def test_dense_rows_are_scipys_rows(case: tuple[sparse.csr_matrix, list[int]]) -> None:
    matrix, rows = case
    out = Counts.from_csr(matrix).dense(index(rows))
    assert out.dtype == torch.float32
    assert out.shape == (len(rows), matrix.shape[1])
    np.testing.assert_array_equal(out.numpy(), matrix[rows].toarray())


@law
@given(matrices_and_rows())
def test_rows_come_the_same_way_with_and_without_a_compiler(
    case: tuple[sparse.csr_matrix, list[int]],
) -> None:
    matrix, rows = case
    counts = Counts.from_csr(matrix)
    assert torch.equal(counts.dense(index(rows)), counts._dense_by_index(index(rows)))


@law
@given(matrices())
def test_length_and_width_are_kept(matrix: sparse.csr_matrix) -> None:
    counts = Counts.from_csr(matrix)
    assert (len(counts), counts.n_genes) == matrix.shape
    assert counts.values.tolist() == matrix.data.tolist()


def test_a_matrix_without_a_count_or_a_cell() -> None:
    empty = Counts.from_csr(sparse.csr_matrix((3, 4), dtype=np.int32))
    assert torch.equal(empty.dense(index([2, 0, 2])), torch.zeros(3, 4))
    none = Counts.from_csr(sparse.csr_matrix((0, 4), dtype=np.int32))
    assert len(none) == 0
    assert none.dense(index([])).shape == (0, 4)


def test_counts_are_a_copy() -> None:
    matrix = sparse.csr_matrix(np.array([[0, 3], [5, 0]], dtype=np.uint8))
    counts = Counts.from_csr(matrix)
    matrix.data[:], matrix.indices[:], matrix.indptr[:] = 9, 0, 0
    assert counts.dense(index([1, 0])).tolist() == [[5, 0], [0, 3]]


@law
@given(st.integers(0, 2**40) | st.sampled_from([2**k + d for k in range(63) for d in (-1, 0)]))
def test_the_narrowest_type_holds_the_value_and_a_narrower_one_does_not(largest: int) -> None:
    kinds = [np.dtype(kind) for kind in (np.uint8, np.int16, np.int32, np.int64)]
    chosen = narrowest(largest)
    assert int(np.array(largest).astype(chosen)) == largest
    for narrower in kinds[: kinds.index(chosen)]:
        assert np.iinfo(narrower).max < largest


@pytest.mark.parametrize("largest", [255, 256, 32_767, 32_768, 2**31 - 1, 2**31, 2**53])
def test_a_large_count_is_stored_exactly_and_as_narrowly_as_can_be(largest: int) -> None:
    counts = Counts.from_csr(sparse.csr_matrix(np.array([[0, largest]], dtype=np.float64)))
    assert counts.values.tolist() == [largest]
    assert counts.dense(index([0])).tolist() == [[0, np.float32(largest)]]
    widths = {255: 1, 256: 2, 32_767: 2, 32_768: 4, 2**31 - 1: 4}
    assert counts.values.element_size() == widths.get(largest, 8)


@pytest.mark.parametrize("n_genes", [255, 256, 257, 32_767, 32_768, 40_000])
def test_the_last_gene_is_found_at_any_width(n_genes: int) -> None:
    matrix = sparse.csr_matrix(([3, 4], ([0, 1], [n_genes - 1, 0])), shape=(2, n_genes))
    out = Counts.from_csr(matrix).dense(index([0, 1]))
    assert out.nonzero().tolist() == [[0, n_genes - 1], [1, 0]]
    assert out.sum().item() == 7


# -- datasets --------------------------------------------------------------------------------------


def dataset(n: int, g: int = 4) -> Dataset:
    """Return cells whose every field tells their row."""
    rows = np.arange(n)
    counts = sparse.csr_matrix(np.outer(rows, np.arange(g)))
    design = np.stack([rows, -rows], axis=1).astype(np.float32)
    return Dataset.build(counts, design, rows % 3, np.exp(rows / 10), "cpu")


def rows_in(part: Cells) -> list[int]:
    return part.s[:, 0].long().tolist()


@law
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1)))))
def test_every_field_follows_the_rows(case: tuple[int, list[int]]) -> None:
    n, rows = case
    cells, array = dataset(n).cells(index(rows)), np.array(rows, dtype=np.int64)
    assert isinstance(cells, Batch)
    np.testing.assert_array_equal(cells.x, np.outer(array, np.arange(4)))
    np.testing.assert_array_equal(cells.s, np.stack([array, -array], axis=1))
    np.testing.assert_array_equal(cells.batch, array % 3)
    np.testing.assert_allclose(cells.log_library[:, 0], array / 10, rtol=1e-6, atol=1e-7)
    assert cells.log_library.shape == (len(rows), 1)
    assert cells.batch.dtype == torch.int64
    assert cells.log_library.dtype == cells.s.dtype == torch.float32


@law
@given(st.integers(1, 60), st.integers(1, 70), st.randoms(use_true_random=False))
def test_batches_cover_the_rows_once_in_order(n: int, size: int, random: object) -> None:
    rows = random.sample(range(n), n)
    parts = [rows_in(part) for part in dataset(n).minibatches(index(rows), size)]
    assert [row for part in parts for row in part] == rows
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= 1.5 * size + 1


@law
@given(st.integers(2, 60), st.integers(2, 70))
def test_no_batch_holds_one_cell_unless_there_is_but_one(n: int, size: int) -> None:
    lengths = [len(part.x) for part in dataset(n).minibatches(torch.arange(n), size)]
    assert min(lengths) > 1


def test_a_single_cell_is_a_batch() -> None:
    assert [len(part.x) for part in dataset(1).minibatches(torch.arange(1), 128)] == [1]


@law
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 9))
def test_shuffled_is_a_permutation_of_the_rows(n: int, size: int, seed: int) -> None:
    rows = torch.arange(0, n, 2)
    parts = list(dataset(n).shuffled(rows, size, seeded(seed)))
    assert sorted(row for part in parts for row in rows_in(part)) == rows.tolist()
    for part in parts:
        np.testing.assert_array_equal(part.x[:, 1], part.s[:, 0])


def order(seed: int) -> list[int]:
    parts = dataset(50).shuffled(torch.arange(50), 8, seeded(seed))
    return [row for part in parts for row in rows_in(part)]


def test_the_order_follows_the_generator_and_spares_the_global_state() -> None:
    before = torch.get_rng_state()
    assert order(1) == order(1) != order(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_gives_another_order_each_epoch() -> None:
    generator, cells = seeded(0), dataset(50)
    first, second = (
        [rows_in(part) for part in cells.shuffled(torch.arange(50), 8, generator)] for _ in range(2)
    )
    assert first != second


def test_every_row_comes_first_equally_often() -> None:
    generator, cells = seeded(0), dataset(5)
    first = [
        rows_in(next(iter(cells.shuffled(torch.arange(5), 5, generator))))[0] for _ in range(2000)
    ]
    frequency = np.bincount(first, minlength=5) / 2000
    assert np.abs(frequency - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 2000)


def test_the_length_is_the_number_of_cells() -> None:
    assert len(dataset(7)) == 7


# -- counts that do not lie where training happens -------------------------------------------------


@law
@given(matrices_and_rows())
def test_taken_rows_are_the_rows(case: tuple[sparse.csr_matrix, list[int]]) -> None:
    matrix, rows = case
    taken = Counts.from_csr(matrix).take(index(rows))
    assert len(taken) == len(rows)
    assert taken.longest == max((int(matrix[[row]].nnz) for row in rows), default=0)
    every = torch.arange(len(rows))
    np.testing.assert_array_equal(taken.dense(every).numpy(), matrix[rows].toarray())


@law
@given(matrices_and_rows())
def test_rows_are_taken_the_same_way_without_a_compiler(
    case: tuple[sparse.csr_matrix, list[int]],
) -> None:
    matrix, rows = case
    counts = Counts.from_csr(matrix)
    expected = counts.take(index(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scvae.data.hold.counts._kernel", lambda name: None)
        found = counts.take(index(rows))
    for name in ("indptr", "indices", "values"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("n", [2, 129, 1000])
def test_streamed_minibatches_are_the_same(n: int) -> None:
    held = dataset(n)
    sent = dataclasses.replace(held, is_streamed=True)
    rows = torch.randperm(n, generator=Generator().manual_seed(0))
    for a, b in zip(held.minibatches(rows, 3), sent.minibatches(rows, 3), strict=True):
        for name in ("x", "s", "batch", "log_library"):
            assert torch.equal(getattr(a, name), getattr(b, name))
    assert torch.equal(held.cells(rows).x, sent.cells(rows).x)


@pytest.mark.parametrize("most", [0, 100, 10**9])
def test_minibatches_made_at_once_are_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scvae.data.hold.cells.MOST", most)
    held = dataset(129)
    parts = torch.randperm(129, generator=Generator().manual_seed(0)).tensor_split(7)
    monkeypatch.setattr(Dataset, "device", torch.device("cuda"))  # where many are made at once
    for part, made in zip(parts, held.given(parts), strict=True):
        for one, other in zip(held.cells(part).tensors, made.tensors, strict=True):
            assert torch.equal(one, other)


def test_an_error_while_sending_reaches_the_user() -> None:
    def make(item: int) -> int:
        return 1 // item

    made = ahead(make, [1, 1, 0, 1])
    assert [next(made), next(made)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_one_item_is_made_ahead_and_no_more() -> None:
    asked: list[int] = []
    made = ahead(lambda item: item, (asked.append(i) or i for i in range(5)))  # type: ignore[func-returns-value]
    next(made)
    assert asked == [0, 1]
    made.close()


def test_counts_fit_where_half_of_the_free_memory_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert fits(10**15, torch.device("cpu"))
    assert fits(500, torch.device("cuda"))
    assert not fits(501, torch.device("cuda"))
