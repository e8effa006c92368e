"""The choices that `scvae.fit` and the command line offer, by name; light, so that help is fast."""

from typing import Literal, get_args

Likelihood = Literal["nb", "zinb", "poisson"]
Dispersion = Literal["gene", "gene-batch", "gene-cell"]
LatentPrior = Literal["normal", "mixture"]
Decoding = Literal["network", "linear"]
CountKind = Literal["whole", "rounded"]
Fusion = Literal["product", "mixture", "mixture-of-products"]
Kind = Literal["rna", "protein", "chromatin"]
LIKELIHOODS: tuple[Likelihood, ...] = get_args(Likelihood)
DISPERSIONS: tuple[Dispersion, ...] = get_args(Dispersion)
PRIORS: tuple[LatentPrior, ...] = get_args(LatentPrior)
DECODERS: tuple[Decoding, ...] = get_args(Decoding)
COUNTS: tuple[CountKind, ...] = get_args(CountKind)
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
KIND_NAMES: tuple[Kind, ...] = get_args(Kind)
