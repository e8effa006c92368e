r"""The coordinates of the embedding: principal components of decoded amounts.

The prior makes every latent direction equally wide, whether it moves a thousand genes or three; it
whitens. Distances between posterior means then count noise as much as cell types. Coordinates are
of expression instead. With what is decoded from z as if every cell had the same covariates,

.. math::
    x_g(z) = \frac{1}{\sigma_g} \sqrt{\frac{\rho_g(z, s_0)}{\sum_{h\in S}\rho_h(z, s_0)}},
    \quad g \in S, \qquad \phi(z) = x(z) / |x(z)|^{1/2} ,

each gene divided by its standard deviation in the data, they are the first d principal components
of :math:`\phi` over the cells,

.. math:: c(z) = w\, V^T (\phi(z) - \bar\phi) / \sqrt{|S|} , \quad
          w^2 \,\mathrm{mean}_{g \in S} \mathrm{var}(\phi_g) = \mathrm{mean}_{g \in S} R^2_g ,

scaled so that all of them vary as much as the mean share of a gene's variance that the model
explains. The covariates :math:`s_0` are the most common batch and categories, and the mean of every
number: cells differ by z alone. S are the genes whose decoded deviation is the largest share of the
measured one; the others would add little but time, which then depends on the genes no more.

Roots, because counting noise moves the root of a share about as much wherever the share is, and
because they ask for no number of counts to scale to: in logarithms of one more than so many counts,
that number decides which genes weigh. Half of the length is taken out of a profile, halfway between
distance and cosine: by distance, the few types that express much of a few genes lie far from all
others, and those drown what tells related types apart; by cosine they lie no further than these.

Of several kinds of measurement there are profiles of all, each by its own amounts
(`Modality.profile`, `Modality.cosine`) and with its own w: a kind weighs as much as the mean share
of its features' variance that the model explains, however many they are. Counts of few fragments a
region, which are nearly all chance, do not drown what genes say.
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
SMALLEST_DEVIATION = 1e-2  # of a feature, by that of all: one that hardly varies weighs little
LANES = 16  # of float32 in a vector of the processor
TINY = 1e-12  # of the length of a profile
OVERSAMPLED, ITERATIONS = 20, 4  # of the randomised components


@dataclass(frozen=True)
class Coordinates:
    """The map from latent vectors to principal components of decoded expression.

    Attributes
    ----------
    genes
        Numbers of the features that are decoded, in order, ``(k,)``: those of the second kind
        follow those of the first.
    unit
        What the amount of each of them is divided by, ``(k,)``.
    loadings
        Weight of each of them in every component, ``(k, d)``.
    centre
        The mean of decoded expression in these components, ``(d,)``.
    covariates
        What every cell is decoded with, ``(c,)``.
    """

    genes: Tensor
    unit: Tensor
    loadings: Tensor
    centre: Tensor
    covariates: Tensor

    def __call__(self, views: Sequence[View], z: Tensor) -> Tensor:
        """Return the coordinates of latent vectors ``(n, d)``, ``(n, d)``."""
        s, each = self.covariates.expand(len(z), -1), by_kind(self.genes, views)
        units = self.unit.split([len(genes) for genes in each])
        of_each = zip(views, each, units, strict=True)
        found = [profiles(view, z, s, *of_kind) for view, *of_kind in of_each if len(of_kind[0])]
        return narrow_product(beside(found), self.loadings) - self.centre


def profiles(view: View, z: Tensor, s: Tensor, features: Tensor, unit: Tensor) -> Tensor:
    """Return what components are of: some features of a kind, each divided by its unit, and all of
    a cell by a power of their length, ``(n, k)``."""
    x = view.profile(z, s, features) / unit
    if (power := view.modality.cosine) == 0:
        return x
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp(min=TINY) ** power


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


def narrow_product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w for x ``(n, k)`` and w ``(k, d)`` with few columns.

    With d filled up to whole vectors of the processor: 30 columns take 1.7 times as long as 32.
    """
    return (x @ pad(w, (0, -w.shape[1] % LANES)))[:, : w.shape[1]]


def beside(parts: Sequence[Tensor]) -> Tensor:
    """Return matrices beside each other."""
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
    decoder = views[0].decoder
    if isinstance(decoder, Decoder) and decoder.rna.linear:
        return _linear_coordinates(views[0], torch.cat(latent), covariates, spreads[0])
    chosen_of = [spread.chosen() for spread in spreads]
    blocks = torch.cat(latent).split(max(2, CHUNK_VALUES // sum(len(genes) for genes in chosen_of)))
    scaled, means, units, roots = [], [], [], []
    for view, spread, genes in zip(views, spreads, chosen_of, strict=True):
        units.append(spread.measured[genes])
        s = covariates.expand(len(blocks[0]), -1)
        x = torch.cat([profiles(view, z, s[: len(z)], genes, units[-1]) for z in blocks])
        means.append(x.mean(0))
        x.sub_(means[-1])  # in place: nothing is larger
        weight = _weight(float(x.double().square().mean()), spread, genes)
        roots.append(torch.full_like(units[-1], math.sqrt(len(genes)) / weight))
        scaled.append(x.div_(roots[-1]))
    loadings = principal_components(beside(scaled), d, generator) / torch.cat(roots)[:, None]
    starts = itertools.accumulate((view.width for view in views[:-1]), initial=0)
    numbers = torch.cat([genes + k for genes, k in zip(chosen_of, starts, strict=True)])
    centre = torch.cat(means) @ loadings
    return Coordinates(numbers, torch.cat(units), loadings, centre, covariates)


def _linear_coordinates(view: View, z: Tensor, covariates: Tensor, spread: _Spread) -> Coordinates:
    r"""Return the coordinates of a linear decoder, of posterior means ``(n, d)``.

    .. math:: c_k(z) = \sum_g L_{gk} \log \rho_g(z, s_0) + \mathrm{const}, \quad
              M = D (W - 1 m^T), \quad M \Sigma_z^{1/2} = U S V^T, \quad L = w D U

    with W the decoder's weights and D what the root of a share makes of a small change of its
    logarithm at the gene's mean, divided by the gene's deviation: squared distances are then about
    those of :math:`x` in other decoders. Columns of U are orthonormal; m, the mean of W by
    :math:`D^2`, makes those of L add up to zero, so that what makes shares add up to one is in
    none. They are linear in z, and uncorrelated over the cells.
    """
    decoder = view.decoder
    assert isinstance(decoder, Decoder)
    genes = spread.chosen()
    scale = (spread.decoded_mean[genes] / (2 * spread.measured[genes])).clamp(min=1e-6).double()
    weights = decoder.share.weight[genes, : decoder.n_latent].double()
    centred = weights - (scale.square() @ weights) / scale.square().sum()
    variances, turned = torch.linalg.eigh(torch.cov(z.double().T).reshape(z.shape[1], -1))
    root = turned * variances.clamp(min=0).sqrt()
    vectors, strengths, _ = torch.linalg.svd(scale[:, None] * centred @ root, full_matrices=False)
    weight = _weight(float(strengths.square().sum()) / len(genes), spread, genes)
    full = torch.zeros(len(genes), z.shape[1], dtype=vectors.dtype, device=z.device)
    full[:, : vectors.shape[1]] = vectors
    largest = full.gather(0, full.abs().argmax(0)[None])
    unit = weight / math.sqrt(len(genes))
    loadings = (unit * scale[:, None] * full * largest.sign()).float()
    at = view.profile(z.mean(0, keepdim=True), covariates[None], genes)[0]
    return Coordinates(genes, torch.ones_like(at), loadings, at @ loadings, covariates)


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

    @property
    def measured(self) -> Tensor:
        """Standard deviation of what was measured, ``(g,)``; of a feature that hardly varies, a
        part of the usual one."""
        deviation = self._deviations[0]
        least = SMALLEST_DEVIATION * float(deviation.double().square().mean().sqrt())
        return deviation.clamp(min=least or 1.0)

    @property
    def decoded(self) -> Tensor:
        """Standard deviation of what is decoded, ``(g,)``."""
        return self._deviations[1]

    @property
    def decoded_mean(self) -> Tensor:
        """Mean of what is decoded, ``(g,)``."""
        return (self.sums[0, 1] / max(self.n, 1)).float()

    @property
    def _deviations(self) -> Tensor:
        mean, square = self.sums / max(self.n, 1)
        variance = (square - mean.square()) * (self.n / max(self.n - 1, 1))
        return variance.clamp(min=0).sqrt().float()

    def chosen(self) -> Tensor:
        """Return the features of whose variance most is decoded, ``(k,)``."""
        return _first(self.decoded / self.measured, MOST_GENES)

    def explained(self, features: Tensor) -> float:
        """Return the mean share of the variance of some features that the model explains."""
        share = (self.decoded / self.measured)[features].double().square()
        return float(share.clamp(max=1).mean())


def _weight(variance: float, spread: _Spread, features: Tensor) -> float:
    """Return what makes the mean variance of these features the share of it that is explained."""
    explained = spread.explained(features)
    return math.sqrt(explained / variance) if variance > 0 and explained > 0 else 1.0


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
