r"""The variational autoencoder: three conditionals and the terms of its bound.

.. math::
    \log p(x \mid s) \ge E_{q(z \mid x, s)}[\log p(x \mid z, s)]
        - KL(q(z \mid x, s)\,\|\,p(z \mid s))
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from scvae.core.distributions import Gaussian
from scvae.core.kl import kl_divergence


@dataclass(frozen=True)
class Batch:
    """A minibatch of n cells: observed `x` ``(n, g)`` and covariates `s` ``(n, c)``."""

    x: Tensor
    s: Tensor


@dataclass(frozen=True)
class Terms:
    """The conditionals of one minibatch at k latent samples; what every bound is made of.

    Attributes
    ----------
    z
        Samples from `q`, ``(k, n, d)``.
    q, prior
        Posterior and prior of z, batch shape ``(n,)``.
    log_px
        log p(x | z, s) of every sample, ``(k, n)``, in nats.
    """

    z: Tensor
    q: Gaussian
    prior: Gaussian
    log_px: Tensor

    @property
    def kl(self) -> Tensor:
        """Closed-form KL(q || prior) of every cell, ``(n,)``, in nats."""
        return kl_divergence(self.q, self.prior)

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z | x) of every sample, ``(k, n)``."""
        return self.log_px + self.prior.log_prob(self.z) - self.q.log_prob(self.z)


class VAE(nn.Module):
    """Prior p(z | s), posterior q(z | x, s) and likelihood p(x | z, s), each a module.

    Parameters
    ----------
    prior, posterior
        Modules that map a `Batch` to a `Gaussian` over z.
    likelihood
        Module that maps ``(z, batch)`` to a distribution over x.
    """

    def __init__(self, prior: nn.Module, posterior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.prior, self.posterior, self.likelihood = prior, posterior, likelihood

    def encode(self, batch: Batch) -> Gaussian:
        """Return q(z | x, s)."""
        q: Gaussian = self.posterior(batch)
        return q

    def decode(self, z: Tensor, batch: Batch) -> Distribution:
        """Return p(x | z, s)."""
        p: Distribution = self.likelihood(z, batch)
        return p

    def terms(self, batch: Batch, samples: int = 1, generator: Generator | None = None) -> Terms:
        """Return the terms of the bound at `samples` draws from the posterior."""
        q = self.encode(batch)
        z = q.rsample((samples,), generator=generator)
        log_px = self.decode(z, batch).log_prob(batch.x)
        return Terms(z, q, self.prior(batch), log_px)
