r"""How far the samples of a reference lie from each other, and one more sample from them.

A cell's distance is the mean to its ten nearest of all other samples, the query's among them for
the cells of the reference, so that every sample is asked alike. In a neighbourhood, a sample's
value is the mean of the logarithm over its cells. If the query is one more draw of what the m
samples of the reference are, and values are Gaussian, then

.. math:: t = \frac{y_q - \bar y}{s \sqrt{1 + 1/m}}

has Student's distribution with m - 1 degrees of freedom, however the values depend on each other
through the distances that two samples share. Simulated with 3 to 10 samples, 4 to 6 % were below
p = .05 where samples differ by less than cells of a type do, and 7.5 to 9.5 % where by as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

NEAREST = 10  # cells of other samples, to which the mean distance is taken
FEWEST = 10  # cells of a sample in a neighbourhood
MOST = 50  # of which the mean is taken there
FEWEST_SAMPLES = 3
USUAL = 0.95  # share of the reference's cells that is not far
TINY = 1e-12


@dataclass(frozen=True)
class Verdict:
    """How one more sample lies to the m of a reference.

    Attributes
    ----------
    ratio
        Of its distance to theirs, in the mean over logarithms.
    limit
        Ratio above which it would be called far.
    p
        Probability of this ratio or more, were it like them.
    own
        Ratio of each of theirs, ``(m,)``; NaN where it has too few cells.
    """

    ratio: float
    limit: float
    p: float
    own: np.ndarray


def compare_values(
    value: np.ndarray, own: np.ndarray, weight: np.ndarray, false_alarms: float
) -> Verdict:
    """Return how values of one sample ``(c,)`` lie to those of others ``(m, c)``.

    NaN is where a sample is not in a neighbourhood; `weight` ``(c,)`` says how much of the one
    sample is. Neighbourhoods with fewer than three of the others do not count.
    """
    there = np.isfinite(own)
    m = there.sum(0)
    counts = np.isfinite(value) & (m >= FEWEST_SAMPLES)
    if not counts.any():
        return Verdict(np.nan, np.nan, np.nan, np.full(len(own), np.nan))
    own, value, m, there = own[:, counts], value[counts], m[counts], there[:, counts]
    w = weight[counts] / weight[counts].sum()
    mean = np.nanmean(own, axis=0)
    own_weight = there @ w
    with np.errstate(invalid="ignore"):
        deviation = np.where(there, own - mean, 0.0) @ w / own_weight
    found = float((value - mean) @ w)
    inverse, n = float(w @ (1 / m)), int((own_weight > 0).sum())
    variance = max(float(np.nansum(deviation**2)) / (n * (1 - inverse)), TINY)
    spread = np.sqrt(variance * (1 + inverse))
    limit = spread * stats.t.isf(false_alarms, n - 1)
    p = stats.t.sf(found / spread, n - 1)
    return Verdict(float(np.exp(found)), float(np.exp(limit)), float(p), np.exp(deviation))


@dataclass(frozen=True)
class Remoteness:
    """The cells of a reference in an embedding, of whose samples further ones are to be near.

    Attributes
    ----------
    x
        The embedding, ``(n, d)``, in random order.
    sample
        Number of every cell's sample, ``(n,)``.
    neighbourhood
        Number of every cell's neighbourhood, ``(n,)``.
    centre
        Their centres, ``(c, d)``.
    near
        Distances of every cell to the nearest of each other sample, ``(n, m, 10)``; infinite to its
        own.
    """

    x: np.ndarray
    sample: np.ndarray
    neighbourhood: np.ndarray
    centre: np.ndarray
    near: np.ndarray

    @property
    def n_samples(self) -> int:
        """Samples of the reference."""
        return self.near.shape[1]

    def beside(self, x: np.ndarray) -> Beside:
        """Return how one more sample ``(n, d)``, in random order, lies to the reference."""
        parts = [self.x[self.sample == code] for code in range(self.n_samples)]
        theirs = np.concatenate([self.near, _near(self.x, [x])], axis=1)
        return Beside(
            self,
            _nearest(self.centre, x, 1)[1][:, 0],
            _log_mean(_near(x, parts)),
            _log_mean(theirs),
        )


@dataclass(frozen=True)
class Beside:
    """One more sample beside those of a reference: neighbourhood of its cells, log distance of
    these ``(n,)`` and of the reference's."""

    reference: Remoteness
    neighbourhood: np.ndarray
    distance: np.ndarray
    of_reference: np.ndarray

    def counts(self) -> np.ndarray:
        """Return the cells in every neighbourhood, ``(c,)``."""
        return np.bincount(self.neighbourhood, minlength=len(self.reference.centre))

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean log distance in every neighbourhood, of the sample ``(c,)`` and of those
        of the reference ``(m, c)``: of no more cells than the sample has there, so that none of its
        values is less sure than theirs. NaN where there are too few."""
        r = self.reference
        c, m = len(r.centre), r.n_samples
        value, own = np.full(c, np.nan), np.full((m, c), np.nan)
        for k in range(c):
            found = self.distance[self.neighbourhood == k][:MOST]
            if len(found) < FEWEST:
                continue
            value[k] = found.mean()
            for code in range(m):
                theirs = self.of_reference[(r.neighbourhood == k) & (r.sample == code)]
                if len(theirs) >= FEWEST:
                    own[code, k] = theirs[: len(found)].mean()
        return value, own

    def far(self) -> np.ndarray:
        """Return whether every cell is farther than 95 % of the reference's in its neighbourhood,
        ``(n,)``."""
        r = self.reference
        limits = [
            np.quantile(self.of_reference[r.neighbourhood == k], USUAL)
            for k in range(len(r.centre))
        ]
        return self.distance > np.array(limits)[self.neighbourhood]


def remoteness(
    x: np.ndarray,
    sample: np.ndarray,
    n_samples: int,
    further: np.ndarray,
    n_neighbourhoods: int,
    seed: int,
) -> Remoteness:
    """Return the samples of a reference ``(n, d)``, in random order, with neighbourhoods.

    These are clusters by k-means of the reference and the cells that are asked about, `further`,
    together: about the reference's own centres its own samples would lie nearer than any other.
    Clusters in which few samples of the reference are go to the nearest others.
    """
    from sklearn.cluster import KMeans

    both = np.concatenate([x, further])
    found = KMeans(n_neighbourhoods, n_init=1, random_state=seed).fit(both)
    centre = found.cluster_centers_
    cells = np.zeros((len(centre), n_samples), dtype=int)
    np.add.at(cells, (found.labels_[: len(x)], sample), 1)
    there = (cells >= FEWEST).sum(1) >= FEWEST_SAMPLES
    centre = centre[there] if there.any() else x.mean(0, keepdims=True)
    labels = _nearest(centre, x, 1)[1][:, 0]
    near = _near(x, [x[sample == code] for code in range(n_samples)])
    near[np.arange(len(x)), sample] = np.inf
    return Remoteness(x, sample, labels, centre, near)


def _near(x: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Return distances of cells ``(n, d)`` to the nearest of each part, ``(n, parts, 10)``."""
    found = np.full((len(x), len(parts), NEAREST), np.inf)
    for i, part in enumerate(parts):
        k = min(NEAREST, len(part))
        found[:, i, :k] = _nearest(part, x, k)[0]
    return found


def _nearest(known: np.ndarray, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances of rows of x to their k nearest of `known`, and the numbers of these."""
    from sklearn.neighbors import NearestNeighbors

    distance, rows = NearestNeighbors(n_neighbors=k).fit(known).kneighbors(x)
    return distance, rows


def _log_mean(near: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean of the ten least distances of every row, ``(n,)``."""
    flat = near.reshape(len(near), -1)
    least = np.partition(flat, NEAREST - 1, axis=1)[:, :NEAREST]
    mean: np.ndarray = np.log(np.maximum(least.mean(1), TINY))
    return mean
