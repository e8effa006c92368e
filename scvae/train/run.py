"""One training run: everything that a step changes, so that it can be written down and put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from scvae.core.vae import VAE, Batch
from scvae.train.history import History
from scvae.train.schedule import Schedule
from scvae.train.step import CheckedStep, Step, make_step

SLOWER = 0.3  # times the learning rate, after a bound that was not finite


@dataclass(frozen=True)
class State:
    """A run at one moment.

    Attributes
    ----------
    tensors
        Weights, the best weights so far, moments of the optimiser, random states, sums.
    numbers
        Everything else, as JSON holds it.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def snapshot(vae: VAE) -> dict[str, Tensor]:
    """Return a copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}


class Run:
    """A run of `train`, step by step; its parameters are those of `train`."""

    def __init__(
        self,
        vae: VAE,
        epoch: Callable[[], Iterable[Batch]],
        schedule: Schedule,
        generator: Generator,
    ) -> None:
        self.vae, self.epoch, self.schedule, self.generator = vae, epoch, schedule, generator
        self.history, self.best = History(), snapshot(vae)
        self.ascend: Step = make_step(vae, schedule.weight_decay, generator)
        self.taken = self.cells = self.summed = self.position = 0
        self.scale = 1.0
        self.bounds = torch.zeros((), device=generator.device)  # summed since the last evaluation
        self.epoch_start = generator.get_state()
        self._batches: Iterator[Batch] = iter(())

    # -- steps ---------------------------------------------------------------------------------

    def step(self) -> None:
        """Take one step on the next minibatch."""
        batch = self._next()
        rate = self.scale * self.schedule.rate(self.taken)
        self.bounds = self.bounds + self.ascend(batch, rate, self.beta)
        self.taken += 1
        self.summed += 1
        self.cells += len(batch)

    @property
    def beta(self) -> float:
        """KL weight of the next step."""
        return self.schedule.beta(self.taken)

    @property
    def mean_bound(self) -> float:
        """Mean bound of the steps since the last evaluation. Waits for the device."""
        return self.bounds.item() / max(self.summed, 1)

    def forget_bounds(self) -> None:
        self.bounds, self.summed = torch.zeros_like(self.bounds), 0

    def _next(self) -> Batch:
        batch = next(self._batches, None)
        if batch is None:
            self.epoch_start, self.position = self.generator.get_state(), 0
            self._batches = iter(self.epoch())
            batch = next(self._batches)
        self.position += 1
        return batch

    # -- going back ----------------------------------------------------------------------------

    def roll_back(self) -> None:
        """Return to the best weights, with a smaller rate and a look at every step from now on."""
        self.vae.load_state_dict(self.best)
        self.scale *= SLOWER
        self.ascend = CheckedStep(self.vae, self.schedule.weight_decay, self.generator)
        self.history.rollbacks.append(self.taken)
        self.forget_bounds()

    def state(self) -> State:
        """Return a copy of everything that the next steps depend on."""
        tensors = {
            **{f"weights.{name}": value for name, value in snapshot(self.vae).items()},
            **{f"best.{name}": value for name, value in self.best.items()},
            **{f"optimizer.{name}": value for name, value in self.ascend.moments().items()},
            "random.now": self.generator.get_state(),
            "random.epoch": self.epoch_start,
            "bounds": self.bounds.clone(),
        }
        counters = {name: getattr(self, name) for name in COUNTERS}
        return State(tensors, {**counters, "history": dataclasses.asdict(self.history)})

    def restore(self, state: State) -> None:
        """Go on from `state`, bit by bit as the run that it was taken from.

        Raises
        ------
        KeyError, RuntimeError, TypeError
            If the state is not one of such a run.
        """
        for name in COUNTERS:
            setattr(self, name, state.numbers[name])
        self.history = History(**state.numbers["history"])
        if self.history.rollbacks:
            self.ascend = CheckedStep(self.vae, self.schedule.weight_decay, self.generator)
        self.vae.load_state_dict(_under("weights", state.tensors))
        self.best = _under("best", state.tensors)
        self.ascend.restore(_under("optimizer", state.tensors))
        self.bounds = state.tensors["bounds"].to(self.bounds.device)
        self._find_place(state.tensors["random.epoch"])
        self.generator.set_state(state.tensors["random.now"])

    def _find_place(self, epoch_start: Tensor) -> None:
        """Draw the order of the epoch again, and leave out what was seen of it."""
        self.epoch_start = epoch_start
        self.generator.set_state(epoch_start)
        self._batches = iter(self.epoch() if self.position else ())
        for _ in range(self.position):
            next(self._batches)


COUNTERS = ("taken", "cells", "summed", "position", "scale")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `prefix` and a dot, without it."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }
