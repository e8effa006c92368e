"""How training ended, told from its history: had it converged, and if not, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae.models.keep.record import Record
from scvae.train.history import History

Verdict = Literal["converged", "still improving", "stopped early", "interrupted", "unknown"]

LATE = 0.25  # share of the steps whose gain is looked at
# Of the held-out ELBO. On five data sets, three of them real, runs with a late gain above this rose
# by 0.1 to 2 % with twice the steps (one in ten by less), and runs below it by nothing.
LEAST_GAIN = 1e-3


@dataclass(frozen=True)
class Convergence:
    """How training ended.

    Attributes
    ----------
    verdict
        One of `Verdict`.
    text
        The same in words, with steps.
    advice
        What to do about it, if anything.
    """

    verdict: Verdict
    text: str
    advice: str = ""


def convergence(record: Record) -> Convergence:
    """Return how the fit of a `Model.record` ended.

    Training that ran to its last step counts as still improving if the best held-out ELBO of the
    last quarter of the steps is more than 0.1 % above the best before. The learning rate falls to
    0, so the curve is flat at the very end whether or not there was more to gain.
    """
    history = record.history
    if history is None or not history.step:
        return Convergence("unknown", "not recorded")
    taken, kept = history.step[-1], history.best_step
    planned = int((record.schedule or {}).get("steps", taken))
    done = f"{taken:,} of {planned:,} steps, the weights of step {kept:,} kept"
    if history.interrupted:
        again = "Training was interrupted; the same call without Ctrl-C goes to its end."
        return Convergence("interrupted", f"interrupted; {done}", again)
    if history.stopped_early:
        return Convergence("stopped early", f"converged, stopped early; {done}")
    gain = late_gain(history, planned)
    if gain is not None and gain <= LEAST_GAIN * abs(history.best):
        return Convergence("converged", f"converged; {done}")
    rise = "" if gain is None else f" (by {gain:,.2f} nats in the last quarter)"
    more = f"scvae.fit(adata, max_steps={2 * planned})"
    return Convergence(
        "still improving",
        f"still improving when the steps ended{rise}; {done}",
        f"The held-out ELBO was still rising when the steps ended; give more: {more}",
    )


def late_gain(history: History, planned: int) -> float | None:
    """Return by how much the best held-out ELBO rose in the last quarter of the steps, in nats per
    cell; None if it was not measured before."""
    pairs = list(zip(history.step, history.validation, strict=True))
    before = [value for step, value in pairs if step <= (1 - LATE) * planned]
    return history.best - max(before) if before else None
