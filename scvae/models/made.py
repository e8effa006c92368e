"""The model that a plan left once it was executed: with its embedding, record and labels."""

from __future__ import annotations

import torch
from torch import Tensor

from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.models.embedding import fit_embedding
from scvae.models.keep.origin import Origin, PartOrigin
from scvae.models.label.learned import learned
from scvae.models.model import Model
from scvae.models.plan import Plan, Trained, generator_of
from scvae.models.prepare import Prepared, batch_shares
from scvae.models.written import record_of


def model_of(plan: Plan, trained: Trained, library_size: str, strength: float) -> Model:
    """Return the trained model with its embedding and record."""
    read, dataset = plan.prepared, trained.dataset
    rows = dataset.in_order(plan.train_rows)
    shares = batch_shares(read, rows.cpu().numpy())
    parts = _part_origins(read, library_size)
    origin = Origin(parts, read.covariates, shares, read.counted)
    embedding, moved = fit_embedding(
        trained.vae,
        plan.architecture,
        dataset,
        rows,
        _typical(read, dataset, rows),
        strength,
        generator_of("embedding", plan.seed, dataset.device),
    )
    record = record_of(plan, trained, strength, moved)
    model = Model(trained.vae, embedding, plan.architecture, origin, record)
    model.reference = learned(model, read.labels, dataset, plan.held_out_rows, plan.seed)
    return model


def _part_origins(prepared: Prepared, library_size: str) -> dict[str, PartOrigin]:
    """Return where the counts of every kind came from."""
    sizes = {kind: library_size if kind == "rna" else "observed" for kind in prepared.parts}
    return {
        kind: PartOrigin(part.names, part.layer, sizes[kind], part.place, part.measured)
        for kind, part in prepared.parts.items()
    }


def _typical(prepared: Prepared, dataset: Dataset | Datasets, rows: Tensor) -> Tensor:
    """Return the covariates that every cell is embedded with, ``(c,)``."""
    mean = dataset.s[rows].mean(0).cpu().numpy()
    return torch.from_numpy(prepared.covariates.typical(mean)).to(dataset.device)
