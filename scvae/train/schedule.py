"""How long and how fast to train: one-cycle learning rate, KL warm-up, evaluations, patience."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scvae.core.objectives import warmup


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. All of it is counted in steps, never in epochs, so that the
    objective trained is the objective stated at every number of cells.

    Attributes
    ----------
    steps
        Steps at most.
    learning_rate
        Peak of the one-cycle rate: up over the first `rise` of the steps, down to 0 by cosine.
    weight_decay
        Decoupled weight decay (AdamW) of the posterior network alone; the likelihood is left free
        to fit.
    warmup
        Share of the steps over which the KL weight rises from 0 to 1.
    evaluations
        How often the held-out ELBO is measured over all steps.
    patience
        Evaluations without a better held-out ELBO after which training stops.
    """

    steps: int
    learning_rate: float = 8e-3
    weight_decay: float = 0.01
    rise: float = 0.3
    warmup: float = 0.1
    evaluations: int = 40
    patience: int = 8

    def rate(self, step: int) -> float:
        """Return the learning rate at `step` (Smith, "Super-convergence", 2018; cosine form)."""
        rise = self.rise * self.steps
        if step < rise:
            return self.learning_rate * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise)))
        fall = (step - rise) / (self.steps - rise)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * fall))

    def beta(self, step: int) -> float:
        """Return the KL weight at `step`."""
        return warmup(step, round(self.warmup * self.steps))

    @property
    def every(self) -> int:
        """Steps between two evaluations."""
        return math.ceil(self.steps / self.evaluations)
