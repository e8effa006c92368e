r"""How strange a cell is to a reference, as a number from 0 to 1 with a stated false alarm rate.

Two things are looked at: how far the cell lies from every labelled type,

.. math:: D_n = \min_t (z_n - \mu_t)^\top \Sigma^{-1} (z_n - \mu_t),

with the covariance within types (Lee et al., "A simple unified framework for detecting
out-of-distribution samples", NeurIPS 2018), and how much less likely its counts are than those of
the reference at the same depth, in units of their spread there. Each becomes the share of the
reference's cells that are as strange. The logarithms of both shares are added, that of the
likelihood by a tenth, and the sum becomes such a share again: the distance found types that were
left out best, and cells that are like none in their counts have nothing else to be told by.

For the reference, distances are those to types as the *other* batches have them. So of cells like
those of a further batch of the reference, a share a is above 1 - a.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DEGREE = 3  # of the polynomial of log depth
LEAST_SPREAD = 1e-3  # nats
WEIGHT = 0.1  # of the likelihood beside the distance
RIDGE = 1e-3  # of the covariance, as a share of its mean variance


@dataclass(frozen=True)
class Types:
    """Means of the types, ``(t, d)``, and the inverse factor of the covariance within, ``(d, d)``;
    a type that no cell had lies infinitely far."""

    mean: Tensor
    whiten: Tensor

    def distance(self, z: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance to the nearest type, ``(n,)``."""
        white, means = z.double() @ self.whiten, self.mean @ self.whiten
        squared = torch.cdist(white, means).square()
        return torch.where(squared.isnan(), torch.inf, squared).min(1).values


def fit_types(z: Tensor, label: Tensor, n_labels: int) -> Types:
    """Return the types of labelled cells ``(n, d)``."""
    z = z.double()
    sums = torch.zeros(n_labels, z.shape[1], dtype=torch.float64).index_add_(0, label, z)
    mean = sums / torch.bincount(label, minlength=n_labels)[:, None]  # NaN where there is none
    within = z - mean[label]
    covariance = within.T @ within / len(z)
    scale = covariance.diagonal().mean().clamp(min=1e-12)
    covariance += RIDGE * scale * torch.eye(len(covariance), dtype=torch.float64)
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    return Types(mean, whiten)


@dataclass(frozen=True)
class Depth:
    """What log p(x) is at a depth: polynomials of the log library size, and where they hold."""

    middle: Tensor
    unit: Tensor
    least: Tensor
    most: Tensor
    mean: Tensor
    log_spread: Tensor

    def shortfall(self, log_px: Tensor, log_library: Tensor) -> Tensor:
        """Return how far log p(x) is below its mean at that depth, in units of the spread there."""
        powers = self.powers(log_library)
        return (powers @ self.mean - log_px.double()) / (powers @ self.log_spread).exp()

    def powers(self, log_library: Tensor) -> Tensor:
        """Return powers of the log library size, no further out than the reference's."""
        inside = torch.minimum(torch.maximum(log_library.double(), self.least), self.most)
        return _powers((inside - self.middle) / self.unit)


def _powers(x: Tensor) -> Tensor:
    return torch.stack([x**power for power in range(DEGREE + 1)], dim=1)


def fit_depth(log_px: Tensor, log_library: Tensor) -> Depth:
    """Return the regression of log p(x) on depth, by least squares, of its spread likewise."""
    x = log_library.double()
    middle, unit = x.mean(), x.std().clamp(min=1e-6)
    powers, y = _powers((x - middle) / unit), log_px.double()[:, None]
    mean = torch.linalg.lstsq(powers, y, driver="gelsd").solution[:, 0]
    far = (y[:, 0] - powers @ mean).abs().clamp(min=LEAST_SPREAD).log()
    spread = torch.linalg.lstsq(powers, far[:, None], driver="gelsd").solution[:, 0]
    return Depth(middle, unit, x.min(), x.max(), mean, spread)


@dataclass(frozen=True)
class Strangeness:
    """The scores of the reference's cells, each sorted, with which those of others are compared."""

    distance: Tensor
    shortfall: Tensor
    together: Tensor

    def __call__(self, distance: Tensor, shortfall: Tensor | None) -> Tensor:
        """Return the strangeness of cells ``(n,)``; without shortfalls, of the distance alone."""
        if shortfall is None:
            return 1 - tail(self.distance, distance)
        return 1 - tail(self.together, self.weighed(distance, shortfall))

    def weighed(self, distance: Tensor, shortfall: Tensor) -> Tensor:
        """Return minus the weighted sum of the logarithms of both shares."""
        shares = tail(self.distance, distance), tail(self.shortfall, shortfall)
        return -(shares[0].log() + WEIGHT * shares[1].log())


def fit_strangeness(distance: Tensor, shortfall: Tensor) -> Strangeness:
    """Return what compares with the reference's cells ``(n,)``."""
    found = Strangeness(distance.sort().values, shortfall.sort().values, distance)
    return Strangeness(
        found.distance, found.shortfall, found.weighed(distance, shortfall).sort().values
    )


def tail(ordered: Tensor, values: Tensor) -> Tensor:
    """Return the share of `ordered` at `values` or above, of which each is one more."""
    above = len(ordered) - torch.searchsorted(ordered, values.contiguous(), right=False)
    return (above + 1).double() / (len(ordered) + 1)
