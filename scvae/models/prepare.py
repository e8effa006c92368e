"""What `fit` reads from the AnnData before it trains, and what it tells the untrained network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from scvae.data.covariates import Covariates, learn_covariates
from scvae.data.genes import check_unique, choose_genes
from scvae.data.library import library_sizes
from scvae.data.source import read_counts
from scvae.data.sums import column_sums
from scvae.errors import DataError
from scvae.models.rna import Architecture, Statistics

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 10


@dataclass(frozen=True)
class Prepared:
    """Everything that `fit` reads from the AnnData before it trains."""

    counts: sparse.csr_matrix
    genes: list[str]
    covariates: Covariates
    design: np.ndarray
    codes: np.ndarray
    library: np.ndarray
    layer: str | None


def prepare(
    adata: AnnData,
    batch: str | None,
    covariates: str | Sequence[str] | None,
    layer: str | None,
    genes: str | Sequence[str] | None,
    library_size: str,
) -> Prepared:
    """Read everything that `fit` needs, checking all of it; see `fit` for the parameters."""
    check_unique(adata)
    if adata.isbacked and adata.is_view:
        raise DataError(
            "adata is a view of a file, which cannot take an embedding. "
            "Bring it to memory: adata = adata.to_memory()"
        )
    if adata.n_obs < FEWEST_CELLS:
        raise DataError(f"adata has {adata.n_obs} cells; a fit needs at least {FEWEST_CELLS}.")
    if adata.n_vars < 2:
        raise DataError(f"adata has {adata.n_vars} genes; a fit needs at least 2.")
    columns = choose_genes(adata, genes)
    learned = learn_covariates(adata.obs, batch, covariates)
    counts, found = read_counts(adata, layer, columns)
    library = library_sizes(adata, counts, library_size)
    names = adata.var_names if columns is None else adata.var_names[columns]
    _warn_of_silent_genes(counts, list(names))
    return Prepared(
        counts,
        list(names),
        learned,
        learned.design(adata.obs),
        learned.codes(adata.obs),
        library,
        found,
    )


def _warn_of_silent_genes(counts: sparse.csr_matrix, names: list[str]) -> None:
    seen = np.zeros(counts.shape[1], dtype=bool)
    seen[counts.indices] = True
    if not seen.all():
        silent = np.flatnonzero(~seen)
        warnings.warn(
            f"{len(silent)} genes have no counts (first: {names[silent[0]]!r}); they are kept and "
            "modelled as near zero. To leave them out: sc.pp.filter_genes(adata, min_cells=1)",
            stacklevel=4,
        )


def statistics_of(prepared: Prepared, rows: np.ndarray, a: Architecture) -> Statistics:
    """Return shares of the genes and library sizes of the batches, of the training cells."""
    library = prepared.library[rows]
    totals = column_sums(prepared.counts, rows) + 1.0
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


def batch_shares(prepared: Prepared) -> list[float]:
    sizes = np.bincount(prepared.codes, minlength=prepared.covariates.n_batches)
    return [float(share) for share in sizes / sizes.sum()]
