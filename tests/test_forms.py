"""What is no AnnData in memory: taken as it is, or refused with the call that makes one of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from anndata.experimental import AnnCollection
from scipy import sparse

import scvae
from scvae.errors import DataError

QUICK: dict[str, Any] = {"max_steps": 3, "n_latent": 3, "progress": False}
X = np.random.default_rng(0).poisson(2.0, (120, 15)).astype(np.float32)


def cells() -> AnnData:
    adata = AnnData(sparse.csr_matrix(X))
    adata.raw = adata.copy()
    return adata


@pytest.fixture(scope="module")
def model() -> scvae.Model:
    return scvae.fit(cells(), **QUICK)


def collection() -> Any:
    adata = cells()
    return AnnCollection([adata[:50].copy(), adata[50:].copy()], join_vars="inner")


def lazily() -> Any:
    """Return an AnnData whose tables are not in memory, as read_lazy opens them."""
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    from anndata.experimental import read_lazy

    cells().write_zarr("lazy.zarr")
    return read_lazy("lazy.zarr")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "raw": (lambda: cells().raw, "adata is a Raw; .*: adata = adata.raw.to_adata()"),
    "a collection": (collection, "AnnCollection; .*: adata = collection[:].to_adata()"),
    "part of it": (lambda: collection()[:40], "View; .*: adata = view.to_adata()"),
    "a path of 10x": (lambda: Path("a.h5"), "adata = scanpy.read_10x_h5('a.h5')"),
    "a path of loom": (lambda: "a.loom", "adata = anndata.io.read_loom('a.loom')"),
    "opened lazily": (lazily, "opened lazily; .*: adata = adata.to_memory()"),
    "an array": (lambda: X, "adata is a ndarray; an AnnData is needed: adata = anndata.AnnData("),
    "a class": (lambda: AnnData, "adata is a class; an AnnData is needed"),
    "nothing": (lambda: None, "adata is a NoneType; .* in place return None"),
    "a table": (lambda: cells().to_df(), "DataFrame; .*: adata = anndata.AnnData(adata)"),
    "several": (lambda: [cells(), cells()], "list; .*: adata = anndata.concat(adata, label="),
    "several by name": (lambda: {"a": cells()}, "dict; .*: adata = anndata.concat(adata, label="),
    "a table of text": (lambda: "a.csv", "anndata.io.read_csv('a.csv', first_column_names=True)"),
    "a file of R": (lambda: "a.rds", "zellkonverter::writeH5AD"),
    "a packed file": (lambda: "a.h5ad.gz", "unpack it, then adata = anndata.read_h5ad('a.h5ad')"),
    "an address": (lambda: "https://x.org/a.h5ad", "backup_url='https://x.org/a.h5ad'"),
    "a matrix of text": (lambda: "a.mtx", "adata = scvae.cli.inputs.read('a.mtx')"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_the_call_that_makes_an_anndata_is_named(
    kind: str, model: scvae.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[kind]
    thing = make()
    told = []
    for call in (lambda: scvae.fit(thing, **QUICK), lambda: model.embed(thing)):
        with pytest.raises(DataError) as refused:
            call()
        told.append(str(refused.value))
    (error,) = scvae.check(thing).errors
    assert {*told, error.text} == {error.text}
    for part in message.split(".*"):
        assert part in error.text


@pytest.mark.parametrize(
    "kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asarray]
)
@pytest.mark.parametrize("chunks", [(50, -1), (7, -1), (120, 4), (33, 8)])
def test_chunks_of_dask_give_the_bits_of_the_whole(
    kind: Any, chunks: tuple[int, int], model: scvae.Model
) -> None:
    da = pytest.importorskip("dask.array")
    lazy = da.from_array(X, chunks=chunks)
    if chunks[1] > 0 and kind is not np.asarray:
        lazy = lazy.rechunk((chunks[0], -1))
    chunked, whole = AnnData(lazy.map_blocks(kind)), cells()
    assert scvae.check(chunked).ok
    np.testing.assert_array_equal(model.embed(chunked), model.embed(whole))
    scvae.fit(chunked, **QUICK)
    scvae.fit(whole, **QUICK)
    np.testing.assert_array_equal(chunked.obsm["X_scvae"], whole.obsm["X_scvae"])
    assert type(chunked.X) is type(lazy)  # it was not brought to memory


def test_a_fault_in_a_chunk_of_dask_is_named_by_its_cell() -> None:
    da = pytest.importorskip("dask.array")
    x = X.copy()
    x[77, 3] = -1
    adata = AnnData(da.from_array(x, chunks=(50, -1)).map_blocks(sparse.csr_matrix))
    with pytest.raises(DataError, match=r"negative values \(first: -1 at cell '77', gene '3'"):
        scvae.fit(adata, **QUICK)
