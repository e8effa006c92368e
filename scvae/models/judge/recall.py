"""Which cells a fit held out, found again by what was recorded of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvae.models.budget import held_out_of
from scvae.models.fitted import Fitted
from scvae.models.judge.held_out import measure_held_out
from scvae.models.keep.record import HeldOut, Record
from scvae.models.plan import HELD_OUT_SIZE

if TYPE_CHECKING:
    from anndata import AnnData

# Of the terms of the ELBO. Other cells of the same number differ by far more, and another processor
# or number of threads by far less.
TOLERANCE = 1e-4


def held_out_rows(
    model: Fitted, record: Record, adata: AnnData, *, layer: str | None = None
) -> np.ndarray | None:
    """Return the rows of `adata` that the fit held out, or None where that cannot be told.

    Those of the fit's own split, or of a boolean column, whose reconstruction and KL are what the
    fit recorded: so no other cells, and no cells in another order, can pass for them.

    Parameters
    ----------
    model, record
        A fitted model, and what was written down of its fit.
    adata
        Cells with raw counts of its genes, perhaps those of the fit.
    layer
        Where the counts are; as for `Model.embed`.
    """
    if record.held_out is None or not record.n_held_out:
        return None
    if adata.n_obs != record.n_held_out + (record.n_train or 0):
        return None
    for rows in _candidates(record, adata):
        dataset, d = model.read(adata[rows], layer=layer), model.architecture.n_latent
        every = torch.arange(len(rows), device=model.device)
        found = measure_held_out(model.vae, dataset, every, HELD_OUT_SIZE, d)
        if _is_same(found, record.held_out):
            return rows
    return None


def _candidates(record: Record, adata: AnnData) -> Iterator[np.ndarray]:
    """Yield rows that may be those held out, in the order in which the fit took them."""
    n = record.n_held_out or 0
    if record.seed is not None:
        yield held_out_of(adata.n_obs, n, record.seed).numpy()
    for name in adata.obs.columns:
        values = adata.obs[name]
        if values.dtype == bool and int(values.sum()) == n:
            yield np.flatnonzero(values.to_numpy())


def _is_same(found: HeldOut, recorded: HeldOut) -> bool:
    pairs = ((found.reconstruction, recorded.reconstruction), (found.kl, recorded.kl))
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in pairs)
