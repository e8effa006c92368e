r"""Gaussian priors on the weights of layers: maximum a posteriori in place of maximum likelihood.

.. math:: \sum_n L(x_n) + \log p(W), \qquad W_{ij} \sim N(0, \tau^2)

A layer with many outputs of few counts each fits what it has seen of them by heart; the prior asks
of every weight to pay for itself. Its part of the sum does not grow with the cells.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from scvae.core.networks import WideLinear


class ShrunkLinear(WideLinear):
    r"""A wide linear layer whose weights, not its biases, are :math:`N(0, \tau^2)` beforehand.

    Parameters
    ----------
    n_in, n_out
        Widths.
    scale
        Standard deviation :math:`\tau` of a weight, above 0.
    generator
        Source of the initial weights.
    """

    def __init__(
        self, n_in: int, n_out: int, scale: float, generator: Generator | None = None
    ) -> None:
        super().__init__(n_in, n_out, generator)
        self.scale = scale

    def log_prior(self) -> Tensor:
        r"""Return :math:`\log p(W)`, up to a constant."""
        return -0.5 / self.scale**2 * torch.linalg.vector_norm(self.weight).square()


def shrunk_layers(module: nn.Module) -> list[ShrunkLinear]:
    """Return the layers of a network that have a prior on their weights."""
    return [part for part in module.modules() if isinstance(part, ShrunkLinear)]
