"""Row i of a result is cell i: for any source, any index array, any order of genes and codes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import scvae

N, G = 120, 25
law = settings(deadline=None, derandomize=True, max_examples=40)


def simulated() -> AnnData:
    adata = scvae.simulate(n_cells=N, n_genes=G, seed=5)
    adata.obs["dose"] = np.linspace(0, 1, N)
    return AnnData(sparse.csr_matrix(adata.X), adata.obs, adata.var)


@pytest.fixture(scope="module")
def fitted() -> tuple[AnnData, scvae.Model, np.ndarray]:
    adata = simulated()
    model = scvae.fit(
        adata, batch="batch", covariates="dose", max_steps=40, n_latent=4, progress=False
    )
    return simulated(), model, model.embed(simulated())


def view(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    return adata[rows]


def copied(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    return adata[rows].copy()


def columns_first(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    taken = adata[rows].copy()
    taken.X = sparse.csc_matrix(taken.X)
    return taken


def dense(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    taken = adata[rows].copy()
    taken.X = taken.X.toarray()
    return taken


def unsorted_indices(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    """Return the same counts with every row's entries in the opposite order."""
    taken = adata[rows].copy()
    x = taken.X
    order = np.concatenate([np.arange(b - 1, a - 1, -1) for a, b in pairwise(x.indptr)])
    taken.X = sparse.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)
    return taken


def backed(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    taken = adata[rows].copy()
    taken.obs_names_make_unique()
    taken.write_h5ad(folder / "cells.h5ad")
    return anndata.read_h5ad(folder / "cells.h5ad", backed="r")


def backed_dense(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    return backed(dense(adata, rows, folder), list(range(len(rows))), folder)


def stored_as_zarr(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    pytest.importorskip("zarr")
    taken = adata[rows].copy()
    taken.obs_names_make_unique()
    taken.write_zarr(folder / "cells.zarr")
    return anndata.read_zarr(folder / "cells.zarr")


def from_a_file(adata: AnnData, rows: list[int], folder: Path) -> Any:
    backed(adata, rows, folder).file.close()
    return scvae.on_disk(folder / "cells.h5ad")


def staying_on_disk(adata: AnnData, rows: list[int], folder: Path) -> Any:
    cells = from_a_file(adata, rows, folder)
    cells.memory = 2_000  # a group of few cells
    return cells


def from_two_files(adata: AnnData, rows: list[int], folder: Path) -> Any:
    middle = len(rows) // 2 or 1
    backed(adata, rows[:middle], folder).file.close()
    (folder / "cells.h5ad").rename(folder / "a.h5ad")
    if rows[middle:]:
        backed(
            genes_permuted(adata, rows[middle:], folder), list(range(len(rows) - middle)), folder
        )
    return scvae.on_disk(folder)


def codes_reordered(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    taken = adata[rows].copy()
    column = taken.obs["batch"].astype("category")
    more = [*reversed(list(column.cat.categories)), "never seen"]
    taken.obs["batch"] = pd.Categorical(column.astype(str), categories=more)
    return taken


def genes_permuted(adata: AnnData, rows: list[int], folder: Path) -> AnnData:
    return adata[rows, np.random.default_rng(len(rows)).permutation(G)]


SOURCES = (
    view, copied, columns_first, dense, unsorted_indices, backed, backed_dense, stored_as_zarr,
    codes_reordered, genes_permuted, from_a_file, staying_on_disk, from_two_files,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", SOURCES)
def test_rows_follow_the_index(
    fitted: tuple[AnnData, scvae.Model, np.ndarray],
    source: Callable[[AnnData, list[int], Path], AnnData],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    adata, model, expected = fitted

    @law
    @given(st.lists(st.integers(0, N - 1), min_size=1, max_size=60))
    def check(rows: list[int]) -> None:
        taken = source(adata, rows, tmp_path_factory.mktemp("cells"))
        np.testing.assert_allclose(model.embed(taken), expected[rows], rtol=1e-4, atol=1e-4)

    check()


@pytest.mark.parametrize("question", ["elbo", "normalized", "log_likelihood"])
def test_other_answers_follow_their_rows(
    fitted: tuple[AnnData, scvae.Model, np.ndarray], question: str
) -> None:
    adata, model, _ = fitted
    rows = np.random.default_rng(0).permutation(N)
    ask = getattr(model, question)
    options = {} if question == "normalized" else {"samples": 200}
    whole, taken = (np.asarray(ask(a, **options)) for a in (adata, adata[rows]))
    # The noise of the samples differs from row to row; cells differ by far more.
    assert likeness(taken, whole[rows]) > 0.99
    assert likeness(taken, whole) < 0.95


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of all values."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "source", [columns_first, dense, unsorted_indices, backed, stored_as_zarr, codes_reordered]
)
def test_a_fit_is_the_same_from_every_source(
    source: Callable[[AnnData, list[int], Path], AnnData], tmp_path: Path
) -> None:
    def fit(adata: AnnData) -> np.ndarray:
        options = {"covariates": "dose", "max_steps": 20, "n_latent": 3, "progress": False}
        scvae.fit(adata, batch=None, **options)
        return adata.obsm["X_scvae"]

    rows = list(range(N))
    found = fit(source(simulated(), rows, tmp_path))
    np.testing.assert_array_equal(found, fit(simulated()))
