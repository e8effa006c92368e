"""How much of what is known of a cell comes from each kind of measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from scvae.core.joint import Fused
from scvae.data.hold.several import CellParts
from scvae.errors import ConfigError
from scvae.models.fitted import Fitted, Layer

if TYPE_CHECKING:
    from anndata import AnnData

PRIOR = "prior"


def contributions(model: Fitted, adata: AnnData, layer: Layer) -> pd.DataFrame:
    r"""Return the share of every kind in the precision of a cell's posterior; see `Model`.

    .. math:: c_{nm} = \frac1d \sum_k \frac{\sigma_{nmk}^{-2}}{1 + \sum_{m'} \sigma_{nm'k}^{-2}}
    """
    posterior, kinds = model.vae.posterior, [*model.modalities]
    if not isinstance(posterior, Fused):
        raise ConfigError(f"The model is of {kinds[0]} alone, to which all contributions belong.")

    def shares(cells: CellParts) -> Tensor:
        said = posterior.said(cells)
        precision = torch.where(cells.present[..., None], said.scale.square().reciprocal(), 0.0)
        of_all = 1 + precision.sum(-2, keepdim=True)
        return torch.cat([precision / of_all, 1 / of_all], dim=-2).mean(-1)

    values = model.over(model.read_for(adata, layer, "model.contributions(adata"), shares)
    return pd.DataFrame(values, index=adata.obs_names.copy(), columns=[*kinds, PRIOR])
