"""The embedding of all cells of data, and its spread: what `Model.embed` returns or writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvae.core.inference import moments
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.several import CellParts, Datasets
from scvae.errors import ConfigError, DataError
from scvae.models.answers import Question, answered, answered_in_file, ranks_of
from scvae.models.keep.checkpoint import digest
from scvae.models.on_disk import opened
from scvae.models.results import SLOT, checked, is_path


def mean_of(model: Any) -> Question:
    """Return the question for the embedding of a cell."""
    d, views = model.architecture.n_latent, model.views

    def mean(cells: Cells | CellParts) -> Tensor:
        z = model.vae.encode(cells).mean[:, :d]
        return _of_measured(model.embedding.mean(views, z, model.embedding.groups(cells)), cells)

    return Question(mean, d, model.embedding.n_features, _said(model))


def deviation_of(model: Any) -> Question:
    """Return the question for the standard deviation of the embedding of a cell."""
    d, views = model.architecture.n_latent, model.views

    def deviation(cells: Cells | CellParts) -> Tensor:
        q = moments(model.vae.encode(cells))
        group = model.embedding.groups(cells)
        spread = model.embedding.deviation(views, q.loc[:, :d], q.scale[:, :d], group)
        return _of_measured(spread, cells)

    return Question(deviation, d, model.embedding.n_features, _said(model))


def _of_measured(values: Tensor, cells: Cells | CellParts) -> Tensor:
    """Return values ``(n, d)``, NaN of cells that were measured in nothing."""
    if not isinstance(cells, CellParts):
        return values
    return torch.where(cells.present.any(-1, keepdim=True), values, torch.nan)


def of_kind(model: Any, dataset: Dataset | Datasets, modality: str) -> Dataset | Datasets:
    """Return the cells as if one kind alone had been measured of them."""
    kind = model.kind_of(modality)
    if not isinstance(dataset, Datasets):
        return dataset
    alone = dataset.only([[*model.modalities].index(kind)])
    if not alone.present.any():
        raise DataError(
            f"modality={kind!r}, but none of the {len(alone):,} cells was measured in it; by what "
            "they have: model.embed(adata)"
        )
    return alone


def _said(model: Any) -> str:
    return digest(*(tensor.cpu().numpy() for tensor in model.embedding.tensors().values()))


def embedded(
    model: Any,
    data: Any,
    layer: Any,
    batch: str | None,
    return_std: bool,
    out: Any,
    distributed: bool,
    modality: str | None = None,
) -> Any:
    """Return the embedding; see `Model.embed`."""
    model.kind_of(modality)
    cells, ranks = opened(data), ranks_of(distributed)
    if out is not None and return_std:
        raise ConfigError("return_std=True returns two arrays, and out takes one: leave one out.")
    if is_path(out):
        checked(out)
    dataset = model.read_for(cells, layer, "model.embed(adata", partial=True, batch=batch)
    dataset = dataset if modality is None else of_kind(model, dataset, modality)
    question = mean_of(model)
    if is_path(out):
        place = f"obsm/{SLOT}"
        return answered_in_file(model, dataset, question, ranks, out, place, "float32", cells)
    mean = answered(model, dataset, question, out, ranks)
    return (
        (mean, answered(model, dataset, deviation_of(model), None, ranks)) if return_std else mean
    )
