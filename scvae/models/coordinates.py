r"""The coordinates of the embedding: principal components of decoded expression.

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
mean of every number: cells differ by z alone. S are the genes of whose variance the model explains
the largest shares; the others would add little but time, which then depends on the genes no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scvae.core.logarithms import scaled_log1p
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells, Dataset
from scvae.modalities.rna import Decoder

PER = 1e4  # counts per cell in log(1 + x)
MOST_GENES = 1024  # in S
MOST_VALUES = 2**24  # cells x genes of which components are taken, 64 MiB
FEWEST_CELLS = 4096  # of which they are taken where there are so many genes that these would be few
CHUNK_VALUES = 2**20  # cells x genes decoded at once
SMALLEST_DEVIATION = 1e-2  # of a gene: one that hardly varies is not to weigh the most
OVERSAMPLED, ITERATIONS = 20, 4  # of the randomised components


@dataclass(frozen=True)
class Coordinates:
    """The map from latent vectors to principal components of decoded expression.

    Attributes
    ----------
    genes
        Numbers of the genes that are decoded, in order, ``(k,)``.
    loadings
        Weight of each of them in every component, divided by the gene's deviation, ``(k, d)``.
    centre
        The mean of decoded expression in these components, ``(d,)``.
    covariates
        What every cell is decoded with, ``(c,)``.
    """

    genes: Tensor
    loadings: Tensor
    centre: Tensor
    covariates: Tensor

    def __call__(self, decoder: Decoder, z: Tensor) -> Tensor:
        """Return the coordinates of latent vectors ``(n, d)``, ``(n, d)``."""
        expression = log_composition(decoder, z, self.covariates, self.genes)
        return expression @ self.loadings - self.centre


@dataclass(frozen=True)
class LinearCoordinates:
    """The linear map of models of older files, ``z @ axes``.

    Attributes
    ----------
    axes
        ``(d, d)``.
    """

    axes: Tensor

    def __call__(self, decoder: Decoder, z: Tensor) -> Tensor:
        """Return the coordinates of latent vectors ``(n, d)``, ``(n, d)``."""
        return z[:, : len(self.axes)] @ self.axes


def log_expression(decoder: Decoder, z: Tensor, covariates: Tensor) -> Tensor:
    """Return log(1 + counts per 10,000) decoded from z ``(n, d)`` at covariates ``(c,)``."""
    return _logs(decoder.expression(z, covariates.expand(len(z), -1)))


def log_composition(decoder: Decoder, z: Tensor, covariates: Tensor, genes: Tensor) -> Tensor:
    """Return the same of some genes alone, per 10,000 counts of theirs, ``(n, k)``."""
    return _logs(decoder.composition(z, covariates.expand(len(z), -1), genes))


def _logs(shares: Tensor) -> Tensor:
    return scaled_log1p(shares, shares.new_full((1,), PER))


def encoded(vae: VAE, dataset: Dataset, rows: Tensor) -> Iterator[tuple[Cells, Tensor]]:
    """Yield the given cells, a bounded number at a time, with their posterior means ``(n, d)``."""
    decoder = vae.likelihood
    assert isinstance(decoder, Decoder)
    for cells in dataset.minibatches(rows, max(2, CHUNK_VALUES // decoder.n_genes)):
        yield cells, vae.encode(cells).loc[:, : decoder.n_latent]


@torch.no_grad()
def fit_coordinates(
    vae: VAE, dataset: Dataset, rows: Tensor, covariates: Tensor, generator: Generator
) -> Coordinates:
    """Return the coordinates of a trained model, from as many of the given rows as fit in memory.

    Parameters
    ----------
    rows
        Numbers of the cells to learn from.
    covariates
        What every cell is decoded with, ``(c,)``.
    """
    decoder = vae.likelihood
    assert isinstance(decoder, Decoder)
    n_genes = decoder.n_genes
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    chosen = rows[order[: max(MOST_VALUES // n_genes, FEWEST_CELLS)].to(rows.device)]
    latent = []
    sums = torch.zeros(2, 2, n_genes, dtype=torch.float64, device=generator.device)
    for cells, z in encoded(vae, dataset, chosen):
        measured = torch.log1p(cells.x * torch.exp(-cells.log_library) * PER)
        both = torch.stack([measured, log_expression(decoder, z, covariates)])
        sums += torch.stack([both.sum(1), both.square().sum(1)]).double()
        latent.append(z)
    deviation, decoded = _deviations(sums, len(chosen))
    deviation = deviation.clamp(min=SMALLEST_DEVIATION)
    genes = _first(decoded / deviation, MOST_GENES)
    parts = torch.cat(latent).split(max(2, CHUNK_VALUES // len(genes)))
    expression = torch.cat([log_composition(decoder, z, covariates, genes) for z in parts])
    mean = expression.mean(0)
    scaled = expression.sub_(mean).div_(deviation[genes])  # in place: nothing is larger
    components = principal_components(scaled, decoder.n_latent, generator)
    loadings = components / (deviation[genes, None] * math.sqrt(len(genes)))
    return Coordinates(genes, loadings, mean @ loadings, covariates)


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
