"""Which kind of file of cells it is, by what is in it: its name may say anything."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scvae.cli.mtx import is_mtx, matrices_in, read_mtx
from scvae.cli.readers import (
    is_genome,
    read_10x_v2,
    read_10x_v3,
    read_h5ad,
    read_loom,
    read_modality,
    read_zarr,
)
from scvae.data.read.paths import OF_R, OWN, TEXT, collection, mtx_reader, of_r, text_reader
from scvae.errors import FileError
from scvae.io.files import FOREIGN

if TYPE_CHECKING:
    from anndata import AnnData

NAMES_BESIDE = re.compile(r"(?:.*[._-])?(?:barcodes|features|genes|cells|rows|cols)\.")
SHOWN = 5  # places of cells below a folder
READ = (
    ".h5ad, .h5 of Cell Ranger, .zarr, .loom, .h5mu (with --modality), and folders with "
    "matrix.mtx, barcodes.tsv and features.tsv or genes.tsv, or those of alevin-fry, "
    "kallisto-bustools and Parse"
)

READERS = {
    "zarr": "anndata.read_zarr",
    "loom": "anndata.io.read_loom",
    "10x v3": "scanpy.read_10x_h5",
    "10x v2": "scanpy.read_10x_h5",
    "h5mu": "mudata.read_h5mu",
}


def kind_of(path: Path) -> str:
    """Return which kind of file or folder `path` is, by its content.

    Raises
    ------
    FileError
        If it is none that holds cells; says what it looks like.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    import h5py

    if h5py.is_hdf5(path):  # also behind a block of a format's own
        return _kind_of_hdf5(path)
    if is_mtx(path):
        return "mtx"
    with path.open("rb") as file:
        start = file.read(32)
    if (advice := _advice(path)) is not None:
        raise FileError(f"{path} cannot be read as cells: {advice}")
    what = next((what for magic, what in FOREIGN.items() if start.startswith(magic)), None)
    what = what or ("empty" if not start else "none of these")
    raise FileError(f"{path} cannot be read as cells: it is {what}. What is read: {READ}.")


def _advice(path: Path) -> str | None:
    """Return what makes a file of cells of tables of text and of files of R."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(TEXT):
        if NAMES_BESIDE.match(name) and matrices_in(path.parent):
            return f"it holds names beside a matrix. Give the folder: {path.parent}"
        return (
            f"it is a table of text. In Python, {text_reader(str(path))}.write_h5ad('cells.h5ad') "
            "makes a file of cells of it; with .T before .write_h5ad if its rows are genes."
        )
    if name.endswith(OF_R):
        return f"it is a file of R. In R, {of_r(str(path))} makes a file of cells of it."
    return None


def reader_in_python(path: Path) -> str:
    """Return the function that reads the file in Python, for a remedy."""
    try:
        kind = kind_of(path)
        return (
            (mtx_reader(path) or OWN) if kind == "mtx" else READERS.get(kind, "anndata.read_h5ad")
        )
    except (FileError, OSError):
        return "anndata.read_h5ad"


def _kind_of_folder(path: Path) -> str:
    if collection(path):
        raise FileError(
            f"{path} is a collection of annbatch, several stores that Python reads as one: "
            f"model = scvae.fit('{path}'), model.embed('{path}', out='embedding.h5ad')"
        )
    if any((path / name).exists() for name in (".zgroup", "zarr.json", ".zattrs")):
        return "zarr"
    if matrices_in(path):
        return "mtx"
    below = [place.relative_to(path) for place in _cells_below(path)]
    if below:
        some = ", ".join(map(str, below[:SHOWN])) + (", ..." if len(below) > SHOWN else "")
        raise FileError(f"{path} holds cells further below: {some}. Give the path of one of them.")
    raise FileError(f"{path} is a folder without cells in it. What is read: {READ}.")


def _cells_below(path: Path) -> list[Path]:
    """Return the folders with matrices and the files with cells, at most three folders deep."""
    found: set[Path] = set()
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        found |= {place.parent for place in path.glob(f"{depth}*.mtx*")}
        found |= {*path.glob(f"{depth}*.h5ad"), *path.glob(f"{depth}*matrix.h5")}
    return sorted(found)


def _kind_of_hdf5(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        names = set(file)
        if "matrix" in names:
            return "10x v3" if isinstance(file["matrix"], h5py.Group) else "loom"
        if "mod" in names:
            return "h5mu"
        if {"obs", "var"} & names:
            return "h5ad"
        if any(is_genome(file[name]) for name in names):
            return "10x v2"
    raise FileError(
        f"{path} is an HDF5 file without cells in it: it holds {sorted(names)[:9]}. "
        f"What is read: {READ}."
    )


def read_cells(path: Path, kind: str, modality: str | None) -> AnnData:
    """Return the cells of a file of this kind."""
    readers: dict[str, Callable[[Path], AnnData]] = {
        "h5ad": read_h5ad,
        "zarr": read_zarr,
        "10x v3": read_10x_v3,
        "10x v2": read_10x_v2,
        "loom": read_loom,
        "mtx": read_mtx,
        "h5mu": lambda at: read_modality(at, modality),
    }
    if modality is not None and kind != "h5mu":
        raise FileError(f"{path} holds no modalities; leave --modality out.")
    return readers[kind](path)
