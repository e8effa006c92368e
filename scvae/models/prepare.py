"""What `fit` reads from the AnnData before it trains, and what it tells the untrained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from scvae.choices import CountKind
from scvae.data.checkup.examine import examine
from scvae.data.checkup.held_out import unseen_groups
from scvae.data.checkup.orientation import turned
from scvae.data.checkup.report import Kind, warning_texts
from scvae.data.read.choice import look
from scvae.data.read.covariates import Covariates, Encoded, learn_covariates
from scvae.data.read.features import check_one_kind
from scvae.data.read.genes import check_unique, choose_genes
from scvae.data.read.library import library_sizes
from scvae.data.read.source import fitted_place, genes_of
from scvae.data.read.sums import column_sums
from scvae.data.read.survey import Survey
from scvae.errors import DataError, warn
from scvae.modalities.rna import Statistics
from scvae.models.network import Architecture

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 10
ALOUD = frozenset(
    {
        Kind.SILENT_GENES,
        Kind.COVARIATES,
        Kind.CONTROLS,
        Kind.ABSENT_GENES,
        Kind.ESTIMATES,
        Kind.MULTIPLES,
    }
)  # findings that `fit` says while it reads


@dataclass(frozen=True)
class Prepared:
    """Everything that `fit` reads from the AnnData before it trains."""

    seen: Survey
    genes: list[str]
    covariates: Covariates
    design: np.ndarray
    codes: np.ndarray
    library: np.ndarray
    layer: str | None
    warnings: list[str]
    counted: CountKind = "whole"

    @property
    def counts(self) -> sparse.csr_matrix:
        """Counts of the fitted genes, ``(n, g)``."""
        return self.seen.counts

    def told(self, held_out: np.ndarray, validation: object) -> Prepared:
        """Warn of groups that are held out as a whole, and return this with the warnings."""
        encoded = Encoded(self.covariates, self.design, self.codes)
        texts = warning_texts(unseen_groups(encoded, held_out, validation))
        for text in texts:
            warn(text)
        return dataclasses.replace(self, warnings=[*self.warnings, *texts])


def prepare(
    adata: AnnData,
    batch: str | None,
    covariates: str | Sequence[str] | None,
    layer: str | None,
    genes: str | Sequence[str] | None,
    library_size: str,
    counts: CountKind = "whole",
) -> Prepared:
    """Read everything that `fit` needs, checking all of it; see `fit` for the parameters."""
    for demand in DEMANDS:
        demand(adata)
    if is_turned := warning_texts(turned(adata)):
        warn(*is_turned)
    columns = choose_genes(adata, genes, layer)
    names = genes_of(adata, layer)
    names = names if columns is None else names[columns]
    check_one_kind(adata, names)
    encoded = learn_covariates(adata.obs, batch, covariates)
    groups = encoded.codes if batch is not None else None
    choice = look(adata, layer, columns, groups=groups, counts=counts)
    seen = choice.require()
    chosen = None if columns is None else genes
    place = fitted_place(adata, choice.layer, chosen, is_rounded=seen.estimates > 0)
    is_all = chosen is None and choice.layer is None and not seen.estimates
    library = library_sizes(adata, seen.totals, library_size, None if is_all else place)
    findings = examine(seen, adata.obs, names, encoded, choice.layer, place)
    for text in warning_texts(finding for finding in findings if finding.what in ALOUD):
        warn(text)
    return Prepared(
        seen,
        list(names),
        encoded.covariates,
        encoded.design,
        encoded.codes,
        library,
        choice.layer,
        [*is_turned, *([] if choice.note is None else [choice.note]), *warning_texts(findings)],
        counts,
    )


def _check_not_a_view_of_a_file(adata: AnnData) -> None:
    if adata.isbacked and adata.is_view:
        raise DataError(
            "adata is a view of a file, which cannot take an embedding. "
            "Bring it to memory: adata = adata.to_memory()"
        )


def _check_number_of_cells(adata: AnnData) -> None:
    if adata.n_obs < FEWEST_CELLS:
        raise DataError(f"adata has {adata.n_obs} cells; a fit needs at least {FEWEST_CELLS}.")


def _check_number_of_genes(adata: AnnData) -> None:
    if adata.n_vars < 2:
        raise DataError(f"adata has {adata.n_vars} genes; a fit needs at least 2.")


# What an AnnData must be before anything of it is read; the first makes sure that it is one.
DEMANDS = (
    check_unique,
    _check_not_a_view_of_a_file,
    _check_number_of_cells,
    _check_number_of_genes,
)


def statistics_of(prepared: Prepared, rows: np.ndarray, a: Architecture) -> Statistics:
    """Return shares of the genes and library sizes of the batches, of the training cells."""
    library = prepared.library[rows]
    totals = _gene_totals(prepared.seen, rows) + 1.0
    if a.outside:
        totals = np.append(totals, max(library.sum() - totals.sum(), 1.0))
    log_library, codes = np.log(library), prepared.codes[rows]
    of_batch = [log_library[codes == code] for code in range(a.n_batches)]
    of_batch = [values if len(values) else log_library for values in of_batch]
    return Statistics(
        torch.tensor(np.log(totals / totals.sum()), dtype=torch.float32),
        torch.tensor([values.mean() for values in of_batch], dtype=torch.float32),
        torch.tensor([max(values.std(), 0.01) for values in of_batch], dtype=torch.float32),
    )


def _gene_totals(seen: Survey, rows: np.ndarray) -> np.ndarray:
    """Return the counts of every gene in the training cells, ``(g,)``: all less those held out."""
    assert seen.summary is not None
    is_held_out = np.ones(len(seen.totals), dtype=bool)
    is_held_out[rows] = False
    return seen.summary.gene_totals - column_sums(seen.counts, np.flatnonzero(is_held_out))


def batch_shares(prepared: Prepared, rows: np.ndarray) -> list[float]:
    """Return the share of every batch in the training cells, ``(b,)``."""
    sizes = np.bincount(prepared.codes[rows], minlength=prepared.covariates.n_batches)
    return [float(share) for share in sizes / sizes.sum()]
