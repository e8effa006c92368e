"""Files larger than memory: read from disk, and copied to the output with what was found."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae.cli.formats import kind_of
from scvae.errors import FileError
from scvae.io import replacing
from scvae.io.places import check_room, system_errors

if TYPE_CHECKING:
    import numpy as np

    from scvae.data.read.atlas import OnDisk

SHARE = 0.5  # of free memory that a file may take in memory; and counts of one that stays on disk


def add_memory(add: Any) -> None:
    add(
        "--memory",
        type=_memory,
        metavar="GB",
        help="what counts may take in memory; those of larger .h5ad files stay on disk (default: "
        "half of what is free)",
    )


def _memory(text: str) -> int:
    value = float(text)
    if not 0.001 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} GB is not between 0.001 and a million")
    return int(value * 1e9)


def cells_on_disk(path: Path, a: argparse.Namespace) -> OnDisk | None:
    """Return the cells of an h5ad file that memory does not hold, or None where it is another."""
    from scvae.data.hold.residence import free_memory
    from scvae.models.on_disk import on_disk

    memory = getattr(a, "memory", None) or int(SHARE * free_memory())
    if not path.is_file() or path.stat().st_size <= memory or kind_of(path) != "h5ad":
        return None
    return on_disk(path, memory=memory)


def copy_with(
    source: Path,
    target: Path,
    obsm: Mapping[str, np.ndarray],
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write an h5ad file that is a copy of `source` with more in it, whole or not at all."""
    import h5py
    from anndata.io import write_elem

    free, needed = shutil.disk_usage(target.resolve().parent).free, source.stat().st_size
    if needed > free:
        raise FileError(
            f"{target} cannot be written: it takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} "
            "GB are free. Give a path on another disk: -o PATH"
        )
    with replacing(target) as draft:
        shutil.copyfile(source, draft)
        check_room(draft, sum(value.nbytes for value in obsm.values()))
        with system_errors(), h5py.File(draft, "r+") as file:
            for group, items in (("obsm", obsm), ("uns", uns or {})):
                for name, value in items.items():
                    if group not in file:
                        write_elem(file, group, {})
                    write_elem(file[group], name, value)
