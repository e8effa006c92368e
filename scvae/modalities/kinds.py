"""The kinds of measurement that there are, in the order in which a model holds them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from scvae.modalities.chromatin import Chromatin
from scvae.modalities.modality import Modality
from scvae.modalities.protein import Protein
from scvae.modalities.rna import Rna

KINDS: dict[str, type[Rna] | type[Protein] | type[Chromatin]] = {
    "rna": Rna,
    "protein": Protein,
    "chromatin": Chromatin,
}


@dataclass(frozen=True)
class View:
    """A kind of measurement and its decoder: a latent vector as it would be measured.

    Attributes
    ----------
    modality
        The kind.
    decoder
        As the kind made it.
    """

    modality: Modality
    decoder: nn.Module

    @property
    def width(self) -> int:
        """Features that the decoder knows: with all genes not fitted, if it has a share of them."""
        return self.modality.n_features + (isinstance(self.modality, Rna) and self.modality.outside)

    def amount(self, z: Tensor, s: Tensor) -> Tensor:
        """Return the denoised amount of every feature, ``(..., n, g)``."""
        return self.modality.amount(self.decoder, z, s)

    def profile(self, z: Tensor, s: Tensor, features: Tensor | None = None) -> Tensor:
        """Return what the embedding is made of: amounts of some features on their scale,
        ``(..., n, k)``."""
        return self.modality.profile(self.decoder, z, s, features)
