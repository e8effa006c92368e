"""What a command writes: found out before the work is done, and whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvae.errors import ConfigError, FileError

if TYPE_CHECKING:
    from anndata import AnnData


def write(adata: AnnData, path: Path) -> None:
    """Write an h5ad file, whole or not at all; `path` may be where `adata` was read from."""
    from scvae.io import replacing

    with replacing(path) as draft:
        try:
            adata.write_h5ad(draft)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # what anndata raises depends on what the slot holds
            raise FileError(f"{path} cannot be written: {error}") from error


def check_outputs(paths: Sequence[Path], kept: Sequence[Path]) -> None:
    """Raise before the work if its results could not be written, or would replace one of `kept`."""
    for i, path in enumerate(paths):
        folder = path.resolve().parent
        if not folder.is_dir():
            raise FileError(f"{path} cannot be written: there is no folder {folder}.")
        if path.is_dir():
            raise FileError(f"{path} is a folder; give the name of a file to write.")
        if not os.access(folder, os.W_OK):
            raise FileError(f"{path} cannot be written: permission denied in {folder}.")
        for other in (*paths[:i], *kept):
            if same(path, other):
                raise ConfigError(f"{path} is given twice; give every file a name of its own.")


def same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
