r"""RNA counts as a kind of measurement (after Lopez et al., Nature Methods 2018).

.. math::
    \log l_n &\sim N(\ell_\mu[s_n], \ell_\sigma^2[s_n]) \\
    \rho_n &= \mathrm{softmax}(f(z_n, s_n)), \qquad
    x_{ng} \sim ZINB(l_n \rho_{ng}, r_g, \pi_{ng})

Where the library size is a latent, its logarithm is one more coordinate of the latent vector, with
a normal prior per batch. One Gaussian then carries both, and the engine's one KL covers both: the
KL of two log-normals is the KL of the normals of their logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from scvae.choices import CountKind, Dispersion, Likelihood
from scvae.core.distributions import Gaussian, NegativeBinomial, Poisson, Shares, ZeroInflated
from scvae.core.heads import GAUSSIAN, Head
from scvae.core.logarithms import scaled_log1p
from scvae.core.networks import WideLinear
from scvae.data.hold.cells import Cells
from scvae.data.read.choice import look
from scvae.data.read.genes import match_genes
from scvae.data.read.library import library_sizes
from scvae.data.read.multiples import told_multiples
from scvae.data.read.partial import in_their_places, observed_genes
from scvae.data.read.source import is_raw, where_named
from scvae.errors import warn
from scvae.modalities.modality import DISPERSION_UNIT, Part, Shape, of_batch, seen

if TYPE_CHECKING:
    from anndata import AnnData


KIND = "rna"
NO_SHARE = -1e4  # logit of a gene that was not observed: e to it is 0, and differences are numbers
LEAST_SHARE = 1e-12  # of which a root is taken


@dataclass(frozen=True)
class Rna:
    """RNA counts: what fixes the shapes and formulas of their encoder and decoder.

    Attributes
    ----------
    n_genes
        Genes fitted.
    likelihood
        "zinb", "nb" or "poisson".
    dispersion
        Inverse dispersion per "gene", per "gene-batch" or per "gene-cell".
    latent_library
        Whether the library size is inferred, with a prior per batch, instead of observed.
    outside
        Whether the observed library size also counts transcripts of genes that are not fitted;
        the decoder then has one more share, of all of those together.
    linear
        Whether the decoder has no hidden layers: log shares are linear in z, but for their sum.
    """

    n_genes: int
    likelihood: Likelihood = "nb"
    dispersion: Dispersion = "gene"
    latent_library: bool = False
    outside: bool = False
    linear: bool = False

    @property
    def kind(self) -> str:
        return KIND

    @property
    def n_features(self) -> int:
        return self.n_genes

    def read(
        self,
        adata: AnnData,
        names: Sequence[str],
        layer: str | None,
        size: str,
        *,
        counts: CountKind = "whole",
        call: str,
        home: str | None = None,
        partial: bool = False,
    ) -> Part:
        """Return the counts of the genes `names` and the library sizes of the cells.

        With `partial`, genes that are not there are not observed; else they are an error."""
        observed = observed_genes(adata, names, layer) if partial else np.ones(len(names), bool)
        there = [name for name, is_there in zip(names, observed, strict=True) if is_there]
        columns = match_genes(adata, there, layer)
        choice = look(adata, layer, columns, summarise=False, counts=counts, call=call, home=home)
        survey = choice.require()
        place = where_named(choice.layer, adata).replace("adata", "adata[:, model.origin.genes]", 1)
        if is_raw(adata, choice.layer):
            place = "adata.raw[:, model.origin.genes].X"
        if survey.estimates:
            place = f"np.rint({place})"
        then = f"If the fit had no such counts: {call}, layer='counts')"
        if (text := told_multiples(survey, choice.layer, place, then)) is not None:
            warn(text)
        library = library_sizes(adata, survey.totals, size, place)
        if observed.all():
            return Part(survey.held, library, layer=choice.layer)
        return Part(in_their_places(survey.counts, observed), library, observed, choice.layer)

    def encoder(
        self, shape: Shape, facts: Statistics | None, generator: Generator | None
    ) -> Encoder:
        """Return q(z, log l | x, s)."""
        encoder = Encoder(self, shape, generator)
        if facts is not None:
            with torch.no_grad():
                encoder.log_target.copy_(facts.library_loc.mean())
        return encoder

    def decoder(
        self, shape: Shape, facts: Statistics | None, generator: Generator | None
    ) -> Decoder:
        """Return p(x | z, l, s), whose untrained shares are those of the data."""
        decoder = Decoder(self, shape, generator)
        if facts is not None:
            with torch.no_grad():
                decoder.share.bias.copy_(facts.log_share)
        return decoder

    def amount(self, decoder: nn.Module, z: Tensor, s: Tensor) -> Tensor:
        """Return the share of the library of every gene, rho, ``(..., n, g)``."""
        assert isinstance(decoder, Decoder)
        return decoder.expression(z, s)

    def profile(self, decoder: nn.Module, z: Tensor, s: Tensor, features: Tensor | None) -> Tensor:
        """Return square roots of shares; of some genes, of shares in what these have together.

        Of a linear decoder, log shares of some genes in what these have together."""
        assert isinstance(decoder, Decoder)
        if features is None:
            return roots(decoder.expression(z, s))
        if self.linear:
            return decoder.log_composition(z, s, features)
        return roots(decoder.composition(z, s, features))

    def measured(self, cells: Cells) -> Tensor:
        """Return square roots of shares as they were measured, ``(n, g)``."""
        return torch.sqrt(cells.x * torch.exp(-cells.log_library))

    @property
    def cosine(self) -> float:
        """Half; none of a linear decoder, whose coordinates are to be linear."""
        return 0.0 if self.linear else 0.5


def roots(shares: Tensor) -> Tensor:
    """Return square roots of shares, whose slope is finite where a share is zero in float32."""
    return shares.clamp(min=LEAST_SHARE).sqrt()


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
    sequenced is then not the first thing that the latent space has to explain. Genes that were not
    observed are left out, and those that were are scaled to as much together.
    """

    takes_compressed = True  # counts of cells that were observed in all genes
    log_target: Tensor

    def __init__(self, rna: Rna, shape: Shape, generator: Generator | None) -> None:
        super().__init__()
        self.sees_covariates, self.latent_library = shape.encode_covariates, rna.latent_library
        self.counts_outside = rna.outside
        n_out = shape.n_latent + rna.latent_library
        self.hidden = shape.encoding(rna.n_genes, generator, sparse=True)
        self.head = Head(shape.n_hidden, n_out, GAUSSIAN, generator)
        self.register_buffer("log_target", torch.zeros((), dtype=torch.float32))

    def shown(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Return the counts that are shown, ``(n, g)``, and the logarithm of their total."""
        x = seen(cells, cells.x)
        if cells.hidden is None:
            return x, cells.log_library
        x = x.masked_fill(cells.hidden, 0.0)
        if self.counts_outside:
            return x, cells.log_library
        return x, x.sum(1, keepdim=True).clamp(min=1.0).log()

    def forward(self, cells: Cells) -> Gaussian:
        x, log_library = self.shown(cells)
        x = scaled_log1p(x, torch.exp(self.log_target - log_library))
        q: Gaussian = self.head(self.hidden(x, cells.s if self.sees_covariates else None))
        if not self.latent_library:
            return q
        # Learn the difference to what was counted.
        loc = torch.cat([q.loc[:, :-1], q.loc[:, -1:] + cells.log_library], dim=-1)
        return Gaussian(loc, q.scale)


class Beside(nn.Module):
    """No hidden layers: what is decoded is z with the covariates beside it."""

    def forward(self, z: Tensor, s: Tensor) -> Tensor:
        return torch.cat([z, s.expand(*z.shape[:-1], s.shape[-1])], dim=-1)


class Decoder(nn.Module):
    """p(x | z, l, s): shares of the library, dispersion and zero inflation of every gene."""

    def __init__(self, rna: Rna, shape: Shape, generator: Generator | None) -> None:
        super().__init__()
        self.rna, self.n_genes, self.n_latent = rna, rna.n_genes, shape.n_latent
        self.hidden = Beside() if rna.linear else shape.decoding(generator)
        width = shape.n_latent + shape.n_covariates if rna.linear else shape.n_hidden
        self.share = WideLinear(width, rna.n_genes + rna.outside, generator)
        if rna.likelihood == "zinb":
            self.dropout = WideLinear(width, rna.n_genes, generator)
            nn.init.constant_(self.dropout.bias, -2.0)
        if rna.likelihood != "poisson" and rna.dispersion == "gene-cell":
            self.log_inverse_dispersion: nn.Module | nn.Parameter = WideLinear(
                width, rna.n_genes, generator
            )
        elif rna.likelihood != "poisson":
            rows = shape.n_batches if rna.dispersion == "gene-batch" else 1
            self.log_inverse_dispersion = nn.Parameter(
                torch.zeros(rows, rna.n_genes, dtype=torch.float32)
            )

    def logits(self, h: Tensor, cells: Cells | None = None) -> Tensor:
        """Return the logits of the shares of the library, ``(..., n, g)``.

        A library that was counted in the observed genes alone is theirs alone to share."""
        logits: Tensor = self.share(h)
        if cells is None or cells.observed is None or self.rna.outside:
            return logits
        return logits.masked_fill(~cells.observed, NO_SHARE)

    def expression(self, z: Tensor, s: Tensor) -> Tensor:
        """Return the share of the library of every fitted gene, rho, ``(..., n, g)``."""
        h = self.hidden(z[..., : self.n_latent], s)
        return torch.softmax(self.share(h), dim=-1)[..., : self.n_genes]

    def log_composition(self, z: Tensor, s: Tensor, genes: Tensor) -> Tensor:
        """Return log shares of some genes in what these have together, ``(n, k)``.

        Parameters
        ----------
        genes
            Their numbers, ``(k,)``; the one after the last is all genes that are not fitted.
        """
        h = self.hidden(z[..., : self.n_latent], s)
        logits = linear(h, self.share.weight[genes], self.share.bias[genes])
        return torch.log_softmax(logits, dim=-1)

    def composition(self, z: Tensor, s: Tensor, genes: Tensor) -> Tensor:
        """Return the shares of some genes in what these have together, ``(n, k)``."""
        h = self.hidden(z[..., : self.n_latent], s)
        return torch.softmax(linear(h, self.share.weight[genes], self.share.bias[genes]), dim=-1)

    def _log_r(self, h: Tensor, cells: Cells) -> Tensor:
        if isinstance(self.log_inverse_dispersion, nn.Module):
            log_r: Tensor = self.log_inverse_dispersion(h)
        elif self.rna.dispersion == "gene-batch":
            log_r = DISPERSION_UNIT * of_batch(self.log_inverse_dispersion, cells.batch)
        else:
            log_r = DISPERSION_UNIT * self.log_inverse_dispersion[0]
        return log_r

    def forward(self, z: Tensor, cells: Cells) -> NegativeBinomial | Poisson | ZeroInflated:
        h = self.hidden(z[..., : self.n_latent], cells.s)
        log_library = z[..., self.n_latent :] if self.rna.latent_library else cells.log_library
        means = Shares(self.logits(h, cells), log_library, self.n_genes)
        if self.rna.likelihood == "poisson":
            return Poisson(means)
        counts = NegativeBinomial(means, self._log_r(h, cells))
        return ZeroInflated(counts, self.dropout(h)) if self.rna.likelihood == "zinb" else counts
