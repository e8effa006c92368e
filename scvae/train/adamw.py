"""AdamW for parameters on the CPU, by a compiled kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scvae.core.parallel import is_served, run_at

BETAS, EPSILON = (0.9, 0.999), 1e-8
NAMES = ("exp_avg", "exp_avg_sq")
FEWEST = 8192  # entries of a thread


class CompiledAdamW:
    """As much of `torch.optim.AdamW` as a step needs, with the same numbers to rounding.

    Torch's takes a second to import, for a compiler that nothing here asks for, and looks at every
    parameter anew at every step.

    Parameters
    ----------
    groups
        Of "params" and their "weight_decay", as torch's; each may change its "lr" at any time.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = [{"lr": 1e-3, **group} for group in groups]
        self.moments: dict[int, tuple[Tensor, Tensor]] = {}  # exp_avg and exp_avg_sq
        self.taken: dict[int, int] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        settings: list[float] = []
        places: list[int] = []
        updated, alive, entries = [], [], 0
        for number, (parameter, group) in enumerate(self._parameters()):
            if parameter.grad is None:
                continue
            if number not in self.moments:
                self.moments[number] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            grad = parameter.grad.contiguous()
            taken = self.taken[number] = self.taken.get(number, 0) + 1
            settings += _settings(group["lr"], group["weight_decay"], taken)
            for tensor in (parameter, grad, *self.moments[number]):
                places += [tensor.data_ptr(), 1, tensor.numel()]
            entries += parameter.numel()
            updated.append(parameter)
            alive.append(grad)  # until the kernel is done
        if updated:
            table = torch.tensor(settings, dtype=torch.float32).view(len(updated), -1)
            places = [table.data_ptr(), *table.shape, *places]
            run_at("adamw", entries, places, FEWEST)
            torch.autograd.graph.increment_version(updated)  # which autograd did not see

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for parameter, _ in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered of every parameter, by its number, and the groups."""
        state = {
            number: {
                "step": torch.tensor(float(self.taken[number])),
                **dict(zip(NAMES, both, strict=True)),
            }
            for number, both in self.moments.items()
        }
        return {"state": state, "param_groups": self.param_groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.taken = {number: int(of_one["step"]) for number, of_one in state["state"].items()}
        self.moments = {
            number: (_copied(of_one[NAMES[0]]), _copied(of_one[NAMES[1]]))
            for number, of_one in state["state"].items()
        }

    def _parameters(self) -> list[tuple[nn.Parameter, dict[str, Any]]]:
        return [(p, group) for group in self.param_groups for p in group["params"]]


def serves(parameters: list[nn.Parameter]) -> bool:
    """Return whether these parameters can be updated by the kernel."""
    return is_served(*parameters) and all(p.is_contiguous() for p in parameters)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _settings(rate: float, decay: float, step: int) -> list[float]:
    """Return the row of `scvae.core.kernels.adamw.updated`."""
    first, second = BETAS
    return [
        rate / (1 - first**step),
        1 - first,
        second,
        1 - second,
        EPSILON,
        (1 - second**step) ** 0.5,
        1 - rate * decay,
    ]
