"""A model extended by batches that it has not seen: new rows of V are learned, all else stays.

A layer is W x + V s + b, and a batch owns one row of V (see `scvae.core.networks.Layer`), one of
the dispersions where these are per batch, and an offset in every cluster of the alignment. New rows
start at the mean over the old, which is where `embed(batch="new")` places such cells, and climb the
evidence lower bound of the new cells. Nothing that the old batches use is changed, not by a bit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from scvae.arguments import check_seed, check_whole, shown
from scvae.core.networks import evaluating
from scvae.core.objectives import elbo
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.data.read.forms import check_anndata
from scvae.data.read.widening import Widened, widen
from scvae.errors import ConfigError, DataError
from scvae.models.alignment import with_new_batches
from scvae.models.budget import split
from scvae.models.coordinates import Coordinates, encoded
from scvae.models.embedding import Embedding
from scvae.models.fitted import Fitted
from scvae.models.keep.files import Parts
from scvae.models.keep.origin import Origin
from scvae.models.keep.record import Record
from scvae.models.network import blank_vae
from scvae.models.plan import HELD_OUT_SIZE, generator_of
from scvae.train.loop import evaluate

if TYPE_CHECKING:
    from anndata import AnnData

STEPS = 400
EVERY, PATIENCE = 20, 5  # steps between evaluations; of these without a better bound
RATE = 0.02  # of Adam at the start, which falls to 0 by cosine
BATCH_SIZE = 128
FEWEST = 4  # cells

PER_COVARIATE = "covariate_weight"  # ends the names of the tensors with a row a column of s
PER_BATCH = "log_inverse_dispersion"  # has a row a batch, where it has several


def extended(
    model: Fitted,
    embedding: Embedding,
    record: Record,
    adata: AnnData,
    batch: str | None,
    layer: str | None,
    max_steps: int,
    validation: float | str,
    seed: int,
) -> Parts:
    """Return the parts of the extended model; as `scvae.models.model.Model.extend` says."""
    max_steps, seed = check_whole("max_steps", max_steps, STEPS), check_seed(seed)
    model.demand_rna()
    known = model.origin.covariates
    _check_batch(known.batch, batch)
    check_anndata(adata)
    if adata.n_obs < FEWEST:
        raise DataError(
            f"adata has {adata.n_obs} cells, too few to learn from and to hold some out "
            f"({FEWEST} at least): model.embed(adata, batch='new')"
        )
    wide = widen(known, adata.obs)
    if not wide.is_new.any():
        raise ConfigError(
            f"adata has no batch or category that the model does not know ({known.batches[:10]}): "
            "there is nothing to learn, model.embed(adata) embeds its cells."
        )
    fitted = _widened(model, wide)
    dataset = fitted.read_for(adata, layer, "model.extend(adata", partial=True)
    assert isinstance(dataset, Dataset)
    rows, held_out = (part.to(model.device) for part in split(adata, validation, seed))
    _tell_library(fitted, dataset, wide)
    _learn(fitted.vae, dataset, rows, held_out, wide, max_steps, seed)
    aligned, moved = _aligned(fitted, embedding, dataset, wide)
    origin = _with_shares(fitted, model, dataset, record.n_train or 0)
    extended = None if record.moved is None else [*record.moved, *moved]
    record = dataclasses.replace(record, moved=extended)
    return Parts(fitted.vae, aligned, fitted.architecture, origin, record)


def _check_batch(known: str | None, given: str | None) -> None:
    if known is None:
        raise ConfigError(
            "The model was fitted without batches, so that there is none to add one to: "
            "model.embed(adata), or scvae.fit(reference, batch='batch') first."
        )
    if given not in (None, known):
        raise ConfigError(
            f"batch={shown(given)}, but the model's batches are in adata.obs[{known!r}]: "
            f"adata.obs[{known!r}] = adata.obs[{given!r}], then model.extend(adata)"
        )


# -- the wider network -----------------------------------------------------------------------------


def _widened(model: Fitted, wide: Widened) -> Fitted:
    """Return the model with rows for the new columns, each the mean over the old of its kind."""
    covariates, start = wide.covariates, torch.from_numpy(wide.start).to(model.device)
    architecture = dataclasses.replace(
        model.architecture, n_batches=covariates.n_batches, n_covariates=covariates.width
    )
    origin = dataclasses.replace(model.origin, covariates=covariates)
    vae = blank_vae(architecture).to(model.device)
    tensors = {
        name: wider(tensor, start, wide, like=vae.state_dict()[name])
        for name, tensor in model.vae.state_dict().items()
    }
    vae.load_state_dict(tensors)
    return Fitted(vae.eval(), architecture, origin)


def wider(tensor: Tensor, start: Tensor, wide: Widened, like: Tensor) -> Tensor:
    """Return a tensor with rows for new columns or batches, where the wider network has them."""
    if tensor.shape == like.shape:
        return tensor.clone()
    if len(like) == len(start):  # a row a column
        rows = start.to(tensor.dtype) @ tensor
        old = torch.from_numpy(~wide.is_new).to(tensor.device)
        rows[old] = tensor
        return rows
    return torch.cat([tensor, tensor.mean(0, keepdim=True).expand_as(like[len(tensor) :])])


def _tell_library(fitted: Fitted, dataset: Dataset, wide: Widened) -> None:
    """Tell the prior of the library sizes what those of the new batches are."""
    prior, n_old = fitted.vae.prior, wide.covariates.n_batches - wide.n_new_batches
    for code in range(n_old, wide.covariates.n_batches):
        sizes = dataset.log_library[dataset.batch == code]
        for name, value in (("loc", sizes.mean()), ("scale", sizes.std().clamp(min=0.01))):
            getattr(prior, f"library_{name}")[code] = value


# -- training --------------------------------------------------------------------------------------


def _learn(
    vae: VAE,
    dataset: Dataset,
    rows: Tensor,
    held_out: Tensor,
    wide: Widened,
    steps: int,
    seed: int,
) -> None:
    """Climb the mean ELBO of the given rows by the new rows of the weights alone.

    The network stays in evaluation mode: what it knows of the old cells' averages is not touched.
    What is kept is what the held-out cells found best, if that is better than the start.
    """
    free = _free(vae, wide)
    optimizer = torch.optim.Adam([weight for weight, _ in free], RATE)
    order = generator_of("order", seed)
    noise = generator_of("noise", seed, dataset.device)
    best, kept, since = _measured(vae, dataset, held_out), _copies(free), 0
    minibatches = iter(dataset.shuffled(rows, BATCH_SIZE, order))
    with torch.enable_grad(), evaluating(vae):
        for step in range(1, steps + 1):
            minibatch = next(minibatches, None)
            if minibatch is None:
                minibatches = iter(dataset.shuffled(rows, BATCH_SIZE, order))
                minibatch = next(minibatches)
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            (-elbo(vae.terms(minibatch, generator=noise)).mean()).backward()
            for weight, old in free:  # without a gradient, Adam leaves a weight to the bit
                assert weight.grad is not None
                weight.grad[old] = 0.0
            optimizer.step()
            optimizer.zero_grad()
            if step % EVERY == 0 or step == steps:
                found, since = _measured(vae, dataset, held_out), since + 1
                if found > best:
                    best, kept, since = found, _copies(free), 0
                if since >= PATIENCE:
                    break
    with torch.no_grad():
        for (weight, _), value in zip(free, kept, strict=True):
            weight.copy_(value)
    vae.requires_grad_(True)


def _free(vae: VAE, wide: Widened) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the weights with new rows, and True for the old rows of each; freeze all others."""
    vae.requires_grad_(False)
    is_new = torch.from_numpy(wide.is_new)
    n_batches, free = wide.covariates.n_batches, []
    for name, weight in vae.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last == PER_COVARIATE:
            old = ~is_new
        elif last == PER_BATCH and len(weight) == n_batches and wide.n_new_batches:
            old = torch.arange(n_batches) < n_batches - wide.n_new_batches
        else:
            continue
        weight.requires_grad_(True)
        free.append((weight, old.to(weight.device)))
    return free


def _copies(free: list[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
    return [weight.detach().clone() for weight, _ in free]


def _measured(vae: VAE, dataset: Dataset, rows: Tensor) -> float:
    return evaluate(vae, dataset.minibatches(rows, HELD_OUT_SIZE))


# -- the wider embedding ---------------------------------------------------------------------------


@torch.no_grad()
def _aligned(
    fitted: Fitted, embedding: Embedding, dataset: Dataset, wide: Widened
) -> tuple[Embedding, list[float]]:
    """Return the embedding with offsets of the new batches, and how far these move their cells."""
    coordinates, alignment = embedding.coordinates, embedding.alignment
    if isinstance(coordinates, Coordinates):
        old = torch.from_numpy(~wide.is_new).to(fitted.device)
        typical = coordinates.covariates.new_zeros(len(old))
        typical[old] = coordinates.covariates
        coordinates = dataclasses.replace(coordinates, covariates=typical)
    if alignment is None or not wide.n_new_batches:
        return Embedding(coordinates, alignment), [0.0] * wide.n_new_batches
    rows, views = torch.arange(len(dataset), device=fitted.device), fitted.views
    with evaluating(fitted.vae):
        each = encoded(fitted.vae, dataset, rows, views, fitted.architecture.n_latent)
        x = torch.cat([coordinates(views, z) for _, z in each])
    aligned = with_new_batches(alignment, x, dataset.batch, wide.n_new_batches)
    moved = aligned.moved(x, dataset.batch, dataset.batch, aligned.centre.shape[1])
    return Embedding(coordinates, aligned), moved[-wide.n_new_batches :]


def _with_shares(fitted: Fitted, model: Fitted, dataset: Dataset, n_train: int) -> Origin:
    """Return the origin with the shares of all batches, old and new, in the cells of both."""
    sizes = np.bincount(dataset.batch.cpu().numpy(), minlength=fitted.architecture.n_batches)
    sizes = sizes.astype(float)
    sizes[: len(model.batches)] += n_train * np.array(model.origin.batch_shares)
    return dataclasses.replace(fitted.origin, batch_shares=list(map(float, sizes / sizes.sum())))
