r"""The generative model of RNA counts (after Lopez et al., Nature Methods 2018), as three modules.

.. math::
    z_n &\sim N(0, I) \text{ or a mixture of Gaussians}, \qquad
    \log l_n \sim N(\ell_\mu[s_n], \ell_\sigma^2[s_n]) \\
    \rho_n &= \mathrm{softmax}(f(z_n, s_n)), \qquad
    x_{ng} \sim ZINB(l_n \rho_{ng}, r_g, \pi_{ng})

Where the library size is a latent, its logarithm is one more coordinate of the latent vector, with
a normal prior per batch. One Gaussian then carries both, and the engine's one KL covers both: the
KL of two log-normals is the KL of the normals of their logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from scvae.choices import Dispersion, LatentPrior, Likelihood
from scvae.core.distributions import (
    Gaussian,
    Mixture,
    NegativeBinomial,
    Poisson,
    Shares,
    ZeroInflated,
)
from scvae.core.heads import GAUSSIAN, Head
from scvae.core.networks import MLP, WideLinear
from scvae.core.priors import MixtureOfGaussians, StandardNormal
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells

PRIOR_COMPONENTS = 50
# An adaptive optimiser moves a parameter by at most the sum of its rates, about 0.8 in a short fit.
# log r has further to go, so it is kept in units of 10.
DISPERSION_UNIT = 10.0


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


@dataclass(frozen=True)
class Statistics:
    """What the untrained network is told of the training data, so that it starts near them.

    Attributes
    ----------
    log_share
        Logarithm of every gene's share of all counts, ``(g,)`` (``(g + 1,)`` with `outside`).
    library_loc, library_scale
        Mean and standard deviation of the log library size of every batch, ``(b,)``.
    """

    log_share: Tensor
    library_loc: Tensor
    library_scale: Tensor


class Encoder(nn.Module):
    """q(z, log l | x, s), a diagonal Gaussian.

    The input is log(1 + x) of counts scaled to the average library size: how deeply a cell was
    sequenced is then not the first thing that the latent space has to explain.
    """

    log_target: Tensor

    def __init__(self, a: Architecture, generator: Generator | None) -> None:
        super().__init__()
        self.sees_covariates, self.latent_library = a.encode_covariates, a.latent_library
        n_covariates = a.n_covariates if a.encode_covariates else 0
        n_out = a.n_latent + a.latent_library
        self.hidden = MLP(
            a.n_genes,
            a.n_hidden,
            a.n_layers,
            n_covariates=n_covariates,
            sparse=True,
            generator=generator,
        )
        self.head = Head(a.n_hidden, n_out, GAUSSIAN, generator)
        self.register_buffer("log_target", torch.zeros((), dtype=torch.float32))

    def forward(self, cells: Cells) -> Gaussian:
        x = torch.log1p(cells.x * torch.exp(self.log_target - cells.log_library))
        q: Gaussian = self.head(self.hidden(x, cells.s if self.sees_covariates else None))
        if not self.latent_library:
            return q
        # Learn the difference to what was counted.
        loc = torch.cat([q.loc[:, :-1], q.loc[:, -1:] + cells.log_library], dim=-1)
        return Gaussian(loc, q.scale)


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
        loc, scale = self.library_loc[cells.batch, None], self.library_scale[cells.batch, None]
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


class Decoder(nn.Module):
    """p(x | z, l, s): shares of the library, dispersion and zero inflation of every gene."""

    def __init__(self, a: Architecture, generator: Generator | None) -> None:
        super().__init__()
        self.a = a
        self.hidden = MLP(
            a.n_latent, a.n_hidden, a.n_layers, n_covariates=a.n_covariates, generator=generator
        )
        self.share = WideLinear(a.n_hidden, a.n_genes + a.outside, generator)
        if a.likelihood == "zinb":
            self.dropout = WideLinear(a.n_hidden, a.n_genes, generator)
            nn.init.constant_(self.dropout.bias, -2.0)
        if a.likelihood != "poisson" and a.dispersion == "gene-cell":
            self.log_inverse_dispersion: nn.Module | nn.Parameter = WideLinear(
                a.n_hidden, a.n_genes, generator
            )
        elif a.likelihood != "poisson":
            rows = a.n_batches if a.dispersion == "gene-batch" else 1
            self.log_inverse_dispersion = nn.Parameter(
                torch.zeros(rows, a.n_genes, dtype=torch.float32)
            )

    def log_shares(self, h: Tensor) -> Tensor:
        """Return the log share of the library of every fitted gene, ``(..., n, g)``."""
        return torch.log_softmax(self.share(h), dim=-1)[..., : self.a.n_genes]

    def expression(self, z: Tensor, s: Tensor, batches: Sequence[int] = ()) -> Tensor:
        """Return the share of the library of every fitted gene, rho, ``(n, g)``.

        With `batches`, the mean over cells as they would be in each of these; without, as in `s`.
        """
        if not batches:
            h = self.hidden(z[..., : self.a.n_latent], s)
            return torch.softmax(self.share(h), dim=-1)[..., : self.a.n_genes]
        total = torch.zeros((), device=z.device)
        for batch in batches:
            total = total + self.expression(z, self._in_batch(s, batch))
        return total / len(batches)

    def composition(self, z: Tensor, s: Tensor, genes: Tensor) -> Tensor:
        """Return the shares of some genes in what these have together, ``(n, k)``.

        Parameters
        ----------
        genes
            Their numbers, ``(k,)``; the one after the last is all genes that are not fitted.
        """
        h = self.hidden(z[..., : self.a.n_latent], s)
        return torch.softmax(linear(h, self.share.weight[genes], self.share.bias[genes]), dim=-1)

    def _in_batch(self, s: Tensor, batch: int) -> Tensor:
        s = s.clone()
        s[:, : self.a.n_batches] = 0.0  # the batch comes first among the covariates
        s[:, batch] = 1.0
        return s

    def _log_r(self, h: Tensor, cells: Cells) -> Tensor:
        if isinstance(self.log_inverse_dispersion, nn.Module):
            log_r: Tensor = self.log_inverse_dispersion(h)
        elif self.a.dispersion == "gene-batch":
            log_r = DISPERSION_UNIT * self.log_inverse_dispersion[cells.batch]
        else:
            log_r = DISPERSION_UNIT * self.log_inverse_dispersion[0]
        return log_r

    def forward(self, z: Tensor, cells: Cells) -> NegativeBinomial | Poisson | ZeroInflated:
        h = self.hidden(z[..., : self.a.n_latent], cells.s)
        log_library = z[..., self.a.n_latent :] if self.a.latent_library else cells.log_library
        if self.a.likelihood == "poisson":
            return Poisson(self.log_shares(h) + log_library)
        means = Shares(self.share(h), log_library, self.a.n_genes)
        counts = NegativeBinomial(means, self._log_r(h, cells))
        return ZeroInflated(counts, self.dropout(h)) if self.a.likelihood == "zinb" else counts


def blank_vae(a: Architecture, generator: Generator | None = None) -> VAE:
    """Return a model that was told nothing of any data."""
    return VAE(Prior(a, generator), Encoder(a, generator), Decoder(a, generator))


@torch.no_grad()
def build_vae(a: Architecture, statistics: Statistics, generator: Generator) -> VAE:
    """Return the untrained model; `generator` is the one source of its initial weights."""
    prior, posterior, likelihood = Prior(a, generator), Encoder(a, generator), Decoder(a, generator)
    prior.library_loc.copy_(statistics.library_loc)
    prior.library_scale.copy_(statistics.library_scale)
    posterior.log_target.copy_(statistics.library_loc.mean())
    likelihood.share.bias.copy_(statistics.log_share)
    return VAE(prior, posterior, likelihood)
