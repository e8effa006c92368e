"""Pseudobulk: cells of one group, replicate and condition, summed to one sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.counts import Counts
from scvae.data.read.covariates import column
from scvae.modalities.rna import KIND
from scvae.models.fitted import Fitted
from scvae.models.query import codes_of, draws


@dataclass(frozen=True)
class Samples:
    """Sums over the cells of S samples.

    Attributes
    ----------
    table
        A row a sample: ``group``, ``replicate``, ``arm`` (1 treated, 0 reference), ``cells``.
    of_cell
        Sample of every cell, -1 where it is in none, ``(n,)``.
    counts
        Sums of raw counts, ``(S, g)``.
    expressing
        Numbers of cells with a count, ``(S, g)``.
    """

    table: pd.DataFrame
    of_cell: np.ndarray
    counts: np.ndarray
    expressing: np.ndarray


def names_of(obs: pd.DataFrame, name: str, role: str) -> np.ndarray:
    """Return the category of every cell as a string, ``(n,)``."""
    return column(obs, name, role).astype(str).to_numpy().astype(object)


def csr(dataset: Dataset) -> sparse.csr_matrix:
    """Return the counts of a dataset, float64 ``(n, g)``."""
    held = dataset.near(torch.arange(len(dataset), device=dataset.device))[0].counts
    assert isinstance(held, Counts)
    parts = (part.cpu().numpy() for part in (held.values, held.indices, held.indptr))
    values, indices, indptr = parts
    shape = (len(dataset), held.n_genes)
    return sparse.csr_matrix((values.astype(float), indices.astype(np.int64), indptr), shape)


def sum_samples(
    counts: sparse.csr_matrix, group: np.ndarray, replicate: np.ndarray, arm: np.ndarray
) -> Samples:
    """Return the samples of cells; those whose `arm` is -1 are in none."""
    cells = pd.DataFrame({"group": group, "replicate": replicate, "arm": arm})
    grouped = cells[arm >= 0].groupby(["group", "replicate", "arm"], sort=True)
    of_cell = np.full(len(cells), -1)
    of_cell[arm >= 0] = grouped.ngroup().to_numpy()
    table = grouped.size().rename("cells").reset_index()
    there = np.flatnonzero(of_cell >= 0)
    ones = (np.ones(len(there)), (of_cell[there], there))
    members = sparse.csr_matrix(ones, shape=(len(table), len(cells)))
    return Samples(table, of_cell, (members @ counts).toarray(), (members @ (counts > 0)).toarray())


def mean_amounts(
    model: Fitted, dataset: Dataset, samples: Samples, batch: str, n_draws: int, seed: int
) -> np.ndarray:
    r"""Return denoised shares, means over the cells of every sample, float64 ``(S, k, g)``.

    .. math:: \bar\rho_{skg} = \frac{1}{n_s} \sum_{n \in s} \rho_g(z_{nk}), \quad
              z_{nk} \sim q(z_n \mid x_n)
    """
    codes, (k, generator) = codes_of(batch, model.batches), draws(n_draws, seed, model.device)
    n_samples, n_genes = samples.counts.shape
    sums = torch.zeros(n_samples, k * n_genes, dtype=torch.float64, device=model.device)
    of_cell = torch.from_numpy(samples.of_cell).to(model.device)

    def add(cells: Cells) -> None:
        own = of_cell[cells.rows]
        if not (own >= 0).any():
            return
        z = model.vae.encode(cells).sample((k,), generator=generator)
        amounts = model.amount_of(z, cells, codes, KIND).movedim(0, 1).flatten(1)
        members = torch.zeros(n_samples, len(own), device=own.device)
        there = own >= 0
        members[own[there], there.nonzero()[:, 0]] = 1.0
        seen = own[there].unique()
        sums[seen] += (members[seen] @ amounts).double()

    model.over(dataset, add, samples=k)
    n_cells = samples.table["cells"].to_numpy()[:, None, None]
    return sums.cpu().numpy().reshape(n_samples, k, n_genes) / n_cells
