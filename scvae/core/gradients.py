"""Gradients written by hand that stay right where they are differentiated again.

Under ``create_graph=True`` autograd takes what a backward pass returns for constants, unless it is
computed by operations that can be differentiated themselves: a Hessian of 0, without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor

# torch has no public name for the question whether vmap, grad or another transform is at work.
is_transformed: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)


def elementwise(
    value: Callable[..., Tensor],
    slopes: Callable[..., Sequence[Tensor | None]],
    x: Tensor,
    *parameters: Tensor,
) -> Tensor:
    """Return value(x, *parameters), whose derivatives are slopes(x, *parameters, needed).

    All arguments broadcast. `needed` says of every parameter whether its slope is asked for; the
    slopes can be differentiated in turn. `torch.func` may transform the whole.
    """
    out: Tensor = _Elementwise.apply(value, slopes, x, *parameters)
    return out


class _Elementwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Any, slopes: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        out: Tensor = value(x, *parameters)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.slopes, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        slopes = ctx.slopes(x, *parameters, needed)
        found = [
            summed_to(grad * slope, parameter.shape) if wanted else None
            for slope, parameter, wanted in zip(slopes, parameters, needed, strict=True)
        ]
        return (None, None, None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, *parameters = ctx.saved_tensors
        moved = tangents[3:]
        slopes = ctx.slopes(x, *parameters, [t is not None for t in moved])
        terms = [s * t for s, t in zip(slopes, moved, strict=True) if t is not None]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)


def summed_to(tensor: Tensor, shape: Size) -> Tensor:
    """Do as `Tensor.sum_to_size`, which `torch.vmap` does not know."""
    if tensor.shape == shape:
        return tensor
    tensor = (
        tensor.sum(tuple(range(tensor.dim() - len(shape)))) if tensor.dim() > len(shape) else tensor
    )
    spread = tuple(i for i, size in enumerate(shape) if size == 1 != tensor.shape[i])
    return tensor.sum(spread, keepdim=True) if spread else tensor


def again(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of plain(*inputs), such that they can be differentiated again."""
    wanted = [tensor for tensor, is_wanted in zip(inputs, needed, strict=True) if is_wanted]
    found = iter(torch.autograd.grad(plain(*inputs), wanted, grad, create_graph=True))
    return tuple(next(found) if is_wanted else None for is_wanted in needed)


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in the type to which torch promotes them all, a floating one."""
    dtype = tensors[0].dtype
    if all(t.dtype == dtype for t in tensors) and dtype.is_floating_point:
        return tensors
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return tuple(tensor.to(dtype) for tensor in tensors)
