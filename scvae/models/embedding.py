"""The embedding of a model: coordinates of decoded expression, aligned between batches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.func import jvp

from scvae.core.networks import evaluating
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.modalities.kinds import View
from scvae.models.alignment import Alignment, fit_alignment
from scvae.models.coordinates import (
    Coordinates,
    LinearCoordinates,
    encoded,
    fit_coordinates,
)
from scvae.models.network import Architecture, views_of

Kind = Literal["expression", "latent"]
COORDINATES: dict[Kind, type[Coordinates] | type[LinearCoordinates]] = {
    "expression": Coordinates,
    "latent": LinearCoordinates,
}


@dataclass(frozen=True)
class EmbeddingSpec:
    """What fixes the tensors of an embedding.

    Attributes
    ----------
    coordinates
        What they are of: "expression" or, in models of older files, "latent".
    genes
        Number of genes that are decoded for them; 0 for "latent" ones.
    clusters
        Number of clusters of the alignment; 0 where there is none.
    """

    coordinates: Kind
    genes: int
    clusters: int


@dataclass(frozen=True)
class Embedding:
    """The map from a latent vector and a batch to the embedding.

    Attributes
    ----------
    coordinates
        Map from latent vectors to coordinates that are alike in all batches.
    alignment
        What the network left of the batches, to be taken out; None where there is none.
    """

    coordinates: Coordinates | LinearCoordinates
    alignment: Alignment | None = None

    @torch.no_grad()
    def mean(self, views: Sequence[View], z: Tensor, batch: Tensor) -> Tensor:
        """Return the embedding of latent vectors ``(n, d)`` of cells of batches ``(n,)``."""
        return self._of(views, z, batch)

    @torch.no_grad()
    def deviation(self, views: Sequence[View], z: Tensor, scale: Tensor, batch: Tensor) -> Tensor:
        r"""Return the standard deviation of the embedding of z ~ N(z, diag(scale^2)), ``(n, d)``.

        By the delta method: :math:`\sqrt{\sum_j (\partial e_k/\partial z_j)^2 \sigma_j^2}`, exact
        where the map is linear over the width of the posterior.
        """
        variance = torch.zeros((), device=z.device, dtype=z.dtype)
        with contextlib.ExitStack() as stack:
            for view in views:
                stack.enter_context(evaluating(view.decoder))
            for j in range(z.shape[1]):
                along = torch.zeros_like(z)
                along[:, j] = scale[:, j]
                slope = jvp(lambda at: self._of(views, at, batch), (z,), (along,))[1]
                variance = variance + slope.square()
        return variance.sqrt()

    def _of(self, views: Sequence[View], z: Tensor, batch: Tensor) -> Tensor:
        x = self.coordinates(views, z)
        return x if self.alignment is None else self.alignment(x, batch)

    def to(self, device: torch.device) -> Embedding:
        """Return the same map on another device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return Embedding.of(self.spec.coordinates, tensors)

    # -- as a file holds it --------------------------------------------------------------------

    @property
    def spec(self) -> EmbeddingSpec:
        """What fixes its tensors."""
        kind = next(kind for kind, of in COORDINATES.items() if isinstance(self.coordinates, of))
        genes = self.coordinates.genes.numel() if isinstance(self.coordinates, Coordinates) else 0
        clusters = 0 if self.alignment is None else len(self.alignment.variance)
        return EmbeddingSpec(kind, genes, clusters)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {
            f"{part}.{field.name}": getattr(value, field.name)
            for part, value in (("coordinates", self.coordinates), ("alignment", self.alignment))
            if value is not None
            for field in dataclasses.fields(value)
        }

    @classmethod
    def of(cls, kind: Kind, tensors: Mapping[str, Tensor]) -> Embedding:
        """Return the embedding that has these `tensors`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, field = name.split(".")
            parts.setdefault(part, {})[field] = tensor
        alignment = parts.get("alignment")
        return cls(
            COORDINATES[kind](**parts["coordinates"]),
            None if alignment is None else Alignment(**alignment),
        )


@torch.no_grad()
def fit_embedding(
    vae: VAE,
    a: Architecture,
    dataset: Dataset | Datasets,
    rows: Tensor,
    covariates: Tensor,
    strength: float,
    generator: Generator,
) -> tuple[Embedding, list[float]]:
    """Return the embedding of a trained model, and how far it moves the cells of every batch.

    Parameters
    ----------
    rows
        Numbers of the cells to learn from.
    covariates
        What every cell is decoded with, ``(c,)``.
    strength
        Share of what is left of the batches to take out, 0 to 1; 0 fits no alignment.
    """
    views, n_batches = views_of(vae, a), a.n_batches
    coordinates = fit_coordinates(vae, views, dataset, rows, covariates, a.n_latent, generator)
    if n_batches < 2 or strength == 0:
        return Embedding(coordinates), [0.0] * n_batches
    each = encoded(vae, dataset, rows, views, a.n_latent)
    x = torch.cat([coordinates(views, z) for _, z in each])
    batch = dataset.batch[rows]
    alignment = fit_alignment(x, batch, n_batches, generator, strength)
    return Embedding(coordinates, alignment), alignment.moved(x, batch)
