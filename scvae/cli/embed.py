"""`scvae embed`: embed other cells with a fitted model."""

from __future__ import annotations

import argparse
from typing import Any

from scvae.cli.console import tell
from scvae.cli.inputs import check_input, fitted, read
from scvae.cli.large import add_memory, cells_on_disk, copy_with
from scvae.cli.options import (
    Command,
    Parser,
    add_device,
    add_input,
    add_key,
    add_layer,
    add_model,
    add_output,
    adder,
)
from scvae.cli.outputs import check_cells, check_outputs, check_space, is_h5mu, rescued, write
from scvae.cli.ranks import is_first

EXAMPLE = """\
example:
  scvae embed model.scvae new.h5ad -o new-embedded.h5ad

new.h5ad must hold raw counts of the genes of the model, in any order, and its batch column.
"""


def run(a: argparse.Namespace) -> None:
    check_outputs([a.output], [a.model])
    if not a.overwrite:
        check_cells(a.output, a.input)
    check_input(a.model)
    check_input(a.input, folders=True)
    large = cells_on_disk(a.input, a)
    cells: Any = large
    if large is None:
        cells = read(a.input, a.modality, whole=is_h5mu(a.output))
        check_space(cells, a.output)
    layer, batch = getattr(a, "layer", None), getattr(a, "batch", None)
    embedding = fitted(a).embed(cells, layer=layer, batch=batch, distributed=True)
    if not is_first():
        return
    if large is not None:
        copy_with(a.input, a.output, {a.key: embedding})
    else:
        cells.obsm[a.key] = embedding
        with rescued(cells, a.key, a.output):
            write(cells, a.output)
    n, d = embedding.shape
    tell(a.quiet, f"{a.output}: {n:,} cells, {d} latents in obsm[{a.key!r}]")


def add_options(parser: Parser) -> None:
    add_model(parser)
    add_input(parser)
    add_output(parser)
    add_layer(parser)
    adder(parser)(
        "--batch", metavar="BATCH", help="new, closest, or a batch of the model; by the cells"
    )
    add_key(parser)
    add_device(parser)
    add_memory(adder(parser))


EMBED = Command("embed", "embed other cells with a fitted model", EXAMPLE, add_options, run)
