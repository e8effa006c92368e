r"""The coordinates of the embedding: principal components of decoded amounts.

The prior makes every latent direction equally wide, whether it moves a thousand genes or three; it
whitens. Distances between posterior means then count noise as much as cell types. Coordinates are
of expression instead. With what is decoded from z as if every cell had the same covariates,

.. math::
    \phi_g(z) = \log\Big(1 + 10^4 \frac{\rho_g(z, s_0)}{\sum_{h\in S}\rho_h(z, s_0)}\Big)
    / \sigma_g, \quad g \in S,

each gene divided by its standard deviation in the data, they are the first d principal components
of :math:`\phi` over the cells,

.. math:: c(z) = V^T (\phi(z) - \bar\phi) / \sqrt{|S|} ,

so that squared distances are those of decoded expression per gene, but for the part that d
components leave out. The covariates :math:`s_0` are the most common batch and categories, and the
mean of every number: cells differ by z alone. S are the genes whose decoded deviation is the
largest share of the measured one; the others would add little but time, which then depends on the
genes no more. Among them genes of few counts come first, as the log of a mean exceeds the mean of
logs: that suits data of few counts, and slights the strong markers of rare types in others.

Of several kinds of measurement, :math:`\phi` has features of all, each kind by its own amounts
(`Modality.profile`). Every kind weighs as much as the mean share of its features' variance that
the model explains, however many they are: counts of few fragments a region, which are nearly all
chance, do not drown what genes say.

.. math:: c(z) = V^T \big(w_m (\phi_m(z) - \bar\phi_m) / \sqrt{|S_m|}\big)_m, \quad
          w_m^2 \,\mathrm{mean}_{g \in S_m} \mathrm{var}(\phi_g) = \mathrm{mean}_{g \in S_m} R^2_g
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.several import CellParts, Datasets
from scvae.modalities.kinds import View
from scvae.modalities.rna import Decoder

MOST_GENES = 512  # in S, of every kind
MOST_VALUES = 2**24  # cells x genes of which components are taken, 64 MiB
FEWEST_CELLS = 4096  # of which they are taken where there are so many genes that these would be few
CHUNK_VALUES = 2**20  # cells x genes decoded at once
SMALLEST_DEVIATION = 1e-2  # of a gene: one that hardly varies is not to weigh the most
LANES = 16  # of float32 in a vector of the processor
OVERSAMPLED, ITERATIONS = 20, 4  # of the randomised components


@dataclass(frozen=True)
class Coordinates:
    """The map from latent vectors to principal components of decoded expression.

    Attributes
    ----------
    genes
        Numbers of the features that are decoded, in order, ``(k,)``: those of the second kind
        follow those of the first.
    loadings
        Weight of each of them in every component, divided by the feature's deviation, ``(k, d)``.
    centre
        The mean of decoded expression in these components, ``(d,)``.
    covariates
        What every cell is decoded with, ``(c,)``.
    """

    genes: Tensor
    loadings: Tensor
    centre: Tensor
    covariates: Tensor

    def __call__(self, views: Sequence[View], z: Tensor) -> Tensor:
        """Return the coordinates of latent vectors ``(n, d)``, ``(n, d)``."""
        s = self.covariates.expand(len(z), -1)
        each = zip(views, by_kind(self.genes, views), strict=True)
        found = [view.profile(z, s, genes) for view, genes in each if len(genes)]
        return _narrow_product(_beside(found), self.loadings) - self.centre


@dataclass(frozen=True)
class LinearCoordinates:
    """The linear map of models of older files, ``z @ axes``.

    Attributes
    ----------
    axes
        ``(d, d)``.
    """

    axes: Tensor

    def __call__(self, views: Sequence[View], z: Tensor) -> Tensor:
        """Return the coordinates of latent vectors ``(n, d)``, ``(n, d)``."""
        return z[:, : len(self.axes)] @ self.axes


def by_kind(features: Tensor, views: Sequence[View]) -> list[Tensor]:
    """Return the numbers of features among those of their own kind, in order, a tensor a kind."""
    if len(views) == 1:
        return [features]
    found, start = [], 0
    for view in views:
        stop = start + view.width
        found.append(features[(features >= start) & (features < stop)] - start)
        start = stop
    return found


def _narrow_product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w for x ``(n, k)`` and w ``(k, d)`` with few columns.

    With d filled up to whole vectors of the processor: 30 columns take 1.7 times as long as 32.
    """
    return (x @ pad(w, (0, -w.shape[1] % LANES)))[:, : w.shape[1]]


def _beside(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def encoded(
    vae: VAE, dataset: Dataset | Datasets, rows: Tensor, views: Sequence[View], d: int
) -> Iterator[tuple[Cells | CellParts, Tensor]]:
    """Yield the given cells, a bounded number at a time, with their posterior means ``(n, d)``."""
    n_features = sum(view.modality.n_features for view in views)
    for cells in dataset.minibatches(rows, max(2, CHUNK_VALUES // n_features)):
        yield cells, vae.encode(cells).mean[:, :d]


@torch.no_grad()
def fit_coordinates(
    vae: VAE,
    views: Sequence[View],
    dataset: Dataset | Datasets,
    rows: Tensor,
    covariates: Tensor,
    d: int,
    generator: Generator,
) -> Coordinates:
    """Return the coordinates of a trained model, from as many of the given rows as fit in memory.

    Parameters
    ----------
    views
        Every kind of measurement with its decoder.
    rows
        Numbers of the cells to learn from.
    covariates
        What every cell is decoded with, ``(c,)``.
    d
        Number of latents.
    """
    n_features = sum(view.modality.n_features for view in views)
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    chosen = rows[order[: max(MOST_VALUES // n_features, FEWEST_CELLS)].to(rows.device)]
    latent, spreads = [], [_Spread.none(view, generator.device) for view in views]
    for cells, z in encoded(vae, dataset, chosen, views, d):
        s = covariates.expand(len(z), -1)
        parts = cells.parts if isinstance(cells, CellParts) else (cells,)
        for spread, view, part in zip(spreads, views, parts, strict=True):
            spread.add(view, part, z, s)
        latent.append(z)
    chosen_of = [spread.chosen() for spread in spreads]
    n_chosen = sum(len(genes) for genes, _ in chosen_of)
    decoder = views[0].decoder
    if isinstance(decoder, Decoder) and decoder.rna.linear:
        seen = spreads[0].sums[0, 0] / max(spreads[0].n, 1)
        return _linear_coordinates(views[0], torch.cat(latent), covariates, *chosen_of[0], seen)
    blocks = torch.cat(latent).split(max(2, CHUNK_VALUES // n_chosen))
    means, scaled = [], []
    for view, (genes, deviation) in zip(views, chosen_of, strict=True):
        amounts = torch.cat([view.profile(z, covariates.expand(len(z), -1), genes) for z in blocks])
        means.append(amounts.mean(0))
        scaled.append(amounts.sub_(means[-1]).div_(deviation))  # in place: nothing is larger
    roots = [math.sqrt(block.shape[1]) for block in scaled]
    if len(views) > 1:
        shares = [s.explained(*chosen) for s, chosen in zip(spreads, chosen_of, strict=True)]
        weights = [_weight(*each) for each in zip(scaled, shares, strict=True)]
        roots = [root / weight for root, weight in zip(roots, weights, strict=True)]
        scaled = [block.div_(root) for block, root in zip(scaled, roots, strict=True)]
    components = principal_components(_beside(scaled), d, generator)
    each = zip(components.split([len(g) for g, _ in chosen_of]), roots, chosen_of, strict=True)
    loadings = torch.cat([block / (dev[:, None] * root) for block, root, (_, dev) in each])
    starts = itertools.accumulate((view.width for view in views[:-1]), initial=0)
    genes = torch.cat([genes + k for (genes, _), k in zip(chosen_of, starts, strict=True)])
    return Coordinates(genes, loadings, _beside(means) @ loadings, covariates)


def _linear_coordinates(
    view: View, z: Tensor, covariates: Tensor, genes: Tensor, deviation: Tensor, mean: Tensor
) -> Coordinates:
    r"""Return the coordinates of a linear decoder, of posterior means ``(n, d)``.

    .. math:: c_k(z) = \sum_g L_{gk} \log \rho_g(z, s_0) + \mathrm{const}, \quad
              M = D (W - 1 m^T), \quad M \Sigma_z^{1/2} = U S V^T, \quad L = D U

    with W the decoder's weights and D what log(1 + x) makes of a small change of log expression at
    the gene's mean, divided by its deviation: squared distances are then about those of other
    decoders. Columns of U are orthonormal; m, the mean of W by :math:`D^2`, makes those of L add up
    to zero, so that what makes shares add up to one is in none. They are linear in z, and
    uncorrelated over the cells.
    """
    decoder = view.decoder
    assert isinstance(decoder, Decoder)
    scale = (-torch.expm1(-mean[genes].clamp(min=0)) / deviation).clamp(min=1e-6).double()
    weights = decoder.share.weight[genes, : decoder.n_latent].double()
    centred = weights - (scale.square() @ weights) / scale.square().sum()
    spread, turned = torch.linalg.eigh(torch.cov(z.double().T).reshape(z.shape[1], -1))
    root = turned * spread.clamp(min=0).sqrt()
    vectors = torch.linalg.svd(scale[:, None] * centred @ root, full_matrices=False)[0]
    full = torch.zeros(len(genes), z.shape[1], dtype=vectors.dtype, device=z.device)
    full[:, : vectors.shape[1]] = vectors
    largest = full.gather(0, full.abs().argmax(0)[None])
    loadings = (scale[:, None] * full * largest.sign() / math.sqrt(len(genes))).float()
    at = view.profile(z.mean(0, keepdim=True), covariates[None], genes)[0]
    return Coordinates(genes, loadings, at @ loadings, covariates)


@dataclass
class _Spread:
    """Sums over cells of the amounts of one kind, measured and decoded, and of their squares."""

    n: int
    sums: Tensor

    @classmethod
    def none(cls, view: View, device: torch.device) -> _Spread:
        n_features = view.modality.n_features
        return cls(0, torch.zeros(2, 2, n_features, dtype=torch.float64, device=device))

    def add(self, view: View, cells: Cells, z: Tensor, s: Tensor) -> None:
        """Count the cells that were measured."""
        if cells.present is not None:
            there = cells.present.nonzero()[:, 0]
            cells, z, s = cells[there], z[there], s[there]
        both = torch.stack([view.modality.measured(cells), view.profile(z, s)])
        self.sums += torch.stack([both.sum(1), both.square().sum(1)]).double()
        self.n += len(z)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Return the features whose variance is explained best, and their deviations, ``(k,)``."""
        deviation, decoded = _deviations(self.sums, max(self.n, 1))
        deviation = deviation.clamp(min=SMALLEST_DEVIATION)
        genes = _first(decoded / deviation, MOST_GENES)
        return genes, deviation[genes]

    def explained(self, features: Tensor, deviation: Tensor) -> float:
        """Return the mean share of the variance of some features that the model explains."""
        _, decoded = _deviations(self.sums[..., features], max(self.n, 1))
        return float((decoded / deviation).double().square().clamp(max=1).mean())


def _weight(scaled: Tensor, explained: float) -> float:
    """Return what makes the mean variance of columns ``(n, k)`` the share that is explained."""
    own = float(scaled.double().square().mean())
    return math.sqrt(explained / own) if own > 0 and explained > 0 else 1.0


def _deviations(sums: Tensor, n: int) -> Tensor:
    """Return standard deviations of n values, given the sums of them and of their squares."""
    mean, square = sums / n
    variance = (square - mean.square()) * (n / max(n - 1, 1))
    return variance.clamp(min=0).sqrt().float()


def _first(values: Tensor, k: int) -> Tensor:
    """Return where the k largest values are, in order."""
    return values.sort(descending=True, stable=True).indices[:k].sort().values


def principal_components(x: Tensor, d: int, generator: Generator) -> Tensor:
    """Return the first d right singular vectors of x ``(n, g)``, as columns, ``(g, d)``.

    By iterated random projection (Halko, Martinsson and Tropp, "Finding structure with randomness",
    SIAM Review 2011): decoded expression has few dimensions, and they are found to rounding. The
    entry of each vector that is largest is positive; vectors that x does not have are zeros.

    Parameters
    ----------
    x
        Centred values.
    generator
        Of the first projection, on the device of `x`.
    """
    rank = min(d + OVERSAMPLED, *x.shape)
    basis = torch.randn(x.shape[1], rank, generator=generator, device=x.device, dtype=x.dtype)
    for _ in range(ITERATIONS):
        basis = _orthonormal(x.T @ _orthonormal(x @ basis))
    _, strengths, turned = torch.linalg.svd((x @ basis).double(), full_matrices=False)
    vectors = (basis.double() @ turned.T).float()[:, :d]
    there = strengths[:d] > strengths[0] * 1e-6
    largest = vectors.gather(0, vectors.abs().argmax(0)[None])
    out = torch.zeros(x.shape[1], d, device=x.device, dtype=x.dtype)
    out[:, : vectors.shape[1]] = vectors * largest.sign() * there
    return out


def _orthonormal(x: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns of x."""
    return torch.linalg.qr(x.double())[0].to(x.dtype)
