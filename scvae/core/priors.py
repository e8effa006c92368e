"""Priors over the latent space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scvae.core.distributions import Gaussian
from scvae.core.vae import Batch


class StandardNormal(nn.Module):
    """Return p(z) = N(0, I) over `n_latent` dimensions for every cell of a batch."""

    zeros: Tensor
    ones: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(n_latent), persistent=False)
        self.register_buffer("ones", torch.ones(n_latent), persistent=False)

    def forward(self, batch: Batch) -> Gaussian:
        shape = (batch.x.shape[0], self.zeros.shape[0])
        return Gaussian(self.zeros.expand(shape), self.ones.expand(shape))
