"""Which batch cells are taken to be of, where it is none that the model was fitted on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import one_hot

from scvae.arguments import shown
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.several import CellParts, Datasets
from scvae.data.read.covariates import Covariates, Encoded, names_of_cells
from scvae.data.read.unseen import encode_unseen
from scvae.errors import ConfigError
from scvae.modalities.modality import in_batch
from scvae.train.loop import evaluate

NEW, CLOSEST = "new", "closest"
MOST_CELLS = 500  # of a batch of the query, by which the closest is told


def encode(covariates: Covariates, obs: pd.DataFrame, batch: str | None) -> Encoded:
    """Return the covariates of cells of their own batches (None), of one known batch (its name), or
    of batches never seen ("new", "closest"), as the mean over the known.

    Raises
    ------
    ConfigError
        If `batch` is none of these.
    """
    if batch is None:
        return covariates.read(obs)
    if isinstance(batch, str) and batch in covariates.batches:
        return covariates.read(obs.assign(**{str(covariates.batch): batch}))
    if isinstance(batch, str) and batch in (NEW, CLOSEST):
        return encode_unseen(covariates, obs)
    raise ConfigError(
        f"batch={shown(batch)} is not one of the model's: {covariates.batches[:10]}; or give "
        "batch='new' (the mean over them), batch='closest' (the likeliest), batch=None (as "
        "adata.obs says)."
    )


def closest(
    vae: VAE, dataset: Dataset | Datasets, obs: pd.DataFrame, known: Covariates, size: int
) -> Dataset | Datasets:
    """Return the cells as of the known batch under which their counts are likeliest.

    All cells of a batch of the query go to the same one, that with the largest evidence lower bound
    of at most 500 of them, `size` at a time; where `obs` has no column of the model's batch, all
    cells are of one.
    """
    if known.batch is None:
        return dataset
    groups, n_batches = np.zeros(len(dataset), dtype=np.int64), known.n_batches
    if known.batch in obs:
        groups = pd.factorize(names_of_cells(obs[known.batch].astype(str)))[0]
    codes = torch.empty_like(dataset.batch)
    for group in np.unique(groups):
        rows = torch.from_numpy(np.flatnonzero(groups == group)).to(dataset.device)
        some = rows[:: max(1, len(rows) // MOST_CELLS)][:MOST_CELLS]
        parts: list[Any] = list(dataset.minibatches(some, size))
        bounds = [
            evaluate(vae, [in_the_batch(cells, code, n_batches) for cells in parts])
            for code in range(n_batches)
        ]
        codes[rows] = int(np.argmax(bounds))
    s = dataset.s.clone()
    s[:, :n_batches] = one_hot(codes, n_batches).to(s)
    return dataset.of_batches(s, codes)


def in_the_batch(cells: Cells | CellParts, code: int, n_batches: int) -> Cells | CellParts:
    """Return the same cells, as of one batch."""
    if isinstance(cells, CellParts):
        parts = tuple(as_of(part, code, n_batches) for part in cells.parts)
        return dataclasses.replace(cells, parts=parts, s=parts[0].s, batch=parts[0].batch)
    return as_of(cells, code, n_batches)


def as_of(cells: Cells, code: int, n_batches: int) -> Cells:
    """Return the same cells of one kind of measurement, as of one batch."""
    s = in_batch(cells.s, code, n_batches)
    return dataclasses.replace(cells, s=s, batch=torch.full_like(cells.batch, code))
