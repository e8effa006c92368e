"""Distributions whose last axis is the event: `log_prob` gives one number per row (per cell).

All are `torch.distributions.Distribution`s, so samples, moments and torch's KL registry work as
users of torch expect. Samplers take a `generator`; parameters are checked on request alone.
"""

from scvae.core.distributions.counts import (
    Detected,
    NegativeBinomial,
    NegativeBinomialShares,
    Poisson,
    Shares,
    ZeroInflated,
)
from scvae.core.distributions.discrete import Bernoulli, Categorical
from scvae.core.distributions.factorised import Factorised
from scvae.core.distributions.gaussian import FullGaussian, Gaussian, LogNormal
from scvae.core.distributions.mixture import EntryMixture, Mixture, strata

__all__ = [
    "Bernoulli",
    "Categorical",
    "Detected",
    "EntryMixture",
    "Factorised",
    "FullGaussian",
    "Gaussian",
    "LogNormal",
    "Mixture",
    "NegativeBinomial",
    "NegativeBinomialShares",
    "Poisson",
    "Shares",
    "ZeroInflated",
    "strata",
]
