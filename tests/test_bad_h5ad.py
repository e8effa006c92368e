"""Broken and hostile h5ad files: one line that says what is wrong, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from anndata import AnnData
from packaging.version import Version
from scipy import sparse

import scvae
from scvae import DataError, cli
from scvae.data.read.structure import check_structure

Change = Callable[[h5py.File], Any]
TEXT = h5py.string_dtype()
N, G = 60, 12
IS_OLD = Version(version("anndata")) < Version("0.12")  # which reads text, and we refuse it
TEXT_IS = "holds |S1 values" if IS_OLD else "cannot be read as h5ad"


@pytest.fixture(scope="module")
def cells() -> AnnData:
    adata = scvae.simulate(N, G, seed=0)
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    return adata


@pytest.fixture(scope="module")
def model(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.scvae"
    scvae.fit(cells.copy(), batch="batch", max_steps=3, n_latent=2, progress=False).save(path)
    return path


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("training was begun")

    monkeypatch.setattr("scvae.models.fit.train_plan", refuse)


# -- changes ---------------------------------------------------------------------------------------


def dense(values: Any, **how: Any) -> Change:
    """Replace X."""

    def change(file: h5py.File) -> None:
        del file["X"]
        made = file.create_dataset("X", **(how or {"data": values}))
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    return change


def part(name: str, of: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Replace an array of the sparse X."""

    def change(file: h5py.File) -> None:
        values = of(file["X"][name][()])
        del file["X"][name]
        file["X"][name] = values

    return change


def put(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def of(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[place] = value
        return values

    return of


def attribute(place: str, name: str, value: Any) -> Change:
    return lambda file: file[place].attrs.__setitem__(name, value)


def column(place: str, data: Any, **how: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[place]
        file.create_dataset(place, data=data, **how)

    return change


def lost(place: str) -> Change:
    return lambda file: file.__delitem__(place)


def letters(n: int) -> dict[str, Any]:
    return {"data": np.array([b"a"] * n, dtype=object), "dtype": TEXT}


BAD: dict[str, tuple[Change, str]] = {
    "X of text": (dense(None, data=np.full((N, G), "a", dtype=object), dtype=TEXT), "holds object"),
    "X of complex numbers": (dense(np.ones((N, G), complex)), "holds complex128 values"),
    "X of records": (dense(np.zeros((N, G), [("a", "f4"), ("b", "i4")])), "holds [('a'"),
    "X of three dimensions": (dense(np.ones((N, G, 2))), "cannot be read as h5ad"),
    "X of one dimension": (dense(np.ones(N)), "cannot be read as h5ad"),
    "X too short": (dense(np.ones((N - 10, G))), "cannot be read as h5ad"),
    "X of petabytes": (
        dense(None, shape=(N, 2**50), dtype="f4", chunks=(1, 1024)),
        "bad.h5ad needs more memory than there is",
    ),
    "X lost": (lost("X"), "adata.X is empty"),
    "X a link to itself": (
        lambda file: (lost("X")(file), file.__setitem__("X", h5py.SoftLink("/X"))),
        "cannot be read as h5ad",
    ),
    "negative": (dense(-np.ones((N, G))), "negative values"),
    "index beyond the genes": (part("indices", put(5, 10**6)), "an index is not between 0 and 11"),
    "index just beyond": (part("indices", put(5, G)), "an index is not between 0 and 11"),
    "index below zero": (part("indices", put(5, -1)), "an index is not between 0 and 11"),
    "indices of fractions": (part("indices", lambda i: i.astype(float)), "not whole numbers"),
    "indices in two dimensions": (part("indices", lambda i: i[None]), "one-dimensional"),
    "indptr beyond the values": (part("indptr", put(-1, 10**7)), "indptr does not rise"),
    "indptr falls": (part("indptr", put(3, 10**6)), "indptr does not rise"),
    "indptr below zero": (part("indptr", put(3, -5)), "indptr does not rise"),
    "indptr not from zero": (part("indptr", put(0, 4)), "indptr does not rise"),
    "indptr too short": (part("indptr", lambda p: p[:-5]), "60 rows need 61 entries of indptr"),
    "fewer values than indices": (part("data", lambda d: d[:-5]), "values, but"),
    "values of text": (part("data", lambda d: np.full(len(d), b"x")), TEXT_IS),
    "rows taken for columns": (
        attribute("X", "encoding-type", "csc_matrix"),
        "12 columns need 13 entries of indptr",
    ),
    "negative shape": (attribute("X", "shape", np.array([-N, G])), "cannot be read as h5ad"),
    "huge shape": (attribute("X", "shape", np.array([2**45, 2**45])), "more memory than there is"),
    "unknown encoding": (attribute("X", "encoding-type", "tensor"), "cannot be read as h5ad"),
    "data lost": (lost("X/data"), "cannot be read as h5ad"),
    "obs lost": (lost("obs"), "cannot be read as h5ad"),
    "obs shorter than X": (column("obs/_index", **letters(N - 10)), "cannot be read as h5ad"),
    "column too short": (column("obs/library_size", np.ones(N - 10)), "cannot be read as h5ad"),
    "unknown category": (
        column("obs/batch/codes", np.full(N, 7, np.int8)),
        "cannot be read as h5ad",
    ),
    "no category": (
        column("obs/batch/codes", np.full(N, -1, np.int8)),
        "is missing for 60 of 60 cells",
    ),
    "genes alike": (column("var/_index", **letters(G)), "11 duplicated genes"),
    "names that are no text": (
        column("var/_index", np.array([b"\xff%d" % i for i in range(G)], dtype=object), dtype=TEXT),
        "cannot be read as h5ad",
    ),
    "a circle": (
        lambda file: file["uns"].__setitem__("loop", h5py.SoftLink("/")),
        "cannot be read as h5ad",
    ),
}


@pytest.mark.parametrize("command", ["fit", "embed"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_and_leaves_nothing(
    command: str,
    kind: str,
    cells: AnnData,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    cells.write_h5ad("bad.h5ad")
    change, reason = BAD[kind]
    with h5py.File("bad.h5ad", "r+") as file:
        change(file)
    before = Path("bad.h5ad").read_bytes()
    line = ["fit", "bad.h5ad", "--batch", "batch", "--model", "new.scvae"]
    if command == "embed":
        line = ["embed", str(model), "bad.h5ad"]
    assert cli.main([*line, "-o", "out.h5ad"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("scvae: error: ")
    assert told.err.count("\n") == 1
    assert reason in told.err
    assert told.out == ""
    assert os.listdir() == ["bad.h5ad"]
    assert Path("bad.h5ad").read_bytes() == before


def test_a_good_file_would_have_been_trained_on(cells: AnnData, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "good.h5ad")
    with pytest.raises(AssertionError, match="training was begun"):
        cli.main(["fit", str(tmp_path / "good.h5ad"), "-o", str(tmp_path / "out.h5ad")])


# -- the structure of a matrix ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (30, 7)])
def test_whatever_scipy_makes_is_sound(kind: Any, shape: tuple[int, int]) -> None:
    dense = np.random.default_rng(0).poisson(0.5, shape)
    for dtype in (np.int32, np.float32, np.uint8, bool):
        check_structure(kind(dense.astype(dtype)))
        check_structure(dense.astype(dtype))
    wide = kind(dense)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    check_structure(wide)
    check_structure(wide.tocoo())


def test_looking_changes_nothing() -> None:
    matrix = sparse.csr_matrix(np.array([[0.0, 1], [2, 0]]))
    matrix.data = np.append(matrix.data, 9.0)  # room that is not in use
    matrix.indices = np.append(matrix.indices, 99)
    check_structure(matrix)
    assert (len(matrix.data), len(matrix.indices)) == (3, 3)


def test_a_layer_of_text_is_no_place_of_counts(cells: AnnData) -> None:
    adata = cells.copy()
    adata.X = np.log1p(adata.X.toarray())
    adata.layers["notes"] = np.full(adata.shape, "a", dtype=object)
    with pytest.raises(DataError, match=r"adata\.X has non-integer values"):
        scvae.fit(adata)
    with pytest.raises(DataError, match="holds object values"):
        scvae.fit(adata, layer="notes")
