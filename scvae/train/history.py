"""What was measured while training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CURVES = ("step", "train", "validation", "beta")
TIMES = ("seconds", "cells_per_second")


@dataclass
class History:
    """What was measured while training: one entry an evaluation, in nats per cell.

    Attributes
    ----------
    step
        Steps taken.
    train, validation
        ELBO of the training cells since the last entry (at the KL weight of the time), and of the
        held-out cells (at KL weight 1).
    beta
        KL weight.
    best_step
        Step of the weights that were kept.
    stopped_early, interrupted
        How training ended: out of patience, or by Ctrl-C.
    rollbacks
        Steps after which a bound that was not finite sent training back to the best weights.
    seconds, cells_per_second
        How long it took, and training cells seen per second; 0 where no clock was read.
    """

    step: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    best_step: int = 0
    stopped_early: bool = False
    interrupted: bool = False
    rollbacks: list[int] = field(default_factory=list)
    seconds: float = 0.0
    cells_per_second: float = 0.0

    @property
    def best(self) -> float:
        """Held-out ELBO of the kept weights."""
        return max(self.validation)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON holds them, but for times that no clock measured."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in TIMES or v}

    @classmethod
    def from_json(cls, fields: Any) -> History:
        """Return the history that `to_json` told.

        Raises
        ------
        ValueError
            If it is none, or its parts contradict each other.
        """
        if not isinstance(fields, dict):
            raise ValueError("it has a history that is not an object")
        for name, (is_so, what) in KINDS.items():
            if not (name in fields or name in TIMES) or not is_so(fields.get(name, 0.0)):
                raise ValueError(f"it has a history without {name}, {what}")
        if unknown := fields.keys() - KINDS.keys():
            raise ValueError(f"it has a history with an unknown {min(unknown)!r}")
        if len({len(fields[name]) for name in CURVES}) > 1:
            raise ValueError("it has a history of unequal lengths")
        if fields["best_step"] not in (fields["step"] or [0]):
            raise ValueError("it has a history without its best step")
        return cls(**fields)


def is_whole(value: Any) -> bool:
    """Return whether `value` is a whole number; True is none, though an int."""
    return type(value) is int


def is_finite(value: Any) -> bool:
    """Return whether `value` is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def all_are(is_so: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return whether something is a list of such values, as a function of it."""
    return lambda value: isinstance(value, list) and all(map(is_so, value))


def _rise(steps: Any) -> bool:
    """Return whether `steps` are numbers of steps that rise."""
    return bool(all_are(is_whole)(steps)) and [0, *steps] == sorted({0, *steps})


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_rise, "numbers of steps that rise"),
    "train": (all_are(is_finite), "finite numbers"),
    "validation": (all_are(is_finite), "finite numbers"),
    "beta": (all_are(is_finite), "finite numbers"),
    "best_step": (is_whole, "the number of a step"),
    "stopped_early": (_is_flag, "true or false"),
    "interrupted": (_is_flag, "true or false"),
    "rollbacks": (all_are(is_whole), "numbers of steps"),
    "seconds": (is_finite, "a finite number"),
    "cells_per_second": (is_finite, "a finite number"),
}
