"""What labels cells: a classifier with its temperature, and what is strange to its reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from scvae.core.distributions import Gaussian
from scvae.core.objectives import elbo
from scvae.data.hold.cells import Cells, Dataset
from scvae.models.fitted import Fitted
from scvae.models.label.classifier import (
    RIDGE,
    Classifier,
    Panel,
    best_temperature,
    fit_classifier,
)
from scvae.models.label.strangeness import (
    Depth,
    Strangeness,
    Types,
    fit_depth,
    fit_strangeness,
    fit_types,
)

MOST_FOLDS = 5  # held out in turn: batches, or some of them together
BOUND_SAMPLES = 3  # of the evidence lower bound of a cell
RIDGES = (RIDGE, 30.0)  # of latent vectors, and of components of counts


@dataclass(frozen=True)
class Posterior:
    """What a model says of n cells, on the CPU.

    Attributes
    ----------
    loc, scale
        Mean and standard deviation of z, ``(n, d)``.
    log_px
        Evidence lower bound, in nats, ``(n,)``.
    log_library
        Logarithm of the library size, ``(n,)``.
    components
        Of log-normalised counts, ``(n, k)``, where those of the reference are at hand, or None.
    """

    loc: Tensor
    scale: Tensor
    log_px: Tensor
    log_library: Tensor
    components: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Posterior:
        loc, scale, log_px, log_library = (t[rows] for t in [*vars(self).values()][:4])
        components = None if self.components is None else self.components[rows]
        return Posterior(loc, scale, log_px, log_library, components)

    @property
    def features(self) -> list[Tensor]:
        """What classifiers look at, each at one."""
        return [self.loc] if self.components is None else [self.loc, self.components]


def posterior_of(
    model: Fitted, dataset: Dataset, seed: int = 0, rows: Tensor | None = None
) -> Posterior:
    """Return what a model says of the cells of a dataset, or of some rows ``(n,)`` of it; whether
    their labels are known makes no difference."""
    dataset = replace(dataset, label=None)
    d, generator = model.architecture.n_latent, Generator(model.device).manual_seed(seed)

    def said(cells: Cells) -> Tensor:
        terms = model.vae.terms(cells, BOUND_SAMPLES, generator)
        q = terms.q
        assert isinstance(q, Gaussian)  # of RNA alone
        return torch.cat([q.loc[:, :d], q.scale[:, :d], elbo(terms)[:, None]], dim=1)

    found = torch.from_numpy(model.over(dataset, said, samples=BOUND_SAMPLES, rows=rows))
    log_library = dataset.log_library[slice(None) if rows is None else rows, 0].cpu()
    return Posterior(found[:, :d], found[:, d : 2 * d], found[:, 2 * d], log_library)


@dataclass(frozen=True)
class Labeller:
    """What was learned from labelled cells.

    Attributes
    ----------
    panel
        Classifiers, with the temperatures that batches held out want.
    types, depth, strangeness
        As in `scvae.models.label.strangeness`.
    """

    panel: Panel
    types: Types
    depth: Depth
    strangeness: Strangeness

    def probabilities(self, cells: Posterior) -> Tensor:
        """Return the probability of every label, ``(n, t)``."""
        return self.panel.probabilities(cells.features)

    def strange(self, cells: Posterior, batch: Tensor, is_whole: bool) -> Tensor:
        """Return the strangeness of cells, ``(n,)``.

        Shortfalls are taken from the median of their batch ``(n,)``: how well a model knows the
        depth and the noise of a further batch is not a question of its cells. Where cells are not
        `is_whole`, as some genes were not observed, their likelihood compares with none, and the
        distance decides.
        """
        distance = self.types.distance(cells.loc)
        if not is_whole:
            return self.strangeness(distance, None)
        return self.strangeness(distance, _centred(self._shortfall(cells), batch))

    def _shortfall(self, cells: Posterior) -> Tensor:
        return self.depth.shortfall(cells.log_px, cells.log_library)


def _centred(values: Tensor, batch: Tensor) -> Tensor:
    """Return values less the median of their batch."""
    centred = values.clone()
    for code in batch.unique():
        centred[batch == code] -= values[batch == code].median()
    return centred


def fit_labeller(
    cells: Posterior, label: Tensor, batch: Tensor, n_labels: int, least: float = 0.0
) -> Labeller:
    """Return what cells with labels ``(n,)`` (-1 without one) of batches ``(n,)`` teach.

    Temperature and scores are those of batches held out in turn, or of a fifth of the cells where
    there is one batch; the temperature of latents is at least `least`.
    """
    there = label >= 0
    cells, label, batch = cells[there], label[there], batch[there]
    fold = _folds(batch)
    distance = torch.zeros(len(label), dtype=torch.float64)
    known = torch.zeros(len(label), dtype=torch.bool)
    for held in fold.unique():
        out, rest = fold == held, fold != held
        distance[out] = fit_types(cells.loc[rest], label[rest], n_labels).distance(cells.loc[out])
        known[out] = torch.isin(label[out], label[rest])  # others were strange to it
    depth = fit_depth(cells.log_px, cells.log_library)
    shortfall = _centred(depth.shortfall(cells.log_px, cells.log_library), batch)
    known = known if known.any() else torch.ones_like(known)
    strangeness = fit_strangeness(distance[known], shortfall[known])
    panel = fit_panel(cells.features, label, fold, n_labels, least)
    return Labeller(panel, fit_types(cells.loc, label, n_labels), depth, strangeness)


def fit_panel(
    features: list[Tensor], label: Tensor, fold: Tensor, n_labels: int, least: float = 0.0
) -> Panel:
    """Return classifiers of each kind of features ``(n, d)``, with the temperatures, `least` or
    above, under which the labels ``(n,)`` of every fold ``(n,)`` are likeliest when it is held
    out."""
    whole, held_out = [], []
    for x, ridge in zip(features, RIDGES, strict=False):
        logits = torch.zeros(len(label), n_labels, dtype=torch.float64)
        for held in fold.unique():
            out, rest = fold == held, fold != held
            logits[out] = fit_classifier(x[rest], label[rest], n_labels, ridge).logits(x[out])
        temperature = max(best_temperature(logits, label), least)
        fitted: Classifier = fit_classifier(x, label, n_labels, ridge)
        whole.append(replace(fitted, temperature=temperature))
        held_out.append(torch.softmax(logits / temperature, dim=-1))
    together = torch.stack(held_out).mean(0).log()
    overall = best_temperature(together, label)
    return Panel(tuple(whole), max(overall, 1.0) if least else overall)


def _folds(batch: Tensor) -> Tensor:
    """Return the fold of every cell: its batch, or with others, in a few of about one size."""
    codes, of_cell, sizes = batch.unique(return_inverse=True, return_counts=True)
    if len(codes) == 1:
        order = torch.randperm(len(batch), generator=Generator().manual_seed(0))
        return order % MOST_FOLDS
    totals, fold = [0] * min(MOST_FOLDS, len(codes)), torch.zeros_like(codes)
    for code in sizes.argsort(descending=True, stable=True).tolist():
        smallest = totals.index(min(totals))
        fold[code] = smallest
        totals[smallest] += int(sizes[code])
    return fold[of_cell]
