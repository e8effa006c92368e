"""Where files are: opened only if they are files, and replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from scvae.errors import FileError

SLACK = 2**16  # bytes that HDF5 takes for its own, at least
OTHERS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextlib.contextmanager
def opened(path: Path, remedy: str) -> Iterator[BufferedReader]:
    """Yield a regular file, open for reading.

    A pipe would wait for ever and a device may never end, so neither is opened.

    Raises
    ------
    FileError
        If it is missing, something else than a file, or cannot be read.
    """
    try:
        _check_regular(path, os.stat(path).st_mode, remedy)
        with open(path, "rb", opener=_without_waiting) as file:
            _check_regular(path, os.fstat(file.fileno()).st_mode, remedy)  # it may have changed
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileError(f"{path} is not there. {remedy}") from error
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_regular(path: Path, mode: int, remedy: str) -> None:
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is {_what(mode)}, not a file. {remedy}")


def _what(mode: int) -> str:
    return OTHERS.get(stat.S_IFMT(mode), "something else")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there takes its place, or is gone on failure.

    A file keeps its permissions. A pipe or a device stays what it is and is written into.

    Raises
    ------
    FileError
        If nothing can be written there.
    """
    try:
        mode = _mode(path)
        if mode is not None and is_stream(mode):
            with tempfile.TemporaryDirectory(prefix="scvae-") as folder:
                yield (draft := Path(folder) / "draft")
                with draft.open("rb") as source, open(path, "wb", buffering=0) as stream:
                    shutil.copyfileobj(source, stream)
            return
        if mode is not None and not stat.S_ISREG(mode):
            raise FileError(f"{path} cannot be written: it is {_what(mode)}.")
        target = Path(os.path.realpath(path))  # a link stays a link
        with _removed(target.with_name(f".{target.name}.{os.getpid()}.part")) as draft:
            yield draft
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            if mode is not None:
                draft.chmod(stat.S_IMODE(mode))
            draft.replace(target)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise what the system refused HDF5, such as room on a disk that is full, as the system's own
    error: HDF5 tells its number amid a page of others."""
    try:
        yield
    except FileError:
        raise
    except (OSError, RuntimeError) as error:
        found = re.search(r"errno = (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def check_room(path: Path, nbytes: int) -> None:
    """Raise OSError where a file, which is made if it is not there, cannot grow by so many bytes:
    the disk is full, or a quota or limit at its end. HDF5 may crash where it finds that out itself,
    and then nothing is told and nothing removed."""
    with path.open("ab") as file:
        end = file.tell()
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), end, nbytes + SLACK)
        file.truncate(end)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise FileError, before the work, where `replacing` could not write its results."""
    with contextlib.suppress(_Tried), replacing(path) as draft:
        draft.write_bytes(b"")
        raise _Tried


class _Tried(Exception):
    """It could be written; nothing is to take its place."""


def _mode(path: str | os.PathLike[str]) -> int | None:
    """Return what is at `path` and its permissions, or None if nothing is."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def is_stream(mode: int) -> bool:
    """Return whether something is written into, and never replaced: a pipe or a device."""
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


@contextlib.contextmanager
def _removed(draft: Path) -> Iterator[Path]:
    try:
        yield draft
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
