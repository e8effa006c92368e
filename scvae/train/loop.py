"""The training loop: steps, validation, early stopping, and what is done when something fails."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Generator

from scvae.core.objectives import elbo
from scvae.core.vae import VAE, Batch
from scvae.errors import TrainingError
from scvae.train.average import with_weights
from scvae.train.heap import steady_heap
from scvae.train.history import History
from scvae.train.run import SLOWER, Run, State
from scvae.train.schedule import Schedule
from scvae.train.step import NotFiniteError

MOST_ROLLBACKS = 3


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


@torch.enable_grad()
def train(
    vae: VAE,
    epoch: Callable[[Generator], Iterable[Batch]],
    held_out: Callable[[], Iterable[Batch]],
    schedule: Schedule,
    order: Generator,
    noise: Generator,
    report: Callable[[History], None] = lambda history: None,
    *,
    resume: State | None = None,
    keep: Callable[[Run], None] = lambda run: None,
    entry_name: Callable[[int], str] = str,
) -> History:
    """Maximise the ELBO and leave `vae` with the average weights of the best held-out ELBO.

    What is evaluated and kept is the average of the weights along training (`scvae.train.average`).

    Ctrl-C ends training as if it were out of patience. A bound that is not finite sends it back to
    the best weights so far, with a smaller learning rate and a warning.

    Parameters
    ----------
    vae
        The model, on the device of the minibatches.
    epoch, held_out
        Each call yields the minibatches of one pass over the training or the held-out cells.
        `epoch` is given `order`, to draw their order from it.
    order
        Source of the order of the cells, and of nothing else.
    noise
        Source of the latent noise, on the device of the minibatches.
    report
        Called after every evaluation.
    resume
        State of a run with the same arguments, to go on from.
    keep
        Called after every evaluation with the run, whose `state` it may write down.
    entry_name
        Name of an entry of x, for messages.

    Raises
    ------
    TrainingError
        If the ELBO is not finite again and again; names step, term, entry and parameter.
    """
    run = Run(vae, epoch, schedule, order, noise)
    if resume is not None:
        run.restore(resume)
    start = time.perf_counter() - run.history.seconds
    vae.train()
    try:
        with steady_heap():
            while run.taken < schedule.steps and not _is_over(run):
                _steps_to_evaluation(run, entry_name)
                if _evaluate(run, held_out, start):
                    report(run.history)
                    keep(run)
    except KeyboardInterrupt:
        _stop_here(run, held_out, start)
    run.history.stopped_early = run.taken < schedule.steps
    vae.load_state_dict(run.best)
    vae.eval()
    return run.history


def _is_over(run: Run) -> bool:
    if not run.history.step:
        return False
    since = (run.history.step[-1] - run.history.best_step) / run.schedule.every
    return since >= run.schedule.patience


def _steps_to_evaluation(run: Run, entry_name: Callable[[int], str]) -> None:
    """Take steps until the next evaluation is due, going back where a bound is not finite."""
    while True:
        try:
            run.step()
            while run.taken % run.schedule.every and run.taken < run.schedule.steps:
                run.step()
            problem = None if math.isfinite(run.mean_bound) else "the training ELBO"
        except NotFiniteError as error:
            problem = error.described(entry_name)
        if problem is None:
            return
        _roll_back(run, problem)


def _roll_back(run: Run, problem: str) -> None:
    is_last = run.taken >= run.schedule.steps and not run.history.step
    if is_last or len(run.history.rollbacks) >= MOST_ROLLBACKS:
        raise TrainingError(
            f"Training failed {len(run.history.rollbacks) + 1} times; last, after step "
            f"{run.taken}, {problem} was not finite. Nothing was written. Train with a smaller "
            "rate: scvae.fit(adata, learning_rate=1e-3), and look at the data: scvae.check(adata)"
        )
    run.roll_back()
    warnings.warn(
        f"After step {run.taken}, {problem} was not finite; training goes on from the best weights "
        f"(step {run.history.best_step}) at {SLOWER} of the learning rate.",
        stacklevel=2,
    )


def _evaluate(run: Run, held_out: Callable[[], Iterable[Batch]], start: float) -> bool:
    """Measure the held-out ELBO of the average weights, and keep them if it is the best; return
    if it is finite."""
    history = run.history
    run.update_average()
    with with_weights(run.vae, run.average):
        value = evaluate(run.vae, held_out())
    if not math.isfinite(value):
        _roll_back(run, "the held-out ELBO")
        return False
    history.step.append(run.taken)
    history.train.append(run.mean_bound)
    history.validation.append(value)
    history.beta.append(run.schedule.beta(run.taken - 1))
    history.seconds = time.perf_counter() - start
    history.cells_per_second = run.cells / history.seconds
    run.forget_bounds()
    if value >= history.best:
        run.best = {name: weight.clone() for name, weight in run.average.items()}
        history.best_step = run.taken
    return True


def _stop_here(run: Run, held_out: Callable[[], Iterable[Batch]], start: float) -> None:
    """End a run at once, with the best weights so far; the first are the best if there are none."""
    run.history.interrupted = True
    if not run.history.step:
        run.taken = max(run.taken, 1)
        _evaluate(run, held_out, start)
    warnings.warn(
        f"Interrupted at step {run.taken}; the model has the best weights so far (step "
        f"{run.history.best_step}).",
        stacklevel=3,
    )
