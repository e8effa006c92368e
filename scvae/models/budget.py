"""The size of a run: cells held out, cells of a minibatch, steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scvae.arguments import check_whole, is_number, shown
from scvae.data.read.covariates import column
from scvae.data.read.marks import marks
from scvae.errors import ConfigError, DataError
from scvae.models.plan import generator_of
from scvae.train.schedule import Schedule

if TYPE_CHECKING:
    from anndata import AnnData

MOST_HELD_OUT = 5_000  # more would cost time and no longer change when training stops
VALIDATION = 0.1  # share of the cells held out
EPOCHS, FEWEST_STEPS, MOST_STEPS = 30, 500, 10_000


def split(adata: AnnData, validation: float | str, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows to train on and the rows held out."""
    if isinstance(validation, str):
        marked = _marked(adata, validation)
        rows, held = torch.arange(adata.n_obs), torch.from_numpy(marked)
        return rows[~held], rows[held]
    n = adata.n_obs
    if np.ndim(validation) == 1 and len(validation) == n:  # type: ignore[arg-type]
        raise ConfigError(
            "validation is an array; cells are marked by a boolean column of adata.obs: "
            "adata.obs['held_out'] = held_out, then scvae.fit(adata, validation='held_out')"
        )
    if not is_number(validation) or not 0 < validation < 1:
        raise ConfigError(
            f"validation={shown(validation)}, but it is a share between 0 and 1, or a boolean "
            "column of adata.obs: validation=0.1"
        )
    held_out = _number_held_out(float(validation), n)
    order = _order(n, seed)
    return order[held_out:], order[:held_out]


def held_out_of(n: int, n_held_out: int, seed: int) -> Tensor:
    """Return the rows that a fit of this seed holds out, if it holds out so many of `n`."""
    return _order(n, seed)[:n_held_out]


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=generator_of("split", seed))


def _number_held_out(share: float, n: int) -> int:
    return min(max(1, round(share * n)), MOST_HELD_OUT, n - 2)


def _marked(adata: AnnData, name: str) -> np.ndarray:
    where = f"adata.obs[{name!r}]"
    marked = marks(column(adata.obs, name, "validation"), where, "validation")
    if not 0 < marked.sum() <= len(marked) - 2:
        raise DataError(
            f"{where} (given as validation) must be boolean, with at least one cell held out and "
            f"two to train on; it holds out {marked.sum()} of {len(marked)}: validation=0.1"
        )
    return marked


def batch_size_of(asked: int | None, n_train: int) -> int:
    if asked is None:
        return min(128, n_train)
    asked = check_whole("batch_size", asked, 128, least=2)
    if asked > n_train:
        raise ConfigError(
            f"batch_size={asked}, but there are {n_train} cells to train on. Give fewer: "
            f"scvae.fit(adata, batch_size={n_train}), or leave it out."
        )
    return asked


def _steps(n_train: int, size: int) -> int:
    return round(min(MOST_STEPS, max(FEWEST_STEPS, EPOCHS * n_train / size)))


@dataclass(frozen=True)
class RunSize:
    """The size of a training run."""

    n_held_out: int
    batch_size: int
    steps: int


def usual_run(n: int) -> RunSize:
    """Return the size of the run of `fit` on `n` cells without further arguments."""
    held_out = _number_held_out(VALIDATION, n)
    size = batch_size_of(None, n - held_out)
    return RunSize(held_out, size, _steps(n - held_out, size))


def schedule_of(
    max_steps: int | None, n_train: int, size: int, learning_rate: float, early_stopping: bool
) -> Schedule:
    if max_steps is None:
        max_steps = _steps(n_train, size)
    max_steps = check_whole("max_steps", max_steps, MOST_STEPS)
    patience = Schedule.patience if early_stopping else max_steps
    return Schedule(max_steps, learning_rate, patience=patience)
