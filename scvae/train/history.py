"""What was measured while training."""

from __future__ import annotations

from dataclasses import dataclass, field


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
