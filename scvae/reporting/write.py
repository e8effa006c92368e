"""scvae.report: a fit and its cells in one HTML file."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae._version import __version__
from scvae.analysis.null_batch import NullBatch
from scvae.arguments import check_path, check_seed, check_switch, check_whole, refuse, shown
from scvae.data.read.covariates import column
from scvae.data.read.genes import check_unique
from scvae.errors import ConfigError, DataError, FileError
from scvae.io import check_writable, replacing
from scvae.keywords import named
from scvae.models.model import Model
from scvae.models.progress import counted
from scvae.reporting.measure import STAGES, Asked, Measured, agreements, measure
from scvae.reporting.page import document
from scvae.reporting.sections import body

if TYPE_CHECKING:
    from anndata import AnnData

MOST_LABELS = 200
FEWEST_CELLS = 10
PACKAGES = ("torch", "numpy", "anndata", "scanpy", "scikit-learn", "umap-learn", "harmonypy")


@named("scvae.report")
def report(
    model: Model,
    adata: AnnData,
    labels: str | None = None,
    out: str | os.PathLike[str] = "report.html",
    *,
    layer: str | None = None,
    null_batch: bool | None = None,
    max_cells: int = 5_000,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write one HTML file that tells how a fit went and what came of it, and return its path.

    What `scvae.check` says of the cells; the network; the curve of training and whether it had
    converged; the log-likelihood of held-out cells; a predictive check; UMAPs by batch, label and
    cluster with PCA and Harmony beside; biology and mixing of each (`scvae.analysis.judge`); the
    null-batch test (`scvae.analysis.null_batch`); versions, seeds and times. All of it is in the
    one file, pictures too: it asks for nothing from a network, runs no script, prints on paper,
    reads on a phone, and is under 5 MB. Its numbers are in it as JSON, too, in the element with the
    id "scvae-report".

    Parameters
    ----------
    model
        A fitted model.
    adata
        Cells with raw counts of its genes, best those of the fit, in the same order: then the cells
        that it held out are found again. It is not changed.
    labels
        Column of adata.obs with types of cells, for colours and scores; cells may be without one.
    out
        File to write, whole or not at all.
    layer
        Where the counts are; as for `Model.embed`.
    null_batch
        Whether to run the null-batch test, which fits three models; None does if there are at most
        5,000 cells.
    max_cells
        Of more cells, take so many at random for maps, scores and predictions.
    seed
        Of everything drawn at random.
    progress
        Show a bar on standard error, if that is a terminal, or in a notebook.

    Raises
    ------
    ConfigError
        If `out` is not the name of an HTML file.
    DataError
        If there is no such column, genes of the model are missing, or values are not counts.
    FileError
        If `out` cannot be written; found out before the work.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = pathlib.Path(folder) / "report.html"
    ...     path = scvae.report(model, adata, "cell_type", out, null_batch=False)
    ...     "<h1>scvae report</h1>" in path.read_text(encoding="utf-8")
    True
    """
    if not isinstance(model, Model):
        raise ConfigError(f"model={shown(model)}, but it must be a model: model = scvae.fit(adata)")
    check_unique(adata)
    path = _place(out)
    asked = Asked(
        _labels(adata, labels),
        layer,
        check_switch("null_batch", null_batch, True, or_none=True),
        check_whole("max_cells", max_cells, 5_000, least=FEWEST_CELLS),
        check_seed(seed),
    )
    progress = check_switch("progress", progress, False)
    if adata.n_obs < FEWEST_CELLS:
        raise DataError(f"adata has {adata.n_obs} cells; a report needs at least {FEWEST_CELLS}.")
    check_writable(path)
    start = time.perf_counter()
    with counted(len(STAGES), "scvae.report", "stage", progress) as tell:
        found = measure(model, adata, asked, lambda stage: tell(1, stage))
    seconds = time.perf_counter() - start
    text = document(
        "scvae report",
        body(model, found, _provenance(model, asked, seconds)),
        numbers(model, found),
    )
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def numbers(model: Model, found: Measured) -> dict[str, Any]:
    """Return the numbers of a report as JSON holds them: None for what is not a number."""
    ended, null = model.summary().convergence, found.null
    told = {
        "scvae": __version__,
        "n_cells": found.n_cells,
        "n_genes": model.architecture.n_genes,
        "check": [asdict(finding) for finding in found.findings],
        "convergence": asdict(ended),
        "elbo_held_out": model.record.elbo_held_out,
        "log_likelihood": {
            "is_held_out": found.likelihood.is_held_out,
            "value": found.likelihood.value._asdict(),
            "of_training": found.likelihood.of_training and found.likelihood.of_training._asdict(),
        },
        "predictive_check": {
            name: {"correlation": correlation, "median_ratio": ratio}
            for name, (correlation, ratio) in agreements(found.predictive).items()
        },
        "n_clusters": int(found.clusters.nunique()),
        "scores": found.scores,
        "null_batch": asdict(null) if isinstance(null, NullBatch) else None,
        "seed": model.record.seed,
    }
    return _finite(told)


def _finite(value: Any) -> Any:
    """Return `value` with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# -- before the work -----------------------------------------------------------------------------


def _place(out: str | os.PathLike[str]) -> Path:
    """Return where to write, if it is the name of an HTML file in a folder that is there."""
    path = Path(check_path("out", out, "report.html"))
    if path.is_dir():
        raise FileError(
            f"{path} is a folder; give the name of a file: out={str(path / 'report.html')!r}"
        )
    if path.suffix.lower() not in (".html", ".htm"):
        raise refuse("out", str(path), "the name of an HTML file", f"{path.stem}.html")
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: there is no folder {path.parent}.")
    return path


def _labels(adata: AnnData, labels: Any) -> str | None:
    """Return the name of a column with types of cells, which may be missing of some."""
    if labels is None:
        return None
    known = adata.obs
    if isinstance(labels, str) and list(known.columns).count(labels) == 1:
        known = known[[labels]].dropna()
    n_types = column(known, labels, "labels").nunique()
    if n_types > MOST_LABELS:
        raise DataError(
            f"adata.obs[{labels!r}] (given as labels) has {n_types:,} values of {adata.n_obs:,} "
            f"cells; labels name at most {MOST_LABELS} types. Give another column, or labels=None."
        )
    return str(labels)


# -- where it came from --------------------------------------------------------------------------


def _provenance(model: Model, asked: Asked, seconds: float) -> list[tuple[str, str]]:
    record = model.record
    fitted = ", ".join(f"{name} {held}" for name, held in (record.versions or {}).items())
    history = record.history
    took = f"{history.seconds:,.1f} s" if history and history.seconds else "not in the file"
    return [
        ("written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("versions of the fit", fitted or "not recorded"),
        (
            "versions of the report",
            f"scvae {__version__}, python {platform.python_version()}, " + ", ".join(_versions()),
        ),
        ("seed of the fit", "not recorded" if record.seed is None else str(record.seed)),
        ("seed of the report", str(asked.seed)),
        ("device of the fit", record.device or "not recorded"),
        ("time of the fit", took),
        ("time of the report", f"{seconds:,.1f} s"),
        ("digest of the fit", record.digest or "not recorded"),
    ]


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
