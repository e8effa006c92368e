"""A variational autoencoder engine on torch: tensors in, tensors out, no biology.

A model is three modules that return distributions, and a bound is a function of its terms:

    posterior = Encoder(MLP(64, 128), Head(128, 2, GAUSSIAN))
    likelihood = Decoder(MLP(2, 128), Head(128, 64, BERNOULLI))
    vae = VAE(StandardNormal(2), posterior, likelihood)
    loss = -elbo(vae.terms(Batch(x))).mean()
"""

from scvae.core.batch import Batch, Minibatch, Parts
from scvae.core.bayesian import Bayesian
from scvae.core.distributions import (
    Bernoulli,
    Categorical,
    Detected,
    EntryMixture,
    Factorised,
    FullGaussian,
    Gaussian,
    LogNormal,
    Mixture,
    NegativeBinomial,
    NegativeBinomialShares,
    Poisson,
    Shares,
    ZeroInflated,
    strata,
)
from scvae.core.experts import MixtureOfExperts, load_balance
from scvae.core.flows import Flow
from scvae.core.fusion import (
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    side_by_side,
    subsets,
)
from scvae.core.heads import (
    BERNOULLI,
    CATEGORICAL,
    FULL_GAUSSIAN,
    GAUSSIAN,
    LOG_NORMAL,
    NEGATIVE_BINOMIAL,
    POISSON,
    UNIT_GAUSSIAN,
    Decoder,
    Encoder,
    Family,
    Head,
    zero_inflated,
)
from scvae.core.hierarchy import Hierarchical
from scvae.core.inference import MeanField, refine, variational_em
from scvae.core.joint import Fused, Joint, Jointly
from scvae.core.kl import Estimate, closed_form_kl, kl_divergence, monte_carlo_kl
from scvae.core.labelled import LabelledMixture, WithLabel
from scvae.core.linear import LinearGaussian, factor_analysis, ppca
from scvae.core.networks import MLP
from scvae.core.objectives import (
    elbo,
    importance_weighted_bound,
    log_evidence,
    scale_to_dataset,
    score_function_elbo,
    warmup,
)
from scvae.core.priors import MixtureOfGaussians, StandardNormal, VampPrior
from scvae.core.queries import (
    aggregated_posterior,
    atypicality,
    impute,
    interpolate,
    likelihood_regret,
    reconstruct,
    surprise,
)
from scvae.core.vae import VAE, Terms

__all__ = [
    "BERNOULLI",
    "CATEGORICAL",
    "FULL_GAUSSIAN",
    "GAUSSIAN",
    "LOG_NORMAL",
    "MLP",
    "NEGATIVE_BINOMIAL",
    "POISSON",
    "UNIT_GAUSSIAN",
    "VAE",
    "Batch",
    "Bayesian",
    "Bernoulli",
    "Categorical",
    "Decoder",
    "Detected",
    "Encoder",
    "EntryMixture",
    "Estimate",
    "Factorised",
    "Family",
    "Flow",
    "FullGaussian",
    "Fused",
    "Gaussian",
    "Head",
    "Hierarchical",
    "Joint",
    "Jointly",
    "LabelledMixture",
    "LinearGaussian",
    "LogNormal",
    "MeanField",
    "Minibatch",
    "Mixture",
    "MixtureOfExperts",
    "MixtureOfGaussians",
    "NegativeBinomial",
    "NegativeBinomialShares",
    "Parts",
    "Poisson",
    "Shares",
    "StandardNormal",
    "Terms",
    "VampPrior",
    "WithLabel",
    "ZeroInflated",
    "aggregated_posterior",
    "atypicality",
    "closed_form_kl",
    "elbo",
    "factor_analysis",
    "importance_weighted_bound",
    "impute",
    "interpolate",
    "kl_divergence",
    "likelihood_regret",
    "load_balance",
    "log_evidence",
    "mixture_of_experts",
    "mixture_of_products",
    "monte_carlo_kl",
    "ppca",
    "product_of_experts",
    "reconstruct",
    "refine",
    "scale_to_dataset",
    "score_function_elbo",
    "side_by_side",
    "strata",
    "subsets",
    "surprise",
    "variational_em",
    "warmup",
    "zero_inflated",
]
