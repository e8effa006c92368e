"""Denoised amounts of one kind of measurement, as tables, also of cells that were not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scvae.arguments import check_positive, check_switch, is_number, refuse
from scvae.data.hold.cells import Cells
from scvae.data.hold.several import CellParts
from scvae.errors import ConfigError
from scvae.modalities.modality import amount_in_batches
from scvae.modalities.protein import Background, Protein
from scvae.models.answers import Question, answered, answered_in_file, ranks_of
from scvae.models.fitted import Fitted, Layer
from scvae.models.judge.imputed import Levels, level_of
from scvae.models.query import check_out, codes_of, draws, positions_of
from scvae.models.results import Precision, check_dtype, checked, is_path

if TYPE_CHECKING:
    from anndata import AnnData

NORMALIZED = "model.normalized(adata"  # the call of the user
ROUNDING = 1e-6  # of a rank among draws


def denoised(
    model: Fitted,
    adata: AnnData,
    layer: Layer,
    *,
    modality: str | None,
    batch: str,
    genes: Sequence[str] | None,
    library_size: float,
    background: bool,
    out: Any,
    dtype: Precision = "float32",
    distributed: bool = False,
) -> Any:
    """Return the amounts of a kind, cells x features; see `Model.normalized`."""
    kind = model.kind_of(modality)
    names = model.origin.parts[kind].names
    columns = positions_of("genes", genes, names, model.device)
    total = check_positive("library_size", library_size, "1e4")
    codes = codes_of(batch if isinstance(batch, str) else str(batch), model.batches)
    view, spec, n = model.view(kind), model.modalities[kind], model.architecture.n_batches
    if check_switch("background", background, False):
        if not isinstance(spec, Protein):
            raise ConfigError(f"background=True is of proteins, but modality={kind!r} has none.")
        spec = Background(spec.n_proteins)
    scale = 1.0 if isinstance(spec, Protein) else total
    dtype, as_table = check_dtype(dtype, scale), out is None
    numbers = columns.tolist()
    everything = numbers == [*range(len(names))]
    chosen, shape = [names[i] for i in numbers], (adata.n_obs, len(columns))

    def amounts(part: Cells | CellParts) -> Tensor:
        z = model.vae.encode(part).mean
        found = amount_in_batches(spec, view.decoder, z, part.s, codes, n)
        found = found if everything else found[:, columns]
        return found if scale == 1.0 else found.mul_(scale)  # every pass over it takes time

    if is_path(out):
        checked(out)
    elif out is not None:
        check_out(out, shape)
    elif dtype != "float32":
        out = np.empty(shape, dtype)
    said = [kind, codes, chosen, total, background]
    question, ranks = Question(amounts, len(columns), view.width, said), ranks_of(distributed)
    dataset = model.read_for(adata, layer, NORMALIZED, partial=True)
    if is_path(out):
        var = pd.DataFrame(index=chosen)
        return answered_in_file(model, dataset, question, ranks, out, "X", dtype, adata, var)
    found = answered(model, dataset, question, out, ranks)
    return _table(found, adata, chosen) if as_table else found


def intervals(
    model: Fitted,
    adata: AnnData,
    layer: Layer,
    modality: str | None,
    genes: Sequence[str] | None,
    share: Any,
    samples: int,
    seed: int,
    levels: Levels | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Return the bounds between which a share of drawn counts lies, cells x features.

    .. math:: z \sim q(z_n), \qquad \tilde x \sim p(x \mid z, s_n), \text{ of the cell's size}

    Of cells that were not measured it is the share that `levels` say, where they do.
    """
    if not is_number(share) or not 0 < share < 1:
        raise refuse("return_interval", share, "a share between 0 and 1", 0.9)
    kind = model.kind_of(modality)
    names, view = model.origin.parts[kind].names, model.view(kind)
    columns = positions_of("genes", genes, names, model.device)
    k, generator = draws(samples, seed, model.device, usual=200)
    place = [*model.modalities].index(kind)
    learned = level_of(levels, kind, share, len(names))
    wanted = torch.tensor(share, dtype=torch.float64, device=model.device)
    imputed = None if learned is None else torch.from_numpy(learned).to(wanted)[columns]

    def bounds(cells: Cells | CellParts) -> Tensor:
        part = cells.parts[place] if isinstance(cells, CellParts) else cells
        z = model.vae.encode(cells).sample((k,), generator=generator)
        x = view.decoder(z, part.filled).sample(generator=generator)[..., columns]
        level = wanted.expand(x.shape[1:])
        if imputed is not None and part.present is not None:
            level = torch.where(part.present[:, None], level, imputed)
        return _middle(x, level).movedim(0, 1)

    found = model.over(model.read_for(adata, layer, NORMALIZED, partial=True), bounds, samples=k)
    named = [names[i] for i in columns.tolist()]
    return _table(found[:, 0], adata, named), _table(found[:, 1], adata, named)


def _middle(x: Tensor, level: Tensor) -> Tensor:
    """Return the draws between which a share ``(...)`` of draws ``(k, ...)`` lies about their
    median, or the next outside of it, ``(2, ...)``."""
    ordered, last = x.sort(dim=0).values, len(x) - 1
    low, high = (0.5 - level / 2) * last, (0.5 + level / 2) * last
    at = torch.stack([(low + ROUNDING).floor(), (high - ROUNDING).ceil()]).long()
    return ordered.gather(0, at)


def _table(values: np.ndarray, adata: AnnData, names: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(values, index=adata.obs_names.copy(), columns=list(names))


def foreground(
    model: Fitted, adata: AnnData, layer: Layer, samples: int, seed: int
) -> pd.DataFrame:
    """Return the probability that every protein's count is of the foreground; see `Model`."""
    spec = model.modalities.get("protein")
    if not isinstance(spec, Protein):
        raise ConfigError(f"The model is of {[*model.modalities]}, which has no proteins.")
    protein, view = spec, model.view("protein")
    place = [*model.modalities].index("protein")
    k, generator = draws(samples, seed, model.device)

    def probability(cells: Cells | CellParts) -> Tensor:
        part = cells.parts[place] if isinstance(cells, CellParts) else cells
        z = model.vae.encode(cells).sample((k,), generator=generator)
        found = protein.foreground(view.decoder, z, part.filled).mean(0)
        for mask in (part.observed, None if part.present is None else part.present[:, None]):
            found = found if mask is None else torch.where(mask, found, torch.nan)
        return found

    dataset = model.read_for(adata, layer, "model.foreground(adata")
    values = model.over(dataset, probability, samples=k)
    return _table(values, adata, model.origin.parts["protein"].names)
