"""Where a model's data came from."""

from __future__ import annotations

from dataclasses import dataclass

from scvae.choices import CountKind
from scvae.data.read.covariates import Covariates


@dataclass(frozen=True)
class Origin:
    """Where a model's data came from, so that other data are read the same way.

    Attributes
    ----------
    genes
        Names of the fitted genes, in the order of the network.
    covariates
        Batch and covariates, and their encoding.
    layer
        Layer that held the counts; None for X.
    library_size
        "observed", "latent", or the column of adata.obs with total counts.
    batch_shares
        Share of the training cells in every batch, ``(b,)``.
    counts
        "whole", or "rounded" where fractions are taken as the nearest whole numbers.
    """

    genes: list[str]
    covariates: Covariates
    layer: str | None
    library_size: str
    batch_shares: list[float]
    counts: CountKind = "whole"
