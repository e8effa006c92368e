"""Feed-forward networks with covariates injected into every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from scvae.core.products import rounded_linear, sparse_product


class Linear(nn.Linear):
    """`nn.Linear` with its usual initial law, U(-1/sqrt(n_in), 1/sqrt(n_in)).

    Drawn from `generator`, so that building a network leaves torch's global random state alone.
    """

    def __init__(self, n_in: int, n_out: int, generator: Generator | None = None) -> None:
        super().__init__(n_in, n_out, dtype=torch.float32)
        bound = 1 / math.sqrt(n_in)
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                parameter.uniform_(-bound, bound, generator=generator)

    def reset_parameters(self) -> None:
        """Draw nothing: torch's own constructor, which asks for it, knows no generator."""


class SparseLinear(nn.Module):
    """A linear layer for inputs most of whose entries are zero, such as counts.

    It starts as `Linear` does, but its weight is ``(n_in, n_out)``: every entry of the input then
    owns one row of memory, and a zero costs nothing (see `scvae.core.products`).
    """

    def __init__(self, n_in: int, n_out: int, generator: Generator | None = None) -> None:
        super().__init__()
        dense = Linear(n_in, n_out, generator)
        self.weight = nn.Parameter(dense.weight.detach().t().contiguous())
        self.bias = dense.bias

    def forward(self, x: Tensor) -> Tensor:
        return sparse_product(x, self.weight) + self.bias


class WideLinear(Linear):
    """A linear layer with many outputs, which takes most of a training step.

    While it trains, its products are taken in bfloat16 on processors that multiply it natively, at
    half the time; the rounding, 2^-9 of every factor, is far below the noise of a minibatch. In
    evaluation mode the output is exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return rounded_linear(x, self.weight, self.bias)
        return super().forward(x)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and every part of it back in its own afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def inject(x: Tensor, s: Tensor | None) -> Tensor:
    """Append covariates ``(n, c)`` to activations ``(..., n, h)``."""
    if s is None or s.shape[-1] == 0:
        return x
    return torch.cat([x, s.expand(*x.shape[:-1], s.shape[-1])], dim=-1)


class MLP(nn.Module):
    r"""Map ``(..., n, n_in)`` to ``(..., n, n_hidden)`` by layers of h = relu(norm(W[h, s] + b)).

    Every layer is batch-normalised (Ioffe and Szegedy, ICML 2015) unless `normalise` is False: in
    training by the mean and variance of the minibatch, afterwards by their running averages.

    Parameters
    ----------
    n_in, n_hidden, n_layers
        Width of the input, width and number of the layers.
    n_covariates
        Width of the covariates `s`, appended to the input of every layer.
    normalise
        Whether to normalise: not where rows of different kinds share a network.
    sparse
        Whether most entries of the input are zero; the first layer is then a `SparseLinear`.
    generator
        Source of the initial weights.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int = 1,
        *,
        n_covariates: int = 0,
        normalise: bool = True,
        sparse: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [n_in] + [n_hidden] * n_layers
        makers = [SparseLinear if sparse else Linear] + [Linear] * n_layers
        self.layers = nn.ModuleList(
            make(width + n_covariates, n_hidden, generator)
            for make, width in list(zip(makers, widths, strict=True))[:n_layers]
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(n_hidden, dtype=torch.float32) if normalise else nn.Identity()
            for _ in self.layers
        )

    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = layer(inject(x, s))
            x = torch.relu(norm(h.reshape(-1, h.shape[-1])).view(h.shape))
        return x
