r"""The network of a model: what fixes its shapes, its prior, and how it is built.

.. math:: z_n \sim N(0, I) \text{ or a mixture of Gaussians}

The prior is that of all kinds of measurement of a cell. The logarithm of a library size that is
inferred is one more, independent coordinate of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from scvae.choices import Dispersion, LatentPrior, Likelihood
from scvae.core.distributions import Gaussian, Mixture
from scvae.core.priors import MixtureOfGaussians, StandardNormal
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells
from scvae.modalities.modality import Modality, Shape, of_batch
from scvae.modalities.rna import Rna, Statistics

PRIOR_COMPONENTS = 50


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shapes and formulas of the network.

    Attributes
    ----------
    n_genes, n_batches, n_covariates
        Genes fitted, batches, and width of the covariates.
    n_latent, n_hidden, n_layers
        Latent dimensions, width and number of hidden layers of encoder and decoder.
    likelihood
        "zinb", "nb" or "poisson".
    dispersion
        Inverse dispersion per "gene", per "gene-batch" or per "gene-cell".
    latent_library
        Whether the library size is inferred, with a prior per batch, instead of observed.
    outside
        Whether the observed library size also counts transcripts of genes that are not fitted;
        the decoder then has one more share, of all of those together.
    encode_covariates
        Whether the encoder sees the covariates, too.
    prior
        "normal", or a learned "mixture" of Gaussians.
    """

    n_genes: int
    n_batches: int = 1
    n_covariates: int = 0
    n_latent: int = 10
    n_hidden: int = 128
    n_layers: int = 1
    likelihood: Likelihood = "nb"
    dispersion: Dispersion = "gene"
    latent_library: bool = False
    outside: bool = False
    encode_covariates: bool = True
    prior: LatentPrior = "normal"

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
    def rna(self) -> Rna:
        """RNA counts, of this likelihood."""
        return Rna(
            n_genes=self.n_genes,
            likelihood=self.likelihood,
            dispersion=self.dispersion,
            latent_library=self.latent_library,
            outside=self.outside,
        )

    @property
    def modalities(self) -> dict[str, Modality]:
        """Kinds of measurement, by name."""
        return {self.rna.kind: self.rna}


class Prior(nn.Module):
    """p(z, log l | s): a prior of the engine in z, normal per batch in the log library size."""

    library_loc: Tensor
    library_scale: Tensor

    def __init__(self, a: Architecture, generator: Generator | None) -> None:
        super().__init__()
        self.latent_library = a.latent_library
        self.of_z = (
            StandardNormal(a.n_latent)
            if a.prior == "normal"
            else MixtureOfGaussians(a.n_latent, PRIOR_COMPONENTS, generator=generator)
        )
        for name in ("library_loc", "library_scale"):
            self.register_buffer(name, torch.zeros(a.n_batches, dtype=torch.float32))

    def forward(self, cells: Cells) -> Gaussian | Mixture:
        p = self.of_z(cells)
        if not self.latent_library:
            return p
        of_cells = (
            of_batch(t, cells.batch)[:, None] for t in (self.library_loc, self.library_scale)
        )
        loc, scale = of_cells
        if isinstance(p, Gaussian):
            return _beside(p, loc, scale)
        components = p.components
        assert isinstance(components, Gaussian)
        return Mixture(p.logits, _beside(components, loc[:, None], scale[:, None]))


def _beside(p: Gaussian, loc: Tensor, scale: Tensor) -> Gaussian:
    """Return `p` with one more, independent coordinate."""
    extra = p.loc[..., :1]
    return Gaussian(
        torch.cat([p.loc, loc.expand_as(extra)], dim=-1),
        torch.cat([p.scale, scale.expand_as(extra)], dim=-1),
    )


def blank_vae(a: Architecture, generator: Generator | None = None) -> VAE:
    """Return a model that was told nothing of any data."""
    return _built(a, None, generator)


@torch.no_grad()
def build_vae(a: Architecture, statistics: Statistics, generator: Generator) -> VAE:
    """Return the untrained model; `generator` is the one source of its initial weights."""
    vae = _built(a, statistics, generator)
    prior = vae.prior
    assert isinstance(prior, Prior)
    prior.library_loc.copy_(statistics.library_loc)
    prior.library_scale.copy_(statistics.library_scale)
    return vae


def _built(a: Architecture, facts: Statistics | None, generator: Generator | None) -> VAE:
    prior = Prior(a, generator)
    encoder = a.rna.encoder(a.shape, facts, generator)
    return VAE(prior, encoder, a.rna.decoder(a.shape, facts, generator))
