"""The seam: what a kind of measurement must bring, so that everything above need not know it.

A kind is one file with one frozen dataclass of these methods. There is nothing to inherit from and
nowhere to sign up: a network is built of the kinds that its architecture names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Generator, Tensor, nn

from scvae.choices import CountKind
from scvae.core.batch import Batch
from scvae.core.networks import MLP

if TYPE_CHECKING:
    from anndata import AnnData

# An adaptive optimiser moves a parameter by at most the sum of its rates, about 0.8 in a short fit.
# The logarithm of an inverse dispersion has further to go, so it is kept in units of 10.
DISPERSION_UNIT = 10.0


@dataclass(frozen=True)
class Shape:
    """What all kinds of measurement of a network share.

    Attributes
    ----------
    n_latent, n_hidden, n_layers
        Latent dimensions, width and number of hidden layers of encoder and decoder.
    n_batches, n_covariates
        Batches, and width of the covariates, of which the batches are the first.
    encode_covariates
        Whether the encoder sees the covariates, too.
    """

    n_latent: int
    n_hidden: int
    n_layers: int
    n_batches: int
    n_covariates: int
    encode_covariates: bool

    def decoding(self, generator: Generator | None) -> MLP:
        """Return the hidden layers of a decoder."""
        return MLP(
            self.n_latent,
            self.n_hidden,
            self.n_layers,
            n_covariates=self.n_covariates,
            generator=generator,
        )

    def encoding(self, n_in: int, generator: Generator | None, *, sparse: bool = False) -> MLP:
        """Return the hidden layers of an encoder of `n_in` features."""
        return MLP(
            n_in,
            self.n_hidden,
            self.n_layers,
            n_covariates=self.n_covariates if self.encode_covariates else 0,
            sparse=sparse,
            generator=generator,
        )


@dataclass(frozen=True)
class Part:
    """What was read of one kind of measurement.

    Attributes
    ----------
    counts
        Cells x features of the kind, checked; in memory or on disk.
    size
        Observed size of every cell (library size, for RNA), ``(n,)``.
    observed
        True for the features that the data have, ``(g,)``; None for all. The counts of the others
        are zeros that nobody measured.
    layer
        Where the counts were; None is X.
    """

    counts: sparse.csr_matrix
    size: np.ndarray
    observed: np.ndarray | None = None
    layer: str | None = None


class Modality(Protocol):
    """A kind of measurement: its reading, its encoder, its decoder, its denoised amount."""

    @property
    def kind(self) -> str:
        """Name of the kind, which is its key among those of a model."""

    @property
    def n_features(self) -> int:
        """Number of genes, proteins or regions."""

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
        """Return counts of the features `names`, in this order, and the sizes of the cells.

        Parameters
        ----------
        layer
            Where the counts are; None looks where the kind usually is.
        size
            What the size of a cell is: "observed", or a column of adata.obs.
        counts, call, home
            Of the user, for remedies; as for `scvae.data.read.choice.look`.
        """

    def encoder(self, shape: Shape, facts: Any, generator: Generator | None) -> nn.Module:
        """Return q(z | x, s): a minibatch of this kind to a Gaussian, ``(n, d)``.

        Parameters
        ----------
        facts
            What the kind wants to know of the training data, or None for a network that is to be
            filled with weights of a file.
        generator
            Source of the weights.
        """

    def decoder(self, shape: Shape, facts: Any, generator: Generator | None) -> nn.Module:
        """Return p(x | z, s): ``(k, n, d)`` and a minibatch to a distribution over x."""

    def amount(self, decoder: nn.Module, z: Tensor, s: Tensor) -> Tensor:
        """Return the denoised amount of every feature, ``(..., n, g)``.

        Share of the library, foreground of a protein, accessibility of a region: what is alike in
        cells that are, however deeply they were sequenced.

        Parameters
        ----------
        decoder
            As `decoder` made it.
        z
            Latent vectors, ``(..., n, d)``.
        s
            Covariates, ``(n, c)``.
        """

    def profile(self, decoder: nn.Module, z: Tensor, s: Tensor, features: Tensor | None) -> Tensor:
        """Return decoded amounts, on a scale on which cells are compared.

        Parameters
        ----------
        decoder, z, s
            As for `amount`.
        features
            Numbers of those wanted, ``(k,)``; None takes all, ``(..., n, g)``.
        """

    def measured(self, cells: Any) -> Tensor:
        """Return the same of the counts of cells, ``(n, g)``."""

    @property
    def cosine(self) -> float:
        """Power of its length that the profile of a cell is divided by: at 0 cells are compared by
        distance, at 1 by cosine."""


def seen(cells: Batch, values: Tensor) -> Tensor:
    """Return values ``(n, g)`` of the observed entries, 0 at the others, whatever stands there."""
    return values if cells.observed is None else torch.where(cells.observed, values, 0.0)


def of_batch(table: Tensor, batch: Tensor) -> Tensor:
    """Return the rows of a table ``(b, g)`` of cells of batches ``(n,)``; the mean over all for -1,
    a batch that was never seen."""
    return torch.cat([table, table.mean(0, keepdim=True)])[batch]


def in_batch(s: Tensor, batch: int, n_batches: int) -> Tensor:
    """Return covariates ``(n, c)`` as if every cell came from one batch."""
    s = s.clone()
    s[:, :n_batches] = 0.0  # the batch comes first among the covariates
    s[:, batch] = 1.0
    return s


def amount_in_batches(
    modality: Modality,
    decoder: nn.Module,
    z: Tensor,
    s: Tensor,
    batches: Sequence[int],
    n_batches: int,
) -> Tensor:
    r"""Return the mean of the amount over cells as they would be in each of `batches`.

    .. math:: \frac{1}{|B|} \sum_{b \in B} a(z_n, s_n^{(b)})

    Without `batches`, every cell is left in its own.

    Parameters
    ----------
    z, s
        As for `Modality.amount`.
    batches
        Codes of batches; one at a time is decoded.
    n_batches
        Of the model.

    Returns
    -------
    Tensor
        ``(..., n, g)``.
    """
    if not batches:
        return modality.amount(decoder, z, s)
    first, *others = batches
    total = modality.amount(decoder, z, in_batch(s, first, n_batches))
    for batch in others:
        total = total + modality.amount(decoder, z, in_batch(s, batch, n_batches))
    return total / len(batches) if others else total
