"""What a command writes: found out before the work is done, and whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from scvae.cli.console import say
from scvae.cli.formats import kind_of
from scvae.errors import ConfigError, FileError
from scvae.io import check_writable, in_the_way, replacing
from scvae.io.places import check_room, system_errors

if TYPE_CHECKING:
    from anndata import AnnData

OTHER_FORMATS = (".zarr", ".loom", ".h5mu", ".csv", ".rds")


# -- before the work ---------------------------------------------------------------------------


def check_outputs(paths: Sequence[Path], kept: Sequence[Path]) -> None:
    """Raise before the work if its results could not be written, or would replace one of `kept`."""
    for i, path in enumerate(paths):
        folder = path.resolve().parent
        if path.is_dir():
            raise FileError(f"{path} is a folder; give the name of a file to write.")
        if not path.exists() and not folder.is_dir():
            raise FileError(f"{path} cannot be written: there is no folder {folder}.")
        for other in (*paths[:i], *kept):
            if same(path, other):
                raise ConfigError(f"{path} is given twice; give every file a name of its own.")
        check_writable(path)


def same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def is_h5mu(path: Path) -> bool:
    """Return whether a file is to hold several modalities, by its name."""
    return path.suffix.lower() == ".h5mu"


def check_cells(path: Path, source: Path) -> None:
    """Raise if `path` is a file that cells of `source` had better not replace."""
    if not (is_h5mu(path) and is_h5mu(source)):
        check_h5ad(path)
    elif path.is_file() and path.stat().st_size and (kind := _kind(path)) != "h5mu":
        raise FileError(
            f"{path} is there and is no h5mu file, but {kind}. Give another name, or add "
            "--overwrite."
        )


def check_h5ad(path: Path) -> None:
    """Raise if `path` is a file that an h5ad file had better not replace, or is named otherwise."""
    if path.suffix.lower() in OTHER_FORMATS:
        raise ConfigError(f"{path} would be an h5ad file: -o {path.with_suffix('.h5ad')}")
    if path.is_file() and path.stat().st_size and (kind := _kind(path)) != "h5ad":
        raise FileError(
            f"{path} is there and is no h5ad file, but {kind}. Give another name, or add "
            "--overwrite."
        )


def _kind(path: Path) -> str:
    if in_the_way(path) is None:
        return "a model of scvae"
    try:
        return kind_of(path)
    except (FileError, OSError):
        return "something else"


def check_model(path: Path) -> None:
    """Raise if `path` is a file that a model had better not replace."""
    if (what := in_the_way(path)) is not None:
        raise FileError(
            f"{path} is there and is no model of scvae: {what}. Give --model another name, or add "
            "--overwrite."
        )


def check_space(adata: AnnData, path: Path) -> None:
    """Raise if the disk of `path` has too little room for the matrices alone."""
    needed = _needed(adata)
    free = shutil.disk_usage(path.resolve().parent).free
    if needed > free and (path.is_file() or not path.exists()):
        raise FileError(
            f"{path} cannot be written: it takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB "
            "are free. Give a path on another disk: -o PATH"
        )


def _needed(adata: AnnData) -> int:
    """Return what the matrices of all cells take in a file."""
    parts = getattr(adata, "mod", {"": adata}).values()
    held = [m for part in parts for m in (part.X, *part.layers.values(), *part.obsm.values())]
    return sum(map(_nbytes, held))


def _nbytes(matrix: Any) -> int:
    """Return what a matrix takes in an h5ad file, which is not compressed."""
    if not hasattr(matrix, "indptr"):
        return int(getattr(matrix, "nbytes", 0))
    return sum(int(part.nbytes) for part in (matrix.data, matrix.indices, matrix.indptr))


# -- after it ----------------------------------------------------------------------------------


def write(adata: AnnData, path: Path) -> None:
    """Write h5ad or h5mu, whole or not at all; `path` may be where `adata` was read from."""
    with replacing(path) as draft, _every_string():
        check_room(draft, _needed(adata))
        try:
            with system_errors():
                (adata.write_h5mu if hasattr(adata, "mod") else adata.write_h5ad)(draft)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # what anndata raises depends on what the slot holds
            raise FileError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def _every_string() -> Iterator[None]:
    """Let anndata write the strings of pandas 3 as it read them, which is an option of it."""
    from anndata import settings

    name = "allow_write_nullable_strings"
    known = hasattr(settings, name)
    with settings.override(**{name: True}) if known else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def rescued(adata: AnnData, key: str, path: Path) -> Iterator[None]:
    """Where what follows the work fails, save its result: the embedding, and the cells' names."""
    try:
        yield
    except BaseException:
        beside = [] if path.exists() and not path.is_file() else [path.resolve().parent]
        for folder in dict.fromkeys((*beside, Path.cwd(), Path(gettempdir()))):
            with contextlib.suppress(OSError):
                _save_array(adata, key, folder / f"{path.stem}.{key}.npy")
                break
        raise


def _save_array(adata: AnnData, key: str, path: Path) -> None:
    import numpy as np

    names = path.with_suffix(".txt")
    with replacing(path) as draft, draft.open("wb") as file:
        np.save(file, adata.obsm[key], allow_pickle=False)
    with replacing(names) as draft:
        draft.write_text("\n".join(map(str, adata.obs_names)) + "\n", encoding="utf-8")
    say(f"the embedding was saved: {path} (float32, a row a cell), and the names: {names}")
