"""Where the background of every protein lies, learned from its counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEWEST = 30  # cells of a batch from which its own background is learned; else from all cells
ROUNDS = 60
LEAST_SCALE, MOST_SCALE = 0.1, 1.0  # of the logarithm of the background
RARE = 0.05  # share of foreground where there is but one hump
APART = 3.0  # the two halves of a normal are 2.7 apart
LEAST_COUNT = 0.05  # of a background: a protein without counts has one, too


@dataclass(frozen=True)
class Levels:
    """Background and foreground of g proteins, of a batch ``(g,)`` or of b of them ``(b, g)``.

    Attributes
    ----------
    loc, scale
        Mean and standard deviation of the log background, in log counts.
    log_fold
        Log ratio of foreground and background.
    share
        Share of the cells whose count is foreground.
    """

    loc: np.ndarray
    scale: np.ndarray
    log_fold: np.ndarray
    share: np.ndarray


def levels_in_batches(counts: np.ndarray, codes: np.ndarray, n_batches: int) -> Levels:
    """Return the levels of every batch, ``(b, g)``; of few cells, those of all batches together.

    Parameters
    ----------
    counts
        ``(n, g)``; NaN where a protein was not measured.
    codes
        Batch of every cell, ``(n,)``.
    """
    whole = levels(counts)
    rows = [codes == b for b in range(n_batches)]
    found = [levels(counts[r], whole) if r.sum() >= FEWEST else whole for r in rows]
    return Levels(
        *(np.stack([getattr(f, k) for f in found]) for k in ("loc", "scale", "log_fold", "share"))
    )


def levels(counts: np.ndarray, instead: Levels | None = None) -> Levels:
    r"""Return the levels of g proteins by mixtures of two normals of log(1 + y), by EM.

    Where too few cells were measured, the levels are those of `instead`, or one count.

    Parameters
    ----------
    counts
        ``(n, g)``, NaN where a protein was not measured.
    """
    counts = np.asarray(counts, dtype=np.float64)
    few = (~np.isnan(counts)).sum(0) < FEWEST // 3
    y, times, low, high = _distinct(np.where(few, 0.0, counts))
    loc = np.stack([low, np.maximum(high, low + 0.5)])
    variance = np.full_like(loc, 0.25)
    weight = np.full_like(loc, 0.5)
    for _ in range(ROUNDS):
        off = y - loc[:, None]
        log_p = np.log(weight / np.sqrt(variance))[:, None] - 0.5 * off**2 / variance[:, None]
        # Of more than the upper mean nothing is background, however wide that is; and the reverse.
        log_p[0] = np.where(y > loc[1], -np.inf, log_p[0])
        log_p[1] = np.where(y < loc[0], -np.inf, log_p[1])
        share = np.exp(log_p - np.logaddexp(*log_p)) * times
        total = share.sum(1)
        weight = (total + 1) / (total.sum(0) + 2)
        loc = ((share * y).sum(1) + loc) / (total + 1)
        off = y - loc[:, None]
        variance = ((share * off**2).sum(1) + 0.1) / (total + 1)
    found = _of_normals(*_unless_one(loc, variance, weight))
    if instead is None:
        return found
    return Levels(
        *(
            np.where(few, getattr(instead, k), getattr(found, k))
            for k in ("loc", "scale", "log_fold", "share")
        )
    )


def _distinct(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the different values of log(1 + y) of every protein and how many cells have each, both
    ``(k, g)``, and the quantiles .25 and .95 ``(g,)``: a million cells have some hundred counts."""
    columns = [np.log1p(column[~np.isnan(column)]) for column in counts.T]
    found = [np.unique(column, return_counts=True) for column in columns]
    y = np.zeros((max((len(values) for values, _ in found), default=0), len(found)))
    times = np.zeros_like(y)
    for g, (values, cells) in enumerate(found):
        y[: len(values), g], times[: len(values), g] = values, cells
    low, high = np.array([np.quantile(column, (0.25, 0.95)) for column in columns]).T
    return y, times, low, high


def _unless_one(
    loc: np.ndarray, variance: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take both normals for background, where they are one hump (by Ashman's D).

    A protein that no cell has would else be foreground in half of them."""
    is_one = np.sqrt(2 / variance.sum(0)) * (loc[1] - loc[0]) < APART
    mean = (weight * loc).sum(0)
    whole = (weight * (variance + (loc - mean) ** 2)).sum(0)
    loc, variance = loc.copy(), variance.copy()
    loc[0] = np.where(is_one, mean, loc[0])
    loc[1] = np.where(is_one, np.maximum(loc[1], mean + 2 * np.sqrt(whole)), loc[1])
    variance[0] = np.where(is_one, whole, variance[0])
    return loc, variance, np.where(is_one, RARE, weight[1])


def _of_normals(loc: np.ndarray, variance: np.ndarray, share: np.ndarray) -> Levels:
    background, foreground = np.maximum(np.expm1(loc), LEAST_COUNT)
    # Of the variance of log(1 + y), what the Poisson of the counts adds.
    poisson = background / (1 + background) ** 2
    scale = np.sqrt(np.maximum(variance[0] - poisson, 0.0)).clip(LEAST_SCALE, MOST_SCALE)
    fold = np.log(np.maximum(foreground / background, 1.0))
    return Levels(np.log(background), scale, fold, share.clip(0.02, 0.98))


def of_empty_droplets(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the log background ``(g,)`` of droplets without cells.

    The ambient protein is all that an empty droplet holds; its variance beyond the Poisson's is
    that of the background.
    """
    mean = np.maximum(counts.mean(0), LEAST_COUNT)
    beyond = np.maximum(counts.var(0) - mean, 0.0) / mean**2
    variance = np.log1p(beyond)
    return np.log(mean) - variance / 2, np.sqrt(variance).clip(LEAST_SCALE, MOST_SCALE)
