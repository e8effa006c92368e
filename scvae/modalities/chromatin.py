r"""Fragments of open chromatin in regions of the genome.

.. math:: f_{np} \sim \mathrm{Poisson}(d_n\,a_{np}), \qquad
          a_n = \mathrm{softmax}(\log w_p + f_p(z_n, s_n))

with observed depth d, a factor w of every region, and shares a of the cell's fragments, its
accessibility (after Martens et al., Nature Methods 2024). By choice, only whether a region has a
fragment is modelled, as the Bernoulli that follows: 1 - exp(-d a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from scvae.choices import ChromatinLikelihood, CountKind
from scvae.core.distributions import Detected, Gaussian, Poisson, Shares
from scvae.core.heads import GAUSSIAN, Head
from scvae.core.logarithms import scaled_log1p
from scvae.core.shrinkage import ShrunkLinear
from scvae.data.hold.cells import Cells
from scvae.data.read.choice import look
from scvae.data.read.genes import match_genes
from scvae.data.read.library import library_sizes
from scvae.errors import warn
from scvae.modalities.modality import Part, Shape, seen

if TYPE_CHECKING:
    from anndata import AnnData

KIND = "chromatin"
PER = 1e4  # fragments of a cell in whose number cells are compared
WEIGHT_SCALE = 0.1  # of weights that most regions have too few fragments to learn
FEWEST = 10  # threes and fours from which reads are told from fragments


@dataclass(frozen=True)
class Chromatin:
    """Fragments in regions.

    Attributes
    ----------
    n_regions
        Regions fitted.
    likelihood
        "poisson" of the fragments, or "bernoulli" of whether there are any.
    """

    n_regions: int
    likelihood: ChromatinLikelihood = "poisson"

    @property
    def kind(self) -> str:
        return KIND

    @property
    def n_features(self) -> int:
        return self.n_regions

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
        """Return the fragments in the regions `names`, and the depths of the cells.

        Reads are turned into fragments, saying so. For a Bernoulli, fragments are ones.
        """
        columns = match_genes(adata, list(names))
        choice = look(adata, layer, columns, summarise=False, counts=counts, call=call, home=home)
        found = choice.require()
        fragments, totals = found.counts, np.asarray(found.totals, dtype=np.float64)
        if are_reads(fragments.data):
            warn(
                "The chromatin counts are reads, two of most fragments: even numbers are more "
                "frequent than odd ones. They are halved and rounded up to fragments. If they are "
                "fragments already, this is a mistake to report."
            )
            fragments = reads_to_fragments(fragments)
            totals = np.asarray(fragments.sum(axis=1), dtype=np.float64).ravel()
        elif self.likelihood == "poisson" and fragments.nnz and fragments.data.max() == 1:
            warn(
                "The chromatin counts are zeros and ones alone, so that how many fragments there "
                "were is lost. Give fragments, or likelihood='bernoulli'."
            )
        sizes = library_sizes(adata, totals, size)
        if self.likelihood == "bernoulli":
            fragments = fragments.copy()
            fragments.data = (fragments.data > 0).astype(fragments.data.dtype)
        return Part(fragments, sizes, layer=choice.layer)

    def encoder(
        self, shape: Shape, facts: Statistics | None, generator: Generator | None
    ) -> Encoder:
        """Return q(z | f, s)."""
        encoder = Encoder(self, shape, generator)
        if facts is not None:
            with torch.no_grad():
                encoder.log_target.copy_(facts.log_depth)
        return encoder

    def decoder(
        self, shape: Shape, facts: Statistics | None, generator: Generator | None
    ) -> Decoder:
        """Return p(f | z, s), whose untrained shares are those of the data."""
        decoder = Decoder(self, shape, generator)
        if facts is not None:
            with torch.no_grad():
                decoder.share.bias.copy_(facts.log_share)
        return decoder

    def amount(self, decoder: nn.Module, z: Tensor, s: Tensor) -> Tensor:
        """Return the accessibility of every region, its share of fragments, ``(..., n, g)``."""
        assert isinstance(decoder, Decoder)
        return decoder.accessibility(z, s)

    def profile(self, decoder: nn.Module, z: Tensor, s: Tensor, features: Tensor | None) -> Tensor:
        """Return fragments per 10,000; of some regions, per 10,000 of theirs.

        No logarithm: where a region has one fragment or none, that of what is measured is far from
        that of what is expected, and the model would seem to explain what it does not.
        """
        assert isinstance(decoder, Decoder)
        if features is None:
            return decoder.accessibility(z, s) * PER
        return decoder.composition(z, s, features) * PER

    def measured(self, cells: Cells) -> Tensor:
        """Return fragments per 10,000 as they were measured, ``(n, g)``."""
        return cells.x * (torch.exp(-cells.log_library) * PER)

    @property
    def cosine(self) -> float:
        """None."""
        return 0.0


def are_reads(values: np.ndarray) -> bool:
    """Return whether counts, zeros left out, are of reads: odd ones rarer than both neighbours.

    Both ends of most fragments lie in the same region. Counts of fragments fall, or rise and fall.
    """
    two, one, three, four = ((values == k).sum() for k in (2, 1, 3, 4))
    return bool(three + four >= FEWEST and one < two > three and three < four)


def reads_to_fragments(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return fragments of reads: half of them, rounded up."""
    fragments = counts.copy()
    fragments.data = np.ceil(fragments.data / 2).astype(counts.data.dtype)
    return fragments


@dataclass(frozen=True)
class Statistics:
    """What the untrained network is told of the training data.

    Attributes
    ----------
    log_share
        Logarithm of every region's share of all fragments, ``(g,)``.
    log_depth
        Mean log depth of the cells.
    """

    log_share: Tensor
    log_depth: Tensor

    @classmethod
    def of(cls, counts: sparse.csr_matrix, depth: np.ndarray) -> Statistics:
        """Learn them from fragments ``(n, g)`` and depths ``(n,)``."""
        totals = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() + 0.5
        share = torch.from_numpy(np.log(totals / totals.sum())).float()
        return cls(share, torch.tensor(float(np.log(depth).mean())))


class Encoder(nn.Module):
    """q(z | f, s), of log(1 + f) scaled to the mean depth; the unseen count as zero."""

    log_target: Tensor

    def __init__(self, chromatin: Chromatin, shape: Shape, generator: Generator | None) -> None:
        super().__init__()
        self.sees_covariates = shape.encode_covariates
        self.hidden = shape.encoding(chromatin.n_regions, generator, sparse=True)
        self.head = Head(shape.n_hidden, shape.n_latent, GAUSSIAN, generator)
        self.register_buffer("log_target", torch.zeros((), dtype=torch.float32))

    def forward(self, cells: Cells) -> Gaussian:
        x = scaled_log1p(seen(cells, cells.x), torch.exp(self.log_target - cells.log_library))
        q: Gaussian = self.head(self.hidden(x, cells.s if self.sees_covariates else None))
        return q


class Decoder(nn.Module):
    """p(f | z, s): shares of the depth."""

    def __init__(self, chromatin: Chromatin, shape: Shape, generator: Generator | None) -> None:
        super().__init__()
        self.n_latent, self.law = shape.n_latent, _LAWS[chromatin.likelihood]
        self.hidden = shape.decoding(generator)
        self.share = ShrunkLinear(shape.n_hidden, chromatin.n_regions, WEIGHT_SCALE, generator)

    def accessibility(self, z: Tensor, s: Tensor) -> Tensor:
        """Return the share of the fragments of every region, ``(..., n, g)``."""
        return torch.softmax(self.share(self.hidden(z[..., : self.n_latent], s)), dim=-1)

    def composition(self, z: Tensor, s: Tensor, regions: Tensor) -> Tensor:
        """Return the shares of some regions in what these have together, ``(n, k)``."""
        h = self.hidden(z[..., : self.n_latent], s)
        weight, bias = self.share.weight[regions], self.share.bias[regions]
        return torch.softmax(linear(h, weight, bias), dim=-1)

    def forward(self, z: Tensor, cells: Cells) -> Poisson | Detected:
        logits = self.share(self.hidden(z[..., : self.n_latent], cells.s))
        return self.law(Shares(logits, cells.log_library))


_LAWS: dict[str, type[Poisson | Detected]] = {"poisson": Poisson, "bernoulli": Detected}
