r"""Alignment: what the network left of the batches, taken out of the embedding by clusters.

What differs between batches differs by cell state, and a network with one hidden layer cannot say
all of it. What is left is small beside the distances between cells, so that it can be seen cluster
by cluster. The embedding is modelled as a mixture of clusters whose means differ between batches,

.. math:: c_n \mid k, b \sim N(\mu_k + \delta_{kb}, v_k I), \qquad
          \lambda_{kb} = \alpha\, n_k \pi_b ,

and fitted as expectation maximisation would with a ridge penalty
:math:`\sum_{kb} \lambda_{kb} |\delta_{kb}|^2 / 2 v_k` (n_k cells in cluster k, a share
:math:`\pi_b` of all cells in batch b). A cell is moved by the offset of its batch, averaged over
the clusters around it, whose likelihood counts to the power 1/4:

.. math:: c_n - \sum_k r_{nk}\, \delta_{k b_n}.

Types that not every batch has must stay apart. A cluster that lies in one batch alone has no
offset. In a cluster where a batch has more cells than its share :math:`n_k \pi_b`, the excess may
be a type of its own, which moves the mean of that batch; the offset is then scaled by

.. math:: \min\Big(1, \frac{n_k \pi_b}{n_{kb}}\Big)
          \Big(\sum_{b'} \frac{\min(n_{kb'}, n_k \pi_{b'})}{n_k}\Big)^2 ,

the part of the batch that is not in excess, and (squared) the part of the cluster. Clusters follow
their batches in every round as far as offsets are trusted, and no further: what is iterated is that
estimate, not the maximum of a likelihood. It kept types of one batch best of the variants tried.

The ridge per cluster and batch, in proportion to the expected number, is that of Harmony's second
version (Korsunsky et al., Nature Methods 2019; Patikas et al., 2026). Clusters that move with their
batch, instead of a penalty on clusters of few batches, and the trust in an offset are ours; and the
offsets are those of a model, fixed once fitted, for any cell of a known batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

CLUSTERS = 100
FEWEST = 10  # cells of a cluster on average
MOST_CELLS = 2**16  # that clusters are fitted to; offsets are estimated from all that are given
AT_ONCE = 2**14  # cells whose distances to all clusters are held at once: 13 MB
SHIFTED = 2**20  # cells whose shifts are held at once: 126 MB
ROUNDS = 25
RIDGE = 0.05  # alpha
# Cells are moved by responsibilities of the likelihood to this power: neighbours in a continuum are
# to move alike, where clusters as sharp as Gaussians in tens of dimensions would cut it.
SMOOTHING = 0.25
OF_NEW = 0.5  # share of its offset that a batch is moved by that came after the fit
TINY = 1e-12
LEAST_VARIANCE = 1e-3  # of a cluster, as a share of the variance of all cells


@dataclass(frozen=True)
class Alignment:
    """Clusters of an embedding and the offset of every batch in each.

    Attributes
    ----------
    log_weight
        Logarithm of the share of the cells in every cluster, ``(k,)``.
    centre
        Centre of every cluster in every batch: its mean plus the batch's offset, ``(k, b, d)``.
    variance
        Of every cluster, the same in all directions, ``(k,)``.
    offset
        Of a batch in a cluster from the cluster's mean, ``(k, b, d)``.
    strength
        Share of its offset that a cell is moved back by, ``()``.
    """

    log_weight: Tensor
    centre: Tensor
    variance: Tensor
    offset: Tensor
    strength: Tensor

    def __call__(self, x: Tensor, batch: Tensor) -> Tensor:
        """Return the aligned coordinates of cells ``(n, d)`` of batches ``(n,)``; those of no known
        batch, whose code is negative, stay where they are."""
        return x - self.shift(x, batch)

    def shift(self, x: Tensor, batch: Tensor) -> Tensor:
        """Return what the cells are moved back by, ``(n, d)``."""
        shift = torch.zeros_like(x)
        for code, rows in _by_batch(batch):
            if code < 0:
                continue
            share = self.responsibilities(x[rows], code, SMOOTHING)
            shift[rows] = share.to(x.dtype) @ self.offset[:, code]
        return self.strength * shift

    def responsibilities(self, x: Tensor, code: int, power: float = 1.0) -> Tensor:
        """Return how far cells of one batch belong to every cluster, ``(n, k)``, by a likelihood
        to the given power."""
        x, centre = x.double(), self.centre[:, code].double()  # squares of like size are subtracted
        squared = x.square().sum(1, keepdim=True) - 2 * x @ centre.T + centre.square().sum(1)
        log_density = -0.5 * (squared / self.variance + x.shape[1] * self.variance.log())
        return torch.softmax(power * log_density + self.log_weight, dim=-1)

    def moved(self, x: Tensor, group: Tensor, batch: Tensor, n_batches: int) -> list[float]:
        """Return how far the cells of every batch are moved, in units of the distance between two
        cells: both the root of a mean square. 0 for a batch without cells. `group` is what they are
        aligned by, ``(n,)``."""
        distance = (2 * x.var(0, correction=0).sum()).sqrt().clamp(min=TINY)
        parts = zip(x.split(SHIFTED), group.split(SHIFTED), strict=True)
        squared = torch.cat([self.shift(*part).square().sum(1) for part in parts])
        sums = torch.zeros(n_batches, device=x.device, dtype=x.dtype)
        sums.index_add_(0, batch, squared)
        cells = torch.bincount(batch, minlength=len(sums)).clamp(min=1)
        return ((sums / cells).sqrt() / distance).tolist()


def _by_batch(batch: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the code of every batch that is there, and rows of its cells, so many at a time."""
    for code in batch.unique().tolist():
        for rows in (batch == code).nonzero()[:, 0].split(AT_ONCE):
            yield code, rows


@dataclass(frozen=True)
class _Sums:
    """What a round of the fit needs to know of the cells.

    Attributes
    ----------
    cells
        Cells of every cluster in every batch, ``(k, b)``.
    x
        Sums of their coordinates, ``(k, b, d)``.
    squared
        Sums of their squared lengths, ``(k,)``.
    """

    cells: Tensor
    x: Tensor
    squared: Tensor


def fit_alignment(
    x: Tensor, batch: Tensor, n_batches: int, generator: Generator, strength: float = 1.0
) -> Alignment:
    """Return the alignment of an embedding. Deterministic but for the start, from `generator`.

    Parameters
    ----------
    x
        Coordinates of the training cells, ``(n, d)``.
    batch
        Code of every cell's batch, ``(n,)``.
    strength
        Share of every offset that cells are moved by.
    """
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    some = order[:MOST_CELLS]
    n_clusters = max(1, min(CLUSTERS, len(some) // FEWEST))
    alignment = _start(x[some].double(), n_clusters, n_batches, generator)
    for _ in range(ROUNDS):
        alignment = _estimated(_sums(alignment, x[some], batch[some]), alignment)
    fitted = _estimated(_sums(alignment, x, batch), alignment)
    return Alignment(
        fitted.log_weight.float(),
        fitted.centre.float(),
        fitted.variance.float(),
        fitted.offset.float(),
        torch.tensor(strength, dtype=torch.float32, device=x.device),
    )


def with_new_batches(alignment: Alignment, x: Tensor, batch: Tensor, n_new: int) -> Alignment:
    """Return the alignment with offsets of `n_new` further batches; the clusters stay as they are.

    An offset is the same ridge regression as in the fit, on the cells of the new batch alone, with
    the trust in it that a batch in excess in a cluster has there: cells of a type that the clusters
    do not know are not pulled into one of them. Half of it is taken out: what is left of a batch
    whose network was not trained with the others is partly its own cells' state, and on runs of
    PBMC held out more of it mixed better than alike cells do, at the cost of labels.

    Parameters
    ----------
    x
        Coordinates of the cells, ``(n, d)``.
    batch
        Code of every cell's batch, ``(n,)``; the new ones come after the old.
    """
    k, n_old, d = alignment.centre.shape
    mean = (alignment.centre[:, :1] - alignment.offset[:, :1]).double()
    offset = torch.cat([alignment.offset, alignment.offset.new_zeros(k, n_new, d)], dim=1)
    wide = replace(
        alignment, centre=torch.cat([alignment.centre, mean.float().expand(k, n_new, d)], dim=1)
    )
    for code in range(n_old, n_old + n_new):
        own = x[batch == code].double()
        for _ in range(ROUNDS):
            sums = _sums(wide, own, torch.full((len(own),), code, device=x.device))
            cells, expected = sums.cells[:, code], wide.log_weight.exp().double() * len(own)
            trust = (expected / cells.clamp(min=TINY)).clamp(max=1).pow(3)
            scale = trust / (cells + RIDGE * expected).clamp(min=TINY)
            offset[:, code] = (
                scale[:, None] * (sums.x[:, code] - cells[:, None] * mean[:, 0])
            ).float()
            wide.centre[:, code] = mean[:, 0].float() + offset[:, code]
    offset[:, n_old:] *= OF_NEW
    return replace(wide, offset=offset)


def _start(x: Tensor, n_clusters: int, n_batches: int, generator: Generator) -> Alignment:
    """Return clusters at cells that lie apart (k-means++), the same in all batches."""
    centres = x[:1]
    nearest = (x - centres).square().sum(1)
    while len(centres) < n_clusters and nearest.sum() > 0:
        ahead = nearest.cpu().cumsum(0)  # CUDA sums in any order
        draw = torch.rand(1, generator=generator, device=generator.device).to(ahead)
        chosen = torch.searchsorted(ahead, draw * ahead[-1]).clamp(max=len(x) - 1).to(x.device)
        centres = torch.cat([centres, x[chosen]])
        nearest = torch.minimum(nearest, (x - x[chosen]).square().sum(1))
    k, d = centres.shape
    variance = (nearest.mean() / d).clamp(min=torch.finfo(torch.float32).tiny)
    centre = centres[:, None].expand(k, n_batches, d)
    weight = x.new_full((k,), 1 / k).log()
    return Alignment(weight, centre, variance.expand(k), torch.zeros_like(centre), x.new_ones(()))


def _sums(alignment: Alignment, x: Tensor, batch: Tensor) -> _Sums:
    k, n_batches, d = alignment.centre.shape
    shapes = (k, n_batches), (k, n_batches, d), (k,)
    sums = _Sums(*(x.new_zeros(shape, dtype=torch.float64) for shape in shapes))
    for code, rows in _by_batch(batch):
        own = x[rows].double()
        share = alignment.responsibilities(own, code)
        sums.cells[:, code] += share.sum(0)
        sums.x[:, code] += share.T @ own
        sums.squared.add_(share.T @ own.square().sum(1))
    return sums


def _estimated(sums: _Sums, before: Alignment) -> Alignment:
    """Return the clusters and offsets of these sums.

    Mean and offsets of a cluster are those of the ridge regression on its batches, in closed form:
    the offset is (sum of x - n mean) / (n + penalty). It is then scaled by the trust in it.
    """
    cells, of_batch = sums.cells, sums.cells.sum(0)
    expected = cells.sum(1, keepdim=True) * of_batch / of_batch.sum()
    penalised = (cells + RIDGE * expected).clamp(min=TINY)
    shrunk = RIDGE * expected / penalised
    weight = (shrunk * cells).sum(1, keepdim=True).clamp(min=TINY)
    mean = (shrunk[..., None] * sums.x).sum(1) / weight
    scale = _trust(cells, expected) / penalised
    offset = scale[..., None] * (sums.x - cells[..., None] * mean[:, None])
    centre = mean[:, None] + offset
    return replace(
        before,
        log_weight=(cells.sum(1) / of_batch.sum()).clamp(min=TINY).log(),
        centre=centre,
        variance=_variance(sums, centre),
        offset=offset,
    )


def _trust(cells: Tensor, expected: Tensor) -> Tensor:
    """Return the part of every offset that no excess of a batch in a cluster can explain."""
    own = (expected / cells.clamp(min=TINY)).clamp(max=1)
    cluster = torch.minimum(cells, expected).sum(1, keepdim=True)
    return own * (cluster / cells.sum(1, keepdim=True).clamp(min=TINY)).square()


def _variance(sums: _Sums, centre: Tensor) -> Tensor:
    """Return the variance of every cluster about its centres, at least a share of that of all."""
    n, d = sums.cells.sum(), centre.shape[-1]
    total = sums.squared.sum() / n - (sums.x.sum((0, 1)) / n).square().sum()
    about = (
        sums.squared
        - 2 * (sums.x * centre).sum((1, 2))
        + (sums.cells[..., None] * centre.square()).sum((1, 2))
    )
    found = about / (d * sums.cells.sum(1)).clamp(min=TINY)
    return torch.maximum(found, (LEAST_VARIANCE * total / d).clamp(min=TINY))
