"""Compressed sparse rows are encoded as dense ones are."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

import scvae
from scvae.core import csr as module
from scvae.core.csr import csr, csr_product, is_csr, is_fast
from scvae.core.kernels import products as kernels
from scvae.core.kernels.run import is_served
from scvae.core.logarithms import scaled_log1p
from scvae.core.products import sparse_product
from scvae.data.hold.counts import Counts
from scvae.modalities.rna import Encoder
from scvae.models.network import for_encoder
from tests.warm import Python

needs_kernels = pytest.mark.skipif(
    not is_served(torch.zeros(1)), reason="no kernels can be compiled here"
)


def some(n: int, g: int, density: float = 0.2, seed: int = 0) -> sparse.csr_matrix:
    """Return counts, some rows of which are empty."""
    x = sparse.random(n, g, density, format="csr", random_state=seed)
    x.data = np.random.default_rng(seed).geometric(0.4, len(x.data)).astype(np.float64)
    keep = sparse.diags((np.arange(n) % 5 != 3).astype(float))
    return sparse.csr_matrix(keep @ x)


def compressed(x: sparse.csr_matrix, dtype: torch.dtype = torch.float32) -> Tensor:
    found = csr(*map(torch.from_numpy, (x.indptr, x.indices, x.data)), x.shape[1])
    return found if dtype == torch.float32 else found.to(dtype)


def weights(g: int, h: int) -> Tensor:
    return torch.randn(g, h, generator=torch.Generator().manual_seed(1))


WIDE = kernels.BLOCK // 8  # rows of weights of 8 columns that are taken at a time


@pytest.mark.parametrize("n", [0, 1, 3, 40])
@pytest.mark.parametrize(("g", "h"), [(30, 8), (30, 1), (1, 5), (WIDE, 8), (WIDE + 1, 8), (9, 0)])
def test_products_are_those_of_dense_rows(n: int, g: int, h: int) -> None:
    x = some(n, g, 0.01 if g > 100 else 0.3)
    found = sparse_product(compressed(x), weights(g, h))
    expected = x.toarray() @ weights(g, h).double().numpy()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_columns_in_any_order_and_named_twice_give_the_same() -> None:
    g = 3 * WIDE
    x, w = some(20, g, 0.002), weights(g, 8)
    turned = x.copy()
    for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        turned.indices[start:stop] = x.indices[start:stop][::-1]
        turned.data[start:stop] = x.data[start:stop][::-1]
    turned.indices[:2] = turned.indices[0]
    expected = turned.toarray() @ w.double().numpy()  # which adds up what is named twice
    found = csr_product(compressed(turned), w)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("column", [-1, 30, 2**31 - 1])
def test_a_column_that_is_not_there_reads_no_foreign_memory(column: int) -> None:
    x, w = some(20, 30), weights(30, 8)
    x.indices[3] = column
    kept = x.copy()
    kept.data[3], kept.indices[3] = 0.0, 0
    found = csr_product(compressed(x), w)
    np.testing.assert_allclose(found.numpy(), kept.toarray() @ w.numpy(), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_a_row_has_the_same_bits_alone_and_on_any_number_of_threads() -> None:
    x, w = some(300, 50), weights(50, 16)
    whole, before = csr_product(compressed(x), w), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(csr_product(compressed(x), w), whole)
    finally:
        torch.set_num_threads(before)
    alone = [csr_product(compressed(x[i : i + 1]), w) for i in range(300)]
    assert torch.equal(torch.cat(alone), whole)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_logarithms_are_those_of_dense_rows(
    is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr(module, "is_served", lambda *tensors: False)
    x, scale = some(40, 30), torch.rand(40, 1) + 0.5
    given = compressed(x)
    before = given.values().clone()
    found = scaled_log1p(given, scale)
    assert is_csr(found)
    assert torch.equal(given.values(), before)
    expected = torch.log1p(torch.from_numpy(x.toarray()).float() * scale)
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-6, atol=1e-7)


def test_other_types_and_gradients_take_the_plain_product() -> None:
    x = some(20, 30)
    exact = csr_product(compressed(x, torch.float64), weights(30, 8).double())
    assert exact.dtype == torch.float64
    np.testing.assert_allclose(exact, x.toarray() @ weights(30, 8).double().numpy(), rtol=1e-12)
    w = weights(30, 8).requires_grad_()
    csr_product(compressed(x), w).sum().backward()
    assert w.grad is not None
    expected = np.repeat(np.asarray(x.sum(0)).T, 8, axis=1)
    np.testing.assert_allclose(w.grad, expected, rtol=1e-5)


def test_rows_that_do_not_fit_the_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be multiplied"):
        sparse_product(compressed(some(20, 30)), weights(29, 8))


# -- counts, and the models that are asked of them -------------------------------------------------


@pytest.mark.parametrize("rows", [[], [3], [3, 4, 5], [5, 4, 3], [0, 2, 2, 19], list(range(20))])
def test_compressed_rows_of_counts_are_their_dense_rows(rows: list[int]) -> None:
    counts = Counts.from_csr(some(20, 30).astype(np.float32))
    chosen = torch.tensor(rows, dtype=torch.int64)
    found = counts.compressed(chosen)
    assert found.shape == (len(rows), 30)
    assert torch.equal(found.to_dense(), counts.dense(chosen))


def cells(mean: float = 0.15) -> AnnData:
    """Return counts of 60 genes in two batches, about this many each; no cell is without one."""
    counts = np.random.default_rng(0).poisson(mean, (300, 60))
    counts[:, 0] += 1
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.obs["batch"] = np.where(np.arange(300) % 2, "a", "b")
    return adata


@pytest.fixture(scope="module")
def model() -> scvae.Model:
    return scvae.fit(cells(), batch="batch", max_steps=20, progress=False, device="cpu")


@needs_kernels
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_models_answer_of_compressed_rows_as_of_dense_ones(
    model: scvae.Model, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata: Any = cells()
    if place == "disk":
        adata.write_h5ad(path := tmp_path / "cells.h5ad")
        adata = scvae.on_disk(path)
        adata.memory = 10_000
    seen: list[bool] = []
    kept = Encoder.shown

    def shown(encoder: Encoder, given: Any) -> Any:
        seen.append(is_csr(given.x))
        return kept(encoder, given)

    monkeypatch.setattr(Encoder, "shown", shown)
    few = [model.embed(adata), *model.embed(adata, return_std=True), model.normalized(adata)]
    assert seen
    assert all(seen)
    monkeypatch.setattr("scvae.data.hold.cells.is_fast", lambda: False)
    seen.clear()
    dense = [model.embed(adata), *model.embed(adata, return_std=True), model.normalized(adata)]
    assert not any(seen)
    for one, other in zip(few, dense, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_genes_in_any_order_give_the_same_bits(
    model: scvae.Model, place: str, tmp_path: Path
) -> None:
    adata, turned = cells(), cells()[:, ::-1].copy()
    order = np.random.default_rng(0).permutation(60)
    given: list[Any] = [turned, adata[:, order].copy()]
    if place == "disk":
        paths = [tmp_path / f"{i}.h5ad" for i in range(2)]
        for path, one in zip(paths, given, strict=True):
            one.write_h5ad(path)
        given = [scvae.on_disk(path) for path in paths]
        for one in given:
            one.memory = 10_000
    for one in given:
        np.testing.assert_array_equal(model.embed(one), model.embed(adata))
        np.testing.assert_array_equal(model.normalized(one), model.normalized(adata))


def test_warnings_stay_as_they_were_where_threads_are_the_first_to_ask() -> None:
    before = list(warnings.filters)
    for _ in range(20):
        module._let_torch_warn.cache_clear()
        at_once = Barrier(8)

        def ask(_: int, at_once: Barrier = at_once) -> bool:
            at_once.wait()
            return is_fast()

        with ThreadPoolExecutor(8) as threads:
            assert len(set(threads.map(ask, range(8)))) == 1
    assert list(warnings.filters) == before


@needs_kernels
def test_what_is_not_for_them_is_not_compressed(model: scvae.Model) -> None:
    assert for_encoder(model.vae, model.read(cells())).is_compressed
    assert not for_encoder(
        model.vae, model.read(cells(mean=1.0))
    ).is_compressed  # half are not zero
    with pytest.warns(UserWarning, match="genes"):
        partial = model.read(cells()[:, :50].copy(), partial=True)
    assert not for_encoder(model.vae, partial).is_compressed
    assert model.embed(cells()[:, :50].copy()).shape == model.embed(cells()).shape


def test_torch_says_nothing_of_such_rows_to_the_user() -> None:
    program = """
import warnings
warnings.simplefilter("error")
import torch
from scvae.core.csr import csr, is_fast
is_fast() and csr(torch.tensor([0, 1]), torch.tensor([2]), torch.ones(1), 3)
"""
    process = Python(program)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
