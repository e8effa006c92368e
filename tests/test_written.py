"""Results written to files are those that are returned; what fails or is killed leaves nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData

import scvae
from scvae.errors import ConfigError, FileError
from scvae.models import results
from scvae.models.query import as_stored
from tests.warm import Python


def read(path: Path) -> AnnData:
    return (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)


def test_halves_are_rounded_as_numpy_rounds_them() -> None:
    ties = 2048 + np.arange(9, dtype=np.float32)
    values = np.concatenate([ties, np.float32([0.0, 1e-8, 6e-8, 65_519.0, 65_520.0, np.nan])])
    out = np.empty(0, np.float16)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    found = as_stored(torch.from_numpy(values), out)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)
    assert as_stored(torch.arange(3), out).dtype == np.int64


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("chunk", [results.CHUNK, 1, 3_000])
def test_denoised_expression_in_a_file_is_what_is_returned(
    fitted: tuple[AnnData, scvae.Model],
    ending: str,
    dtype: str,
    chunk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adata, model = fitted
    monkeypatch.setattr(results, "CHUNK", chunk)
    monkeypatch.setattr("scvae.models.fitted.CHUNK_VALUES", 40 * 7)  # seven cells at a time
    genes = list(adata.var_names[[5, 2, 30]])
    path = model.normalized(adata, genes=genes, out=tmp_path / f"a{ending}", dtype=dtype)
    found, expected = read(path), model.normalized(adata, genes=genes)
    assert found.X.dtype == dtype
    assert list(found.var_names) == genes
    assert list(found.obs_names) == list(adata.obs_names)
    assert list(found.obs["batch"]) == list(adata.obs["batch"])
    np.testing.assert_array_equal(found.X, expected.to_numpy().astype(dtype))
    assert [p.name for p in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_an_embedding_goes_from_file_to_file(
    fitted: tuple[AnnData, scvae.Model], ending: str, tmp_path: Path
) -> None:
    adata, model = fitted
    adata[::-1].copy().write_h5ad(tmp_path / "cells.h5ad")
    path = model.embed(tmp_path / "cells.h5ad", out=str(tmp_path / f"z{ending}"))
    found = read(path)
    np.testing.assert_array_equal(found.obsm["X_scvae"], model.embed(adata[::-1].copy()))
    assert list(found.obs_names) == list(adata.obs_names[::-1])


def test_an_embedding_fills_an_array(fitted: tuple[AnnData, scvae.Model]) -> None:
    adata, model = fitted
    out = np.empty((adata.n_obs, model.architecture.n_latent), np.float32)
    assert model.embed(adata, out=out) is out
    np.testing.assert_array_equal(out, model.embed(adata))


def test_without_zarr_it_is_said_what_to_install(
    fitted: tuple[AnnData, scvae.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = fitted
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ConfigError, match=r"pip install zarr, or out='.*a\.h5ad'"):
        model.embed(adata, out=tmp_path / "a.zarr")
    assert read(model.embed(adata, out=tmp_path / "a.h5ad")).n_obs == adata.n_obs


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"out": "a.csv"}, ConfigError, r"must end in \.zarr or \.h5ad.*'a\.zarr'"),
        ({"out": "there.zarr"}, FileError, r"there\.zarr is there already"),
        ({"out": "no/where.zarr"}, FileError, r"no/where\.zarr cannot be written: .*no folder"),
        ({"out": "a.zarr", "dtype": "float64"}, ConfigError, "dtype='float64'"),
        ({"out": "a.zarr", "dtype": "float16", "library_size": 1e6}, ConfigError, "up to 65504"),
        ({"out": "a.zarr", "genes": ["no"]}, ConfigError, "not fitted on"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    fitted: tuple[AnnData, scvae.Model],
    options: dict[str, Any],
    error: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adata, model = fitted
    monkeypatch.chdir(tmp_path)
    Path("there.zarr").mkdir()
    with pytest.raises(error, match=message):
        model.normalized(adata, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.zarr"]


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_on_the_way_leaves_nothing(
    fitted: tuple[AnnData, scvae.Model],
    ending: str,
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adata, model = fitted
    monkeypatch.setattr(results, "CHUNK", 3_000)
    monkeypatch.setattr("scvae.models.fitted.CHUNK_VALUES", 40 * 7)
    kept, writes = results.InOrder._put, 0

    def failing(self: results.InOrder, start: int, values: np.ndarray) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise error
        kept(self, start, values)

    monkeypatch.setattr(results.InOrder, "_put", failing)
    expected = FileError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        model.normalized(adata, out=tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == []


FULL = """
import os, resource, sys, anndata, scvae
from scvae.cli.program import main
os.chdir(sys.argv[1])
model, cells = scvae.load("model"), anndata.read_h5ad("cells.h5ad")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
for ending in (".zarr", ".h5ad"):
    for ask in (model.normalized, model.embed):
        try:
            ask(cells, out="out" + ending)
        except scvae.FileError as error:
            print(error)
for more in ([], ["--memory", "0.0015"]):  # read into memory, and left on disk
    main(["embed", "model", "cells.h5ad", "-o", "out.h5ad", *more])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("limit", [100, 2_000])
def test_a_disk_that_is_full_is_told_in_a_line_and_nothing_is_left(
    fitted: tuple[AnnData, scvae.Model], limit: int, tmp_path: Path
) -> None:
    adata, model = fitted
    more = adata[np.arange(6_000) % adata.n_obs].copy()
    more.obs_names_make_unique()
    more.write_h5ad(tmp_path / "cells.h5ad")
    assert (tmp_path / "cells.h5ad").stat().st_size > 1_500_000  # larger than --memory
    model.save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path), str(limit)],
        env={**os.environ, "PYTHONPATH": str(Path(scvae.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = "cannot be written: File too large."
    assert done.stdout.splitlines() == [
        f"out{ending} {said} Nothing of it is left." for ending in 2 * [".zarr"] + 2 * [".h5ad"]
    ]
    told = [line for line in done.stderr.splitlines() if line.startswith("scvae: error")]
    assert told == 2 * [f"scvae: error: out.h5ad {said}"]
    assert "Traceback" not in done.stderr
    assert not [one.name for one in tmp_path.iterdir() if "out" in one.name]


WRITER = """
import sys, anndata, scvae
from scvae.models import fitted
fitted.CHUNK_VALUES = 40 * 5
model, folder = scvae.load(sys.argv[1] + "/model"), sys.argv[1]
cells = anndata.read_h5ad(folder + "/cells.h5ad")
while True:
    print("begin", flush=True)
    model.normalized(cells, out=folder + "/out" + sys.argv[2])
    import shutil, os
    path = folder + "/out" + sys.argv[2]
    shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_a_writer_that_is_killed_leaves_a_whole_file_or_none(
    fitted: tuple[AnnData, scvae.Model], ending: str, tmp_path: Path
) -> None:
    adata, model = fitted
    model.save(tmp_path / "model")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / f"out{ending}"
    writer = Python(WRITER, str(tmp_path), ending)
    writer.wait_for("begin")
    time.sleep(random.Random(ending).random() * 0.2)
    while not list(tmp_path.glob(".out*.part")):  # in the middle of a file
        assert writer.poll() is None
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    assert not out.exists() or read(out).shape == adata.shape
    results._remove(out)
    model.normalized(adata, out=out)
    np.testing.assert_array_equal(read(out).X, model.normalized(adata).to_numpy())
    assert not list(tmp_path.glob(".out*.part"))  # the next writer cleared it away


def test_what_another_thread_makes_anew_is_removed_too(tmp_path: Path) -> None:
    draft = tmp_path / ".a.zarr.part"
    ends = time.monotonic() + 0.2

    def go_on() -> None:
        while time.monotonic() < ends:
            (draft / "X").mkdir(parents=True, exist_ok=True)

    (draft / "X").mkdir(parents=True)
    other = Thread(target=go_on)
    other.start()
    results._remove(draft)
    other.join()
    assert not draft.exists()
