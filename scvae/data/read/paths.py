"""Paths of files that hold cells, and the call that reads one of them in Python."""

from __future__ import annotations

import re
from pathlib import Path

OF_COLLECTION = re.compile(r"dataset_(\d+)")  # stores in a collection of annbatch
ADDRESS = re.compile(r"[a-z0-9]+://")
# What Cell Ranger calls the files of a folder: scanpy reads these and no others.
CELL_RANGER = (
    ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"),
    ("matrix.mtx", "barcodes.tsv", "genes.tsv"),
)
OWN = "scvae.cli.inputs.read"  # reads all that the command line does
READERS = {
    ".h5": "scanpy.read_10x_h5",
    ".zarr": "anndata.read_zarr",
    ".h5mu": "mudata.read_h5mu",
    ".loom": "anndata.io.read_loom",
    ".xlsx": "anndata.io.read_excel",
}
TEXT = (".csv", ".tsv", ".txt")
OF_R = (".rds", ".rdata", ".robj")


def what_reads(path: str) -> str:
    """Return the call that makes an AnnData of what is at a path, by its name and its files."""
    name = path.lower().rstrip("/")
    plain = name.removesuffix(".gz")
    if ADDRESS.match(path):
        return f"adata = scanpy.read('cells.h5ad', backup_url={path!r})"
    if (own := mtx_reader(Path(path))) is not None:
        imported = "import scvae.cli.inputs; " if own == OWN else ""
        return f"{imported}adata = {own}({path!r})"
    if plain.endswith(TEXT):
        return f"adata = {text_reader(path)}, with .T behind it if its rows are genes"
    if plain.endswith(OF_R):
        return f"adata = anndata.read_h5ad('cells.h5ad'), which R makes of it: {of_r(path)}"
    if name != plain:
        return f"unpack it, then adata = anndata.read_h5ad({path.removesuffix('.gz')!r})"
    reader = next((call for end, call in READERS.items() if name.endswith(end)), None)
    sheet = ", sheet=0" if name.endswith(".xlsx") else ""
    return f"adata = {reader or 'anndata.read_h5ad'}({path!r}{sheet})"


def mtx_reader(path: Path) -> str | None:
    """Return the function that reads a matrix of MatrixMarket, or the folder of one; None if it is
    neither."""
    if path.name.lower().removesuffix(".gz").endswith(".mtx"):
        return OWN
    try:
        there = {file.name for file in path.iterdir()} if path.is_dir() else set()
    except OSError:
        return None
    if any(set(names) <= there for names in CELL_RANGER):
        return "scanpy.read_10x_mtx"
    return OWN if any(re.search(r"\.mtx(\.gz)?$", name) for name in there) else None


def text_reader(path: str) -> str:
    """Return the call that reads a table of text."""
    is_csv = path.lower().removesuffix(".gz").endswith(".csv")
    mark = "" if is_csv else ", delimiter='\\t'"
    return f"anndata.io.read_csv({path!r}, first_column_names=True{mark})"


def of_r(path: str) -> str:
    """Return the call of R that makes an h5ad file of one of its own."""
    return (
        "zellkonverter::writeH5AD(Seurat::as.SingleCellExperiment("
        f"readRDS({path!r})), 'cells.h5ad')"
    )


def is_store(path: Path) -> bool:
    """Return whether a folder is a zarr store."""
    return path.suffix.lower() == ".zarr" or any(
        (path / name).exists() for name in (".zgroup", "zarr.json")
    )


def collection(path: Path) -> list[Path]:
    """Return the stores of a collection of annbatch, in its order; none of anything else."""
    if not path.is_dir() or not is_store(path) or (path / "obs").exists():
        return []
    found = {place: OF_COLLECTION.fullmatch(place.name) for place in path.iterdir()}
    numbers = {place: int(match[1]) for place, match in found.items() if match}
    return sorted(numbers, key=numbers.__getitem__)
