"""`scvae map`: map new cells onto a reference, and name them by its labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scvae.cli.console import tell
from scvae.cli.inputs import check_input, fitted, read
from scvae.cli.options import (
    Command,
    Parser,
    add_device,
    add_input,
    add_key,
    add_layer,
    add_model,
    add_output,
)
from scvae.cli.outputs import check_h5ad, check_outputs, check_space, rescued, write
from scvae.io import replacing

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvae.models.model import Model

EXAMPLE = """\
example:
  scvae map reference.scvae query.h5ad -o mapped.h5ad --labels labels.csv --umap umap.png

reference.scvae is a model that was fitted with labels, scvae fit --labels cell_type, or saved with
labelled cells, model.save(path, reference=adata, labels="cell_type"). mapped.h5ad is query.h5ad
with the embedding in obsm["X_scvae"] and in obs the columns predicted_label, predicted_probability,
predicted_second, predicted_second_probability, predicted_strangeness and predicted_unknown;
labels.csv has the same, a row a cell.
"""
PREFIX = "predicted_"


def run(a: argparse.Namespace) -> None:
    outputs = [path for path in (a.output, a.labels, a.umap) if path]
    check_outputs(outputs, [a.model])
    if not a.overwrite:
        check_h5ad(a.output)
    if a.umap:
        from scvae.plot.figures import check_picture

        check_picture(a.umap, "--umap")
    check_input(a.model)
    adata = read(a.input, a.modality)
    check_space(adata, a.output)
    model, layer = fitted(a), getattr(a, "layer", None)
    batch = a.batch or _usual(model, adata, a.quiet)
    if a.extend:
        model, batch = model.extend(adata, layer=layer), None
    table = model.predict(adata, batch=batch, layer=layer, false_alarms=a.false_alarms)
    adata.obsm[a.key] = model.embed(adata, batch=batch, layer=layer)
    for name, values in table.items():
        adata.obs[f"{PREFIX}{name}"] = values
    with rescued(adata, a.key, a.output):
        if a.labels:
            _write_csv(table, a.labels)
        if a.umap:
            _draw(adata, a.key, a.umap)
        write(adata, a.output)
    unknown = int(table["unknown"].sum())
    tell(a.quiet, f"{a.output}: {len(table):,} cells, {unknown:,} of them unknown to the reference")


def _usual(model: Model, adata: AnnData, quiet: bool) -> str | None:
    """Return how batches are taken where the user does not say: their own, if all are known."""
    name = model.origin.covariates.batch
    if name is None or (
        name in adata.obs and set(adata.obs[name].astype(str)) <= set(model.batches)
    ):
        return None
    tell(quiet, "batches that the model has not seen are the mean over those it has: --batch new")
    return "new"


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as draft:
        table.to_csv(draft, index_label="cell")


def _draw(adata: AnnData, key: str, path: Path) -> None:
    """Draw the UMAP of the query, which goes into it, by label and by what is unknown."""
    from scvae.analysis import lay_out, neighbors
    from scvae.plot import umap

    graph = lay_out(neighbors(adata, key))
    adata.obsm["X_umap"] = graph.obsm["X_umap"]
    umap(graph, [f"{PREFIX}label", f"{PREFIX}unknown"], key=key, path=path)


def add_options(parser: Parser) -> None:
    add_model(parser, "reference.scvae", "a model with labels")
    add_input(parser)
    add_output(parser)
    add_layer(parser)
    add = parser.add_argument
    add("--labels", type=Path, metavar="labels.csv", help="table of the labels, a row a cell")
    add("--batch", metavar="BATCH", help="new, closest, or a batch of the model; by the cells")
    add("--extend", action="store_true", help="let the model learn the new batches first")
    add("--umap", type=Path, metavar="umap.png", help="picture to draw: .png, .pdf, .svg or .jpg")
    add(
        "--false-alarms",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="known cells called unknown",
    )
    add_key(parser)
    add_device(parser)


MAP = Command("map", "map cells onto a reference and name them", EXAMPLE, add_options, run)
