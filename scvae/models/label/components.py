r"""Principal components of log-normalised counts, of the genes that a reference and a query have.

.. math:: y_{ng} = \log(1 + 10^4 x_{ng} / \textstyle\sum_h x_{nh}), \qquad
          c_n = V^\top \min(10, \max(-10, (y_n - \bar y) / s))

A model keeps what explains counts; what tells two rare types apart may be a few genes of little
weight in that. A classifier of these components sees them, and knows nothing of batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae.data.hold.cells import Cells, Dataset
from scvae.models.fitted import Fitted

N_COMPONENTS = 100
MOST_GENES = 2_000  # those that vary most
TOTAL, LARGEST = 1e4, 10.0  # counts that a cell is scaled to; standard deviations that are let be


@dataclass(frozen=True)
class Components:
    """The map from counts to components.

    Attributes
    ----------
    observed
        True for the genes that a total is made of, ``(G,)``.
    genes
        Numbers of the genes that are looked at, ``(g,)``.
    mean, unit
        Mean and standard deviation of their log-normalised counts, ``(g,)``.
    axes
        Directions of the components, ``(g, k)``.
    """

    observed: Tensor
    genes: Tensor
    mean: Tensor
    unit: Tensor
    axes: Tensor

    def __call__(self, cells: Cells) -> Tensor:
        """Return the components of cells, ``(n, k)``."""
        return self.scaled(cells) @ self.axes

    def scaled(self, cells: Cells) -> Tensor:
        """Return log-normalised counts in units of their deviation, ``(n, g)``."""
        y = logs(cells, self.observed)[:, self.genes]
        return ((y - self.mean) / self.unit).clamp(-LARGEST, LARGEST)


def logs(cells: Cells, observed: Tensor) -> Tensor:
    """Return log-normalised counts of the observed genes, 0 of the others, ``(n, G)``."""
    x = torch.where(observed, cells.x, 0.0)
    return (TOTAL * x / x.sum(1, keepdim=True).clamp(min=1)).log1p()


def fit_components(model: Fitted, dataset: Dataset, observed: Tensor) -> Components:
    """Return the components of the cells of a reference, of the observed genes ``(G,)``."""
    n, sums = len(dataset), torch.zeros(2, len(observed), dtype=torch.float64)

    def add(cells: Cells) -> None:
        y = logs(cells, observed).double().cpu()
        sums.add_(torch.stack([y.sum(0), y.square().sum(0)]))

    model.over(dataset, add)
    mean = sums[0] / n
    variance = (sums[1] / n - mean.square()).clamp(min=0)
    genes = variance.argsort(descending=True, stable=True)[:MOST_GENES].sort().values
    genes = genes[variance[genes] > 0] if (variance[genes] > 0).any() else genes[:1]
    unit = variance[genes].sqrt().clamp(min=1e-6)
    device = dataset.device
    tensors = genes.to(device), mean[genes].float().to(device), unit.float().to(device)
    plain = Components(observed, *tensors, torch.eye(0, device=device))
    second = torch.zeros(len(genes), len(genes), dtype=torch.float64)

    def multiply(cells: Cells) -> None:
        x = plain.scaled(cells).double().cpu()
        second.add_(x.T @ x)

    model.over(dataset, multiply)
    axes = torch.linalg.eigh(second / n).eigenvectors.flip(1)[:, : min(N_COMPONENTS, n)]
    return Components(observed, *tensors, axes.float().to(device))
