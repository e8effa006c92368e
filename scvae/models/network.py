r"""The network of a model: what fixes its shapes, its prior, and how it is built.

.. math:: z_n \sim N(0, I) \text{ or a mixture of Gaussians}

The prior is that of all kinds of measurement of a cell. The logarithm of a library size that is
inferred is one more, independent coordinate of it. A model of one kind has its encoder and decoder;
of several, one of each, with the encoders' Gaussians fused over the kinds that a cell has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from scvae.choices import Fusion, LatentPrior
from scvae.core.distributions import Gaussian, Mixture
from scvae.core.fusion import mixture_of_experts, mixture_of_products, product_of_experts
from scvae.core.joint import Fuse, Fused, Joint
from scvae.core.labelled import LabelledMixture, WithLabel
from scvae.core.priors import MixtureOfGaussians, StandardNormal
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.hold.several import CellParts, Datasets
from scvae.modalities.chromatin import Chromatin
from scvae.modalities.kinds import View
from scvae.modalities.modality import Shape, of_batch
from scvae.modalities.protein import Protein
from scvae.modalities.rna import Rna

PRIOR_COMPONENTS = 50
LABEL_TIMES = 50.0  # that a label is taken to have been said: once is hardly heard among counts
LABEL_NATS = 20.0  # that a label costs at most, so that the wrong ones are not learned by heart
FUSE: dict[Fusion, Fuse] = {
    "product": product_of_experts,
    "mixture": mixture_of_experts,
    "mixture-of-products": mixture_of_products,
}


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shapes and formulas of the network.

    Attributes
    ----------
    parts
        Kinds of measurement, by name, in the order of `scvae.modalities.kinds.KINDS`.
    n_batches, n_covariates
        Batches, and width of the covariates.
    n_latent, n_hidden, n_layers
        Latent dimensions, width and number of hidden layers of encoders and decoders.
    encode_covariates
        Whether the encoders see the covariates, too.
    prior
        "normal", or a learned "mixture" of Gaussians.
    fusion
        How what several kinds say of a cell becomes one posterior: "product", "mixture", or
        "mixture-of-products" (see `scvae.core.fusion`).
    n_labels
        Labels that components of the mixture bear, or 0 (see `scvae.core.labelled`).
    """

    parts: dict[str, Rna | Protein | Chromatin]
    n_batches: int = 1
    n_covariates: int = 0
    n_latent: int = 10
    n_hidden: int = 128
    n_layers: int = 1
    encode_covariates: bool = True
    prior: LatentPrior = "normal"
    fusion: Fusion = "product"
    n_labels: int = 0

    @property
    def shape(self) -> Shape:
        """What all kinds of measurement share."""
        return Shape(
            n_latent=self.n_latent,
            n_hidden=self.n_hidden,
            n_layers=self.n_layers,
            n_batches=self.n_batches,
            n_covariates=self.n_covariates,
            encode_covariates=self.encode_covariates,
        )

    @property
    def rna(self) -> Rna | None:
        """RNA, if it is among the kinds."""
        found = self.parts.get("rna")
        assert found is None or isinstance(found, Rna)
        return found

    @property
    def n_genes(self) -> int:
        """Genes fitted."""
        return 0 if self.rna is None else self.rna.n_genes

    @property
    def n_features(self) -> int:
        """Features of all kinds together."""
        return sum(part.n_features for part in self.parts.values())

    @property
    def latent_library(self) -> bool:
        """Whether the library size is inferred, as one more latent."""
        return self.rna is not None and self.rna.latent_library


class Prior(nn.Module):
    """p(z, log l | s): a prior of the engine in z, normal per batch in the log library size."""

    library_loc: Tensor
    library_scale: Tensor

    def __init__(self, a: Architecture, generator: Generator | None) -> None:
        super().__init__()
        self.latent_library = a.latent_library
        self.of_z = _prior_of_z(a, generator)
        for kind in a.parts:
            loc, scale = size_names(kind)
            self.register_buffer(loc, torch.zeros(a.n_batches, dtype=torch.float32))
            self.register_buffer(scale, torch.zeros(a.n_batches, dtype=torch.float32))

    def sizes(self, kind: str) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the log size of the cells of every batch, ``(b,)``."""
        loc, scale = (getattr(self, name) for name in size_names(kind))
        return loc, scale

    def forward(self, cells: Cells | CellParts) -> Gaussian | Mixture | WithLabel:
        p = self.of_z(cells)
        if not self.latent_library:
            return p
        if isinstance(p, WithLabel):
            return WithLabel(self._with_library(p.mixture, cells), p.log_label)
        return self._with_library(p, cells)

    def _with_library(self, p: Gaussian | Mixture, cells: Cells | CellParts) -> Any:
        of_cells = (
            of_batch(t, cells.batch)[:, None] for t in (self.library_loc, self.library_scale)
        )
        loc, scale = of_cells
        if isinstance(p, Gaussian):
            return _beside(p, loc, scale)
        components = p.components
        assert isinstance(components, Gaussian)
        return Mixture(p.logits, _beside(components, loc[:, None], scale[:, None]))


def _prior_of_z(a: Architecture, generator: Generator | None) -> nn.Module:
    if a.prior == "normal":
        return StandardNormal(a.n_latent)
    if not a.n_labels:
        return MixtureOfGaussians(a.n_latent, PRIOR_COMPONENTS, generator=generator)
    n_components = PRIOR_COMPONENTS + a.n_labels  # one a label, and as many without as ever
    heard: dict[str, Any] = {"times": LABEL_TIMES, "most": LABEL_NATS, "generator": generator}
    return LabelledMixture(a.n_latent, n_components, a.n_labels, **heard)


def size_names(kind: str) -> tuple[str, str]:
    """Return the names of the buffers with the sizes of the cells of a kind."""
    start = "library" if kind == "rna" else f"{kind}_size"
    return f"{start}_loc", f"{start}_scale"


def _beside(p: Gaussian, loc: Tensor, scale: Tensor) -> Gaussian:
    """Return `p` with one more, independent coordinate."""
    extra = p.loc[..., :1]
    return Gaussian(
        torch.cat([p.loc, loc.expand_as(extra)], dim=-1),
        torch.cat([p.scale, scale.expand_as(extra)], dim=-1),
    )


@dataclass(frozen=True)
class Facts:
    """What the untrained network is told of the training data.

    Attributes
    ----------
    of_kinds
        What every kind wants to know, by its name.
    size_loc, size_scale
        Mean and deviation of the log size of the cells of every batch, ``(b,)``, by kind.
    """

    of_kinds: Mapping[str, Any]
    size_loc: Mapping[str, Tensor]
    size_scale: Mapping[str, Tensor]


def blank_vae(a: Architecture, generator: Generator | None = None) -> VAE:
    """Return a model that was told nothing of any data."""
    return _built(a, {}, generator)


@torch.no_grad()
def build_vae(a: Architecture, facts: Facts, generator: Generator) -> VAE:
    """Return the untrained model; `generator` is the one source of its initial weights."""
    vae = _built(a, facts.of_kinds, generator)
    prior = vae.prior
    assert isinstance(prior, Prior)
    for kind in a.parts:
        loc, scale = prior.sizes(kind)
        loc.copy_(facts.size_loc[kind])
        scale.copy_(facts.size_scale[kind])
    return vae


def widths_of(a: Architecture) -> list[int]:
    """Return how many features of every kind the decoder knows: with all genes not fitted as one
    more, where it has a share for them."""
    return [View(part, nn.Identity()).width for part in a.parts.values()]


def views_of(vae: VAE, a: Architecture) -> tuple[View, ...]:
    """Return every kind with its decoder, in the order of the architecture."""
    joint = vae.likelihood
    decoders = joint.likelihoods if isinstance(joint, Joint) else [joint]
    return tuple(View(part, d) for part, d in zip(a.parts.values(), decoders, strict=True))


def for_encoder(vae: VAE, dataset: Dataset | Datasets) -> Dataset | Datasets:
    """Return cells whose counts nothing but the encoder is to look at, as it takes them fastest."""
    takes = getattr(vae.posterior, "takes_compressed", False)
    return dataset.for_encoder if takes and isinstance(dataset, Dataset) else dataset


def _built(a: Architecture, facts: Mapping[str, Any], generator: Generator | None) -> VAE:
    prior = Prior(a, generator)
    encoders = [part.encoder(a.shape, facts.get(k), generator) for k, part in a.parts.items()]
    decoders = [part.decoder(a.shape, facts.get(k), generator) for k, part in a.parts.items()]
    if len(encoders) == 1:
        return VAE(prior, encoders[0], decoders[0])
    return VAE(prior, Fused(encoders, FUSE[a.fusion], whole=None), Joint(decoders))
