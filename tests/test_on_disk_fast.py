"""What makes reading from disk fast gives what the slow way gives: one pass over plain counts,
threads, minibatches made together, arrays of zarr in many chunks."""

from __future__ import annotations

import asyncio
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.cli.formats import kind_of
from scvae.data.hold import counts as held
from scvae.data.hold.cells import Dataset
from scvae.data.hold.counts import Counts
from scvae.errors import DataError
from tests.atlases import G, N, shards_of, simulated

# -- plain counts in one pass ----------------------------------------------------------------------


def plain(x: sparse.csr_matrix, places: Any = None, largest: int = 2**20) -> Counts | None:
    places = np.arange(x.shape[1]) if places is None else np.array(places)
    n_genes = int((places >= 0).sum())
    return Counts.from_plain((x.data, x.indices, x.indptr), places, n_genes, largest)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "u4", "u8", "f4", "f8"])
@pytest.mark.parametrize("index", ["i4", "i8", "u2"])
def test_plain_counts_are_those_of_the_matrix(dtype: str, index: str) -> None:
    x = simulated().X
    x.data, x.indices = np.minimum(x.data, 250).astype(dtype), x.indices.astype(index)
    found = plain(x)
    assert found is not None
    expected = Counts.from_csr(sparse.csr_matrix(x.toarray().astype(np.int64)), largest=2**20)
    for name in ("indptr", "indices", "values"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    assert (found.n_genes, found.longest) == (expected.n_genes, expected.longest)


def test_chosen_columns_go_to_their_places_whatever_the_others_hold() -> None:
    x = simulated().X
    dense, rows = x.toarray(), np.arange(N)
    places = np.full(G, -1)
    places[[3, 7, 20, 39]] = [0, 1, 2, 3]
    x.data[x.indices == 5] = -0.5  # a column that is left out
    found = plain(x, places)
    assert found is not None
    np.testing.assert_array_equal(
        found.dense(torch.from_numpy(rows)).numpy(), dense[:, [3, 7, 20, 39]]
    )


@pytest.mark.parametrize("value", [0.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 2.0**20 + 1, 2.0**63])
def test_values_that_are_no_plain_counts_are_left_to_a_closer_look(value: float) -> None:
    x = simulated().X.astype(np.float64)
    x.data[17] = value
    assert plain(x) is None


@pytest.mark.parametrize("case", ["twice", "unsorted", "beyond", "negative"])
def test_columns_that_are_odd_are_left_to_a_closer_look(case: str) -> None:
    x = simulated().X
    first, second = x.indices[:2].copy()
    x.indices[:2] = {
        "twice": (first, first),
        "unsorted": (second, first),
        "beyond": (first, G),
        "negative": (-1, second),
    }[case]
    assert plain(x) is None


@pytest.mark.parametrize("kind", [">f4", "f2", "bool"])
def test_types_that_are_not_compiled_are_left_to_a_closer_look(kind: str) -> None:
    x = simulated().X
    assert Counts.from_plain((x.data.astype(kind), x.indices, x.indptr), np.arange(G), G, 1) is None


@pytest.mark.parametrize("order", ["rising", "any"])
def test_genes_of_several_files_in_any_order_are_those_of_memory(
    order: str, tmp_path: Path
) -> None:
    adata, rng = simulated(), np.random.default_rng(0)
    second = adata[:, rng.permutation(G) if order == "any" else slice(None)].copy()
    second.X = sparse.csr_matrix(second.X)
    second.X.sort_indices()
    paths = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    for one, path in zip((adata, second), paths, strict=True):
        one.write_h5ad(path)
    columns, rows = np.array([2, 5, 6, 30]), rng.permutation(2 * N)
    expected = np.vstack([adata.X.toarray()] * 2)
    np.testing.assert_array_equal(shards_of(*paths)[rows].toarray(), expected[rows])
    np.testing.assert_array_equal(
        shards_of(*paths, columns=columns)[rows].toarray(), expected[rows][:, columns]
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_parts_are_joined_each_row_at_its_place(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(held, "_kernel", lambda name: None)
    simulated().write_h5ad(path := tmp_path / "cells.h5ad")
    found, expected = shards_of(path), simulated().X.toarray()
    for rows in (torch.randperm(N), torch.tensor([5, 5, 299, 0, 5]), torch.zeros(0).long()):
        taken = found.take(rows)
        np.testing.assert_array_equal(
            taken.dense(torch.arange(len(rows))).numpy(), expected[rows.numpy()]
        )
        assert taken.longest == (expected[rows.numpy()] > 0).sum(1).max(initial=0)


# -- minibatches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["disk", "host", "device"])
@pytest.mark.parametrize("together", [2, 64])
def test_minibatches_that_are_made_together_are_those_made_one_by_one(
    where: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated().write_h5ad(path := tmp_path / "cells.h5ad")
    counts = shards_of(path) if where == "disk" else simulated().X
    s, batch = np.arange(2 * N, dtype=np.float32).reshape(N, 2), np.arange(N) % 3
    data = Dataset.build(counts, s, batch, np.ones(N), "cpu", stream=where == "host")
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    one_by_one = list(data.minibatches(rows, 32))
    monkeypatch.setattr(Dataset, "_at_once", lambda self, nbytes: together)
    at_once = list(data.minibatches(rows, 32))
    assert len(at_once) == len(one_by_one)
    for one, other in zip(at_once, one_by_one, strict=True):
        for name in ("x", "s", "batch", "log_library"):
            assert torch.equal(getattr(one, name), getattr(other, name))


# -- zarr ------------------------------------------------------------------------------------------


def write_collection(path: Path, parts: list[AnnData], chunk: int = 64) -> None:
    """Write what `annbatch.DatasetCollection(path).add_adatas` does: stores in a group, counts in
    small chunks within shards, indices in the narrowest type."""
    zarr = pytest.importorskip("zarr", minversion="3")
    group = zarr.open_group(path, mode="w", zarr_format=3)

    def write(
        func: Any, store: Any, name: str, elem: Any, dataset_kwargs: Any, iospec: Any
    ) -> None:
        options = dict(dataset_kwargs)
        if iospec.encoding_type == "csr_matrix":
            options |= {"chunks": (chunk,), "shards": (max(1, elem.nnz // chunk // 2) * chunk,)}
        func(store, name, elem, dataset_kwargs=options)

    with (
        warnings.catch_warnings(action="ignore"),
        anndata.settings.override(
            zarr_write_format=3, write_csr_csc_indices_with_min_possible_dtype=True
        ),
    ):
        for i, part in enumerate(parts):
            anndata.experimental.write_dispatched(group, f"dataset_{i}", part, callback=write)
        group.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
        zarr.consolidate_metadata(group.store)


def test_a_collection_of_annbatch_is_its_stores_one_after_another(tmp_path: Path) -> None:
    adata = simulated()
    ends = np.linspace(0, N, 13).astype(int)
    parts = [adata[a:b].copy() for a, b in pairwise(ends)]
    write_collection(path := tmp_path / "cells.zarr", parts)
    cells = scvae.on_disk(path)
    assert list(cells.obs_names) == list(adata.obs_names)  # dataset_10 after dataset_9
    assert list(cells.obs["file"].unique())[9:] == ["dataset_9", "dataset_10", "dataset_11"]
    rows = np.random.default_rng(0).permutation(N)
    np.testing.assert_array_equal(shards_of(path)[rows].toarray(), adata.X[rows].toarray())
    options: dict[str, Any] = {"max_steps": 12, "n_latent": 4, "n_hidden": 16, "progress": False}
    model = scvae.fit(path, batch="batch", **options)
    np.testing.assert_allclose(model.embed(path), model.embed(adata), atol=1e-5)
    assert model.embed(path, out=tmp_path / "embedding.h5ad") is not None


def test_the_command_line_says_what_reads_a_collection(tmp_path: Path) -> None:
    write_collection(path := tmp_path / "cells.zarr", [simulated()])
    with pytest.raises(scvae.errors.FileError, match=r"annbatch.*scvae\.fit\('.*cells\.zarr'\)"):
        kind_of(path)


def test_chunks_of_zarr_are_read_where_an_event_loop_runs(tmp_path: Path) -> None:
    adata = simulated()
    write_collection(path := tmp_path / "cells.zarr", [adata], chunk=8)
    found = shards_of(path)

    async def in_a_notebook() -> np.ndarray:
        return found[np.arange(N)].toarray()

    np.testing.assert_array_equal(asyncio.run(in_a_notebook()), adata.X.toarray())


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_rows_of_h5ad_that_are_decoded_together_are_known(compression: Any, tmp_path: Path) -> None:
    simulated().write_h5ad(path := tmp_path / "cells.h5ad", compression=compression)
    with h5py.File(path) as file:
        (chunk,) = file["X/data"].chunks or (0,)
        rows = chunk * N / len(file["X/data"])
    assert shards_of(path).chunk == (int(rows) if compression else 0)


def test_rows_of_zarr_that_are_decoded_together_are_those_of_the_small_chunks(
    tmp_path: Path,
) -> None:
    adata = simulated()
    write_collection(path := tmp_path / "cells.zarr", [adata], chunk=8 * adata.X.nnz // N)
    assert shards_of(path).chunk == 7  # and a bit


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", ["f4", "f8", "i8", "u1"])
def test_zarr_of_any_version_and_type_is_read(version: int, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("zarr", minversion="3")
    adata = simulated()
    adata.X.data = np.minimum(adata.X.data, 250).astype(kind)
    with anndata.settings.override(zarr_write_format=version):
        adata.write_zarr(path := tmp_path / "cells.zarr")
    rows = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(shards_of(path)[rows].toarray(), adata.X[rows].toarray())


@pytest.mark.parametrize("odd", ["big-endian", "delta", "lzma"])
def test_zarr_that_zarrs_does_not_decode_is_read_without_it(odd: str, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    numcodecs = pytest.importorskip("numcodecs")
    adata = simulated()
    options: dict[str, Any] = {"dtype": ">f8" if odd == "big-endian" else "<f8"}
    if odd == "delta":
        options["filters"] = [numcodecs.Delta("<f8")]
    if odd == "lzma":
        options["compressors"] = numcodecs.LZMA()
    with anndata.settings.override(zarr_write_format=2):
        adata.write_zarr(path := tmp_path / "cells.zarr")
    (path / ".zmetadata").unlink(missing_ok=True)  # of the array that is replaced
    group = zarr.open_group(path / "X", mode="r+")
    del group["data"]
    group.create_array("data", shape=adata.X.data.shape, chunks=(1000,), **options)
    group["data"][:] = adata.X.data
    rows = np.random.default_rng(1).permutation(N)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = shards_of(path)[rows]
    np.testing.assert_array_equal(found.toarray(), adata.X[rows].toarray())


@pytest.mark.parametrize("name", ["data", "indices"])
@pytest.mark.parametrize("kind", ["2", "3", "collection"])
def test_a_missing_chunk_of_zarr_names_its_store(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("zarr", minversion="3")
    path, adata = tmp_path / "cells.zarr", simulated()
    if kind == "collection":
        write_collection(path, [adata], chunk=8)
        store = path / "dataset_0"
    else:
        with anndata.settings.override(zarr_write_format=int(kind)):
            adata.write_zarr(store := path)
    shards_of(path)
    (store / "X" / name / ("0" if kind == "2" else "c/0")).unlink()
    with pytest.raises(scvae.errors.FileError, match=f"{store.name} is damaged: chunks"):
        shards_of(path)


def test_chunks_of_zeros_that_zarr_does_not_write_are_not_missed(tmp_path: Path) -> None:
    pytest.importorskip("zarr", minversion="3")
    adata = simulated()[:, :1].copy()
    with anndata.settings.override(zarr_write_format=3):
        adata.write_zarr(path := tmp_path / "cells.zarr")
    assert not any((path / "X" / "indices").glob("c/*"))
    found = shards_of(path, memory=0)[np.arange(N)]
    np.testing.assert_array_equal(found.toarray(), adata.X.toarray())


def test_a_damaged_chunk_of_zarr_names_its_store(tmp_path: Path) -> None:
    write_collection(path := tmp_path / "cells.zarr", [simulated()], chunk=8)
    found = shards_of(path)
    place = path / "dataset_0" / "X" / "data" / "c" / "0"
    place.write_bytes(bytes(place.stat().st_size))
    with pytest.raises((scvae.errors.FileError, DataError), match="dataset_0"):
        found[np.arange(N)]
