"""What a fit leaves behind beside the model: its record, and what is written to the AnnData."""

from __future__ import annotations

import dataclasses
import platform
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae.models.judge.held_out import measure_held_out
from scvae.models.judge.imputed import imputed_levels
from scvae.models.keep.record import Record
from scvae.models.model import Model
from scvae.models.plan import HELD_OUT_SIZE, VERSIONS, Plan, Trained

if TYPE_CHECKING:
    from anndata import AnnData


def record_of(plan: Plan, trained: Trained, strength: float, moved: list[float]) -> Record:
    """Return what is written down of a fit."""
    history, dataset, labels = trained.history, trained.dataset, plan.prepared.labels
    return Record(
        seed=plan.seed,
        batch_size=plan.batch_size,
        schedule=dataclasses.asdict(plan.schedule),
        n_train=len(plan.train_rows),
        n_held_out=len(plan.held_out_rows),
        final_beta=history.beta[-1],
        elbo_held_out=history.best,
        held_out=measure_held_out(
            *(trained.vae, dataset, plan.held_out_rows, HELD_OUT_SIZE, plan.architecture.n_latent)
        ),
        history=history,
        device=str(dataset.device),
        counts=dataset.place,
        digest=plan.digest,
        warnings=plan.prepared.warnings,
        versions={**VERSIONS, "numpy": np.__version__, "python": platform.python_version()},
        align=strength,
        moved=moved,
        alone=plan.alone if len(plan.architecture.parts) > 1 else None,
        weights=plan.weights or None,
        imputed=imputed_levels(trained.vae, dataset, plan.held_out_rows, plan.architecture) or None,
        labels=None if labels is None else labels.column,
        n_labelled=None if labels is None else int((labels.codes >= 0).sum()),
    )


def description(model: Model) -> dict[str, Any]:
    """Return what h5ad can hold of a model's description: no None, lists as arrays."""
    origin = model.origin
    return storable(
        {
            **model.record.to_json(),
            "architecture": dataclasses.asdict(model.architecture),
            "batch": origin.covariates.batch,
            "batches": origin.covariates.batches,
            "covariates": origin.covariates.others,
            "layer": origin.layer or "X",
            "library_size": origin.library_size,
            "rounded": True if origin.counts == "rounded" else None,
            "modalities": {kind: part.place for kind, part in origin.parts.items()},
        }
    )


def storable(value: Any) -> Any:
    """Return `value` as h5ad stores it: without None, lists as arrays."""
    if isinstance(value, dict):
        return {key: storable(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return np.asarray(value, dtype=None if value else str)
    return value


def write_embedding(adata: AnnData, key: str, embedding: np.ndarray, uns: dict[str, Any]) -> None:
    """Write the embedding and the description of a fit to the cells that were fitted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # writing to a view makes it an AnnData of its own
        adata.obsm[key] = embedding
        adata.uns["scvae"] = uns
