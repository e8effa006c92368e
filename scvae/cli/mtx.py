"""Matrices in MatrixMarket's text, with tables of cells and genes beside them, as Cell Ranger,
STARsolo, alevin-fry, kallisto-bustools and Parse's pipeline name them."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae.cli.readers import genes_of
from scvae.errors import FileError

if TYPE_CHECKING:
    from anndata import AnnData

# Names of the tables: what is before "matrix" in that of the matrix, or all of it, goes before.
CELLS = ("{0}barcodes", "{0}cells", "{0}obs", "{1}_rows", "{1}.barcodes", "cell_metadata")
FEATURES = ("{0}features", "{0}genes", "{0}var", "{1}_cols", "{1}.genes", "all_genes")
BY_CELLS = ("quants_mat", "cells_x_genes", "DGE", "count_matrix")  # have cells in their rows
ENDINGS = (".tsv", ".tsv.gz", ".txt", ".txt.gz", ".csv", ".csv.gz")


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


@dataclass(frozen=True)
class Table:
    """Rows of text, and the names of the columns if the first line holds them."""

    rows: list[list[str]]
    names: list[str]

    def column(self, name: str, place: int) -> list[str] | None:
        """Return the column of a name, or where no name is known, the one at a place."""
        place = self.names.index(name) if name in self.names else -1 if self.names else place
        if place < 0 or any(len(row) <= place for row in self.rows):
            return None
        return [row[place] for row in self.rows]


def read_mtx(path: Path) -> AnnData:
    """Read a folder, or the matrix in one; the side with as many entries as barcodes is cells."""
    from scipy import io, sparse

    matrices = matrices_in(path) if path.is_dir() else [path]
    if len(matrices) > 1:
        some = ", ".join(file.name for file in matrices[:4])
        raise FileError(f"{path} holds {len(matrices)} matrices ({some}); give the path of one.")
    lines, of_features = _lines(matrices[0], CELLS), _lines(matrices[0], FEATURES)
    with _opened(matrices[0]) as file:
        written = io.mmread(file)
    cells, features = _table(lines, written.shape), _table(of_features, written.shape)
    shape = (len(cells.rows), len(features.rows))
    is_square = shape == shape[::-1]
    by_cells = _stem(matrices[0]) in BY_CELLS if is_square else written.shape == shape
    x = sparse.csr_matrix(written if by_cells else written.T)
    if x.shape != shape:
        raise FileError(
            f"{matrices[0]} has {x.shape[1]} x {x.shape[0]} entries, but there are "
            f"{shape[1]} features and {shape[0]} barcodes beside it."
        )
    ids = [row[0] for row in features.rows]
    _check_no_usa(matrices[0], ids)
    names = features.column("gene_name", 1) or _names_beside(matrices[0], ids)
    kinds = features.column("feature_types", 2)
    adata = genes_of(x, [row[0] for row in cells.rows], names, {"gene_ids": ids}, kinds)
    for name in cells.names[1:]:
        if (values := cells.column(name, -1)) is not None:
            adata.obs[name] = _numbers(values)
    return adata


def _stem(matrix: Path) -> str:
    return matrix.name.removesuffix(".gz").removesuffix(".mtx")


def _lines(matrix: Path, patterns: tuple[str, ...]) -> list[list[str]]:
    """Return the lines of the table beside `matrix` with one of these names, without quotes."""
    stem = _stem(matrix)
    prefix = stem.removesuffix("matrix") if stem.endswith("matrix") else ""
    for pattern in patterns:
        for ending in ENDINGS:
            table = matrix.with_name(pattern.format(prefix, stem) + ending)
            if table.exists():
                with _opened(table) as file:
                    lines: list[str] = file.read().decode().splitlines()
                mark = "," if ".csv" in ending else "\t"
                return [line for line in csv.reader(lines, delimiter=mark) if line]
    first = patterns[0].format(prefix, stem)
    raise FileError(
        f"{matrix} is a matrix without names: there is no {first}.tsv (or .tsv.gz) beside it."
    )


def _table(lines: list[list[str]], shape: tuple[int, int]) -> Table:
    """Return a table, whose first line is names if the matrix has one entry less than lines."""
    has_names = len(lines) not in shape and len(lines) - 1 in shape
    return Table(lines[1:], lines[0]) if has_names else Table(lines, [])


def _names_beside(matrix: Path, ids: list[str]) -> list[str]:
    """Return the symbols that kallisto-bustools writes beside the ids, or the ids."""
    table = matrix.with_name(f"{_stem(matrix)}.genes.names.txt")
    names = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    return names if len(names) == len(ids) else ids


def _check_no_usa(matrix: Path, ids: list[str]) -> None:
    """Raise where every gene is there three times, as alevin-fry writes spliced, unspliced and
    ambiguous counts."""
    third = len(ids) // 3
    if third and ids[third : 2 * third] == [f"{name}-U" for name in ids[:third]]:
        folder = str(matrix.parent.parent)
        raise FileError(
            f"{matrix} has spliced, unspliced and ambiguous counts of every gene. In Python, "
            f"pyroe.load_fry({folder!r}, output_format='scRNA').write_h5ad('cells.h5ad') makes a "
            "file of cells of the counts that are usually fitted."
        )


def _numbers(values: list[str]) -> list[Any]:
    """Return numbers, if all values are."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return list(values)
