"""`scvae tune`: search arguments of `scvae fit` by the likelihood of held-out cells."""

from __future__ import annotations

import argparse
from pathlib import Path

from scvae.cli.console import tell
from scvae.cli.inputs import of_data, read
from scvae.cli.options import Command, Parser, add_data, add_device, add_input, adder, given
from scvae.cli.outputs import check_outputs

EXAMPLE = """\
example:
  scvae tune in.h5ad --batch donor --folder tuning --table tuning.csv

The last line is the command to fit with what was found.
"""
NAMES = (
    *("batch", "covariates", "layer", "genes", "library_size", "counts"),
    *("n_candidates", "max_steps", "seed", "device", "folder"),
)


def run(a: argparse.Namespace) -> None:
    outputs = [path for path in (a.table, a.picture) if path]
    check_outputs(outputs, [a.input])
    if a.picture:
        from scvae.plot.figures import check_picture

        check_picture(a.picture, "--picture")
    adata = read(a.input, a.modality)
    options = of_data(a, adata)
    from scvae.models.tune import tune

    found = tune(adata, progress=not a.quiet, **{**given(a, NAMES), **options})
    if a.table:
        from scvae.io import replacing

        with replacing(a.table) as draft:
            found.table.to_csv(draft, index=False)
    if a.picture:
        from scvae.plot import tune as draw
        from scvae.plot.figures import figure_of, save

        save(figure_of(draw(found)), a.picture)
    tell(False, found.table.to_string(index=False))
    best = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in found.best.items())
    tell(False, f"scvae fit {a.input} -o out.h5ad {best}")


def add_options(parser: Parser) -> None:
    add_input(parser)
    add_data(parser.add_argument_group("data"))
    group = parser.add_argument_group("search")
    add = adder(group)
    add("--n-candidates", type=int, metavar="N", help="combinations to try, 8 if left out")
    add("--max-steps", type=int, metavar="N", help="steps of the defaults; by cells if left out")
    add("--folder", metavar="FOLDER", help="write trials down; the same call goes on")
    add("--seed", type=int, metavar="N", help="of everything random")
    add_device(group)
    own = parser.add_argument_group("results").add_argument
    own("--table", type=Path, metavar="tuning.csv", help="file to write the trials to")
    own("--picture", type=Path, metavar="tuning.png", help="picture of the trials")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


TUNE = Command("tune", "search sizes of the network", EXAMPLE, add_options, run)
