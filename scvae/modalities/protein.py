r"""Counts of surface proteins: a background that every cell has, and a foreground above it.

.. math::
    \log b_{nt} &\sim N(c_t[s_n] + u_n, d_t[s_n]^2), \\
    v_{nt} &\sim \mathrm{Bernoulli}(\pi_{nt}) \\
    y_{nt} &\sim NB(b_{nt}\,a_{nt}^{v_{nt}}, \phi_t), \qquad a_{nt} \ge 1

(after Gayoso et al., Nature Methods 2021). The level u(z, s) of its background is one number of a
cell; c is what the counts of a batch, or its empty droplets, say before training. Background b and
choice v are summed out: of b by a rule of Gauss and Hermite, so that an entry is a mixture of few
negative binomials. The bound then has no gap for b and no posterior of it to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from scvae.choices import CountKind
from scvae.core.batch import Batch
from scvae.core.distributions import EntryMixture, Gaussian, NegativeBinomial
from scvae.core.heads import GAUSSIAN, Head
from scvae.core.networks import Linear
from scvae.data.read.choice import look
from scvae.data.read.genes import match_genes
from scvae.modalities.background import levels_in_batches, of_empty_droplets
from scvae.modalities.modality import DISPERSION_UNIT, Part, Shape, seen

if TYPE_CHECKING:
    from anndata import AnnData

KIND = "protein"
NODES = 5  # of the background's normal
LARGEST_LOG = 60.0  # of a mean count: 1e26


@dataclass(frozen=True)
class Protein:
    """Counts of surface proteins.

    Attributes
    ----------
    n_proteins
        Proteins fitted, isotype controls among them.
    """

    n_proteins: int

    @property
    def kind(self) -> str:
        return KIND

    @property
    def n_features(self) -> int:
        return self.n_proteins

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
    ) -> Part:
        """Return the counts of the proteins `names`, and the totals of the cells, at least 1.

        A cell may have no count of any protein: its background was low.
        """
        columns = match_genes(adata, list(names))
        choice = look(adata, layer, columns, summarise=False, counts=counts, call=call, home=home)
        found = choice.require()
        return Part(found.counts, np.maximum(found.totals, 1.0), layer=choice.layer)

    def encoder(
        self, shape: Shape, facts: Statistics | None, generator: Generator | None
    ) -> Encoder:
        """Return q(z | y, s)."""
        encoder = Encoder(self, shape, generator)
        if facts is not None:
            with torch.no_grad():
                encoder.loc.copy_(facts.loc)
                encoder.scale.copy_(facts.scale)
        return encoder

    def decoder(
        self, shape: Shape, facts: Statistics | None, generator: Generator | None
    ) -> Decoder:
        """Return p(y | z, s), whose untrained background and foreground are those of the data."""
        decoder = Decoder(self, shape, generator)
        if facts is not None:
            with torch.no_grad():
                decoder.background_loc.copy_(facts.background_loc)
                decoder.log_background_scale.copy_(facts.background_scale.log())
                decoder.fold.bias.copy_(torch.log(torch.expm1(facts.log_fold.clamp(min=0.1))))
                decoder.odds.bias.copy_(torch.logit(facts.share))
        return decoder

    def amount(
        self, decoder: nn.Module, z: Tensor, s: Tensor, *, background: bool = False
    ) -> Tensor:
        """Return the mean count of foreground, or with `background` of all, ``(..., n, g)``."""
        assert isinstance(decoder, Decoder)
        below, above = decoder.amounts(z, s)
        return below + above if background else above

    def profile(self, decoder: nn.Module, z: Tensor, s: Tensor, features: Tensor | None) -> Tensor:
        """Return log(1 + mean count), as if the background of every cell had the same level.

        The level of the background tells how a cell was stained and washed, not what it is.
        """
        assert isinstance(decoder, Decoder)
        below, above = decoder.amounts(z, s, own_level=False)
        amount = torch.log1p(below + above)
        return amount if features is None else amount[..., features]

    def measured(self, cells: Batch) -> Tensor:
        """Return log(1 + y), ``(n, g)``."""
        return torch.log1p(seen(cells, cells.x))

    @property
    def cosine(self) -> float:
        """None."""
        return 0.0

    def foreground(self, decoder: nn.Module, z: Tensor, cells: Batch) -> Tensor:
        """Return the probability that every count is of the foreground, ``(..., n, g)``."""
        assert isinstance(decoder, Decoder)
        y = seen(cells, cells.x)
        found: Tensor = decoder(z, cells).log_responsibilities(y)[..., NODES:, :].exp().sum(-2)
        return found


@dataclass(frozen=True)
class Background(Protein):
    """Proteins whose amount is the mean count of background and foreground together."""

    def amount(
        self, decoder: nn.Module, z: Tensor, s: Tensor, *, background: bool = True
    ) -> Tensor:
        """Return the mean count, ``(..., n, g)``."""
        return super().amount(decoder, z, s, background=background)


@dataclass(frozen=True)
class Statistics:
    """What the untrained network is told of the training data.

    Attributes
    ----------
    loc, scale
        Mean and standard deviation of log(1 + y), ``(g,)``.
    background_loc, background_scale
        Of the log background of every batch, ``(b, g)``.
    log_fold, share
        Log ratio of foreground and background, and share of cells with a foreground, ``(g,)``.
    """

    loc: Tensor
    scale: Tensor
    background_loc: Tensor
    background_scale: Tensor
    log_fold: Tensor
    share: Tensor

    @classmethod
    def of(
        cls,
        counts: np.ndarray | sparse.csr_matrix,
        codes: np.ndarray,
        n_batches: int,
        empty: np.ndarray | None = None,
    ) -> Statistics:
        """Learn them from counts ``(n, g)``, batch codes ``(n,)``, and counts of empty droplets."""
        dense = counts.toarray() if sparse.issparse(counts) else counts
        y = np.log1p(np.asarray(dense, dtype=np.float64))
        found = levels_in_batches(dense, codes, n_batches)
        loc, scale = found.loc, found.scale
        if empty is not None:
            loc, scale = (np.broadcast_to(v, loc.shape) for v in of_empty_droplets(empty))
        n = np.maximum((~np.isnan(y)).sum(0), 1)
        mean = np.nansum(y, axis=0) / n
        spread = np.sqrt(np.nansum((y - mean) ** 2, axis=0) / n)
        numbers = (
            mean,
            np.where(spread > 1e-3, spread, 1.0),
            *(loc, scale, found.log_fold.mean(0), found.share.mean(0)),
        )
        return cls(*(torch.from_numpy(np.array(v, dtype=np.float32)) for v in numbers))


class Encoder(nn.Module):
    """q(z | y, s), of log(1 + y) that is standardised for every protein; the unseen are average."""

    loc: Tensor
    scale: Tensor

    def __init__(self, protein: Protein, shape: Shape, generator: Generator | None) -> None:
        super().__init__()
        self.sees_covariates = shape.encode_covariates
        self.hidden = shape.encoding(protein.n_proteins, generator)
        self.head = Head(shape.n_hidden, shape.n_latent, GAUSSIAN, generator)
        self.register_buffer("loc", torch.zeros(protein.n_proteins, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(protein.n_proteins, dtype=torch.float32))

    def forward(self, cells: Batch) -> Gaussian:
        y = seen(cells, (torch.log1p(cells.x) - self.loc) / self.scale)
        q: Gaussian = self.head(self.hidden(y, cells.s if self.sees_covariates else None))
        return q


class Decoder(nn.Module):
    """p(y | z, s): background of every batch, fold and odds of the foreground of every cell."""

    background_loc: Tensor
    nodes: Tensor
    log_weights: Tensor

    def __init__(self, protein: Protein, shape: Shape, generator: Generator | None) -> None:
        super().__init__()
        g, self.n_latent, self.n_batches = protein.n_proteins, shape.n_latent, shape.n_batches
        self.hidden = shape.decoding(generator)
        self.fold = Linear(shape.n_hidden, g, generator)
        self.odds = Linear(shape.n_hidden, g, generator)
        # Held at what the data said: if learned, it drifts below itself, where a protein that no
        # cell has is foreground in all.
        of_batches = (shape.n_batches, g)
        self.register_buffer("background_loc", torch.zeros(of_batches, dtype=torch.float32))
        self.log_background_scale = nn.Parameter(torch.full(of_batches, -1.0, dtype=torch.float32))
        self.level = Linear(shape.n_hidden, 1, generator)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)
        self.log_inverse_dispersion = nn.Parameter(torch.full((g,), 0.1, dtype=torch.float32))
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        for name, values in (("nodes", nodes), ("log_weights", np.log(weights / weights.sum()))):
            held = torch.tensor(values, dtype=torch.float32)[:, None]
            self.register_buffer(name, held, persistent=False)

    def _background(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the log background of a batch, ``(n, g)``."""
        loc, log_scale = self.background_loc, self.log_background_scale.clamp(-5.0, 0.0)
        if self.n_batches > 1:
            batch = s[:, : self.n_batches]
            return batch @ loc, (batch @ log_scale).exp()
        return loc, log_scale.exp()

    def _of_cells(self, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return level of the log background ``(..., n, 1)``, log fold and log-odds of foreground,
        ``(..., n, g)``."""
        h = self.hidden(z[..., : self.n_latent], s)
        return self.level(h), softplus(self.fold(h)), self.odds(h)

    def forward(self, z: Tensor, cells: Batch) -> EntryMixture:
        """Return a mixture of `NODES` backgrounds, then as many foregrounds, of every entry."""
        assert cells.s is not None
        loc, scale = self._background(cells.s)
        level, log_fold, odds = self._of_cells(z, cells.s)
        background = (loc + level)[..., None, :] + scale[..., None, :] * self.nodes
        log_means = torch.cat([background, background + log_fold[..., None, :]], dim=-2)
        each = [logsigmoid(sign * odds)[..., None, :] + self.log_weights for sign in (-1, 1)]
        log_phi = DISPERSION_UNIT * self.log_inverse_dispersion
        return EntryMixture(torch.cat(each, dim=-2), NegativeBinomial(log_means, log_phi))

    def amounts(self, z: Tensor, s: Tensor, own_level: bool = True) -> tuple[Tensor, Tensor]:
        """Return the parts of the mean count that cells without and with a foreground make up.

        Parameters
        ----------
        own_level
            False puts every cell's background at the level that its batch has.
        """
        loc, scale = self._background(s)
        level, log_fold, odds = self._of_cells(z, s)
        # The mean of exp(scale * node) under the rule, which is that of the counts decoded.
        spread = torch.logsumexp(self.log_weights + scale[..., None, :] * self.nodes, dim=-2)
        log_mean = loc + spread + (level if own_level else 0.0)
        # No count is that large; unbounded, weights of a damaged file would make an infinity of it.
        below, above = log_mean + logsigmoid(-odds), log_mean + log_fold + logsigmoid(odds)
        return below.clamp(max=LARGEST_LOG).exp(), above.clamp(max=LARGEST_LOG).exp()
