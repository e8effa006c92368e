"""The log-likelihood of a data set: a mean over cells, with what is uncertain about it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from scvae.core.objectives import log_evidence
from scvae.data.hold.cells import Cells, Dataset
from scvae.errors import DataError
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
    model: Fitted, dataset: Dataset, samples: int, generator: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates of log p(x) of all cells, and their standard errors, ``(n,)``."""

    def estimate(cells: Cells) -> Tensor:
        found = log_evidence(model.vae, cells, samples, generator, chunk=DRAWS)
        return torch.stack([found.value, found.standard_error], dim=-1)

    both = model.over(dataset, estimate, samples=min(samples, DRAWS))
    return both[:, 0].copy(), both[:, 1].copy()
