"""New cells: batches as often as in training, then latents, library sizes and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Generator, Tensor

from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells
from scvae.data.hold.several import CellParts
from scvae.data.read.covariates import Covariates
from scvae.models.embedding import Embedding
from scvae.models.fitted import Fitted
from scvae.models.network import Architecture, Prior

if TYPE_CHECKING:
    from anndata import AnnData


def draw(
    model: Fitted, embedding: Embedding, n: int, code: int | None, generator: Generator
) -> AnnData:
    """Return `n` cells of one batch, or of batches as often as they were seen in training: as
    AnnData, or as MuData where the model has several kinds of measurement."""
    from anndata import AnnData

    origin, covariates = model.origin, model.origin.covariates
    if code is None:
        codes = _draw_batches(n, origin.batch_shares, generator)
    else:
        codes = torch.full((n,), code, device=model.device)
    rows: list[list[sparse.csr_matrix]] = [[] for _ in model.modalities]
    latents = []
    for part in codes.split(model.chunk()):
        z, counts = _draw_cells(model.vae, model.architecture, covariates, part, generator)
        latents.append(embedding.mean(model.views, z, part).cpu().numpy())
        for of_kind, x in zip(rows, counts, strict=True):
            of_kind.append(sparse.csr_matrix(x.cpu().numpy()))
    obs = pd.DataFrame(index=[f"sample_{i}" for i in range(n)])
    if covariates.batch is not None:
        names = np.array(model.batches)[codes.cpu().numpy()]
        obs[covariates.batch] = pd.Categorical(names, categories=model.batches)
    drawn = {
        part.place or kind: AnnData(
            sparse.vstack(of_kind, format="csr"), obs.copy(), pd.DataFrame(index=part.names)
        )
        for of_kind, (kind, part) in zip(rows, origin.parts.items(), strict=True)
    }
    made: AnnData = next(iter(drawn.values())) if len(drawn) == 1 else _together(drawn, obs)
    made.obsm["X_scvae"] = np.vstack(latents)
    return made


def _together(parts: dict[str, AnnData], obs: pd.DataFrame) -> Any:
    """Return a MuData of the same cells in several kinds."""
    from mudata import MuData

    mdata = MuData(parts)
    mdata.obs = obs
    return mdata


def _draw_batches(n: int, shares: list[float], generator: Generator) -> Tensor:
    """Return codes of batches as often as they were seen, ``(n,)``."""
    seen = torch.tensor(shares, device=generator.device)
    return torch.multinomial(seen, n, replacement=True, generator=generator)


@torch.no_grad()
def _draw_cells(
    vae: VAE, a: Architecture, covariates: Covariates, codes: Tensor, generator: Generator
) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""Return latents ``(n, d)`` and counts ``(n, g)`` of every kind, of cells of batches ``(n,)``.

    .. math:: z \sim p(z), \qquad \log l \sim N(\ell_\mu[s], \ell_\sigma^2[s]),
              \qquad x \sim p(x \mid z, l, s)
    """
    prior = vae.prior
    assert isinstance(prior, Prior)
    s = torch.from_numpy(covariates.encode(codes.cpu().numpy())).to(codes.device)
    parts = []
    for kind, spec in a.parts.items():
        loc, scale = (of_batch[codes, None] for of_batch in prior.sizes(kind))
        noise = torch.randn(len(codes), 1, generator=generator, device=codes.device)
        x = torch.zeros(len(codes), spec.n_features, device=codes.device)
        parts.append(Cells(x, s, batch=codes, log_library=loc + scale * noise))
    cells = parts[0] if len(parts) == 1 else CellParts(tuple(parts), s, batch=codes)
    z = prior(cells).sample(generator=generator)
    counts = vae.likelihood(z, cells).sample(generator=generator)
    return z[:, : a.n_latent], counts if isinstance(counts, tuple) else (counts,)
