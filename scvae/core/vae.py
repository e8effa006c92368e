r"""The variational autoencoder: three conditionals and the terms of its bound.

.. math::
    \log p(x \mid s) \ge E_{q(z \mid x, s)}[\log p(x \mid z, s)]
        - KL(q(z \mid x, s)\,\|\,p(z \mid s))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from scvae.core.batch import Batch, Minibatch, mapped
from scvae.core.distributions import Mixture, strata
from scvae.core.distributions.mixture import drawn, is_differentiable, sampled
from scvae.core.kl import closed_form_kl
from scvae.core.networks import evaluating


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
    log_share
        Logarithm of the share of every sample in a mean over q, ``(k, n)``; None if all count the
        same. Samples drawn by strata of a mixture share its weights.

    Examples
    --------
    >>> prior, one = Gaussian(torch.zeros(2), torch.ones(2)), torch.ones(5, 2)
    >>> q = Gaussian(one, one)
    >>> terms = Terms(q.rsample((7,)), q, prior, log_px=torch.zeros(7, 5))
    >>> terms.reconstruction[0], terms.kl[0], terms.entropy[0]
    (tensor(0.), tensor(1.), tensor(2.8379))
    >>> terms.log_prior.shape, terms.log_q.shape, terms.log_weight.shape
    (torch.Size([7, 5]), torch.Size([7, 5]), torch.Size([7, 5]))
    >>> terms.sampled_kl.shape, terms.energy.shape, terms.mean(terms.log_q).shape
    (torch.Size([5]), torch.Size([5]), torch.Size([5]))
    """

    z: Tensor
    q: Distribution
    prior: Distribution
    log_px: Tensor
    log_share: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Return the estimate of E_q[values], for ``(k, n)`` values at the samples, ``(n,)``."""
        if self.log_share is None:
            return values.mean(0)
        share = self.log_share.exp()
        return (share * torch.where(share > 0, values, 0.0)).sum(0)

    @property
    def log_prior(self) -> Tensor:
        """log p(z | s) of every sample, ``(k, n)``."""
        return self.prior.log_prob(self.z)

    @property
    def log_q(self) -> Tensor:
        """log q(z | x, s) of every sample, ``(k, n)``."""
        return self.q.log_prob(self.z)

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z | x) of every sample, ``(k, n)``."""
        return self.log_px + self.log_prior - self.log_q

    @property
    def reconstruction(self) -> Tensor:
        """E_q[log p(x | z)] of every cell, ``(n,)``, in nats."""
        return self.mean(self.log_px)

    @property
    def kl(self) -> Tensor:
        """KL(q || prior) of every cell, ``(n,)``, in nats: the closed form, or `sampled_kl`."""
        closed = closed_form_kl(self.q, self.prior)
        return self.sampled_kl if closed is None else closed

    @property
    def sampled_kl(self) -> Tensor:
        """E_q[log q(z | x) - log p(z)] over the samples of every cell, ``(n,)``."""
        return self.mean(self.log_q - self.log_prior)

    @property
    def energy(self) -> Tensor:
        """E_q[log p(x, z)] of every cell, ``(n,)``: with the entropy it makes the ELBO."""
        return self.mean(self.log_px + self.log_prior)

    @property
    def entropy(self) -> Tensor:
        """E_q[-log q(z | x)] of every cell, ``(n,)``, in closed form where q has one."""
        try:
            return self.q.entropy()
        except NotImplementedError:
            return -self.mean(self.log_q)


class VAE(nn.Module):
    """Prior p(z | s), posterior q(z | x, s) and likelihood p(x | z, s), each a module.

    Parameters
    ----------
    prior, posterior
        Modules that map a minibatch to a distribution over z, batch shape ``(n,)``.
    likelihood
        Module that maps ``(z, batch)``, z ``(k, n, d)``, to a distribution over x.

    References
    ----------
    Kingma and Welling. Auto-encoding variational Bayes. ICLR, 2014.

    Examples
    --------
    >>> posterior = Encoder(MLP(64, 128), Head(128, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 128), Head(128, 64, BERNOULLI))
    >>> vae = VAE(StandardNormal(2), posterior, likelihood)
    >>> elbo(vae.terms(Batch(torch.ones(5, 64)))).shape
    torch.Size([5])
    >>> batch, q = Batch(torch.ones(5, 64)), vae.encode(Batch(torch.ones(5, 64)))
    >>> z = q.rsample((7,))
    >>> vae.decode(z, batch).mean.shape, vae.log_likelihood(z, batch).shape
    (torch.Size([7, 5, 64]), torch.Size([7, 5]))
    >>> vae.terms_at(z, q, batch).log_weight.shape
    torch.Size([7, 5])
    >>> z, x = vae.sample(3)
    >>> z.shape, x.shape
    (torch.Size([3, 2]), torch.Size([3, 64]))
    """

    def __init__(self, prior: nn.Module, posterior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.prior, self.posterior, self.likelihood = prior, posterior, likelihood

    def forward(
        self, batch: Minibatch, samples: int = 1, generator: Generator | None = None
    ) -> Terms:
        """Return `terms`, by the call that hooks, `torch.compile` and data parallelism go by."""
        return self.terms(batch, samples, generator)

    def encode(self, batch: Minibatch) -> Any:
        """Return q(z | x, s)."""
        return self.posterior(batch)

    def decode(self, z: Tensor, batch: Minibatch) -> Any:
        """Return p(x | z, s)."""
        return self.likelihood(z, batch)

    def terms(
        self, batch: Minibatch, samples: int = 1, generator: Generator | None = None
    ) -> Terms:
        """Return the terms of the bound at `samples` draws from the posterior, or from every
        component of a posterior that is a mixture (see `strata`).

        Raises TypeError where gradients are wanted and the posterior has none to give."""
        q = self.encode(batch)
        z, log_share = draws_of(q, samples, generator)
        return self.terms_at(z, q, batch, log_share)

    def enumerated(self, batch: Minibatch) -> Terms:
        """Return the terms of the bound at every state of a discrete z, each with its probability.

        What is made of them is exact, and so is its gradient, without the variance of
        `score_function_elbo`: of `elbo` the ELBO, of `importance_weighted_bound` log p(x) itself.
        It decodes every state: d for a `Categorical` z, 2^d for a `Bernoulli` one.

        Raises TypeError where the states of the posterior cannot be counted.

        Examples
        --------
        >>> posterior = Encoder(MLP(8, 16), Head(16, 3, CATEGORICAL))
        >>> likelihood = Decoder(MLP(3, 16), Head(16, 8, BERNOULLI))
        >>> vae = VAE(lambda batch: Categorical(torch.zeros(3)), posterior, likelihood)
        >>> terms = vae.enumerated(Batch(torch.ones(5, 8)))
        >>> terms.z.shape, importance_weighted_bound(terms).shape
        (torch.Size([3, 5, 3]), torch.Size([5]))
        """
        q = self.encode(batch)
        if not getattr(q, "has_enumerate_support", False):
            raise TypeError(f"The states of a {type(q).__name__} cannot be counted: use vae.terms")
        z = q.enumerate_support()
        return self.terms_at(z, q, batch, q.log_prob(z))

    def terms_at(
        self, z: Tensor, q: Distribution, batch: Minibatch, log_share: Tensor | None = None
    ) -> Terms:
        """Return the terms at given samples z ``(k, n, d)`` of any posterior q."""
        return Terms(z, q, self.prior(batch), self.log_likelihood(z, batch), log_share)

    def log_likelihood(self, z: Tensor, batch: Minibatch) -> Tensor:
        """Return log p(x | z, s) at z ``(k, n, d)``, of what was observed alone, ``(k, n)``."""
        return batch.log_prob(self.decode(z, batch))

    def sample(
        self,
        n: int | None = None,
        s: Tensor | None = None,
        generator: Generator | None = None,
        *,
        batch: Minibatch | None = None,
        source: Any = None,
        means: bool = False,
    ) -> tuple[Tensor, Any]:
        """Draw z from the prior and x from p(x | z, s): ``(n, d)`` and ``(n, g)``, in evaluation
        mode, as all questions to a model are answered.

        Parameters
        ----------
        n
            How many; None draws one for every row of `batch`.
        s
            Covariates, ``(n, c)``, or ``(1, c)`` for all.
        batch
            All that prior and likelihood are conditional on, in place of `s`: n rows or one for
            all, whose x is not looked at.
        source
            Distribution to draw z from in place of the prior, batch shape ``()`` or ``(n,)``, such
            as `aggregated_posterior`.
        means
            Whether to return E[x | z] in place of a draw of x; z is the same for one seed.
        """
        conditions = self._conditions(n, s, batch)
        with torch.no_grad(), evaluating(self):
            p = self.prior(conditions) if source is None else source
            rows = () if p.batch_shape else (len(conditions),)
            z = sampled(p.sample, (1, *rows), generator)
            p_x = self.decode(z, conditions)
            x: Any = p_x.mean if means else sampled(p_x.sample, (), generator)
        return z[0], mapped(x, lambda of_z: of_z[0])

    def _conditions(self, n: int | None, s: Tensor | None, batch: Minibatch | None) -> Minibatch:
        """Return n rows of what samples are conditional on."""
        if batch is None:
            if n is None:
                raise ValueError("How many samples? Give n, or batch=, one sample for each row")
            like = next(chain(self.parameters(), self.buffers()), torch.zeros(()))
            batch = Batch(like.new_zeros(n if s is None else len(s), 0), s)
        elif s is not None:
            raise ValueError("Both s and batch= were given, but the covariates are batch.s")
        if n is None or len(batch) == n:
            return batch
        if len(batch) != 1:
            raise ValueError(f"n={n} samples for {len(batch)} rows: give {n} rows, or 1 for all")
        return batch[torch.zeros(n, dtype=torch.int64, device=batch.device)]


def draws_of(
    q: Any, samples: int, generator: Generator | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return draws of z from a posterior, ``(k, n, d)``, and the logarithms of their shares in a
    mean over it, ``(k, n)``, or None where all count the same; see `VAE.terms`."""
    if torch.is_grad_enabled() and not is_differentiable(q):
        raise TypeError(
            f"The posterior is a {type(q).__name__}, whose samples have no gradient. "
            "Train it by score_function_elbo(vae, batch); to evaluate, use torch.no_grad()."
        )
    if not isinstance(q, Mixture):
        # The very samples: a flow keeps what each of them was made of, for its log-density.
        return drawn(q, samples, generator), None
    z, log_weights = strata(q, samples, generator)
    log_share = (log_weights - math.log(samples)).expand(z.shape[:-1])
    return z.flatten(0, 1), log_share.flatten(0, 1)
