"""Log-probabilities of whole rows: by a compiled kernel where there is one, else by `numerics`.

The kernels serve float32, which is what training uses, on the CPU (`scvae.core.kernels`) and on
CUDA (`scvae.core.kernels.cuda`), and compute value and gradients in one pass. They are compiled at
first use and kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Size, Tensor

from scvae.core.gradients import is_transformed, promoted
from scvae.core.kernels.layouts import laid_out
from scvae.core.kernels.run import is_served, run
from scvae.core.numerics import nb_log_mass, zero_inflate
from scvae.core.shapes import broadcast_shape
from scvae.core.sparse_rows import poisson_log_prob as sparse_poisson

NO_SECOND = (
    "create_graph=True, but the kernels of float32 counts compute no second derivatives. "
    "Give float64 tensors, or use torch.func, which go without them."
)


def nb_log_prob(x: Tensor, a: Tensor, log_r: Tensor, log_total: Tensor | None = None) -> Tensor:
    r"""Return the sum of `nb_log_mass` over the last axis.

    Parameters
    ----------
    x, log_r
        Counts and log inverse dispersions, ``(..., g)``.
    a
        Log-means ``(..., g)``; or, given a total, logits of the shares of it,
        :math:`\log\mu = \log\mathrm{softmax}(a) + \log l`, of which the first g are counted.
    log_total
        :math:`\log l`, ``(..., 1)``.

    Raises
    ------
    ValueError
        Where shapes do not fit each other; they are named.
    """
    shape = _shape(log_total, a, x=x, log_r=log_r)
    x, a, log_r = promoted(x, a, log_r)
    total = a.new_empty(0) if log_total is None else log_total
    if shape and _is_served(x, a, total, log_r):
        out: Tensor = _Rows.apply("nb", shape, x, a, total, log_r)
        return out
    return nb_log_mass(x, log_means(a, log_total, shape[-1] if shape else 1), log_r).sum(-1)


def zinb_log_prob(
    x: Tensor, a: Tensor, log_r: Tensor, logits: Tensor, log_total: Tensor | None = None
) -> Tensor:
    """Return the sum of `zero_inflate` of `nb_log_mass` over the last axis; see `nb_log_prob`."""
    shape = _shape(log_total, a, x=x, log_r=log_r, logits=logits)
    x, a, log_r, logits = promoted(x, a, log_r, logits)
    total = a.new_empty(0) if log_total is None else log_total
    if shape and _is_served(x, a, total, log_r, logits):
        out: Tensor = _Rows.apply("zinb", shape, x, a, total, log_r, logits)
        return out
    mass = nb_log_mass(x, log_means(a, log_total, shape[-1] if shape else 1), log_r)
    return zero_inflate(mass, logits, x == 0).sum(-1)


def poisson_log_prob(x: Tensor, a: Tensor, log_total: Tensor) -> Tensor:
    """Return the sum over the last axis of `poisson_log_mass`, of counts ``(..., g)`` that share a
    total; `a` and `log_total` as for `nb_log_prob`."""
    shape = _shape(log_total, a, x=x)
    x, a, log_total = promoted(x, a, log_total)
    if shape and is_served(x, a, log_total):
        out: Tensor = _Rows.apply("poisson", shape, x, a, log_total)
        return out
    return sparse_poisson(x, a, log_total)


def log_means(a: Tensor, log_total: Tensor | None, g: int) -> Tensor:
    """Return the first g log-means: `a` itself, or shares of a total by their logits."""
    return a if log_total is None else torch.log_softmax(a, dim=-1)[..., :g] + log_total


def _shape(log_total: Tensor | None, a: Tensor, **others: Tensor) -> Size:
    """Return the shape ``(..., g)`` of all entries, or raise ValueError where there is none."""
    shapes = {name: tensor.shape for name, tensor in others.items()}
    if log_total is None:
        return _broadcast(a=a.shape, **shapes)
    g = (_broadcast(**shapes) or (1,))[-1]
    if log_total.shape[-1:] != (1,):
        raise ValueError(f"log_total has shape {tuple(log_total.shape)}, but it must be (..., 1)")
    if not a.shape or a.shape[-1] < g:
        raise ValueError(f"a has shape {tuple(a.shape)}, but {g} counts take {g} shares or more")
    return _broadcast(a=Size((*a.shape[:-1], g)), log_total=log_total.shape, **shapes)


def _broadcast(**shapes: Size) -> Size:
    try:
        return broadcast_shape(*shapes.values())
    except RuntimeError:
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"These shapes do not fit each other: {given}") from None


@cache
def _triton() -> Callable[..., None] | None:
    """Return the launcher of CUDA's kernel, or None where torch came without Triton."""
    try:
        from scvae.core.kernels.cuda import launch
    except ImportError:
        return None
    return launch


def _is_served(*tensors: Tensor) -> bool:
    if tensors[0].is_cuda:
        device = tensors[0].device
        suits = all(t.device == device and t.dtype == torch.float32 for t in tensors)
        return suits and _triton() is not None and not is_transformed()
    return is_served(*tensors)


class _Rows(torch.autograd.Function):
    """Rows of the kernel called `name`, for a, the total (or nothing: width 0), log r, logits: as
    many of them as the law has."""

    @staticmethod
    def forward(ctx: Any, name: str, full: Size, x: Tensor, *parameters: Tensor) -> Tensor:
        a, total, *of_entries = parameters
        batch, g = full[:-1], full[-1]
        n = batch.numel()
        shapes = [Size((*batch, width)) for width in _widths(a, total, g, len(parameters))]
        inputs = [_flat(x, Size((*batch, g))), _flat(a, shapes[0]), _flat(total, shapes[1])]
        if of_entries:
            log_r, *logits = of_entries
            # The kernels take r, not log r, and one row of it where all rows are the same.
            of_r = Size((1, g)) if _is_one_row(log_r.shape, shapes[2]) else shapes[2]
            inputs += [_flat(log_r, of_r).exp(), *(_flat(h, shapes[3]) for h in logits)]
        slopes = [x.new_empty(n, shape[-1]) for shape in shapes]
        out = x.new_empty(n, 1)
        if x.is_cuda and (launch := _triton()) is not None:
            launch(inputs, out, slopes)
        else:
            run(name, n, *inputs, out, *slopes)
        ctx.save_for_backward(*slopes)
        ctx.shapes = list(zip(shapes, (p.shape for p in parameters), strict=True))
        return out.view(batch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what is returned would pass for constants
            raise RuntimeError(NO_SECOND)
        weights = grad.reshape(-1)
        found = [
            _weighted(weights, slope, *shapes) if needed else None
            for slope, shapes, needed in zip(
                ctx.saved_tensors, ctx.shapes, ctx.needs_input_grad[3:], strict=True
            )
        ]
        return (None, None, None, *found)


def _widths(a: Tensor, total: Tensor, g: int, parameters: int) -> list[int]:
    """Return the last dimension of every parameter, given that of the counts."""
    has_total = total.shape[-1] > 0
    return [a.shape[-1] if has_total else g, int(has_total), *([g] * (parameters - 2))]


def _weighted(weights: Tensor, slope: Tensor, full: Size, shape: Size) -> Tensor:
    """Return the gradient of one parameter: its slopes at all rows, weighted and summed up."""
    if _is_one_row(shape, full):
        return (weights @ slope).view(shape)
    return (weights[:, None] * slope).view(full).sum_to_size(shape)


def _is_one_row(shape: Size, full: Size) -> bool:
    """Return whether a parameter of this shape is the same for all rows."""
    return bool(shape) and shape[:-1].numel() == 1 and shape[-1] == full[-1]


def _flat(tensor: Tensor, shape: Size) -> Tensor:
    """Return a tensor, broadcast to `shape`, as a contiguous matrix of rows."""
    return laid_out(tensor.detach().expand(shape).reshape(shape[:-1].numel(), shape[-1]))
