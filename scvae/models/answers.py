"""What a model says of all cells: by one process or several, into memory or into a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scvae.arguments import check_switch
from scvae.core.networks import evaluating
from scvae.data.hold.cells import Dataset
from scvae.data.hold.parts import equal_parts
from scvae.data.hold.several import Datasets
from scvae.models.fitted import Fitted
from scvae.models.keep.checkpoint import digest
from scvae.models.network import for_encoder
from scvae.models.query import as_stored, check_out
from scvae.models.results import Precision, written
from scvae.train.ranks import Ranks

DECODED = 2**20  # values decoded at once where these are few: twice as many leave the cache
RUN = 4  # minibatches that a process answers between two exchanges


@dataclass(frozen=True)
class Question:
    """What is asked of every cell.

    Attributes
    ----------
    answer
        Takes a minibatch of n cells and returns their answers, ``(n, width)``. It looks at their
        counts through the encoder alone, which may be given them as compressed sparse rows.
    width
        Numbers of an answer.
    features
        How many features of a cell are decoded for it.
    said
        All else that it depends on, as JSON: processes that answer together are asked the same.
    """

    answer: Callable[[Any], Tensor]
    width: int
    features: int
    said: Any = None


def ranks_of(distributed: bool) -> Ranks | None:
    """Return this process among those that answer together, None if it is alone."""
    return Ranks.here() if check_switch("distributed", distributed, True) else None


def answered(
    model: Fitted,
    dataset: Dataset | Datasets,
    question: Question,
    out: Any = None,
    ranks: Ranks | None = None,
) -> Any:
    """Return the answers for all cells, float32 ``(n, width)``, or `out`, filled with them.

    Several processes take the minibatches that one would take, a run of them each; so the numbers
    are those of one process, to the bit, and all processes have them.
    """
    dataset = for_encoder(model.vae, dataset)
    if ranks is None:
        return model.over(dataset, question.answer, out=out, size=_size(model, dataset, question))
    shape = len(dataset), question.width
    out = np.empty(shape, np.float32) if out is None else out
    check_out(out, shape)
    _check_same(model, dataset, question, ranks)
    _fill(out, model, dataset, question, ranks, to_all=True)
    return out


def answered_in_file(
    model: Fitted,
    dataset: Dataset | Datasets,
    question: Question,
    ranks: Ranks | None,
    path: Any,
    slot: str,
    dtype: Precision,
    cells: Any,
    var: pd.DataFrame | None = None,
) -> Path:
    """Write the answers for all cells to a new file; of several processes, the first does.

    For the file see `scvae.models.results.written`."""
    dataset = for_encoder(model.vae, dataset)
    first = ranks is None or ranks.rank == 0
    together = contextlib.nullcontext() if ranks is None else ranks.as_one()
    if ranks is not None:
        _check_same(model, dataset, question, ranks)
    file: Any = contextlib.nullcontext()
    if first:
        file = written(path, slot, (len(dataset), question.width), dtype, cells, var)
    with together, file as array:
        if ranks is None:
            size = _size(model, dataset, question)
            model.over(dataset, question.answer, out=array, size=size)
        else:
            _fill(array, model, dataset, question, ranks, to_all=False)
    return Path(path)


def _check_same(
    model: Fitted, dataset: Dataset | Datasets, question: Question, ranks: Ranks
) -> None:
    """Raise, in all processes, unless all of them ask the same of the same cells."""
    parts = dataset.parts if isinstance(dataset, Datasets) else (dataset,)
    seen = [dataset.s, dataset.batch, *(part.log_library for part in parts)]
    tensors = [*model.vae.state_dict().values(), *seen]
    arrays = [tensor.cpu().numpy() for tensor in tensors]
    asked = [question.width, question.said, _size(model, dataset, question)]
    ranks.check_same(digest(asked, *arrays), len(dataset))


def _fill(
    out: Any,
    model: Fitted,
    dataset: Dataset | Datasets,
    question: Question,
    ranks: Ranks,
    *,
    to_all: bool,
) -> None:
    """Fill `out` with the answers, in their order, in all processes or in the first alone.

    In turns: every process answers a run of consecutive minibatches, and they are put together."""
    everyone = torch.arange(len(dataset), device=model.device)
    parts = equal_parts(everyone, _size(model, dataset, question))
    runs = [parts[start : start + RUN] for start in range(0, len(parts), RUN)]
    own = [part for run in runs[ranks.rank :: ranks.size] for part in run]
    values, done = _each(model, dataset, question, own), 0
    for start in range(0, len(runs), ranks.size):
        turn = runs[start : start + ranks.size]
        found = torch.zeros(0, question.width, device=model.device)
        with ranks.as_one():
            if ranks.rank < len(turn):
                found = torch.cat([next(values) for _ in turn[ranks.rank]]).float()
        lengths = [sum(map(len, run)) for run in turn]
        for answers in ranks.gathered(found, lengths, to_all=to_all):
            out[done : done + len(answers)] = as_stored(answers, out)
            done += len(answers)


def _size(model: Fitted, dataset: Dataset | Datasets, question: Question) -> int:
    """Return of how many cells a minibatch is answered: of more, where what is decoded of a cell is
    little and its counts are not made dense."""
    if isinstance(dataset, Dataset) and dataset.is_compressed:
        return max(model.chunk(), DECODED // question.features)
    return model.chunk()


def _each(
    model: Fitted, dataset: Dataset | Datasets, question: Question, parts: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Yield the answers for the cells of every part."""
    with torch.no_grad(), evaluating(model.vae):
        minibatches: Iterator[Any] = dataset.given(parts)
        for rows, cells in zip(parts, minibatches, strict=True):
            yield question.answer(replace(cells, rows=rows))
