"""The training loop: steps, evaluations, early stopping, and what is done when something fails."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from scvae.core.batch import Minibatch
from scvae.core.networks import evaluating
from scvae.core.objectives import elbo
from scvae.core.shrinkage import ShrunkLinear
from scvae.core.vae import VAE, Terms
from scvae.errors import TrainingError, warn
from scvae.train.average import EVERY, with_weights
from scvae.train.checks import NotFiniteError, check_finite
from scvae.train.graph import GraphedStep
from scvae.train.history import History
from scvae.train.optimizer import AdamW
from scvae.train.ranks import Ranks
from scvae.train.run import SLOWER, Run, State
from scvae.train.schedule import Schedule

MOST_ROLLBACKS = 3


# What is climbed: of a model, a minibatch, the noise and the KL weight, the terms of the bound, its
# mean, and the sum that is climbed, which may hold other bounds beside it.
Objective = Callable[[VAE, Any, Generator, float | Tensor], tuple[Terms, Tensor, Tensor]]


def one_bound(
    vae: VAE, minibatch: Minibatch, noise: Generator, beta: float | Tensor
) -> tuple[Terms, Tensor, Tensor]:
    """Return the terms of the ELBO and its mean, which is what is climbed."""
    terms = vae.terms(minibatch, generator=noise)
    bound = elbo(terms, beta).mean()
    return terms, bound, bound


def with_weight_priors(
    vae: VAE,
    minibatch: Minibatch,
    noise: Generator,
    beta: float | Tensor,
    *,
    objective: Objective,
    layers: Sequence[ShrunkLinear],
    cells: int,
) -> tuple[Terms, Tensor, Tensor]:
    r"""Do as `objective`, and climb :math:`\frac{1}{N} \log p(W)` of `layers`, too.

    `cells` are N, of which the mean bound is of a minibatch."""
    terms, bound, climbed = objective(vae, minibatch, noise, beta)
    log_prior = torch.stack([layer.log_prior() for layer in layers]).sum()
    return terms, bound, climbed + log_prior / cells


@dataclass
class Step:
    """One step up the mean ELBO of a minibatch.

    Attributes
    ----------
    vae
        The model, on the device of the minibatches.
    optimizer
        Of its parameters.
    weight_decay
        Decoupled weight decay, of those that decay.
    noise
        Source of the latent noise, on the same device.
    hook
        Called when the gradients are there and no weight was touched yet, with the model,
        minibatch, terms and what is climbed. What it raises, the step raises.
    objective
        What is climbed.
    ranks
        The processes that take the step together; None for this one alone.
    """

    vae: VAE
    optimizer: AdamW
    weight_decay: float
    noise: Generator
    hook: Callable[[VAE, Minibatch, Terms, Tensor], None] | None = None
    objective: Objective = one_bound
    ranks: Ranks | None = None

    def __call__(self, minibatch: Minibatch, rate: float | Tensor, beta: float | Tensor) -> Tensor:
        """Take it at a learning rate and a KL weight; return the bound, on the device."""
        terms, bound, climbed = self.objective(self.vae, minibatch, self.noise, beta)
        if self.ranks is None:
            (-climbed).backward()
        else:
            bound = self.ranks.backward(self.vae, climbed, bound, len(minibatch))
        if self.hook is not None:
            self.hook(self.vae, minibatch, terms, climbed)
        self.optimizer.step(rate, self.weight_decay)
        self.optimizer.zero_grad()
        return bound.detach()


@torch.enable_grad()
def train(
    vae: VAE,
    epoch: Callable[[Generator], Iterable[Minibatch]],
    held_out: Callable[[], Iterable[Minibatch]],
    schedule: Schedule,
    order: Generator,
    noise: Generator,
    report: Callable[[History], None] = lambda history: None,
    *,
    resume: State | None = None,
    keep: Callable[[Run], None] = lambda run: None,
    entry_name: Callable[[int], str] = str,
    objective: Objective = one_bound,
    ranks: Ranks | None = None,
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
        Each call yields the minibatches of one pass over the training or the held-out cells, or
        over what this process has of them. `epoch` is given `order`, to draw their order from it.
    order
        Source of the order of the cells, and of nothing else.
    noise
        Source of the latent noise, on the device of the minibatches.
    report
        Called after every evaluation.
    resume
        State of a run with the same arguments, to go on from.
    keep
        Called after every step with the run, whose `state` it may write down.
    entry_name
        Name of an entry of x, for messages.
    objective
        What a step climbs; what is evaluated and kept is by the ELBO.
    ranks
        The processes that train together, each on its part of every minibatch of `epoch` and of the
        held-out cells; they must begin in the same state. None trains alone.

    Raises
    ------
    TrainingError
        If the ELBO is not finite again and again; names step, term, entry and parameter.
    """
    run = Run(vae, epoch, schedule, order, noise)
    if resume is not None:
        run.restore(resume)
    if ranks is not None:
        ranks.vary(noise, run.taken)
    step, processes = step_of(run, objective, ranks), 1 if ranks is None else ranks.size
    start = time.perf_counter() - run.history.seconds
    vae.train()
    try:
        with contextlib.nullcontext() if ranks is None else ranks.together(vae):
            while not run.is_over:
                minibatch = run.next_minibatch()
                try:
                    bound = step(minibatch, run.rate, run.beta)
                    run.count(bound, len(minibatch) * processes)
                    if run.taken % EVERY == 0:
                        run.update_average()
                    if run.is_due:
                        measure(run, held_out, start, ranks)
                        report(run.history)
                except NotFiniteError as error:
                    _roll_back(run, error.described(entry_name))
                    step = step_of(run, objective, ranks)
                else:
                    keep(run)
    except KeyboardInterrupt:
        _stop_here(run, held_out, start, ranks)
    run.history.stopped_early = run.taken < schedule.steps
    vae.load_state_dict(run.best)
    vae.eval()
    return run.history


def step_of(
    run: Run, objective: Objective = one_bound, ranks: Ranks | None = None
) -> Step | GraphedStep:
    """Return the step of a run, which looks at every number once one was not finite."""
    hook = check_finite if run.history.rollbacks else None
    decay = run.schedule.weight_decay
    step = Step(run.vae, run.optimizer, decay, run.noise, hook, objective, ranks)
    return step if hook or ranks else fastest(step)


def fastest(step: Step) -> Step | GraphedStep:
    """Return the step as it is fastest on its device."""
    return GraphedStep(step, step.noise) if step.noise.device.type == "cuda" else step


def measure(
    run: Run,
    held_out: Callable[[], Iterable[Minibatch]],
    start: float,
    ranks: Ranks | None = None,
) -> None:
    """Measure the held-out ELBO of the average weights, and keep them if it is the best.

    Raises NotFiniteError if it is not finite, or the ELBO of training since the last time."""
    if not math.isfinite(run.mean_bound):
        raise NotFiniteError("training ELBO")
    run.update_average()
    with with_weights(run.vae, run.average):
        value = evaluate(run.vae, held_out(), ranks=ranks)
    if not math.isfinite(value):
        raise NotFiniteError("held-out ELBO")
    run.record(value, time.perf_counter() - start)


@torch.no_grad()
def evaluate(
    vae: VAE, minibatches: Iterable[Minibatch], seed: int = 0, ranks: Ranks | None = None
) -> float:
    """Return the mean ELBO per cell at KL weight 1, always with the same noise; of processes that
    train together, over the cells that all of them are given."""
    total, n = torch.zeros(()), 0
    noise: Generator | None = None
    with evaluating(vae):
        for minibatch in minibatches:
            if noise is None:
                own = seed if ranks is None else seed + ranks.rank
                noise = Generator(minibatch.device).manual_seed(own)
            bound = elbo(vae.terms(minibatch, generator=noise)).double().sum()
            total, n = total.to(bound.device) + bound, n + len(minibatch)
    if ranks is None:
        return total.item() / n
    sums = torch.tensor([total.item(), n], dtype=torch.float64, device=ranks.device)
    ranks.sum(sums)
    return (sums[0] / sums[1]).item()


def _roll_back(run: Run, problem: str) -> None:
    """Go back to the best weights, unless that was of no use before or no step is left."""
    is_last = run.taken >= run.schedule.steps and not run.history.step
    if is_last or len(run.history.rollbacks) >= MOST_ROLLBACKS:
        raise _failure(run, problem)
    run.roll_back()
    warn(
        f"After step {run.taken}, {problem} was not finite; training goes on from the best weights "
        f"(step {run.history.best_step}) at {SLOWER} of the learning rate."
    )


def _failure(run: Run, problem: str) -> TrainingError:
    return TrainingError(
        f"Training failed {len(run.history.rollbacks) + 1} times; last, after step {run.taken}, "
        f"{problem} was not finite. Nothing was written. Train with a smaller rate: "
        "scvae.fit(adata, learning_rate=1e-3), and look at the data: scvae.check(adata)"
    )


def _stop_here(
    run: Run,
    held_out: Callable[[], Iterable[Minibatch]],
    start: float,
    ranks: Ranks | None,
) -> None:
    """End a run at once, with the best weights so far; the first are the best if there are none."""
    run.history.interrupted = True
    if not run.history.step:
        run.taken = max(run.taken, 1)
        try:
            measure(run, held_out, start, ranks)
        except NotFiniteError as error:
            raise _failure(run, error.described(str)) from error
    warn(
        f"Interrupted at step {run.taken}; the model has the best weights so far (step "
        f"{run.history.best_step})."
    )
