"""Log-masses of whole rows of counts: by a compiled kernel where there is one, else by `numerics`.

The kernels (`scvae.core.kernels`) serve float32 on the CPU, which is what training there uses, and
compute value and gradients in one pass; they are compiled at first use and kept on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd.function import once_differentiable

from scvae.core.numerics import nb_log_mass, zero_inflate

FEWEST_ROWS = 16  # of one thread: fewer cost more to hand over than to compute


def nb_log_prob(x: Tensor, log_mean: Tensor, log_r: Tensor) -> Tensor:
    """Return the sum of `nb_log_mass` over the last axis."""
    if not _is_served(x, log_mean, log_r):
        return nb_log_mass(x, log_mean, log_r).sum(-1)
    out: Tensor = _Rows.apply("nb", x, log_mean, log_r)
    return out


def zinb_log_prob(x: Tensor, log_mean: Tensor, log_r: Tensor, logits: Tensor) -> Tensor:
    """Return the sum of `zero_inflate` of `nb_log_mass` over the last axis."""
    if not _is_served(x, log_mean, log_r, logits):
        return zero_inflate(nb_log_mass(x, log_mean, log_r), logits, x == 0).sum(-1)
    out: Tensor = _Rows.apply("zinb", x, log_mean, log_r, logits)
    return out


def _is_served(*tensors: Tensor) -> bool:
    suits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return suits and _kernels() is not None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, *parameters: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(x.shape, *(p.shape for p in parameters))
        log_mean, log_r, *logits = parameters
        rows_of_r = Size((1, *shape[-1:])) if _is_one_row(log_r.shape, shape) else shape
        # The kernels take r, not log r, and one row of it where all rows are the same.
        of_r = _flat(log_r, rows_of_r).exp()
        arrays = [_flat(x, shape), _flat(log_mean, shape), of_r, *(_flat(h, shape) for h in logits)]
        slopes = [torch.empty_like(arrays[0]) for _ in parameters]
        out = arrays[0].new_empty(len(arrays[0]))
        kernels = _kernels()
        assert kernels is not None
        _shared(kernels[name], len(out), arrays, [out, *slopes])
        ctx.save_for_backward(*slopes)
        ctx.shape, ctx.shapes = shape, [p.shape for p in parameters]
        return out.view(shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights = grad.reshape(-1)
        found = [
            _weighted(weights, slope, ctx.shape, shape) if needed else None
            for slope, shape, needed in zip(
                ctx.saved_tensors, ctx.shapes, ctx.needs_input_grad[2:], strict=True
            )
        ]
        return (None, None, *found)


def _weighted(weights: Tensor, slope: Tensor, full: Size, shape: Size) -> Tensor:
    """Return the gradient of one parameter: its slopes at all rows, weighted and summed up."""
    if _is_one_row(shape, full):
        return (weights @ slope).view(shape)
    return (weights[:, None] * slope).view(full).sum_to_size(shape)


def _is_one_row(shape: Size, full: Size) -> bool:
    """Return whether a parameter of this shape is the same for all rows."""
    return bool(shape) and shape.numel() == shape[-1] == full[-1]


def _flat(tensor: Tensor, shape: Size) -> Tensor:
    """Return a tensor, broadcast to `shape`, as a contiguous matrix of rows."""
    return tensor.detach().expand(shape).reshape(-1, shape[-1]).contiguous()


@cache
def _kernels() -> dict[str, Callable[..., None]] | None:
    """Return the compiled kernels, or None where this machine cannot compile or keep them."""
    try:
        from scvae.core.kernels import nb_rows, zinb_rows
    except (ImportError, RuntimeError):
        return None
    return {"nb": nb_rows, "zinb": zinb_rows}


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="scvae")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: the child needs its own
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _shared(
    kernel: Callable[..., None], n: int, inputs: list[Tensor], outputs: list[Tensor]
) -> None:
    """Run a kernel on n rows, as many threads sharing them as torch would use."""
    given, written = ([t.numpy() for t in tensors] for tensors in (inputs, outputs))
    parts = max(1, min(torch.get_num_threads(), n // FEWEST_ROWS))
    edges = [n * i // parts for i in range(parts + 1)]
    others = [
        _threads().submit(kernel, *given, start, stop, *written)
        for start, stop in pairwise(edges[1:])
    ]
    kernel(*given, edges[0], edges[1], *written)
    for other in others:
        other.result()
