"""The log-likelihood of a data set: a mean over cells, with what is uncertain about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from scvae.arguments import check_choice, shown
from scvae.core.objectives import log_evidence
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.several import CellParts, Datasets
from scvae.errors import ConfigError, DataError
from scvae.models.fitted import Fitted

DRAWS = 100  # of z at once, of every cell


class MeanLogLikelihood(NamedTuple):
    """Mean of log p(x) over cells, in nats per cell, and two standard errors of it.

    Attributes
    ----------
    value
        The mean; every cell counts the same.
    monte_carlo_error
        Of this mean over these cells, from the draws of z; falls with `samples`. The estimates
        err downwards, too, the more the fewer samples, which it does not tell.
    sampling_error
        Of this mean as that of all cells of which these are a random sample; falls with the
        number of cells. It holds the Monte Carlo error, too, as the cells' values vary by it. NaN
        for a single cell.
    n_cells
        Number of cells.
    """

    value: float
    monte_carlo_error: float
    sampling_error: float
    n_cells: int


def mean_over_cells(first: np.ndarray, second: np.ndarray) -> MeanLogLikelihood:
    r"""Return the mean over cells from two independent estimates of log p(x) of every cell.

    .. math:: v_n = \log\tfrac12 (e^{a_n} + e^{b_n}), \quad \bar v = \tfrac1n \sum_n v_n, \quad
              \text{Monte Carlo: } \tfrac1{2n} \sqrt{\textstyle\sum_n (a_n - b_n)^2}, \quad
              \text{sampling: } \sqrt{\textstyle\sum_n (v_n - \bar v)^2 / (n (n - 1))}

    The variance of :math:`v_n` is about half that of each of its two, and
    :math:`(a_n - b_n)^2` has twice that variance in the mean.

    Parameters
    ----------
    first, second
        The estimates a and b, of equally many draws, in nats, ``(n,)``.

    Raises
    ------
    DataError
        If there are no cells.
    """
    n = len(first)
    if n == 0:
        raise DataError("adata has no cells, but a mean over cells needs at least one.")
    first, second = first.astype(np.float64), second.astype(np.float64)
    values = np.logaddexp(first, second) - math.log(2)
    monte_carlo = float(np.linalg.norm(first - second)) / (2 * n)
    sampling = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return MeanLogLikelihood(float(values.mean()), monte_carlo, sampling, n)


def evidence(
    model: Fitted, dataset: Dataset | Datasets, samples: int, generator: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates of log p(x) of all cells, and their standard errors, ``(n,)``."""

    def estimate(cells: Cells | CellParts) -> Tensor:
        found = log_evidence(model.vae, cells, samples, generator, chunk=DRAWS)
        return torch.stack([found.value, found.standard_error], dim=-1)

    both = model.over(dataset, estimate, samples=min(samples, DRAWS))
    return both[:, 0].copy(), both[:, 1].copy()


def conditional_evidence(
    model: Fitted,
    dataset: Dataset | Datasets,
    samples: int,
    generator: Generator,
    *,
    modality: str | None,
    given: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return estimates of log p of one kind of measurement, given another, or of all; and errors.

    .. math:: \log p(x_m \mid x_g) = \log p(x_m, x_g) - \log p(x_g)
    """
    if modality is None and given is None:
        return evidence(model, dataset, samples, generator)
    known, asked = tuple(model.modalities), {"modality": modality, "given": given}
    kinds = [check_choice(k, v, known) for k, v in asked.items() if v is not None]
    if modality is None or len(set(kinds)) < len(kinds):
        raise ConfigError(
            f"modality={shown(modality)}, given={shown(given)}, but they are two kinds of "
            f"{[*model.modalities]}: modality={[*model.modalities][-1]!r}"
        )
    value, error = evidence(model, only(model, dataset, kinds), samples, generator)
    if given is not None:
        of_given = evidence(model, only(model, dataset, kinds[1:]), samples, generator)
        value, error = value - of_given[0], np.hypot(error, of_given[1])
    absent = _absent(model, dataset, kinds)
    value[absent], error[absent] = np.nan, np.nan
    return value, error


def _absent(model: Fitted, dataset: Dataset | Datasets, kinds: Sequence[str]) -> np.ndarray:
    """Return which cells were not measured in all of some kinds, ``(n,)``."""
    absent = np.zeros(len(dataset), dtype=bool)
    parts = dataset.parts if isinstance(dataset, Datasets) else (dataset,)
    for kind, part in zip(model.modalities, parts, strict=True):
        if kind in kinds and part.present is not None:
            absent |= ~part.present.cpu().numpy()
    return absent


def only(model: Fitted, dataset: Dataset | Datasets, kinds: Sequence[str]) -> Dataset | Datasets:
    """Return the cells as if nothing but these kinds had been measured of them."""
    if isinstance(dataset, Dataset):
        return dataset
    return dataset.only([[*model.modalities].index(kind) for kind in kinds])
