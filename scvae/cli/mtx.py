"""Matrices in MatrixMarket's text, with tables of barcodes and genes beside them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae.cli.readers import genes_of
from scvae.errors import FileError

if TYPE_CHECKING:
    from anndata import AnnData


def is_mtx(path: Path) -> bool:
    try:
        with _opened(path) as file:
            return bool(file.read(14) == b"%%MatrixMarket")
    except OSError:  # no gzip file after all
        return False


def matrices_in(folder: Path) -> list[Path]:
    found = (*folder.glob("*matrix.mtx"), *folder.glob("*matrix.mtx.gz"))
    return sorted(found) or sorted((*folder.glob("*.mtx"), *folder.glob("*.mtx.gz")))


def _opened(path: Path) -> Any:
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_packed else path.open("rb")


def read_mtx(path: Path) -> AnnData:
    """Read a folder, or the matrix in one; the side with as many entries as barcodes is cells."""
    from scipy import io, sparse

    matrices = matrices_in(path) if path.is_dir() else [path]
    if len(matrices) > 1:
        some = ", ".join(file.name for file in matrices[:4])
        raise FileError(f"{path} holds {len(matrices)} matrices ({some}); give the path of one.")
    barcodes = _table(matrices[0], "barcodes", "cells", "obs")
    features = _table(matrices[0], "features", "genes", "var")
    with _opened(matrices[0]) as file:
        written = io.mmread(file)
    shape = (len(barcodes), len(features))
    x = sparse.csr_matrix(written if written.shape == shape != shape[::-1] else written.T)
    if x.shape != shape:
        raise FileError(
            f"{matrices[0]} has {x.shape[1]} x {x.shape[0]} entries, but there are "
            f"{len(features)} features and {len(barcodes)} barcodes beside it."
        )
    ids = [row[0] for row in features]
    names = [row[1] if len(row) > 1 else row[0] for row in features]
    kinds = [row[2] for row in features] if all(len(row) > 2 for row in features) else None
    return genes_of(x, [row[0] for row in barcodes], names, {"gene_ids": ids}, kinds)


def _table(matrix: Path, *names: str) -> list[list[str]]:
    """Return the rows of the table beside `matrix` with one of these names, and its prefix."""
    prefix = matrix.name.split("matrix.mtx")[0] if "matrix.mtx" in matrix.name else ""
    for name in names:
        for ending in (".tsv", ".tsv.gz", ".txt", ".txt.gz"):
            table = matrix.with_name(f"{prefix}{name}{ending}")
            if table.exists():
                with _opened(table) as file:
                    lines: list[str] = file.read().decode().splitlines()
                return [line.split("\t") for line in lines if line]
    raise FileError(
        f"{matrix} is a matrix without names: there is no {prefix}{names[0]}.tsv (or .tsv.gz) "
        "beside it."
    )
