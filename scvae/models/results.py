"""Results of all cells, returned or written to a file as they come, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from scvae.arguments import check_choice
from scvae.data.read.atlas import OnDisk
from scvae.errors import ConfigError, FileError
from scvae.io.places import system_errors
from scvae.models.progress import counted

Precision = Literal["float32", "float16"]
DTYPES: tuple[Precision, ...] = ("float32", "float16")
LARGEST = {"float32": 3.4e38, "float16": 65_504.0}  # library size: no value is larger
CHUNK = 2**22  # bytes of a chunk of a zarr array, about
SLOT = "X_scvae"
REMOVALS = 20  # tries, at most


def is_path(out: Any) -> bool:
    """Return whether results go to a file that is to be made."""
    return isinstance(out, str | os.PathLike)


def check_dtype(dtype: Precision, largest: float) -> Precision:
    """Return the type of numbers up to `largest`, if it holds them."""
    dtype = check_choice("dtype", dtype, DTYPES)
    if largest > LARGEST[dtype]:
        raise ConfigError(
            f"library_size={largest:g}, but {dtype} holds numbers up to {LARGEST[dtype]:g}: "
            "library_size=1e4, or dtype='float32'"
        )
    return dtype


# -- files -------------------------------------------------------------------------------------


class InOrder:
    """An array in a file that is filled in the order of its rows, a chunk at a time.

    Chunks are packed and written on a thread of their own, one while the next is computed."""

    def __init__(self, array: Any, rows: int, tell: Callable[[int], None]) -> None:
        self.array, self.rows, self.tell = array, rows, tell
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.waiting: list[np.ndarray] = []
        self.begun = 0
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="scvae-write")
        self.writing: Future[None] | None = None

    def __enter__(self) -> InOrder:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Write what waits, unless an error leaves the array as it is."""
        try:
            if error is None:
                self._write(self.given)
                self._wait()
        finally:
            self.thread.shutdown(cancel_futures=True)

    @property
    def given(self) -> int:
        """Rows that were given so far."""
        return self.begun + sum(map(len, self.waiting))

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        """Take the next rows."""
        self.waiting.append(values.astype(self.dtype, copy=False))
        self.tell(len(values))
        self._write(self.given // self.rows * self.rows)

    def _write(self, end: int) -> None:
        """Begin to write the rows that wait, up to `end`, once those before are written."""
        if end == self.begun:
            return
        self._wait()
        values, n = np.concatenate(self.waiting), end - self.begun
        self.writing = self.thread.submit(self._put, self.begun, values[:n])
        self.begun, self.waiting = end, [values[n:]]

    def _put(self, start: int, values: np.ndarray) -> None:
        self.array[start : start + len(values)] = values

    def _wait(self) -> None:
        """Wait for what is being written; raise what it raised."""
        if self.writing is not None:
            self.writing.result()


@contextlib.contextmanager
def written(
    path: str | os.PathLike[str],
    slot: str,
    shape: tuple[int, int],
    dtype: str,
    cells: Any,
    var: pd.DataFrame | None,
) -> Iterator[InOrder]:
    """Yield an array to fill, in a new file that AnnData reads; it takes its name once it is whole.

    Parameters
    ----------
    path
        A new .zarr or .h5ad.
    slot
        "X", or "obsm/" and a name.
    cells
        Whose names and columns are written to obs.
    var
        Of X; None has none.

    Raises
    ------
    FileError
        If it cannot be written; nothing of it is then left.
    """
    target = checked(path)
    with placed(target) as draft, _root(draft) as root:
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        array = _array(root, slot, shape, dtype)
        rows = max(1, CHUNK // max(1, shape[1] * array.dtype.itemsize))
        with (
            counted(shape[0], target.name, "cell") as tell,
            InOrder(array, rows, tell) as filling,
        ):
            yield filling
        _write_tables(root, cells, var)


def checked(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file of results that can be made."""
    target = Path(path)
    if target.suffix not in (".zarr", ".h5ad"):
        raise ConfigError(
            f"out={str(path)!r} must end in .zarr or .h5ad, by which AnnData reads it: "
            f"out={str(target.with_suffix('.zarr') if target.name else 'denoised.zarr')!r}"
        )
    if target.suffix == ".zarr" and not _has_zarr():
        raise ConfigError(
            f"out={str(path)!r} needs the package zarr, which is not installed: pip install zarr, "
            f"or out={str(target.with_suffix('.h5ad'))!r}"
        )
    if os.path.lexists(target):
        raise FileError(f"{target} is there already. Remove it, or give another name.")
    if not target.resolve().parent.is_dir():
        raise FileError(f"{target} cannot be written: there is no folder {target.parent}.")
    return target


def _has_zarr() -> bool:
    try:
        import zarr  # noqa: F401, since anndata 0.12 it comes with anndata
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def placed(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`; what is written there takes its name, or is gone on failure.

    What a process that was killed left there is removed by the next one that writes the same."""
    _sweep(target)
    draft = target.with_name(f".{target.name}.{_host()}.{os.getpid()}.part")
    try:
        yield draft
        draft.rename(target)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        why = error.strerror or error
        raise FileError(f"{target} cannot be written: {why}. Nothing of it is left.") from error
    finally:
        _remove(draft)


def _host() -> str:
    return re.sub(r"\W", "-", platform.node()) or "here"


def _sweep(target: Path) -> None:
    """Remove what processes of this machine that are gone left of the same file."""
    for part in target.parent.glob(f".{target.name}.{_host()}.*.part"):
        number = part.name.split(".")[-2]
        if number.isdigit() and not _is_running(int(number)):
            _remove(part)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    """Remove a file or a folder. A thread of zarr may go on with what it was told to write before
    this one was interrupted, and make folders anew: so it is looked at again for a second."""
    for _ in range(REMOVALS):
        if not os.path.lexists(path):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink()
        time.sleep(1 / REMOVALS)


@contextlib.contextmanager
def _root(path: Path) -> Iterator[Any]:
    """Yield the root group of a new file."""
    if ".zarr." in path.name:
        import zarr

        yield zarr.open_group(str(path), mode="w")
        return
    import h5py

    try:
        with system_errors(), h5py.File(path, "w") as file:
            yield file
    except RuntimeError as error:  # HDF5 cannot close the file, and does not say why
        raise OSError(str(error)) from error


def _array(root: Any, slot: str, shape: tuple[int, int], dtype: str) -> Any:
    """Return a new array in a group, as AnnData writes one."""
    *folder, name = slot.split("/")
    group = root
    for part in folder:
        group = group.create_group(part)
        group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    options: dict[str, Any] = {"shape": shape, "dtype": dtype}
    if hasattr(root, "create_array"):  # zarr
        rows = max(1, min(shape[0], CHUNK // max(1, shape[1] * np.dtype(dtype).itemsize)))
        array = group.create_array(name, chunks=(rows, max(1, shape[1])), **options)
    else:
        array = group.create_dataset(name, **options)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _write_tables(root: Any, cells: Any, var: pd.DataFrame | None) -> None:
    from anndata.io import write_elem

    names = cells.names() if isinstance(cells, OnDisk) else cells.obs_names
    plain = [
        name
        for name, column in cells.obs.items()
        if isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "biuf"
    ]
    obs = cells.obs[plain].set_axis(pd.Index(names, dtype=object), axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what anndata will do by default one day
        write_elem(root, "obs", obs)
        write_elem(root, "var", pd.DataFrame(index=pd.Index([])) if var is None else var)
