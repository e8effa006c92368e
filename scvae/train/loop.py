"""The training loop: one-cycle learning rate, KL warm-up, validation, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from scvae.core.objectives import elbo, warmup
from scvae.core.vae import VAE, Batch
from scvae.errors import TrainingError
from scvae.train.step import make_step


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
    learning_rate: float = 4e-3
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
    stopped_early, seconds, cells_per_second
        How training ended, how long it took, and training cells seen per second.
    """

    step: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    best_step: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    cells_per_second: float = 0.0

    @property
    def best(self) -> float:
        """Held-out ELBO of the kept weights."""
        return max(self.validation)


def endless(epoch: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    """Yield the minibatches of one epoch after another."""
    while True:
        yield from epoch()


@torch.no_grad()
def evaluate(vae: VAE, batches: Iterable[Batch], seed: int = 0) -> float:
    """Return the mean ELBO per cell at KL weight 1, always with the same noise."""
    vae.eval()
    total, n = torch.zeros(()), 0
    generator: Generator | None = None
    for batch in batches:
        generator = generator or Generator(batch.x.device).manual_seed(seed)
        bound = elbo(vae.terms(batch, generator=generator)).double().sum()
        total, n = total.to(bound.device) + bound, n + len(batch)
    vae.train()
    return total.item() / n


def snapshot(vae: VAE) -> dict[str, Tensor]:
    """Return a copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}


@torch.enable_grad()
def train(
    vae: VAE,
    epoch: Callable[[], Iterable[Batch]],
    held_out: Callable[[], Iterable[Batch]],
    schedule: Schedule,
    generator: Generator,
    report: Callable[[History], None] = lambda history: None,
) -> History:
    """Maximise the ELBO and leave `vae` with the weights of the best held-out ELBO.

    Parameters
    ----------
    vae
        The model, on the device of the minibatches.
    epoch, held_out
        Each call yields the minibatches of one pass over the training or the held-out cells.
    generator
        Source of the latent noise, on the same device.
    report
        Called after every evaluation.

    Raises
    ------
    TrainingError
        If the ELBO is no longer finite.
    """
    ascend = make_step(vae, schedule.weight_decay, generator)
    history, best = History(), snapshot(vae)
    start, cells, entry = time.perf_counter(), 0, (torch.zeros(()), 0)
    vae.train()
    for step, batch in enumerate(endless(epoch), start=1):
        beta = schedule.beta(step - 1)
        bound = ascend(batch, schedule.rate(step - 1), beta)
        # The sum stays on the device; it is read once an evaluation.
        entry = (entry[0].to(bound.device) + bound, entry[1] + 1)
        cells += len(batch.x)
        if step % schedule.every and step < schedule.steps:
            continue
        history.step.append(step)
        history.train.append(entry[0].item() / entry[1])
        history.validation.append(evaluate(vae, held_out()))
        history.beta.append(beta)
        history.seconds = time.perf_counter() - start
        history.cells_per_second = cells / history.seconds
        entry = (torch.zeros(()), 0)
        _check_finite(history)
        if history.validation[-1] >= history.best:
            best, history.best_step = snapshot(vae), step
        report(history)
        if step >= schedule.steps or _out_of_patience(history, schedule):
            history.stopped_early = step < schedule.steps
            break
    vae.load_state_dict(best)
    vae.eval()
    return history


def _check_finite(history: History) -> None:
    if math.isfinite(history.train[-1]) and math.isfinite(history.validation[-1]):
        return
    raise TrainingError(
        f"The ELBO is no longer finite at step {history.step[-1]} (training "
        f"{history.train[-1]}, held-out {history.validation[-1]}). Nothing was written. Train with "
        "a smaller rate: scvae.fit(adata, learning_rate=1e-3)"
    )


def _out_of_patience(history: History, schedule: Schedule) -> bool:
    since = (history.step[-1] - history.best_step) / schedule.every
    return since >= schedule.patience
