"""Coordinates of models of older files, which stay what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from scvae.core.logarithms import scaled_log1p
from scvae.modalities.kinds import View
from scvae.modalities.rna import Decoder
from scvae.models.coordinates import beside, by_kind, narrow_product

PER = 1e4  # counts per cell in log(1 + x)


@dataclass(frozen=True)
class LogCoordinates:
    """Components of log(1 + counts per 10,000) of genes, up to format 5.

    Attributes
    ----------
    genes, loadings, centre, covariates
        As of `scvae.models.coordinates.Coordinates`, but that features have no unit: their weights
        are divided by it.
    """

    genes: Tensor
    loadings: Tensor
    centre: Tensor
    covariates: Tensor

    def __call__(self, views: Sequence[View], z: Tensor) -> Tensor:
        """Return the coordinates of latent vectors ``(n, d)``, ``(n, d)``."""
        s = self.covariates.expand(len(z), -1)
        each = zip(views, by_kind(self.genes, views), strict=True)
        found = [_amounts(view, z, s, genes) for view, genes in each if len(genes)]
        return narrow_product(beside(found), self.loadings) - self.centre


def _amounts(view: View, z: Tensor, s: Tensor, genes: Tensor) -> Tensor:
    """Return some features of a kind, ``(n, k)``."""
    decoder = view.decoder
    if not isinstance(decoder, Decoder) or decoder.rna.linear:
        return view.profile(z, s, genes)
    shares = decoder.composition(z, s, genes)
    return scaled_log1p(shares, shares.new_full((1,), PER))


@dataclass(frozen=True)
class LinearCoordinates:
    """The linear map of the latent space, ``z @ axes``, up to format 2.

    Attributes
    ----------
    axes
        ``(d, d)``.
    """

    axes: Tensor

    def __call__(self, views: Sequence[View], z: Tensor) -> Tensor:
        """Return the coordinates of latent vectors ``(n, d)``, ``(n, d)``."""
        return z[:, : len(self.axes)] @ self.axes
