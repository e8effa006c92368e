"""How wide intervals of imputed counts must be, learned from held-out cells that were measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from scvae.core.networks import evaluating
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.modalities.protein import Protein
from scvae.models.network import Architecture, views_of

DRAWS, SIZE = 200, 64
FEWEST, MOST = 100, 2_000  # held-out cells: of fewer, intervals are of what is drawn
SHARES = np.linspace(0.0, 1.0, 21)  # at which levels are written down

Levels = dict[str, list[list[float]]]


@torch.no_grad()
def imputed_levels(
    vae: VAE, dataset: Dataset | Datasets, rows: Tensor, architecture: Architecture
) -> Levels:
    """Return of which level intervals of imputed proteins must be to hold a share of the counts.

    A decoder that is trained where proteins were measured draws too little where they were not. So
    held-out cells that have them are imputed from their other kinds, and for each is found from
    what level on the interval of draws holds its count: what holds .9 of the counts is the .9
    quantile of these (split conformal prediction, Romano, Patterson and Candes, NeurIPS 2019).

    Parameters
    ----------
    rows
        Numbers of the held-out cells.

    Returns
    -------
    dict
        For proteins, if at least 100 of the cells were measured in them and another kind: a list a
        protein, with the level that holds each share 0, .05, ..., 1.
    """
    if not isinstance(dataset, Datasets):
        return {}
    found, there = {}, dataset.present[rows]
    for place, (kind, spec) in enumerate(architecture.parts.items()):
        asked = rows[there[:, place] & (there.sum(1) > 1)][:MOST]
        if isinstance(spec, Protein) and len(asked) >= FEWEST:
            held = _levels_that_hold(vae, dataset, asked, place, architecture)
            shares = torch.as_tensor(SHARES, dtype=held.dtype)
            found[kind] = held.nanquantile(shares, dim=0, interpolation="higher").T.tolist()
    return found


def _levels_that_hold(
    vae: VAE, dataset: Datasets, rows: Tensor, place: int, architecture: Architecture
) -> Tensor:
    """Return from what level on the interval of draws holds a count, cells x features; NaN of those
    that were not observed."""
    decoder = views_of(vae, architecture)[place].decoder
    others = dataset.only([i for i in range(len(dataset.parts)) if i != place])
    generator = Generator(dataset.device).manual_seed(0)
    found = []
    with evaluating(vae):
        each = dataset.minibatches(rows, SIZE), others.minibatches(rows, SIZE)
        for measured, absent in zip(*each, strict=True):
            z = vae.encode(absent).sample((DRAWS,), generator=generator)
            draws = decoder(z, absent.parts[place].filled).sample(generator=generator)
            part = measured.parts[place]
            level = level_that_holds(draws, part.x)
            seen = part.observed
            found.append(level if seen is None else torch.where(seen, level, torch.nan))
    return torch.cat(found).cpu().double()


def level_that_holds(draws: Tensor, x: Tensor) -> Tensor:
    r"""Return the smallest share of draws ``(k, ...)`` about their median that reaches to x.

    .. math:: \max(0,\; 1 - 2 F(x),\; 2 F(x^-) - 1)
    """
    at_most = (draws <= x).to(x.dtype).mean(0)
    below = (draws < x).to(x.dtype).mean(0)
    return torch.maximum(1 - 2 * at_most, 2 * below - 1).clamp(min=0)


def level_of(levels: Levels | None, kind: str, share: float, g: int) -> np.ndarray | None:
    """Return the level of g features' intervals that hold a share of imputed counts, ``(g,)``; None
    where it was not learned."""
    if not levels or len(levels.get(kind, ())) != g:
        return None
    return np.array([np.interp(share, np.linspace(0, 1, len(one)), one) for one in levels[kind]])
