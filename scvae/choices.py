"""The choices that `scvae.fit` and the command line offer, by name; light, so that help is fast."""

from typing import Literal, get_args

Likelihood = Literal["nb", "zinb", "poisson"]
Dispersion = Literal["gene", "gene-batch", "gene-cell"]
ChromatinLikelihood = Literal["poisson", "bernoulli"]
LatentPrior = Literal["normal", "mixture"]
Decoding = Literal["network", "linear"]
CountKind = Literal["whole", "rounded"]
Fusion = Literal["product", "mixture", "mixture-of-products"]
LIKELIHOODS: tuple[Likelihood, ...] = get_args(Likelihood)
DISPERSIONS: tuple[Dispersion, ...] = get_args(Dispersion)
PRIORS: tuple[LatentPrior, ...] = get_args(LatentPrior)
DECODERS: tuple[Decoding, ...] = get_args(Decoding)
COUNTS: tuple[CountKind, ...] = get_args(CountKind)
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
CHROMATIN_LIKELIHOODS: tuple[ChromatinLikelihood, ...] = get_args(ChromatinLikelihood)
MODALITIES = ("rna", "protein", "chromatin")
RESOLUTION = 0.25  # of Leiden in the embedding, where none is asked for; see README
