"""Cells in files give what the same cells give in memory, and files that change are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import scvae
from scvae.data.hold.cells import Dataset
from scvae.data.hold.parts import Share, equal_parts
from scvae.data.hold.shards import Shards
from scvae.errors import ConfigError, DataError, FileError
from tests.atlases import SMALL, G, N, shards_of, simulated, staying

QUICK: dict[str, Any] = {
    "batch": "batch",
    "max_steps": 12,
    "n_latent": 4,
    "n_hidden": 16,
    "progress": False,
}
law = settings(deadline=None, derandomize=True, max_examples=15)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "atlas.h5ad"
    simulated().write_h5ad(path)
    return path


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # every type once: loops are compiled for each pair, which takes seconds
    ("dtype", "index"),
    [
        ("uint8", "int32"), ("int16", "int64"), ("int32", "uint16"), ("int64", "int32"),
        ("uint32", "int64"), ("float32", "uint16"), (">f8", "int32"),
    ],
)  # fmt: skip
def test_rows_of_any_type_are_those_of_the_matrix(dtype: str, index: str, tmp_path: Path) -> None:
    adata = simulated()
    adata.X.data = np.minimum(adata.X.data, 250)
    adata.write_h5ad(path := tmp_path / "cells.h5ad")
    with h5py.File(path, "r+") as file:
        for name, kind in (("data", dtype), ("indices", index)):
            values = file[f"X/{name}"][:].astype(kind)
            del file[f"X/{name}"]
            file[f"X/{name}"] = values
    found = shards_of(path)
    np.testing.assert_array_equal(found[np.arange(N)].toarray(), adata.X.toarray())
    np.testing.assert_array_equal(scvae.on_disk(path).X[7:190].toarray(), adata.X[7:190].toarray())


def test_any_index_takes_its_rows(atlas: Path) -> None:
    expected, found = simulated().X.toarray(), shards_of(atlas)

    @law
    @given(st.lists(st.integers(0, N - 1), max_size=80))
    def check(rows: list[int]) -> None:
        np.testing.assert_array_equal(found[np.array(rows, dtype=int)].toarray(), expected[rows])
        np.testing.assert_array_equal(scvae.on_disk(atlas)[rows].X.toarray(), expected[rows])

    check()


def test_entries_out_of_order_twice_and_of_zero_are_summed(tmp_path: Path) -> None:
    adata = simulated()
    x = adata.X
    doubled = sparse.csr_matrix((N, G), dtype=np.float32)
    pairs = [np.concatenate([x.indices[a:b][::-1]] * 2) for a, b in pairwise(x.indptr)]
    values = [
        np.concatenate([x.data[a:b][::-1], np.zeros(b - a, np.float32)])
        for a, b in pairwise(x.indptr)
    ]
    doubled.data, doubled.indices = np.concatenate(values), np.concatenate(pairs)
    doubled.indptr = x.indptr * 2
    AnnData(doubled, adata.obs, adata.var).write_h5ad(path := tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(shards_of(path)[np.arange(N)].toarray(), x.toarray())


def test_an_epoch_hands_out_every_cell_once_mixed_from_all_over_the_file(tmp_path: Path) -> None:
    n = 4_000
    adata = AnnData(sparse.csr_matrix(np.ones((n, 2), np.float32)))
    adata.write_h5ad(path := tmp_path / "cells.h5ad")
    found = shards_of(path, memory=4 * 800 * 12)
    rows = torch.randperm(n)[: n - 100]
    generator = torch.Generator().manual_seed(0)
    first, second = (found.shuffled(rows, 100, generator) for _ in range(2))
    for order in (first, second):
        assert sorted(order.tolist()) == sorted(rows.tolist())
    assert (first != second).any()
    assert 500 < found.group < 1000
    # In a file sorted by batch, every minibatch then has cells of all parts of the file.
    parts = torch.stack([torch.bincount(r // 1000, minlength=4) for r in first.split(100)])
    assert parts.min() > 0
    # As far from its mean as cells at random are, but for the blocks: not one part after another.
    assert parts.double().var(0).mean() < 4 * 100 * 0.25 * 0.75


@pytest.mark.parametrize("chunk", [0, 40])
@pytest.mark.parametrize("held_out", [0, 400])
def test_cells_that_are_mixed_together_are_of_all_parts_of_the_file_in_their_shares(
    held_out: int, chunk: int
) -> None:
    n, memory = 4_000, 4 * 800 * 10

    def read(ranges: list[tuple[int, int]]) -> list[sparse.csr_matrix]:
        return [sparse.csr_matrix((stop - start, 2)) for start, stop in ranges]

    found = Shards(read, (n, 2), n, 1, 1, memory, chunk)
    generator = torch.Generator().manual_seed(0)
    assert found.block == (3 if chunk == 0 else 12)
    rows = torch.randperm(n, generator=generator)[held_out:]
    lengths = [len(part) for part in equal_parts(rows, 50)]
    windows = found.windows(lengths)
    assert [i for window in windows for i in range(len(lengths))[window]] == [*range(len(lengths))]
    for _ in range(20):
        order = found.shuffled(rows, 50, generator)
        assert sorted(order.tolist()) == sorted(rows.tolist())
        for group in order.tensor_split(len(windows)):
            assert len(group) <= found.group
            parts = torch.bincount(group // 250, minlength=16)
            expected = torch.bincount(rows // 250, minlength=16) * len(group) / len(rows)
            assert (parts - expected).abs().max() <= 3.5 * found.block


@pytest.mark.parametrize("memory", [1e7, 1e8, 1e9])
def test_rows_that_are_decoded_to_read_an_epoch_are_not_many_times_its_own(memory: float) -> None:
    n, chunk, decoded = 50_000, 64, 0

    def read(ranges: list[tuple[int, int]]) -> list[sparse.csr_matrix]:
        nonlocal decoded
        decoded += sum(chunk * ((stop - 1) // chunk - start // chunk + 1) for start, stop in ranges)
        return [sparse.csr_matrix((stop - start, 2_000)) for start, stop in ranges]

    found = Shards(read, (n, 2_000), n * 600, 600, 1, int(memory), chunk)
    order = found.shuffled(torch.arange(n), 128, torch.Generator().manual_seed(0))
    parts = equal_parts(order, 128)
    for window in found.windows([len(part) for part in parts]):
        found.take(torch.cat(parts[window]))
    assert decoded < (6 if memory < 1e8 else 1.5) * n


@pytest.mark.parametrize("size", [2, 3])
def test_each_of_several_processes_reads_its_own_part_of_the_file(size: int) -> None:
    n, read_by, seen = 6_000, [0] * size, []
    for rank in range(size):

        def read(ranges: list[tuple[int, int]], rank: int = rank) -> list[sparse.csr_matrix]:
            read_by[rank] += sum(stop - start for start, stop in ranges)
            return [sparse.csr_matrix(np.ones((stop - start, 1))) for start, stop in ranges]

        counts = Shards(read, (n, 1), n * 1_000, 1_000, 1, 4 * 3_000 * 2_010)
        of_cells = np.arange(n, dtype=np.float32)[:, None], np.zeros(n, np.int64), np.ones(n)
        dataset, order = Dataset.build(counts, *of_cells, "cpu"), torch.Generator().manual_seed(0)
        share = Share(rank, size)
        found = list(dataset.shuffled(torch.arange(n), 100, order, share))
        lengths = [len(cells) for cells in found]
        assert max(lengths) - min(lengths) <= 1
        seen += [int(row) for cells in found for row in cells.s[:, 0]]
    assert sorted(seen) == [*range(n)]
    assert max(read_by) < 1.5 * n / size


@pytest.mark.parametrize("memory", [0, 500, SMALL, 10**6])
def test_a_group_takes_no_more_memory_than_it_may(atlas: Path, memory: int) -> None:
    found = shards_of(atlas, memory=memory) if memory < 10**6 else None
    if found is None:
        assert not staying(atlas, memory=memory).X.stays
        return
    held = found.take(torch.arange(min(found.group, N)))
    assert 4 * held.nbytes <= max(memory, 2 * 4 * (G * 2 + 8) + 64) * 1.2  # rows differ in length


# -- fits ------------------------------------------------------------------------------------------


def test_a_path_that_memory_holds_is_fitted_as_the_anndata(atlas: Path) -> None:
    adata, before = simulated(), atlas.read_bytes()
    whole = scvae.fit(adata, **QUICK)
    model = scvae.fit(atlas, **QUICK)
    np.testing.assert_array_equal(model.embed(str(atlas)), adata.obsm["X_scvae"])
    assert model.record.digest == whole.record.digest
    assert atlas.read_bytes() == before


def test_from_disk_all_but_the_order_of_cells_is_as_in_memory(atlas: Path) -> None:
    whole = scvae.fit(simulated(), **QUICK)
    cells = staying(atlas)
    model = scvae.fit(cells, **QUICK)
    assert model.record.counts == "streamed from disk"
    assert model.record.digest == whole.record.digest
    assert abs(model.record.elbo_held_out - whole.record.elbo_held_out) < 2.0
    np.testing.assert_array_equal(whole.embed(cells), whole.embed(simulated()))
    np.testing.assert_array_equal(
        scvae.fit(staying(atlas), **QUICK).embed(cells), model.embed(cells)
    )


def test_a_group_of_all_cells_in_order_gives_the_bits_of_memory(
    atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Shards,
        "shuffled",
        lambda self, rows, _, g: rows[torch.randperm(len(rows), generator=g)],
    )
    monkeypatch.setattr(Dataset, "in_order", lambda self, rows: rows)
    adata = simulated()
    scvae.fit(adata, **QUICK)
    model = scvae.fit(staying(atlas), **QUICK)
    np.testing.assert_array_equal(model.embed(adata), adata.obsm["X_scvae"])


def test_a_file_in_backed_mode_may_stay_on_disk(
    atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scvae.data.read.source.free_memory", lambda: 2 * SMALL)
    adata = anndata.read_h5ad(atlas, backed="r")
    model = scvae.fit(adata, **QUICK)
    assert model.record.counts == "streamed from disk"
    np.testing.assert_array_equal(model.embed(simulated()), adata.obsm["X_scvae"])


def test_a_fit_from_disk_goes_on_where_it_was_ended(atlas: Path, tmp_path: Path) -> None:
    expected = scvae.fit(staying(atlas), **QUICK).embed(atlas)
    taken, kept = 0, Dataset._described

    def failing(self: Dataset, *given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 10:
            raise RuntimeError("power cut")
        return kept(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scvae.models.keep.checkpoint.SECONDS_BETWEEN", 0.0)
        patch.setattr(Dataset, "_described", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            scvae.fit(staying(atlas), checkpoint=tmp_path, **QUICK)
    model = scvae.fit(staying(atlas), checkpoint=tmp_path, **QUICK)
    np.testing.assert_array_equal(model.embed(atlas), expected)


def test_check_says_of_a_path_what_it_says_of_the_anndata(atlas: Path) -> None:
    given, path = (scvae.check(cells, batch="batch") for cells in (simulated(), atlas))
    told = [f.text.replace("in a file", "in memory") for f in path.findings]
    assert told[:-1] == [finding.text for finding in given.findings][:-1]  # the last tells a time


def test_rows_that_are_named_are_named_as_in_memory(atlas: Path) -> None:
    adata = simulated()
    model = scvae.fit(adata, **QUICK)
    asked: dict[str, Any] = {"return_interval": 0.8, "samples": 5}
    for one, other in zip(
        model.normalized(atlas, **asked), model.normalized(adata, **asked), strict=True
    ):
        pd.testing.assert_frame_equal(one, other, check_names=False)
    transfer = scvae.analysis.labels.transfer
    pd.testing.assert_frame_equal(
        transfer(model, adata, atlas, "cell_type"),
        transfer(model, adata, adata, "cell_type"),
        check_names=False,
    )


def test_zarr_is_read_like_h5ad(atlas: Path, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    simulated().write_zarr(path := tmp_path / "atlas.zarr")
    expected = simulated().X.toarray()
    np.testing.assert_array_equal(shards_of(path)[np.arange(N)].toarray(), expected)
    assert list(scvae.on_disk(path).obs["batch"]) == list(simulated().obs["batch"])


def test_layers_raw_and_chosen_genes_stay_on_disk(tmp_path: Path) -> None:
    adata = simulated()
    genes = list(adata.var_names[[7, 3, 30, 11]]) + list(adata.var_names[12:30])
    logged = adata.copy()
    logged.raw = adata
    logged.layers["counts"] = adata.X
    logged.X = logged.X.log1p()
    logged.write_h5ad(path := tmp_path / "cells.h5ad")
    expected = scvae.fit(adata, genes=genes, **QUICK)
    for layer in ("counts", "raw"):
        model = scvae.fit(staying(path), genes=genes, layer=layer, **QUICK)
        assert model.record.counts == "streamed from disk"
        assert model.origin.genes == genes
        np.testing.assert_array_equal(
            expected.embed(staying(path), layer=layer), expected.embed(adata)
        )


# -- several files ---------------------------------------------------------------------------------


def test_files_are_joined_by_the_names_of_genes_and_categories(tmp_path: Path) -> None:
    adata = simulated()
    adata.obs["donor"] = pd.Categorical(np.repeat(["c", "a", "b"], N // 3))
    one, other = adata[:120].copy(), adata[120:, ::-1].copy()
    one.obs["donor"] = one.obs["donor"].cat.set_categories(["c", "a"])
    other.obs["donor"] = other.obs["donor"].astype(str)
    one.write_h5ad(tmp_path / "one.h5ad")
    other.write_h5ad(tmp_path / "two.h5ad")
    cells = staying(tmp_path / "one.h5ad", tmp_path / "two.h5ad")
    assert list(cells.var_names) == list(adata.var_names)
    assert list(cells.obs_names) == list(adata.obs_names)
    assert list(cells.obs["donor"]) == list(adata.obs["donor"])
    assert list(cells.obs["file"]) == ["one"] * 120 + ["two"] * (N - 120)
    np.testing.assert_array_equal(cells.X[:].toarray(), adata.X.toarray())
    whole = scvae.fit(adata, **{**QUICK, "batch": "donor"})
    np.testing.assert_array_equal(whole.embed(cells), whole.embed(adata))
    model = scvae.fit(cells, **{**QUICK, "batch": "file"})
    assert model.batches == ["one", "two"]


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_genes_that_not_all_files_have(tmp_path: Path, join: Any) -> None:
    adata = simulated()
    adata[:100, :30].copy().write_h5ad(tmp_path / "a.h5ad")
    adata[100:, 10:].copy().write_h5ad(tmp_path / "b.h5ad")
    with pytest.warns(UserWarning, match="have 30 to 30 genes"):
        cells = scvae.on_disk(tmp_path, join=join)
    expected = anndata.concat([adata[:100, :30], adata[100:, 10:]], join=join)
    assert sorted(cells.var_names) == sorted(expected.var_names)
    expected = expected[:, cells.var_names]
    np.testing.assert_array_equal(cells.X[:].toarray(), expected.X.toarray())


def test_files_whose_genes_do_not_meet_are_refused(tmp_path: Path) -> None:
    adata = simulated()
    adata[:, :10].copy().write_h5ad(tmp_path / "a.h5ad")
    adata[:, 10:].copy().write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match=r"share no gene by name.*'gene_0'.*'gene_10'"):
        scvae.fit(tmp_path, **QUICK)


def test_the_file_that_is_no_counts_is_named_by_its_cell(tmp_path: Path) -> None:
    adata = simulated()
    adata[:100].copy().write_h5ad(tmp_path / "a.h5ad")
    logged = adata[100:].copy()
    logged.X = logged.X.log1p()
    logged.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match=r"non-integer values .*at cell 'cell_100'.*b\.h5ad"):
        scvae.fit(tmp_path, **QUICK)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [sparse.csc_matrix, np.asarray])
def test_columns_first_and_dense_are_read_if_memory_holds_them(kind: Any, tmp_path: Path) -> None:
    adata = simulated()
    model = scvae.fit(adata, **QUICK)
    adata.X = kind(adata.X.toarray())
    adata.write_h5ad(path := tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(model.embed(path), adata.obsm["X_scvae"])
    convert = r"Convert it once.*scipy\.sparse\.csr_matrix\(adata\.X\).*cells-csr\.h5ad"
    with pytest.raises(DataError, match=convert):
        scvae.fit(staying(path), **QUICK)


@pytest.mark.parametrize("when", ["statistics", "training", "embedding"])
def test_a_file_that_changes_while_it_is_read_is_refused(when: str, tmp_path: Path) -> None:
    simulated().write_h5ad(path := tmp_path / "cells.h5ad")
    cells = staying(path)
    model = scvae.fit(cells, **QUICK)
    reads, kept = 0, Shards.take
    last = {"statistics": 1, "training": 5}.get(when, 0)

    def touched(self: Shards, *given: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == last or not last:
            os.utime(path, ns=(1, 1))
        return kept(self, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "take", touched)
        with pytest.raises(FileError, match=r"cells\.h5ad was changed while it was read"):
            _ = model.embed(cells) if when == "embedding" else scvae.fit(cells, **QUICK)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_file_cut_in_half_is_named(share: float, atlas: Path, tmp_path: Path) -> None:
    content = atlas.read_bytes()
    path = tmp_path / "cut.h5ad"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileError, match=r"cut\.h5ad cannot be read as h5ad or zarr"):
        scvae.fit(path, **QUICK)


@pytest.mark.parametrize("part", ["indptr", "indices", "data", "shape"])
def test_a_matrix_that_contradicts_itself_is_refused(
    part: str, atlas: Path, tmp_path: Path
) -> None:
    shutil.copy(atlas, path := tmp_path / "odd.h5ad")
    with h5py.File(path, "r+") as file:
        if part == "shape":
            file["X"].attrs["shape"] = np.array([N + 1, G])
        elif part == "data":
            values = file["X/data"][:-1]
            del file["X/data"]
            file["X/data"] = values
        else:
            file[f"X/{part}"][3] = 10**6
    with pytest.raises((FileError, DataError), match=r"damaged|broken"):
        scvae.fit(staying(path), **QUICK)


def test_a_matrix_with_other_rows_than_cells_is_refused(atlas: Path, tmp_path: Path) -> None:
    shutil.copy(atlas, path := tmp_path / "odd.h5ad")
    adata = simulated()[: N - 1].copy()
    adata.write_h5ad(tmp_path / "fewer.h5ad")
    with h5py.File(tmp_path / "fewer.h5ad") as fewer, h5py.File(path, "r+") as file:
        del file["X"]
        fewer.copy("X", file)
    with pytest.raises(FileError, match=rf"odd\.h5ad is damaged.*{N - 1}.*{N}"):
        scvae.fit(path, **QUICK)


@pytest.mark.skipif(sys.platform != "linux", reason="locks of Linux")
def test_a_file_that_another_process_writes_is_refused(atlas: Path, tmp_path: Path) -> None:
    shutil.copy(atlas, path := tmp_path / "busy.h5ad")
    code = f"import h5py, sys; f = h5py.File({str(path)!r}, 'r+'); print(1, flush=True); input()"
    environment = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        with pytest.raises(FileError, match=r"busy\.h5ad is locked"):
            scvae.fit(path, **QUICK)
    finally:
        writer.communicate(b"\n")


@pytest.mark.parametrize(
    ("paths", "options", "error", "message"),
    [
        ("nowhere.h5ad", {}, FileError, r"nowhere\.h5ad is not there"),
        (".", {}, FileError, "folder without a file"),
        ([], {}, ConfigError, "no file"),
        (["a.h5ad", "a.h5ad"], {}, ConfigError, r"a\.h5ad twice"),
        (3, {}, ConfigError, "paths=3"),
        ("a.h5ad", {"memory": 0}, ConfigError, "memory=0"),
        ("a.h5ad", {"memory": "2GB"}, ConfigError, "memory='2GB'"),
        ("a.h5ad", {"memory": float("nan")}, ConfigError, "memory=nan"),
        ("a.h5ad", {"join": "left"}, ConfigError, "join='left'"),
        ("a.h5ad", {"chunks": 3}, ConfigError, "no argument 'chunks'"),
    ],
)
def test_what_is_no_file_of_cells_is_refused(
    paths: Any,
    options: Any,
    error: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(paths, list) and paths:
        Path("a.h5ad").touch()
    with pytest.raises(error, match=message):
        scvae.on_disk(paths, **options)


# -- files of old anndata ----------------------------------------------------------------------


def write_old(path: Path, x: sparse.csr_matrix, *, records: bool) -> None:
    """Write cells of three donors as anndata 0.7 did, or with `records` as 0.6 did."""
    n, g = x.shape
    cells, genes = ([f"{what}{i}".encode() for i in range(k)] for what, k in (("c", n), ("g", g)))
    names, codes = [b"dora", b"ana", b"ben"], (np.arange(n) % 3).astype(np.int8)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("X")
        matrix["data"], matrix["indices"], matrix["indptr"] = x.data, x.indices, x.indptr
        if records:
            matrix.attrs["h5sparse_format"], matrix.attrs["h5sparse_shape"] = "csr", x.shape
            obs = np.zeros(n, dtype=[("index", "S9"), ("donor", "i1")])
            obs["index"], obs["donor"] = cells, codes
            var = np.zeros(g, dtype=[("index", "S9")])
            var["index"] = genes
            file["obs"], file["var"], file["uns/donor_categories"] = obs, var, names
            return
        matrix.attrs["encoding-type"], matrix.attrs["encoding-version"] = "csr_matrix", "0.1.0"
        matrix.attrs["shape"] = x.shape
        for key, index in (("obs", cells), ("var", genes)):
            frame = file.create_group(key)
            frame.attrs["encoding-type"], frame.attrs["encoding-version"] = "dataframe", "0.1.0"
            frame.attrs["_index"], frame["_index"] = "_index", index
            frame.attrs["column-order"] = ["donor", "age"] if key == "obs" else np.zeros(0)
        obs = file["obs"]
        obs["donor"], obs["__categories/donor"], obs["age"] = codes, names, np.arange(n) / 7
        obs["donor"].attrs["categories"] = obs["__categories/donor"].ref
        obs["__categories/donor"].attrs["ordered"] = False


def old_counts() -> sparse.csr_matrix:
    return sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (60, 12)).astype(np.float32))


def test_a_file_of_anndata_0_7_keeps_the_names_of_its_categories(tmp_path: Path) -> None:
    write_old(tmp_path / "old.h5ad", old_counts(), records=False)
    found = scvae.on_disk(tmp_path / "old.h5ad").obs
    expected = anndata.read_h5ad(tmp_path / "old.h5ad").obs
    assert list(found["donor"].astype(str)) == list(expected["donor"].astype(str))
    assert list(found["donor"].cat.categories.astype(str)) == ["dora", "ana", "ben"]
    np.testing.assert_array_equal(found["age"], expected["age"])


def test_a_file_of_anndata_0_6_is_made_new_by_the_call(tmp_path: Path) -> None:
    path = tmp_path / "old.h5ad"
    write_old(path, old_counts(), records=True)
    with pytest.raises(FileError, match=r"before 0\.7.*Write it anew: ") as caught:
        scvae.on_disk(path)
    call = str(caught.value).split("anew: ")[1].replace("new.h5ad", str(tmp_path / "new.h5ad"))
    exec(call, {"anndata": anndata})
    found = scvae.on_disk(tmp_path / "new.h5ad").obs["donor"]
    assert list(found.cat.categories) == ["dora", "ana", "ben"]


def test_names_of_cells_may_be_strings_with_a_mask(tmp_path: Path) -> None:
    adata = scvae.simulate(n_cells=40, n_genes=20)
    adata.obs_names = adata.obs_names.astype("string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "cells.h5ad")
    assert "values" in h5py.File(tmp_path / "cells.h5ad")["obs"]["_index"]
    cells = scvae.on_disk(tmp_path / "cells.h5ad")
    assert list(cells.obs_names) == list(adata.obs_names)
