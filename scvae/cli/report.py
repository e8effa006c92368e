"""`scvae report`: a fit and its cells in one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from scvae.cli.console import tell
from scvae.cli.inputs import check_input, fitted, read
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
from scvae.cli.outputs import check_outputs

EXAMPLE = """\
example:
  scvae report model.scvae in.h5ad -o report.html --labels cell_type

The file holds everything, pictures too, and asks for nothing from a network.
"""
NAMES = ("labels", "layer", "null_batch", "max_cells", "seed")


def run(a: argparse.Namespace) -> None:
    check_outputs([a.output], [a.model, a.input])
    check_input(a.model)
    adata = read(a.input, a.modality)
    from scvae.reporting.write import report

    path = report(fitted(a), adata, out=a.output, progress=not a.quiet, **given(a, NAMES))
    tell(a.quiet, f"{path}: {adata.n_obs:,} cells, {path.stat().st_size / 1e6:.1f} MB")


def add_options(parser: Parser) -> None:
    add_model(parser)
    add_input(parser)
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path("report.html"),
        metavar="report.html",
        help="file to write, whole or not at all",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no closing line")
    add_layer(parser)
    add = adder(parser)
    add("--labels", metavar="COLUMN", help="column of obs with types of the cells")
    add(
        "--null-batch",
        action="store_const",
        const=True,
        help="fit three models to cells split at random; if left out, for 5,000 cells or fewer",
    )
    add("--no-null-batch", dest="null_batch", action="store_const", const=False, help="do not")
    add("--max-cells", type=int, metavar="N", help="cells that maps and scores are of")
    add("--seed", type=int, help="of everything random")
    add_device(parser)


REPORT = Command("report", "tell how a fit went in one HTML file", EXAMPLE, add_options, run)
