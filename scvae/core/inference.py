"""Inference without an encoder, or beyond one: variational parameters of every data point's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, constraints

from scvae.core.batch import Batch, Minibatch, Parts
from scvae.core.distributions import FullGaussian, Gaussian
from scvae.core.distributions.mixture import demand_samples
from scvae.core.networks import evaluating
from scvae.core.objectives import elbo
from scvae.core.vae import VAE


class MeanField(nn.Module):
    r"""Posterior :math:`q(z_n) = N(\mu_n, \mathrm{diag}\,\sigma_n^2)` with parameters of every
    cell's own, looked up by ``batch.rows``.

    Trained on minibatches, this is stochastic variational inference: no encoder, so no
    amortisation gap, and nothing to say about new cells (Hoffman, Blei, Wang and Paisley,
    "Stochastic variational inference", JMLR 2013).

    Parameters
    ----------
    start
        Where the parameters start, batch shape ``(n,)``, such as the posterior of an encoder. Of a
        `FullGaussian`, covariances are parameters, too: :math:`N(\mu_n, L_nL_n^\top)`.

    Examples
    --------
    >>> start = FullGaussian(torch.zeros(5, 2), torch.eye(2))
    >>> MeanField(start)(Batch(torch.zeros(3, 8), rows=torch.tensor([4, 0, 4]))).covariance.shape
    torch.Size([3, 2, 2])
    """

    def __init__(self, start: Gaussian | FullGaussian) -> None:
        super().__init__()
        self.loc = nn.Parameter(start.loc.detach().clone())
        below = None
        if isinstance(start, FullGaussian):
            scale = start.scale_tril.diagonal(dim1=-2, dim2=-1)
            below = nn.Parameter(start.scale_tril.detach().tril(-1))
        else:
            scale = start.scale
        self.log_scale = nn.Parameter(scale.detach().log())
        self.below = below

    def forward(self, batch: Batch | Parts) -> Gaussian | FullGaussian:
        rows = slice(None) if batch.rows is None else batch.rows
        loc, scale = self.loc[rows], self.log_scale[rows].exp()
        if self.below is None:
            return Gaussian(loc, scale)
        return FullGaussian(loc, self.below[rows].tril(-1) + torch.diag_embed(scale))


def moments(q: Distribution) -> Gaussian:
    """Return the diagonal Gaussian of the mean and the variance of q.

    Raises TypeError if q is not a distribution over real vectors, or its moments are not known."""
    support: Any = q.support  # torch's own normal wraps the real numbers of its entries
    if support is not constraints.real_vector and (
        getattr(support, "base_constraint", None) is not constraints.real
    ):
        raise TypeError(f"{type(q).__name__} is no distribution over real vectors to be refined")
    try:
        return Gaussian(q.mean, q.variance.sqrt())
    except NotImplementedError:
        raise TypeError(
            f"{type(q).__name__} has no mean and variance in closed form to start from: "
            "give a Gaussian, refine(vae, batch, start=...)"
        ) from None


def refine(
    vae: VAE,
    batch: Minibatch,
    *,
    start: Gaussian | None = None,
    steps: int = 200,
    samples: int = 8,
    learning_rate: float = 0.05,
    generator: Generator | None = None,
) -> Gaussian:
    """Return the Gaussian of every cell that maximises its ELBO, the model held fixed.

    It starts at the encoder's posterior and closes the amortisation gap (Cremer, Li and Duvenaud,
    "Inference suboptimality in variational autoencoders", ICML 2018; Kim et al., "Semi-amortized
    variational autoencoders", ICML 2018). With ``batch.observed``, the observed entries alone
    decide.

    Parameters
    ----------
    start
        Where to start instead, batch shape ``(n,)``.
    steps, samples, learning_rate
        Steps of Adam, draws of z for each, and the first rate, which falls to 0 by cosine. A
        parameter moves by at most about half of their product, ``steps * learning_rate / 2``.

    Examples
    --------
    >>> posterior = Encoder(MLP(8, 16), Head(16, 2, GAUSSIAN))
    >>> likelihood = Decoder(MLP(2, 16), Head(16, 8, BERNOULLI))
    >>> vae = VAE(StandardNormal(2), posterior, likelihood)
    >>> refine(vae, Batch(torch.ones(5, 8)), steps=20).mean.shape
    torch.Size([5, 2])
    """
    demand_samples(samples)
    with evaluating(vae):
        if start is None:
            with torch.no_grad():
                start = moments(vae.encode(batch))
        own = MeanField(start)
        # A short memory of squared gradients: from a far start the first ones are far too large.
        optimizer = torch.optim.Adam(own.parameters(), learning_rate, betas=(0.9, 0.9))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            with torch.enable_grad():
                q = Gaussian(own.loc, own.log_scale.exp())
                z = q.rsample((samples,), generator=generator)
                # The parameters of log q held fixed: the gradient through z alone is unbiased, too,
                # and loses all its noise as q becomes exact (Roeder, Wu and Duvenaud, NIPS 2017).
                held = Gaussian(q.loc.detach(), q.scale.detach())
                bound = vae.terms_at(z, held, batch).log_weight.mean(0).sum()
                _ascend(optimizer, own.parameters(), bound)
    return Gaussian(own.loc.detach(), own.log_scale.detach().exp())


def variational_em(
    vae: VAE,
    batch: Minibatch,
    *,
    rounds: int,
    e_steps: int = 10,
    m_steps: int = 10,
    samples: int = 1,
    learning_rate: float = 0.01,
    generator: Generator | None = None,
) -> list[float]:
    """Alternate between fitting the posterior (E) and prior and likelihood (M) to one batch.

    A half that has nothing to train is left out. Both climb the same ELBO, so that it never has to
    fall (Neal and Hinton, "A view of the EM algorithm that justifies incremental, sparse, and other
    variants", 1998). The posterior may be an encoder or `MeanField`.

    Returns
    -------
    list of float
        Mean ELBO per cell over the steps of the last half of every round, in nats. It is an
        estimate from `samples` draws a step, and falls by their noise where it has stopped rising.

    Examples
    --------
    >>> start = Gaussian(torch.zeros(5, 2), torch.ones(2))
    >>> vae = VAE(StandardNormal(2), MeanField(start), Decoder(MLP(2, 16), Head(16, 8, BERNOULLI)))
    >>> len(variational_em(vae, Batch(torch.ones(5, 8)), rounds=3, e_steps=2, m_steps=2))
    3
    """
    e_parameters = [p for p in vae.posterior.parameters() if p.requires_grad]
    of_posterior = {id(parameter) for parameter in vae.posterior.parameters()}
    m_parameters = [p for p in vae.parameters() if p.requires_grad and id(p) not in of_posterior]
    halves = [
        (torch.optim.Adam(parameters, learning_rate), parameters, steps)
        for parameters, steps in ((e_parameters, e_steps), (m_parameters, m_steps))
        if parameters and steps
    ]
    if not halves:
        raise ValueError(
            f"Nothing is trained: {len(e_parameters)} parameters of the posterior take "
            f"e_steps={e_steps}, {len(m_parameters)} of the rest m_steps={m_steps}"
        )
    history = []
    for _ in range(rounds):
        for optimizer, parameters, steps in halves:
            bounds = []
            for _ in range(steps):
                bound = elbo(vae.terms(batch, samples, generator)).mean()
                _ascend(optimizer, parameters, bound)
                bounds.append(bound.detach())
        history.append(torch.stack(bounds).mean().item())
    return history


def _ascend(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], bound: Tensor) -> None:
    """Step up `bound` in these parameters alone: no other gathers a gradient."""
    parameters = list(parameters)
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(-bound, parameters, allow_unused=True), strict=True
    ):
        parameter.grad = gradient
    optimizer.step()
