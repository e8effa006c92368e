"""A plan: all that a training run depends on; and its execution."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Generator, Tensor

from scvae._version import __version__
from scvae.core.batch import Minibatch
from scvae.core.joint import joint_and_single_bounds
from scvae.core.shrinkage import shrunk_layers
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.data.hold.hiding import hiding
from scvae.data.hold.parts import Share
from scvae.data.hold.several import Datasets
from scvae.errors import ConfigError, warn
from scvae.models.agreed import agreed
from scvae.models.keep.checkpoint import Checkpoint, digest
from scvae.models.network import Architecture, build_vae
from scvae.models.prepare import Prepared, PreparedPart, dataset_of, facts_of
from scvae.models.room import check_room
from scvae.train.history import History
from scvae.train.loop import Objective, one_bound, train, with_weight_priors
from scvae.train.ranks import Ranks
from scvae.train.schedule import Schedule

VERSIONS = {"scvae": __version__, "torch": str(torch.__version__)}
HELD_OUT_SIZE = 512  # cells of a minibatch where the held-out ELBO is measured


@dataclass(frozen=True)
class Plan:
    """All that a training run depends on, but for the device's own arithmetic."""

    prepared: Prepared
    architecture: Architecture
    schedule: Schedule
    train_rows: Tensor
    held_out_rows: Tensor
    batch_size: int
    seed: int
    robust: bool = False
    alone: float = 1.0
    weights: dict[str, float] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan and of the versions of scvae and torch, in hexadecimal digits.

        Counts are in it by the keys of their genes, 64 bits each that were summed while they were
        read; no pass over the counts is made for it.
        """
        read = self.prepared
        return digest(
            dataclasses.asdict(self.architecture),
            dataclasses.asdict(self.schedule),
            [self.batch_size, self.seed, self.train_rows.device.type, VERSIONS, self.robust],
            [read.covariates.to_json(), self.alone, self.weights],
            *(read.design, read.codes),
            *([] if read.labels is None else [read.labels.names, read.labels.codes]),
            *(said for kind, part in read.parts.items() for said in _said(kind, part)),
            *(self.train_rows.cpu().numpy(), self.held_out_rows.cpu().numpy()),
        )


def _said(kind: str, part: PreparedPart) -> list[Any]:
    """Return all that a run depends on of one kind of measurement."""
    summary, counts = None if part.seen is None else part.seen.summary, part.counts
    arrays = (counts.data, counts.indices, counts.indptr) if summary is None else (summary.keys,)
    masks = [mask for mask in (part.present, part.observed) if mask is not None]
    return [[kind, part.names, part.layer, part.place], *arrays, part.library, *masks]


@dataclass(frozen=True)
class Trained:
    """A trained network, the cells where it was trained, and how that went."""

    vae: VAE
    dataset: Dataset | Datasets
    history: History


PURPOSES = ("split", "weights", "order", "noise", "embedding")


def generator_of(purpose: str, seed: int, device: torch.device | str = "cpu") -> Generator:
    """Return the generator of one purpose, whose draws depend on those for no other.

    All of them with the seed itself would draw the same numbers."""
    (own,) = SeedSequence([seed, PURPOSES.index(purpose)]).generate_state(1, np.uint64)
    return Generator(device).manual_seed(int(own))


def train_plan(
    plan: Plan,
    device: torch.device,
    *,
    stream: bool | None,
    checkpoint: Checkpoint | None,
    report: Callable[[History], None],
) -> Trained:
    """Execute a plan. Where the GPU has too little memory, start again with streamed counts.

    Raises
    ------
    ConfigError
        If streaming does not help, or the weights would not fit in host memory.
    """
    check_room(plan.architecture)
    for streamed in (stream, True):
        try:
            return _execute(plan, device, streamed, checkpoint, report)
        except torch.cuda.OutOfMemoryError as error:
            if streamed:
                raise ConfigError(
                    f"The GPU has too little memory for minibatches of {plan.batch_size} cells x "
                    f"{plan.architecture.n_features} features. Nothing was written. Give a smaller "
                    "one: "
                    f"scvae.fit(adata, batch_size={max(2, plan.batch_size // 2)})"
                ) from error
        warn("The GPU ran out of memory; training starts again with the counts in host memory.")
        gc.collect()
        torch.cuda.empty_cache()
    raise AssertionError("one of two attempts returns or raises")


def _objective(plan: Plan, vae: VAE) -> Objective:
    """Return what a step climbs: the bound, beside it those of every kind alone, and the priors of
    weights."""
    objective: Objective = one_bound
    if len(plan.architecture.parts) > 1:
        weights = [plan.weights.get(kind, 1.0) for kind in plan.architecture.parts]
        objective = partial(joint_and_single_bounds, alone=plan.alone, weights=weights)
    layers = shrunk_layers(vae)
    if not layers:
        return objective
    cells = len(plan.train_rows)
    return partial(with_weight_priors, objective=objective, layers=layers, cells=cells)


def _execute(
    plan: Plan,
    device: torch.device,
    stream: bool | None,
    checkpoint: Checkpoint | None,
    report: Callable[[History], None],
) -> Trained:
    read = plan.prepared
    facts = facts_of(read, plan.train_rows.cpu().numpy(), plan.architecture)
    vae = build_vae(plan.architecture, facts, generator_of("weights", plan.seed)).to(device)
    dataset = dataset_of(read, device, stream)
    state = None if checkpoint is None else checkpoint.read(plan.architecture)
    ranks = Ranks.here()
    if ranks is not None:
        ranks.check_same(plan.digest, 0 if state is None else int(state.numbers["taken"]))
    cells = agreed(dataset, ranks)
    share = None if ranks is None else Share(ranks.rank, ranks.size)
    own = plan.held_out_rows if share is None else share.of(plan.held_out_rows)
    held_out, held_rows = dataset.near(own)
    with contextlib.ExitStack() as stack:
        if checkpoint is not None:
            stack.enter_context(checkpoint.naming_itself())
            stack.enter_context(checkpoint.kept_at_the_end())

        def epoch(order: Generator) -> Iterator[Minibatch]:
            if not (plan.robust and isinstance(cells, Dataset)):
                return cells.shuffled(plan.train_rows, plan.batch_size, order, share)
            hides = order if ranks is None else ranks.own(order)
            return hiding(cells.shuffled(plan.train_rows, plan.batch_size, order, share), hides)

        history = train(
            vae,
            epoch,
            lambda: held_out.minibatches(held_rows, HELD_OUT_SIZE) if len(held_rows) else (),
            plan.schedule,
            generator_of("order", plan.seed),
            generator_of("noise", plan.seed, device),
            report,
            resume=state,
            keep=(lambda run: None) if checkpoint is None else checkpoint.keep,
            entry_name=lambda entry: read.first.names[entry],
            objective=_objective(plan, vae),
            ranks=ranks,
        )
    return Trained(vae, dataset, history)
