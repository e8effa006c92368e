"""`scvae normalize`: write denoised expression of cells, of any number of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scvae.cli.console import tell
from scvae.cli.inputs import check_input, fitted, genes_given, read
from scvae.cli.large import add_memory, cells_on_disk
from scvae.cli.options import (
    Command,
    Parser,
    add_device,
    add_input,
    add_layer,
    add_model,
    adder,
    given,
)
from scvae.cli.ranks import is_first

EXAMPLE = """\
example:
  scvae normalize model.scvae in.h5ad -o denoised.zarr --genes CD3D CD8A MS4A1 --dtype float16

denoised.zarr (or .h5ad) is read by AnnData: denoised expression in X, names and columns of the
cells in obs. It is written whole or not at all, and never replaces what is there.
"""
NAMES = ("layer", "library_size", "dtype", "batch")


def run(a: argparse.Namespace) -> None:
    from scvae.models.results import checked

    checked(a.output)
    check_input(a.model)
    check_input(a.input, folders=True)
    large = cells_on_disk(a.input, a)
    cells: Any = read(a.input, a.modality) if large is None else large
    model = fitted(a)
    genes = genes_given(a.genes) if hasattr(a, "genes") else None
    model.normalized(cells, genes=genes, out=a.output, distributed=True, **given(a, NAMES))
    if not is_first():
        return
    n, g = cells.n_obs, len(genes or model.origin.genes)
    tell(a.quiet, f"{a.output}: {n:,} cells x {g:,} genes, denoised")


def add_options(parser: Parser) -> None:
    add_model(parser)
    add_input(parser)
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="out.zarr",
        help="a new .zarr or .h5ad, written whole or not at all",
    )
    parser.add_argument("--quiet", action="store_true", help="no closing line")
    add_layer(parser)
    add = adder(parser)
    add("--genes", nargs="+", metavar="GENES", help="a file of names, or names; all if left out")
    add("--batch", metavar="NAME", help="as if all cells were of this batch; average, own")
    add("--library-size", type=float, metavar="SIZE", help="total of every cell (default: 10000)")
    add("--dtype", choices=("float32", "float16"), help="of the numbers (default: float32)")
    add_device(parser)
    add_memory(add)


NORMALIZE = Command("normalize", "write denoised expression of cells", EXAMPLE, add_options, run)
