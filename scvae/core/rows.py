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
from torch.autograd.function import once_differentiable

from scvae.core.kernels.run import is_served, run
from scvae.core.numerics import HALF_LOG_2PI, nb_log_mass, zero_inflate
from scvae.core.shapes import broadcast_shape


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
    """
    total = a.new_empty(0) if log_total is None else log_total
    if _is_served(x, a, total, log_r):
        out: Tensor = _Rows.apply("nb", x, a, total, log_r)
        return out
    return nb_log_mass(x, log_means(a, log_total, x.shape[-1]), log_r).sum(-1)


def zinb_log_prob(
    x: Tensor, a: Tensor, log_r: Tensor, logits: Tensor, log_total: Tensor | None = None
) -> Tensor:
    """Return the sum of `zero_inflate` of `nb_log_mass` over the last axis; see `nb_log_prob`."""
    total = a.new_empty(0) if log_total is None else log_total
    if _is_served(x, a, total, log_r, logits):
        out: Tensor = _Rows.apply("zinb", x, a, total, log_r, logits)
        return out
    mass = nb_log_mass(x, log_means(a, log_total, x.shape[-1]), log_r)
    return zero_inflate(mass, logits, x == 0).sum(-1)


def log_means(a: Tensor, log_total: Tensor | None, g: int) -> Tensor:
    """Return the first g log-means: `a` itself, or shares of a total by their logits."""
    return a if log_total is None else torch.log_softmax(a, dim=-1)[..., :g] + log_total


def gaussian_mixture_log_prob(z: Tensor, log_w: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Return :math:`\log\sum_c w_c\,N(z; \mu_c, \mathrm{diag}\,\sigma_c^2)`.

    Parameters
    ----------
    z
        ``(..., d)``.
    log_w, loc, scale
        Log-weights ``(c,)``, means and standard deviations ``(c, d)``.
    """
    if is_served(z, log_w, loc, scale):
        out: Tensor = _Mixture.apply(z, log_w, loc, scale)
        return out
    t = (z[..., None, :] - loc) / scale
    of_each = -(0.5 * t.square() + scale.log() + HALF_LOG_2PI).sum(-1)
    return torch.logsumexp(log_w + of_each, dim=-1)


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
        suits = all(t.is_cuda and t.dtype == torch.float32 for t in tensors)
        return suits and _triton() is not None
    return is_served(*tensors)


class _Rows(torch.autograd.Function):
    """Rows of the kernel called `name`, for a, the total (or nothing: width 0), log r, logits."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, *parameters: Tensor) -> Tensor:
        a, total, log_r, *logits = parameters
        batch = broadcast_shape(x.shape[:-1], *(p.shape[:-1] for p in parameters))
        n, g = batch.numel(), broadcast_shape(x.shape[-1:], log_r.shape[-1:])[-1]
        shapes = [Size((*batch, width)) for width in _widths(a, total, g, len(parameters))]
        # The kernels take r, not log r, and one row of it where all rows are the same.
        of_r = Size((1, g)) if _is_one_row(log_r.shape, shapes[2]) else shapes[2]
        inputs = [_flat(x, Size((*batch, g))), _flat(a, shapes[0]), _flat(total, shapes[1])]
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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights = grad.reshape(-1)
        found = [
            _weighted(weights, slope, *shapes) if needed else None
            for slope, shapes, needed in zip(
                ctx.saved_tensors, ctx.shapes, ctx.needs_input_grad[2:], strict=True
            )
        ]
        return (None, None, *found)


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
    return bool(shape) and shape.numel() == shape[-1] == full[-1]


def _flat(tensor: Tensor, shape: Size) -> Tensor:
    """Return a tensor, broadcast to `shape`, as a contiguous matrix of rows."""
    return tensor.detach().expand(shape).reshape(shape[:-1].numel(), shape[-1]).contiguous()


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, log_w: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        rows = z.detach().reshape(-1, z.shape[-1]).contiguous()
        parameters = [p.detach().contiguous() for p in (log_w[None], loc, scale)]
        n, components = len(rows), len(loc)
        out, share, d_z = z.new_empty(n, 1), z.new_empty(n, components), torch.empty_like(rows)
        run("mixture", n, rows, *parameters, out, share, d_z)
        ctx.save_for_backward(rows, *parameters[1:], share, d_z)
        ctx.shape = z.shape
        return out.view(z.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        rows, loc, scale, share, d_z = ctx.saved_tensors
        weights = grad.reshape(-1, 1)
        weighted = weights * share
        d_loc, d_scale = torch.empty_like(loc), torch.empty_like(scale)
        run(
            "mixture_gradients",
            len(loc),
            rows,
            loc,
            scale,
            weighted,
            d_loc,
            d_scale,
            fewest=4,
        )
        return (weights * d_z).view(ctx.shape), weighted.sum(0), d_loc, d_scale
