"""What was measured while training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


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
        How long it took, and training cells seen per second.
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


def read_history(values: Mapping[str, Any], taken: int) -> History:
    """Return the history that JSON holds of a run of `taken` steps.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not isinstance(values, Mapping) or {f.name for f in fields(History)} != values.keys():
        raise ValueError("its history lacks a field or has an unknown one")
    curves = [values[name] for name in ("step", "train", "validation", "beta")]
    lists = [*curves, values["rollbacks"]]
    if not all(isinstance(each, list) and all(map(_is_finite, each)) for each in lists):
        raise ValueError("its history has curves that are not finite numbers")
    if not all(_is_finite(values[name]) for name in ("seconds", "cells_per_second")):
        raise ValueError("its history has times that are not finite numbers")
    if not all(isinstance(values[name], bool) for name in ("stopped_early", "interrupted")):
        raise ValueError("its history does not say how it ended")
    _check_steps(values["step"], values["best_step"], taken)
    if len({*map(len, curves)}) > 1 or not all(type(s) is int for s in values["rollbacks"]):
        raise ValueError("its history has curves of unequal lengths, or rollbacks at no step")
    return History(**values)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_steps(step: list[Any], best: Any, taken: int) -> None:
    if not all(type(s) is int for s in step) or step != sorted({*step}):
        raise ValueError("its history has steps that do not rise")
    if step and not (step[0] > 0 and step[-1] <= taken):
        raise ValueError(f"its history has steps beyond the {taken} taken")
    if type(best) is not int or best not in (step or [0]):
        raise ValueError("its history was not measured at its best step")
