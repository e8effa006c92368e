"""What a command reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from scvae.errors import FileError

if TYPE_CHECKING:
    from anndata import AnnData


def read(path: Path) -> AnnData:
    """Read a whole h5ad file."""
    check_input(path)
    from anndata import read_h5ad

    try:
        return read_h5ad(path)
    except MemoryError as error:
        raise FileError(f"{path} needs more memory than there is. {error}") from error
    except Exception as error:  # a damaged file can make h5py and anndata raise anything
        raise FileError(f"{path} cannot be read as an h5ad file: {error}") from error


def check_input(path: Path) -> None:
    if not path.exists():
        raise FileError(f"{path} is not there.")
    if not path.is_file():
        raise FileError(f"{path} is not a file.")
    if not os.access(path, os.R_OK):
        raise FileError(f"{path} cannot be read: permission denied.")
