"""scvae.check: everything that scvae.fit would refuse, and what is worth a look before it.

It stands beside `fit`, above the layer of data, because it tells what `fit` does: its demands on
the number of cells, its memory and its steps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch

from scvae.arguments import check_choice, check_names
from scvae.choices import COUNTS, CountKind
from scvae.data.checkup.examine import examine
from scvae.data.checkup.faults import explain
from scvae.data.checkup.held_out import unseen_groups
from scvae.data.checkup.kinds import controls_beside, no_genes
from scvae.data.checkup.orientation import turned
from scvae.data.checkup.report import Finding, Kind, Report
from scvae.data.hold.counts import narrowest
from scvae.data.read.atlas import OnDisk
from scvae.data.read.choice import look
from scvae.data.read.covariates import Encoded, column, learn_covariates
from scvae.data.read.features import check_one_kind
from scvae.data.read.forms import is_anndata
from scvae.data.read.genes import choose_genes
from scvae.data.read.labels import read_labels
from scvae.data.read.library import check_not_empty, library_sizes
from scvae.data.read.several import is_several
from scvae.data.read.source import chosen_genes, fitted_place, matrix_of, where_named
from scvae.data.read.survey import Survey
from scvae.errors import ConfigError, DataError
from scvae.keywords import named
from scvae.models.budget import VALIDATION, RunSize, split, usual_run
from scvae.models.check_several import check_several
from scvae.models.device import pick_device
from scvae.models.on_disk import opened
from scvae.models.pace import seconds_of_run
from scvae.models.prepare import DEMANDS, FEWEST_CELLS

if TYPE_CHECKING:
    from anndata import AnnData

T = TypeVar("T")
FORMATS = {"csr": "CSR", "csc": "CSC"}
KINDS = {"cpu": "CPU", "cuda": "GPU"}


@named("scvae.check")
def check(
    adata: AnnData | OnDisk | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch: str | None = None,
    covariates: str | Sequence[str] | None = None,
    labels: str | None = None,
    unlabelled: str | None = None,
    modalities: str | Mapping[str, str] | None = None,
    measured: Mapping[str, str] | None = None,
    layer: str | Mapping[str, str] | None = None,
    genes: str | Sequence[str] | None = None,
    library_size: str = "observed",
    counts: CountKind = "whole",
    validation: float | str = VALIDATION,
    label: str | None = None,
) -> Report:
    """Look at everything that `scvae.fit` would read, and report what is wrong or odd.

    Every value is looked at once, a bounded number at a time, also in files opened in backed mode;
    and a few training steps on simulated counts tell how long `scvae.fit` will take.
    Bad data raise nothing: what `scvae.fit` would refuse is reported, in its own words.
    `adata` is not changed.

    Parameters
    ----------
    adata
        Cells x genes with raw counts, or MuData, or the path of a file, as for `scvae.fit`.
    batch, covariates, labels, unlabelled, modalities, measured, layer, genes
        As for `scvae.fit`.
    library_size, counts, validation
        As for `scvae.fit`.
    label
        Column of adata.obs with labels, such as cell types, which should not go together with the
        batch. None looks at every column with 2 to 100 categories.

    Returns
    -------
    Report
        Prints as a table. ``report.ok`` says whether `scvae.fit` takes the data, ``report.errors``
        and ``report.warnings`` list findings with names, values, and calls that mend them.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> report = scvae.check(adata, batch="batch", label="cell_type")
    >>> report.ok, len(report.warnings)
    (True, 0)
    >>> adata.X[3, 2] = -1
    >>> scvae.check(adata).errors[0].text[:79]
    "adata.X has negative values (first: -1 at cell 'cell_3', gene 'gene_2'). The co"
    """

    counts = check_choice("counts", counts, COUNTS)
    findings = _Findings()
    cells: Any = findings.attempt(Kind.CELLS_AND_GENES, opened, adata)
    if cells is None and adata is not None:
        return Report(tuple(findings.all))

    def of_rna(adata: AnnData, layer: str | None) -> Report:
        asked = (batch, covariates, layer, genes, library_size, counts, validation, label)
        return _check_rna(adata, *asked)

    if is_several(cells, modalities, split=genes is None):
        asked = (modalities, measured, layer, batch, covariates, labels, unlabelled, counts)
        return check_several(cells, *asked, of_rna)
    report = of_rna(cells, layer)  # type: ignore[arg-type]
    if is_anndata(cells):
        findings.attempt(Kind.LABEL, read_labels, cells.obs, labels, unlabelled, batch)
    return replace(report, findings=(*report.findings, *findings.all))


def _check_rna(
    cells: Any,
    batch: str | None,
    covariates: str | Sequence[str] | None,
    layer: str | None,
    genes: str | Sequence[str] | None,
    library_size: str,
    counts: CountKind,
    validation: float | str,
    label: str | None,
) -> Report:
    """Do as `check` of an AnnData of genes."""
    findings = _Findings()
    for demand in DEMANDS:
        findings.attempt(Kind.CELLS_AND_GENES, demand, cells)
        if not is_anndata(cells):
            return Report(tuple(findings.all))
    findings.all += [*turned(cells), *no_genes(cells)]
    columns = findings.attempt(Kind.GENES, choose_genes, cells, genes, layer)
    if columns is not None or genes is None:
        names = chosen_genes(cells, layer, columns)
        findings.attempt(Kind.GENES, check_one_kind, cells, names)
    encoded = _learn(cells.obs, batch, covariates, findings)
    _check_held_out(cells, encoded, validation, findings)
    label = None if label is None else findings.attempt(Kind.LABEL, _check_label, cells.obs, label)
    groups = encoded.codes if encoded.covariates.batch is not None else None
    place, seen = _choose(cells, layer, columns, groups, counts, findings)
    if seen is None:
        return Report(tuple(findings.all))
    chosen = genes if columns is not None else None
    written = fitted_place(cells, place, chosen, is_rounded=seen.estimates > 0)
    is_all = chosen is None and place is None and not seen.estimates
    _check_cells(cells, seen, library_size, None if is_all else written, findings)
    names = chosen_genes(cells, layer, columns)
    findings.all += controls_beside(cells, names)
    findings.all += examine(seen, cells.obs, names, encoded, place, written, label)
    nbytes = None if seen.tallies else _nbytes(seen, cells.n_obs, len(names))
    _tell_memory(nbytes, cells.n_obs, len(names), findings)
    if cells.n_obs < FEWEST_CELLS or not len(names):
        return Report(tuple(findings.all), nbytes)
    run = usual_run(cells.n_obs)
    seconds = _tell_time(run, cells.n_obs, len(names), findings)
    return Report(tuple(findings.all), nbytes, run.steps, seconds)


class _Findings:
    """A list of findings that takes errors, too."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def attempt(self, what: Kind, function: Callable[..., T], *arguments: Any) -> T | None:
        """Return what `function` returns; an error that it raises becomes a finding."""
        try:
            return function(*arguments)
        except (DataError, ConfigError) as error:
            self.refuse(what, error)
            return None

    def refuse(self, what: Kind, error: Exception) -> None:
        finding = Finding("error", what, str(error))
        if finding.text not in [known.text for known in self.all]:
            self.all.append(finding)


# -- columns of adata.obs ----------------------------------------------------------------------


def _learn(
    obs: pd.DataFrame,
    batch: str | None,
    covariates: str | Sequence[str] | None,
    findings: _Findings,
) -> Encoded:
    """Return the encoding of all columns that can be used; the others become errors."""
    whole = findings.attempt(Kind.COVARIATES, learn_covariates, obs, batch, covariates)
    if whole is not None:
        return whole
    # One by one, so that all that is wrong is said at once.
    names = (
        findings.attempt(Kind.COVARIATES, check_names, "covariates", covariates, ["donor"]) or []
    )
    alone = findings.attempt(Kind.COVARIATES, learn_covariates, obs, batch, None)
    good = [
        name
        for name in dict.fromkeys(names)
        if findings.attempt(Kind.COVARIATES, learn_covariates, obs, None, [name]) and name != batch
    ]
    return learn_covariates(obs, batch if alone else None, good)


def _check_held_out(
    adata: AnnData, encoded: Encoded, validation: float | str, findings: _Findings
) -> None:
    """Find what is wrong with the cells held out, as `fit` holds them out with its own seed."""
    if adata.n_obs < FEWEST_CELLS:
        return
    rows = findings.attempt(Kind.HELD_OUT, split, adata, validation, 0)
    if rows is not None:
        findings.all += unseen_groups(encoded, rows[1].numpy(), validation)


def _check_label(obs: pd.DataFrame, label: str) -> str:
    """Return `label` if it is a column; cells may be without a label."""
    known = obs[[label]].dropna() if isinstance(label, str) and label in obs else obs
    column(known, label, "label")
    return label


# -- counts ------------------------------------------------------------------------------------


def _choose(
    adata: AnnData,
    layer: str | None,
    columns: np.ndarray | None,
    groups: np.ndarray | None,
    counts: CountKind,
    findings: _Findings,
) -> tuple[str | None, Survey | None]:
    """Return where `fit` would take the counts, and what was seen of them.

    Without counts it is what was seen there instead."""
    choice = look(adata, layer, columns, keep=False, thorough=True, groups=groups, counts=counts)
    if choice.error is not None:
        findings.refuse(Kind.COUNTS, choice.error)
    if choice.note is not None:
        findings.all.append(Finding("warning", Kind.COUNTS, choice.note))
    asked, taken = choice.asked, choice.taken
    if asked is not None and asked.tallies:
        findings.all += explain(adata, layer, asked, choice.other, used=taken is None)
    if taken is not None:
        findings.all.append(_whereabouts(adata, choice.layer, taken))
    return choice.layer, taken or (asked if asked is not None and asked.tallies else None)


def _whereabouts(adata: AnnData, layer: str | None, seen: Survey) -> Finding:
    matrix = matrix_of(adata, layer)
    kind = FORMATS.get(getattr(matrix, "format", ""), "dense")
    lies = "in a file" if adata.isbacked else "in memory"
    values = adata.n_obs * matrix.shape[1]
    text = (
        f"The raw counts are in {where_named(layer, adata)}: {adata.n_obs:,} cells x "
        f"{matrix.shape[1]:,} genes, {kind} of {matrix.dtype} {lies}, "
        f"{seen.stored:,} values above zero ({seen.stored / max(values, 1):.1%})."
    )
    return Finding("info", Kind.COUNTS, text)


# -- cells, memory, steps ----------------------------------------------------------------------


def _check_cells(
    adata: AnnData, seen: Survey, library_size: str, place: str | None, findings: _Findings
) -> None:
    if not (seen.tallies and seen.estimates):
        findings.attempt(Kind.EMPTY_CELLS, check_not_empty, adata, seen.genes_of_cells, place)
    if not seen.tallies:
        findings.attempt(Kind.LIBRARY_SIZE, library_sizes, adata, seen.totals, library_size, place)


def _nbytes(seen: Survey, n_cells: int, n_genes: int) -> int:
    """Return the memory of the counts as CSR in the narrowest types."""
    entry = narrowest(n_genes).itemsize + narrowest(seen.largest).itemsize
    return int(seen.genes_of_cells.sum()) * entry + 8 * (n_cells + 1)


def _tell_memory(nbytes: int | None, n: int, n_genes: int, findings: _Findings) -> None:
    if nbytes is not None:
        text = (
            f"Training keeps the counts as CSR in {_size(nbytes)}; dense they would take "
            f"{_size(4 * n * n_genes)}."
        )
        findings.all.append(Finding("info", Kind.MEMORY, text))


def _tell_time(run: RunSize, n: int, n_genes: int, findings: _Findings) -> float | None:
    """Report steps and time of a run of `fit`; return the time in seconds."""
    text = (
        f"scvae.fit takes {run.steps:,} steps at most, of {run.batch_size} cells each, and holds "
        f"{run.n_held_out:,} of {n:,} cells out to choose the best weights."
    )
    device, seconds = pick_device(None), None
    try:
        seconds = seconds_of_run(run, n_genes, device)
        text += (
            f" By a few steps timed here, that is about {_time(seconds)} on this "
            f"{KINDS[device.type]}."
        )
    except torch.cuda.OutOfMemoryError:
        text += (
            " The GPU has too little memory left for such a step: free it, or "
            f"scvae.fit(adata, batch_size={max(2, run.batch_size // 2)})"
        )
    findings.all.append(Finding("info", Kind.TRAINING, text))
    return seconds


def _time(seconds: float) -> str:
    """Return a duration as one reads it."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _size(nbytes: int) -> str:
    """Return a number of bytes as one reads it."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
