"""Where files are: opened only if they are files, and replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from scvae.errors import FileError

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
        what = OTHERS.get(stat.S_IFMT(mode), "something else")
        raise FileError(f"{path} is {what}, not a file. {remedy}")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there takes its place, or is gone on failure.

    Raises
    ------
    FileError
        If nothing can be written there.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(target)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
