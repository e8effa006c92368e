"""`scvae check`: what `scvae fit` would refuse, and what is worth a look before it."""

from __future__ import annotations

import argparse
import dataclasses

from scvae.cli.console import printable, tell
from scvae.cli.inputs import of_data, read
from scvae.cli.options import (
    Command,
    Parser,
    add_data,
    add_input,
    add_labels,
    add_validation,
    adder,
    given,
)
from scvae.cli.remedies import as_options
from scvae.errors import DataError

EXAMPLE = """\
example:
  scvae check in.h5ad --batch donor

The exit code is 1 if `scvae fit` would refuse the cells.
"""
NAMES = (
    *("batch", "covariates", "labels", "unlabelled", "modalities", "layer", "genes"),
    *("library_size", "counts"),
    *("validation", "label"),
)


def run(a: argparse.Namespace) -> None:
    adata = read(a.input, a.modality, whole=True)
    options = of_data(a, adata)
    from scvae.models.check import check

    report = check(adata, **{**given(a, NAMES), **options})
    findings = [
        dataclasses.replace(found, text=as_options(found.text, a.shell))
        for found in report.findings
    ]
    text = repr(dataclasses.replace(report, findings=tuple(findings)))
    tell(False, "\n".join(map(printable, text.splitlines())))
    if not report.ok:
        raise DataError(f"{a.input} would be refused by scvae fit.")


def add_options(parser: Parser) -> None:
    add_input(parser)
    data = parser.add_argument_group("data")
    add_data(data)
    add_labels(data)
    add_validation(parser)
    adder(parser)("--label", metavar="COLUMN", help="column of obs with labels of the cells")


CHECK = Command("check", "look at the cells before a fit", EXAMPLE, add_options, run)
