"""Matrix products that cost less than the dense ones in float32."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from scvae.core.csr import csr_product, is_csr
from scvae.core.gradients import again
from scvae.core.kernels.layouts import laid_out
from scvae.core.kernels.run import is_served, run

SPARSE = 0.15  # share of non-zeros up to which skipping the zeros was measured to be faster
ROWS = 8  # to judge by: counting all entries would take as long as the product


def sparse_product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w for x ``(n, g)`` and w ``(g, h)``, by the non-zeros of x alone where few are.

    There is no gradient in x on that way; where one is wanted, the product is dense. x may be held
    as compressed sparse rows (`scvae.core.csr`). Raises ValueError where the columns of x are not
    as many as the rows of w.
    """
    if not x.dim() or w.dim() != 2 or x.shape[-1] != len(w):
        raise ValueError(f"x {tuple(x.shape)} cannot be multiplied with weights {tuple(w.shape)}")
    if is_csr(x):
        return csr_product(x, w)
    if x.dim() == 2 and not x.requires_grad and is_served(x, w) and _is_sparse(x):
        out: Tensor = _SparseProduct.apply(x, w)
        return out
    return x @ w


def _is_sparse(x: Tensor) -> bool:
    some = x[:ROWS]
    return int((some != 0).sum()) <= SPARSE * some.numel()


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        x = laid_out(x)
        out = x.new_empty(len(x), w.shape[1])
        run("product", len(x), x, laid_out(w), out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, x.t() @ grad
        d_w = x.new_empty(x.shape[1], grad.shape[1])
        run("outer", len(d_w), x, laid_out(grad), d_w)
        return None, d_w


def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x weight' + bias for x ``(..., n_in)`` and weight ``(n_out, n_in)``.

    Where the processor multiplies bfloat16 natively, the factors of this product and of those of
    its gradient are rounded to it, and what comes out is; sums within are taken in float32.
    """
    if x.shape[-1:] != weight.shape[1:] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"x {tuple(x.shape)} and bias {tuple(bias.shape)} do not fit weights "
            f"{tuple(weight.shape)}"
        )
    if is_served(x, weight, bias) and _multiplies_bfloat16():
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return linear(x, weight, bias)


@cache
def _multiplies_bfloat16() -> bool:
    # torch has no public name for the question; without an answer nothing is rounded.
    asked = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(ask() for ask in asked if ask is not None)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rounded = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight, bias, *rounded)
        return rounded[0] @ rounded[1].t() + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(linear, inputs, ctx.needs_input_grad, grad)
        n = grad.shape[:-1].numel()  # not -1, which is ambiguous where a width is 0
        rows = grad.reshape(n, grad.shape[-1])
        rounded = rows.bfloat16()
        d_x = (rounded @ weight).float().view(*grad.shape[:-1], x.shape[-1])
        d_weight = (rounded.t() @ x.reshape(n, x.shape[-1])).float()
        return d_x, d_weight, rows.sum(0)
