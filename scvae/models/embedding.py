"""The embedding of a model: coordinates of decoded expression, aligned between batches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.func import jvp

from scvae.core.networks import evaluating
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.several import CellParts, Datasets
from scvae.modalities.kinds import View
from scvae.models.alignment import Alignment, fit_alignment
from scvae.models.coordinates import Coordinates, encoded, fit_coordinates
from scvae.models.network import Architecture, for_encoder, views_of
from scvae.models.older_coordinates import LinearCoordinates, LogCoordinates

Kind = Literal["roots", "logs", "latent"]
ALIGNED = 2**18  # cells that offsets are estimated from, where there are so many,
ALIGNED_OF_GROUP = 2**14  # or so many of every batch: of 2,048, mixing of two is .01 lower,
MOST_ALIGNED = 2**21  # but no more: held at once, 252 MB
FEWEST_OF_PATTERN = 50  # cells: fewer say too little of what their pattern leaves
AnyCoordinates = Coordinates | LogCoordinates | LinearCoordinates
COORDINATES: dict[Kind, type[AnyCoordinates]] = {
    "roots": Coordinates,
    "logs": LogCoordinates,
    "latent": LinearCoordinates,
}


@dataclass(frozen=True)
class EmbeddingSpec:
    """What fixes the tensors of an embedding.

    Attributes
    ----------
    coordinates
        What they are of: "roots" of shares or, in models of older files, "logs" or "latent".
    genes
        Number of genes that are decoded for them; 0 for "latent" ones.
    clusters
        Number of clusters of the alignment; 0 where there is none.
    patterns
        Number of patterns of kinds of measurement that are aligned; 0 where there is one alone.
    """

    coordinates: Kind
    genes: int
    clusters: int
    patterns: int = 0


@dataclass(frozen=True)
class Patterns:
    """Which kinds of measurement cells have: cells of a batch in one pattern are aligned together.

    What was not measured of a cell leaves its posterior wider and its mean elsewhere, which is no
    more its state than the batch is.

    Attributes
    ----------
    kinds
        One where cells of a pattern have a kind, else zero, ``(p, m)`` int64.
    """

    kinds: Tensor

    @classmethod
    def of(cls, dataset: Dataset | Datasets, rows: Tensor) -> Patterns | None:
        """Return those that enough of the given cells have; None where these are not several."""
        if isinstance(dataset, Dataset):
            return None
        kinds, n = dataset.present[rows].long().unique(dim=0, return_counts=True)
        enough = kinds[n >= FEWEST_OF_PATTERN]
        return cls(enough) if len(enough) > 1 else None

    def groups(self, batch: Tensor, present: Tensor) -> Tensor:
        """Return the code of a pattern in a batch of every cell, ``(n,)``; -1 where either is
        unknown."""
        same = (present[:, None].long() == self.kinds).all(-1)
        code = batch * len(self.kinds) + same.long().argmax(-1)
        return torch.where(same.any(-1) & (batch >= 0), code, -1)


@dataclass(frozen=True)
class Embedding:
    """The map from a latent vector and a batch to the embedding.

    Attributes
    ----------
    coordinates
        Map from latent vectors to coordinates that are alike in all batches.
    alignment
        What the network left of the batches, to be taken out; None where there is none.
    patterns
        Of kinds of measurement, where what these leave is taken out, too; else None.
    """

    coordinates: AnyCoordinates
    alignment: Alignment | None = None
    patterns: Patterns | None = None

    @property
    def n_features(self) -> int:
        """Number of features that are decoded for it, or of latents where none is."""
        axes = self.coordinates
        return len(axes.axes if isinstance(axes, LinearCoordinates) else axes.genes)

    def groups(self, cells: Cells | CellParts) -> Tensor:
        """Return what cells are aligned by, ``(n,)``: their batches, or their patterns in these."""
        if self.patterns is None or isinstance(cells, Cells):
            return cells.batch
        return self.patterns.groups(cells.batch, cells.present)

    @torch.no_grad()
    def mean(self, views: Sequence[View], z: Tensor, group: Tensor) -> Tensor:
        """Return the embedding of latent vectors ``(n, d)`` of these `groups`, ``(n,)``."""
        return self._of(views, z, group)

    @torch.no_grad()
    def deviation(self, views: Sequence[View], z: Tensor, scale: Tensor, group: Tensor) -> Tensor:
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
                slope = jvp(lambda at: self._of(views, at, group), (z,), (along,))[1]
                variance = variance + slope.square()
        return variance.sqrt()

    def _of(self, views: Sequence[View], z: Tensor, group: Tensor) -> Tensor:
        x = self.coordinates(views, z)
        return x if self.alignment is None else self.alignment(x, group)

    def to(self, device: torch.device) -> Embedding:
        """Return the same map on another device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return Embedding.of(self.spec.coordinates, tensors)

    # -- as a file holds it --------------------------------------------------------------------

    @property
    def spec(self) -> EmbeddingSpec:
        """What fixes its tensors."""
        axes = self.coordinates
        kind = next(kind for kind, of in COORDINATES.items() if isinstance(axes, of))
        genes = 0 if isinstance(axes, LinearCoordinates) else len(axes.genes)
        clusters = 0 if self.alignment is None else len(self.alignment.variance)
        patterns = 0 if self.patterns is None else len(self.patterns.kinds)
        return EmbeddingSpec(kind, genes, clusters, patterns)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {
            f"{part}.{field.name}": getattr(value, field.name)
            for part, value in (
                ("coordinates", self.coordinates),
                ("alignment", self.alignment),
                ("patterns", self.patterns),
            )
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
        return cls(
            COORDINATES[kind](**parts["coordinates"]),
            Alignment(**parts["alignment"]) if "alignment" in parts else None,
            Patterns(**parts["patterns"]) if "patterns" in parts else None,
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
        Numbers of the cells to learn from; the alignment learns from a quarter of a million at
        random, or from 16,384 of every batch, where these are more.
    covariates
        What every cell is decoded with, ``(c,)``.
    strength
        Share of what is left of the batches to take out, 0 to 1; 0 fits no alignment.
    """
    views, n_batches = views_of(vae, a), a.n_batches
    coordinates = fit_coordinates(vae, views, dataset, rows, covariates, a.n_latent, generator)
    found = Embedding(coordinates, patterns=Patterns.of(dataset, rows))
    n_groups = n_batches * (1 if found.patterns is None else len(found.patterns.kinds))
    if n_groups < 2 or strength == 0:
        return Embedding(coordinates), [0.0] * n_batches
    rows = _some(rows, max(ALIGNED, ALIGNED_OF_GROUP * n_groups), generator)
    each = encoded(vae, for_encoder(vae, dataset), rows, views, a.n_latent)
    parts = ((coordinates(views, z), found.groups(cells), cells.batch) for cells, z in each)
    x, group, batch = _stacked(parts, len(rows))
    known = group >= 0
    x_known = x if known.all() else x[known]
    alignment = fit_alignment(x_known, group[known], n_groups, generator, strength)
    moved = alignment.moved(x, group, batch, n_batches)
    return dataclasses.replace(found, alignment=alignment), moved


def _some(rows: Tensor, n: int, generator: Generator) -> Tensor:
    """Return at most n of the rows, and no more than `MOST_ALIGNED`, drawn at random, in order."""
    n = min(n, MOST_ALIGNED)
    if len(rows) <= n:
        return rows
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order[:n].sort().values.to(rows.device)]


def _stacked(parts: Iterable[tuple[Tensor, ...]], n: int) -> tuple[Tensor, ...]:
    """Return the rows of all parts, n in all, below each other. Thousands of parts that are kept
    until the last would lie all over the memory, between what every one of them takes to make."""
    whole: tuple[Tensor, ...] = ()
    end = 0
    for part in parts:
        whole = whole or tuple(own.new_empty(n, *own.shape[1:]) for own in part)
        for to, own in zip(whole, part, strict=True):
            to[end : end + len(own)] = own
        end += len(part[0])
    return whole
