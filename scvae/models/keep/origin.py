"""Where a model's data came from."""

from __future__ import annotations

from dataclasses import dataclass

from scvae.choices import CountKind
from scvae.data.read.covariates import Covariates


@dataclass(frozen=True)
class PartOrigin:
    """Where the counts of one kind of measurement came from.

    Attributes
    ----------
    names
        Names of the fitted features, in the order of the network.
    layer
        Layer that held the counts; None for X.
    library_size
        "observed", "latent", or the column of adata.obs with total counts.
    place
        Modality, kind of features, or slot of obsm that held them, by the user's name; None where
        the AnnData held nothing else.
    measured
        Column of obs, or layer, that marks what was measured, where one was given.
    """

    names: list[str]
    layer: str | None = None
    library_size: str = "observed"
    place: str | None = None
    measured: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where a model's data came from, so that other data are read the same way.

    Attributes
    ----------
    parts
        Where the counts of every kind of measurement came from, by kind.
    covariates
        Batch and covariates, and their encoding.
    batch_shares
        Share of the training cells in every batch, ``(b,)``.
    counts
        "whole", or "rounded" where fractions are taken as the nearest whole numbers.
    """

    parts: dict[str, PartOrigin]
    covariates: Covariates
    batch_shares: list[float]
    counts: CountKind = "whole"

    @property
    def first(self) -> PartOrigin:
        """Where the first kind came from: RNA, if it is among them."""
        return next(iter(self.parts.values()))

    @property
    def genes(self) -> list[str]:
        """Names of the fitted genes, in the order of the network; of a model without RNA, those of
        the features of its first kind."""
        return self.first.names

    @property
    def layer(self) -> str | None:
        """Layer of the first kind that held the counts; None for X."""
        return self.first.layer

    @property
    def library_size(self) -> str:
        """ "observed", "latent", or the column of adata.obs with total counts."""
        return self.first.library_size
