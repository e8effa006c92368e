"""Feed-forward networks that are given the covariates in every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import batch_norm, linear

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

    def forward(self, x: Tensor) -> Tensor:
        demand_width(self, x, self.in_features)
        return super().forward(x)


def demand_width(layer: nn.Module, x: Tensor, width: int) -> None:
    """Raise ValueError unless the last axis of `x` is as wide as a layer takes it."""
    if x.shape[-1:] != (width,):
        raise ValueError(
            f"{type(layer).__name__}({layer.extra_repr()}) takes {width} columns, but it was given "
            f"{x.shape[-1] if x.dim() else 'a number'}: {tuple(x.shape)}"
        )


class Layer(nn.Module):
    """W x + V s + b of activations x ``(..., n, n_in)`` and covariates s ``(n, c)``.

    It starts as `Linear` of both side by side does. V is ``(c, n_out)``: every covariate, such as a
    batch, owns one row of it, so that a new batch is a new row.

    Parameters
    ----------
    n_in, n_out, n_covariates
        Widths of x, of the result and of s.
    generator
        Source of the initial weights.
    sparse
        Whether most entries of x are zero, as those of counts. W is then ``(n_in, n_out)``: every
        entry of x owns one row of memory, and a zero costs nothing (see `scvae.core.products`).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_covariates: int = 0,
        generator: Generator | None = None,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        whole = Linear(n_in + n_covariates, n_out, generator)
        w, v = whole.weight.detach().split([n_in, n_covariates], dim=1)
        self.sparse = sparse
        self.weight = nn.Parameter((w.t() if sparse else w).contiguous())
        self.bias = whole.bias
        self.covariate_weight = nn.Parameter(v.t().contiguous()) if n_covariates else None

    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        demand_width(self, x, self.weight.shape[0 if self.sparse else 1])
        product = sparse_product(x, self.weight) if self.sparse else linear(x, self.weight)
        return product + self._offset(s)

    def extra_repr(self) -> str:
        n_in, n_out = self.weight.shape if self.sparse else self.weight.shape[::-1]
        v = self.covariate_weight
        return f"n_in={n_in}, n_out={n_out}, n_covariates={0 if v is None else len(v)}"

    def _offset(self, s: Tensor | None) -> Tensor:
        """Return V s + b, ``(n, n_out)``, or b where there are no covariates."""
        v = self.covariate_weight
        given, wanted = 0 if s is None else s.shape[-1], 0 if v is None else len(v)
        if given != wanted:
            raise ValueError(f"There are {given} covariates, but the layer was made for {wanted}.")
        return self.bias if s is None or v is None else linear(s, v.t(), self.bias)


class WideLinear(Linear):
    """A linear layer with many outputs, which takes most of a training step.

    While it trains, its products are taken in bfloat16 on processors that multiply it natively, at
    half the time; the rounding, 2^-9 of every factor, is far below the noise of a minibatch. In
    evaluation mode the output is exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            demand_width(self, x, self.in_features)
            return rounded_linear(x, self.weight, self.bias)
        return super().forward(x)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of ``(rows, width)`` that trains on one row, too.

    One row has no variance: it is normalised by the running averages, which it leaves alone.

    Attributes
    ----------
    counted
        The rows that the moments are of, bool ``(rows,)``, see `counting`; None are all.
    """

    counted: Tensor | None = None

    def __init__(self, width: int) -> None:
        super().__init__(width, dtype=torch.float32)

    def forward(self, h: Tensor) -> Tensor:
        if self.counted is not None and self.training:
            return self._of_counted(h, self.counted[:, None].to(h.dtype))
        if len(h) != 1:
            return super().forward(h)
        return batch_norm(
            h, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _of_counted(self, h: Tensor, counted: Tensor) -> Tensor:
        """Do as for the rows ``(rows, 1)`` that are 1 alone, in a shape that is always the same."""
        n = counted.sum()
        share = counted / n.clamp(min=1)
        mean = (share * h).sum(0)
        return self.by_moments(h, n, mean, (share * (h - mean).square()).sum(0))

    def by_moments(self, h: Tensor, n: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise rows, in training, by the mean and variance ``(width,)`` of n rows, whichever
        these were, and let the running averages follow them; of one row or none, by these."""
        assert self.running_mean is not None
        assert self.running_var is not None
        several = n > 1
        by_mean = torch.where(several, mean, self.running_mean)
        by_variance = torch.where(several, variance, self.running_var)
        scaled = (h - by_mean) * torch.rsqrt(by_variance + self.eps) * self.weight + self.bias
        with torch.no_grad():
            weight = several.to(h.dtype) * (0.1 if self.momentum is None else self.momentum)
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), weight)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += several.any()
        return scaled


@contextmanager
def counting(module: nn.Module, rows: Tensor) -> Iterator[None]:
    """Let the `BatchNorm` of a module be by the moments of some rows, bool ``(n,)``, in training.

    The others are normalised by them, too, and may hold any finite numbers. Unlike a selection of
    the rows, it waits for no device to say how many there are.
    """
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    for norm in norms:
        norm.counted = rows
    try:
        yield
    finally:
        for norm in norms:
            norm.counted = None


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


class MLP(nn.Module):
    r"""Map ``(..., n, n_in)`` to ``(..., n, n_hidden)`` by layers of h = relu(norm(W h + V s + b)).

    Every layer is batch-normalised (Ioffe and Szegedy, ICML 2015) unless `normalise` is False: in
    training by the mean and variance of the minibatch, afterwards, or where that is one row, by
    their running averages.

    Parameters
    ----------
    n_in, n_hidden, n_layers
        Width of the input, width and number of the layers.
    n_covariates
        Width of the covariates `s`, which every layer is given (see `Layer`).
    normalise
        Whether to normalise: not where rows of different kinds share a network.
    sparse
        Whether most entries of the input are zero; the first layer is then a sparse one.
    generator
        Source of the initial weights.

    Examples
    --------
    >>> MLP(64, 16, n_layers=2)(torch.randn(5, 64)).shape
    torch.Size([5, 16])
    >>> MLP(64, 16, n_covariates=3)(torch.randn(5, 64), torch.ones(5, 3)).shape
    torch.Size([5, 16])
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
        self.layers = nn.ModuleList(
            Layer(n_hidden if i else n_in, n_hidden, n_covariates, generator, sparse and i == 0)
            for i in range(n_layers)
        )
        self.norms = nn.ModuleList(
            BatchNorm(n_hidden) if normalise else nn.Identity() for _ in self.layers
        )

    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = layer(x, s)
            x = torch.relu(norm(h.reshape(-1, h.shape[-1])).view(h.shape))
        return x
