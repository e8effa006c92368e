"""scvae.on_disk: cells in files, for every verb that takes an AnnData."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scvae.arguments import check_choice, is_number, refuse, shown
from scvae.data.hold.residence import SHARE, free_memory
from scvae.data.read.atlas import JOINS, Join, OnDisk
from scvae.data.read.forms import check_anndata
from scvae.data.read.paths import ADDRESS, collection, is_store, mtx_reader
from scvae.data.read.stored import Stored
from scvae.errors import ConfigError, FileError
from scvae.keywords import named

PathLike = str | os.PathLike[str]
ENDINGS = (".h5ad", ".zarr")
LEAST_MEMORY = 2**20


@named("scvae.on_disk")
def on_disk(
    paths: PathLike | Sequence[PathLike], *, memory: float = SHARE, join: Join = "inner"
) -> OnDisk:
    """Open cells in files, of which memory need not hold more than a part.

    `scvae.fit`, `scvae.check`, and the methods of a model take what is returned in place of an
    AnnData, or `paths` themselves. The files stay as they are. Counts are read in blocks, the next
    on another thread; training takes blocks from all over the files in a random order, and their
    cells in a random order (see `scvae.data.hold.shards`). Where the counts fit into `memory`, they
    are read into it instead.

    Parameters
    ----------
    paths
        An h5ad file, a zarr store, a folder of such, a collection that annbatch wrote, or a list of
        them: their cells follow one another. Counts lie in them as CSR of any number type; genes
        are joined by name, and so are categories of columns of obs. The column "file" of obs tells
        from which file a cell came.
    memory
        What counts may take in memory: bytes, or a share of the memory that is free, below 1.
    join
        "inner" takes the genes that all files have, "outer" those that any has, as zero elsewhere.

    Raises
    ------
    FileError
        If a file is missing, damaged, locked, or none of these.
    DataError
        If genes of several files have no name in common, or a matrix cannot be read by rows.

    Examples
    --------
    >>> import scvae
    >>> from tempfile import mkdtemp
    >>> path = mkdtemp() + "/atlas.h5ad"
    >>> scvae.simulate(n_cells=200, n_genes=50).write_h5ad(path)
    >>> model = scvae.fit(path, batch="batch", max_steps=20, progress=False)
    >>> model.embed(scvae.on_disk(path, memory=500_000_000)).shape
    (200, 30)
    """
    join = check_choice("join", join, JOINS)
    most = _bytes(memory)
    return OnDisk([Stored(path) for path in _listed(paths)], most, join)


def opened(data: Any) -> Any:
    """Return cells in files where `data` is the path of some; anything else as it is.

    What is no path and no AnnData is refused by the verb that it was given to."""
    return on_disk(data) if is_paths(data) else data


def is_paths(data: Any) -> bool:
    """Return whether `data` is a path, or a list of some."""
    several = data if isinstance(data, list | tuple) else [data]
    return bool(several) and all(isinstance(path, str | os.PathLike) and path for path in several)


def _bytes(memory: float) -> int:
    """Return bytes of memory, given them, or a share of those that are free."""
    if is_number(memory) and 0 < memory < 1:
        return int(memory * free_memory())
    if not is_number(memory) or not LEAST_MEMORY <= memory < float("inf"):
        what = "a number of bytes, a million or more, or a share below 1 of what is free"
        raise refuse("memory", memory, what, SHARE)
    return int(memory)


def _listed(paths: Any) -> list[Path]:
    """Return the files of a path, a folder or a list of them."""
    if isinstance(paths, bytes) or not isinstance(paths, str | os.PathLike | Iterable):
        raise ConfigError(
            f"paths={shown(paths)}, but it must be a path, or a list of them: "
            "scvae.on_disk('atlas.h5ad')"
        )
    if not isinstance(paths, str | os.PathLike):
        found = [file for path in paths for file in _listed(path)]
        repeated = {file for file in found if found.count(file) > 1}
        if repeated or not found:
            what = f"{min(repeated)} twice" if repeated else "no file"
            raise ConfigError(f"paths holds {what}; give every file once.")
        return found
    if ADDRESS.match(os.fspath(paths)):
        check_anndata(paths)
    path = Path(paths)
    if not path.exists():
        check_ending(path)
        raise FileError(f"{path} is not there.")
    if collected := collection(path):
        return collected
    if not path.is_dir() or is_store(path):
        check_ending(path)
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
    if not files and mtx_reader(path) is not None:
        check_anndata(str(path))
    if not files:
        raise FileError(f"{path} is a folder without a file that ends in .h5ad or .zarr.")
    return files


def check_ending(path: Path) -> None:
    """Raise unless the name is one of a file of AnnData; says what reads the others."""
    if path.suffix.lower() not in ENDINGS and not is_store(path):
        check_anndata(str(path))
