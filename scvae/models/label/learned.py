"""Labels that a fit learned from, and the cells that it remembers to name others by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae.arguments import shown
from scvae.data.hold.cells import Dataset
from scvae.data.read.labels import Labels, read_labels
from scvae.data.read.sources import Sources
from scvae.errors import ConfigError
from scvae.modalities.rna import KIND
from scvae.models.fitted import Fitted
from scvae.models.label.classifier import best_temperature, fit_classifier
from scvae.models.label.labeller import posterior_of
from scvae.models.label.reference import Reference, mean_shares

MOST_CELLS = 50_000  # that a model remembers: 0.3 kB each in its file


def labels_to_learn(
    sources: Sources,
    labels: str | None,
    unlabelled: str | None,
    prior: str,
    batch: str | None = None,
) -> Labels | None:
    """Return the labels that a fit is to learn from; as `scvae.fit` says.

    Raises
    ------
    ConfigError
        If the model has no components to bear them, or is of other kinds of measurement, too.
    DataError
        As `scvae.data.read.labels.labels_of`.
    """
    found = read_labels(sources.obs, labels, unlabelled, batch)
    if found is None:
        return None
    if prior != "mixture":
        raise ConfigError(
            f"labels={shown(labels)} are learned by the components of a mixture, but "
            f"prior={prior!r}: prior='mixture'"
        )
    kinds = [part.kind for part in sources.parts]
    if kinds != [KIND]:
        raise ConfigError(
            f"labels={shown(labels)} are of cells of RNA alone, but there are {kinds}: labels=None"
        )
    return found


def learned(
    model: Fitted, labels: Labels | None, dataset: Any, held_out: Tensor, seed: int
) -> Reference | None:
    """Return the cells that a model fitted with labels remembers, without their counts.

    All that have a label, or `MOST_CELLS` of them, of every label two at least. The temperature of
    probabilities is no lower than the `held_out` rows want, whose labels the network has not seen:
    batches held out in turn from a classifier of its latents are not held out from these."""
    if labels is None:
        return None
    assert isinstance(dataset, Dataset)
    some = some_of_each(labels.codes, MOST_CELLS, np.random.default_rng(seed))
    held, rows = dataset.near(torch.from_numpy(some).to(dataset.device))
    said, label = posterior_of(model, held, seed, rows), torch.from_numpy(labels.codes[some])
    is_new = torch.from_numpy(np.isin(some, held_out.cpu().numpy()))
    return Reference(
        column=labels.column,
        names=labels.names,
        parents=None,
        colours=None,
        label=label,
        batch=held.batch[rows].cpu(),
        expression=mean_shares(model, held, label, len(labels.names), rows),
        loc=said.loc,
        scale=said.scale,
        log_px=said.log_px,
        log_library=said.log_library,
        least_temperature=_temperature(said.loc, label, is_new, len(labels.names)),
    )


def _temperature(z: Tensor, label: Tensor, is_new: Tensor, n_labels: int) -> float:
    """Return the temperature that new cells want of a classifier of the others."""
    if not is_new.any() or is_new.all():
        return 1.0
    of_others = fit_classifier(z[~is_new], label[~is_new], n_labels)
    return best_temperature(of_others.logits(z[is_new]), label[is_new])


def some_of_each(codes: np.ndarray, most: int, draw: np.random.Generator) -> np.ndarray:
    """Return rows with a label, in their order: all, or about `most` of them drawn at random, the
    same share of every label and two at least."""
    there = np.flatnonzero(codes >= 0)
    if len(there) <= most:
        return there
    there = draw.permutation(there)
    sizes = np.bincount(codes[there])
    wanted = np.maximum(2, np.ceil(sizes * (most / len(there)))).astype(int)
    kept = [there[codes[there] == code][:n] for code, n in enumerate(wanted)]
    return np.sort(np.concatenate(kept))
