"""One training run: everything that a step changes, so that it can be written down and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from scvae.core.batch import Minibatch
from scvae.core.vae import VAE
from scvae.train.average import snapshot, update_average
from scvae.train.history import History
from scvae.train.optimizer import optimizer_of
from scvae.train.schedule import Schedule

SLOWER = 0.3  # times the learning rate, after a bound that was not finite


@dataclass(frozen=True)
class State:
    """A run at one moment.

    Attributes
    ----------
    tensors
        Weights, their average, the best average so far, moments of the optimiser, the random
        states of the noise and of the order as this epoch began, sums.
    numbers
        Everything else, as JSON holds it.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class StateError(ValueError):
    """A state is not one of the run that is to go on from it."""


class Run:
    """All that a step of `train` changes or depends on; its parameters are those of `train`."""

    def __init__(
        self,
        vae: VAE,
        epoch: Callable[[Generator], Iterable[Minibatch]],
        schedule: Schedule,
        order: Generator,
        noise: Generator,
    ) -> None:
        self.vae, self.epoch, self.schedule = vae, epoch, schedule
        self.order, self.noise = order, noise
        self.history, self.average, self.best = History(), snapshot(vae), snapshot(vae)
        self.optimizer = optimizer_of(vae)
        self.taken = self.cells = self.summed = self.position = self.averaged = 0
        self.scale = 1.0
        self.bounds = torch.zeros((), device=noise.device)  # summed since the last evaluation
        self.epoch_start = order.get_state()
        self._minibatches: Iterator[Minibatch] = iter(())

    # -- where it is ---------------------------------------------------------------------------

    def next_minibatch(self) -> Minibatch:
        """Return the next minibatch of the epoch, or the first of another one."""
        minibatch = next(self._minibatches, None)
        if minibatch is None:
            self.epoch_start, self.position = self.order.get_state(), 0
            self._minibatches = iter(self.epoch(self.order))
            minibatch = next(self._minibatches)
        self.position += 1
        return minibatch

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.scale * self.schedule.rate(self.taken)

    @property
    def beta(self) -> float:
        """KL weight of the next step."""
        return self.schedule.beta(self.taken)

    @property
    def is_due(self) -> bool:
        """Whether it is time to evaluate."""
        return self.taken % self.schedule.every == 0 or self.taken >= self.schedule.steps

    @property
    def is_over(self) -> bool:
        """Whether all steps were taken, or patience is at its end."""
        measured, schedule = self.history.step, self.schedule
        since = measured[-1] - self.history.best_step if measured else -1
        return self.taken >= schedule.steps or since >= schedule.patience * schedule.every

    # -- what was found ------------------------------------------------------------------------

    def count(self, bound: Tensor, cells: int) -> None:
        """Count a step that was taken on so many cells."""
        self.bounds = self.bounds + bound
        self.taken += 1
        self.summed += 1
        self.cells += cells

    def update_average(self) -> None:
        """Let the average of the weights follow them."""
        if self.averaged < self.taken:
            update_average(self.average, self.vae, self.averaged, self.taken)
            self.averaged = self.taken

    @property
    def mean_bound(self) -> float:
        """Mean bound of the steps since the last evaluation. Waits for the device."""
        return self.bounds.item() / max(self.summed, 1)

    def record(self, held_out: float, seconds: float) -> None:
        """Write the held-out ELBO of the average weights down, and keep them if it is the best."""
        history = self.history
        history.step.append(self.taken)
        history.train.append(self.mean_bound)
        history.validation.append(held_out)
        history.beta.append(self.schedule.beta(self.taken - 1))
        history.seconds, history.cells_per_second = seconds, self.cells / seconds
        self._forget_bounds()
        if held_out >= history.best:
            self.best = {name: weight.clone() for name, weight in self.average.items()}
            history.best_step = self.taken

    def _forget_bounds(self) -> None:
        self.bounds, self.summed = torch.zeros_like(self.bounds), 0

    # -- going back ----------------------------------------------------------------------------

    def roll_back(self) -> None:
        """Return to the best weights, with a smaller rate and nothing remembered of gradients."""
        self.vae.load_state_dict(self.best)
        self.average = snapshot(self.vae)
        self.scale *= SLOWER
        self.optimizer = optimizer_of(self.vae)
        self.history.rollbacks.append(self.taken)
        self._forget_bounds()

    def state(self) -> State:
        """Return a copy of everything that the next steps depend on."""
        tensors = {
            **{f"weights.{name}": value for name, value in snapshot(self.vae).items()},
            **{f"average.{name}": value.clone() for name, value in self.average.items()},
            **{f"best.{name}": value for name, value in self.best.items()},
            **{f"optimizer.{name}": value for name, value in self.optimizer.state().items()},
            "random.order": self.epoch_start,
            "random.noise": self.noise.get_state(),
            "bounds": self.bounds.clone(),
        }
        counters = {name: getattr(self, name) for name in COUNTERS}
        return State(tensors, {**counters, "history": self.history.to_json()})

    def restore(self, state: State) -> None:
        """Go on from `state`, bit by bit as the run that it was taken from.

        Raises
        ------
        StateError
            If the state is not one of such a run, which is then of no more use.
        """
        try:
            self._put_back(state)
        except ValueError as error:
            raise StateError(str(error)) from error

    def _put_back(self, state: State) -> None:
        weights, average, best = (under(name, state.tensors) for name in WEIGHTS)
        moments = under("optimizer", state.tensors)
        bounds, order, noise = self._singles(state.tensors, weights, average, best, moments)
        for name, value in _counters(state.numbers, self.schedule.steps).items():
            setattr(self, name, value)
        self.history = _history(state.numbers["history"], self.taken)
        for of_all in (weights, average, best):
            _check_like(of_all, self.vae.state_dict())
        self.vae.load_state_dict(weights)
        self.average = {
            name: average[name].to(own.device).clone() for name, own in self.best.items()
        }
        self.best = best
        self.optimizer.restore(moments)
        self.bounds = bounds.to(self.bounds.device)
        self._find_place(order)
        _set_state(self.noise, noise)

    def _singles(
        self, tensors: dict[str, Tensor], *groups: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tensors outside of the groups; there must be these and no others."""
        singles = [tensors.get(name) for name in SINGLES]
        bounds, order, noise = singles
        if bounds is None or order is None or noise is None:
            raise ValueError(f"it lacks one of {', '.join(SINGLES)}")
        if len(tensors) != len(singles) + sum(map(len, groups)):
            raise ValueError("it has tensors that no run has")
        _check_like({"bounds": bounds}, {"bounds": self.bounds.to(bounds.dtype)})
        return bounds, order, noise

    def _find_place(self, epoch_start: Tensor) -> None:
        """Draw the order of the epoch again, and leave out what was seen of it."""
        self.epoch_start = epoch_start
        _set_state(self.order, epoch_start)
        self._minibatches = iter(self.epoch(self.order) if self.position else ())
        for _ in range(self.position):
            if next(self._minibatches, None) is None:
                raise ValueError(f"an epoch has fewer than {self.position} minibatches")


WEIGHTS = ("weights", "average", "best")  # of the same network, in a state
COUNTERS = ("taken", "cells", "summed", "position", "averaged", "scale")
SINGLES = ("bounds", "random.order", "random.noise")


def _counters(numbers: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the counters of a run of at most so many steps."""
    if numbers.keys() != {*COUNTERS, "history"}:
        raise ValueError("it lacks a counter or has an unknown one")
    found = {name: numbers[name] for name in COUNTERS}
    scale = found.pop("scale")
    if type(scale) is not float or not 0 < scale <= 1:
        raise ValueError("its learning rate is scaled by no share")
    if not all(type(value) is int and value >= 0 for value in found.values()):
        raise ValueError("its counters are not whole numbers")
    if not max(found["summed"], found["averaged"]) <= found["taken"] <= steps:
        raise ValueError(f"its counters contradict each other, or the {steps} steps of the fit")
    return {**found, "scale": scale}


def _history(fields: Any, taken: int) -> History:
    """Return the history of a run of so many steps."""
    history = History.from_json(fields)
    if history.step and history.step[-1] > taken:
        raise ValueError(f"it has a history with steps beyond the {taken} taken")
    return history


def _check_like(tensors: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `tensors` have names, shapes and types of `like`, and are finite."""
    if tensors.keys() != like.keys():
        raise ValueError("it has other tensors than the network")
    for name, value in tensors.items():
        if value.shape != like[name].shape or value.dtype != like[name].dtype:
            raise ValueError(f"{name} has another shape or type than the network's")
        if not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def _set_state(generator: Generator, state: Tensor) -> None:
    try:
        generator.set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError("its random states are none of this device") from error


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `prefix` and a dot, without it."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }
