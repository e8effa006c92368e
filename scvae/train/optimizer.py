"""AdamW by torch's fused kernel, called without `torch.optim`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from scvae.core.vae import VAE

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """A parameter and what is remembered of it, by torch's names."""

    parameter: Parameter
    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @classmethod
    def of(cls, parameter: Parameter) -> Moments:
        step = torch.zeros((), device=parameter.device)
        return cls(parameter, step, torch.zeros_like(parameter), torch.zeros_like(parameter))


class AdamW:
    """Adam with decoupled weight decay: the numbers of `torch.optim.AdamW(fused=True)`.

    That one imports a compiler, which takes a second, when it is made. It also copies the rate when
    its state is restored, so that a captured CUDA graph would go on reading the old one; here the
    rate is an argument, and what is remembered stays where it is in memory.

    Parameters
    ----------
    parameters
        All of one type, on one device.
    decayed
        Those of them that decay.

    References
    ----------
    Loshchilov and Hutter. Decoupled weight decay regularization. ICLR, 2019.
    """

    def __init__(self, parameters: Iterable[Parameter], decayed: Iterable[Parameter] = ()) -> None:
        self.moments = [Moments.of(p) for p in parameters]
        if len({(p.dtype, p.device) for p, *_ in self.moments}) > 1:
            raise ValueError("the parameters differ in type or device")
        decays = {id(p) for p in decayed}
        self.groups = (
            [each for each in self.moments if id(each.parameter) in decays],
            [each for each in self.moments if id(each.parameter) not in decays],
        )

    @torch.no_grad()
    def step(self, rate: float | Tensor, weight_decay: float = 0.0) -> None:
        """Update every parameter that has a gradient; a graph asks for a rate on the device."""
        for group, decay in zip(self.groups, (weight_decay, 0.0), strict=True):
            updated = [(p, p.grad, *moments) for p, *moments in group if p.grad is not None]
            if not updated:
                continue
            parameters, grads, steps, means, squares = zip(*updated, strict=True)
            # The kernel takes it for given that all of a parameter lie in one order of memory.
            ordered = [
                grad if grad.stride() == p.stride() else torch.empty_like(p).copy_(grad)
                for p, grad in zip(parameters, grads, strict=True)
            ]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                *(parameters, ordered, means, squares, [], steps),
                lr=rate,
                beta1=BETA1,
                beta2=BETA2,
                weight_decay=decay,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )
            for parameter in parameters:  # which the kernel does not tell autograd
                torch.autograd.graph.increment_version(parameter)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for each in self.moments:
            each.parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return a copy of what is remembered of every parameter, by its number and the name."""
        return {name: value.clone() for name, (_, value) in self._named().items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned, in the same memory.

        Raises
        ------
        ValueError
            If it is not of such parameters; the kernel, which looks at no shapes, would write past
            their ends.
        """
        own = self._named()
        for name in [*own, *state]:
            _check(name, state.get(name), own.get(name))
        for name, (_, value) in own.items():
            value.copy_(state[name])

    def _named(self) -> dict[str, tuple[Parameter, Tensor]]:
        return {
            f"{number}.{name}": (each.parameter, getattr(each, name))
            for number, each in enumerate(self.moments)
            for name in Moments._fields[1:]
        }


def optimizer_of(vae: VAE) -> AdamW:
    """Return the optimiser of `vae`, of which the posterior alone decays: the likelihood is left
    free to fit."""
    return AdamW(vae.parameters(), decayed=vae.posterior.parameters())


def _check(name: str, value: Tensor | None, own: tuple[Parameter, Tensor] | None) -> None:
    """Raise ValueError unless `value` can be what is remembered under that name."""
    if own is None:
        raise ValueError(f"no parameter has the moment {name!r:.60}")
    parameter, like = own
    name = name.partition(".")[2]
    if value is None or value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(f"{name} is not that of a parameter of shape {tuple(parameter.shape)}")
    if not value.isfinite().all() or (name != "exp_avg" and (value < 0).any()):
        raise ValueError(f"{name} of a parameter has impossible values")
