"""Several kinds of measurement at once: one posterior over `Parts`, and their joint likelihood.

A kind that a cell was not measured in is left out of both, and what its part holds there, NaN
included, touches neither value nor gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from scvae.core.batch import Batch, Parts
from scvae.core.distributions import Gaussian
from scvae.core.distributions.mixture import sampled
from scvae.core.fusion import product_of_experts, side_by_side
from scvae.core.objectives import elbo
from scvae.core.vae import VAE, Terms, draws_of

Fuse = Callable[[Gaussian, Gaussian, Tensor], Distribution]


class Fused(nn.Module):
    r"""q(z | x_1, ..., x_m): one Gaussian expert a part, fused over the parts that are present.

    Parameters
    ----------
    experts
        Modules that map the `Batch` of one part to a `Gaussian` over z, such as `Encoder`, one a
        part. They are given the cells that are present alone.
    fuse
        `product_of_experts`, `mixture_of_experts` or `mixture_of_products`; a `functools.partial`
        of one sets its arguments.
    prior
        Module that maps a minibatch to the `Gaussian` that stands in where nothing is present and
        is an expert of the products; None makes it N(0, I).

    Examples
    --------
    >>> encoders = [Encoder(MLP(g, 16), Head(16, 2, GAUSSIAN)) for g in (64, 9)]
    >>> parts = Parts((Batch(torch.ones(5, 64)), Batch(torch.ones(5, 9))))
    >>> Fused(encoders)(parts).loc.shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        experts: Iterable[nn.Module],
        fuse: Fuse = product_of_experts,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.experts, self.fuse, self.prior = nn.ModuleList(experts), fuse, prior

    def forward(self, batch: Parts) -> Distribution:
        return self.fused(self.said(batch), batch, batch.present)

    def said(self, batch: Parts) -> Gaussian:
        """Return what every expert says of every cell, batch shape ``(n, m)``; of a cell that is
        absent it may be anything."""
        _demand_one_each("experts", self.experts, batch.parts)
        each = zip(self.experts, batch.parts, strict=True)
        return side_by_side([_of_present(expert, part) for expert, part in each])

    def fused(self, experts: Gaussian, batch: Parts, present: Tensor) -> Distribution:
        """Return the posterior of what `said` returned, by the experts of `present` ``(n, m)``."""
        if self.prior is None:
            standard = torch.zeros_like(experts.loc[..., 0, :])
            prior = Gaussian(standard, torch.ones_like(standard))
        else:
            prior = self.prior(batch)
        return self.fuse(experts, prior, present)


def _of_present(expert: nn.Module, part: Batch) -> Gaussian:
    """Return what an expert says of the cells that are present, N(0, I) of the others.

    A network that normalises over the minibatch is not to see cells that are none."""
    rows = None if part.present is None else part.present.nonzero()[:, 0]
    if rows is None or len(rows) == len(part):
        whole: Gaussian = expert(part)
        return whole
    some = part.filled[rows if len(rows) else rows.new_zeros(1)]  # of none, the width is wanted
    q: Gaussian = expert(some)
    rows = rows if len(rows) else rows.new_zeros(1)
    shape = (len(part), q.loc.shape[-1])
    loc = q.loc.new_zeros(shape).index_copy(0, rows, q.loc)
    scale = q.scale.new_ones(shape).index_copy(0, rows, q.scale.expand_as(q.loc))
    return Gaussian(loc, scale)


@dataclass(frozen=True)
class Jointly:
    """Distributions over the parts of a minibatch, independent of each other.

    Attributes
    ----------
    of
        Over x of every part, batch shape ``(..., n)``.
    """

    of: tuple[Any, ...]

    @property
    def mean(self) -> tuple[Tensor, ...]:
        """The mean of every part, ``(..., n, g_m)``, of absent ones, too."""
        return tuple(p.mean for p in self.of)

    def sample(
        self, sample_shape: Any = (), generator: Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Draw every part, ``sample_shape + (..., n, g_m)``, from `generator` if given."""
        return tuple(sampled(p.sample, sample_shape, generator) for p in self.of)

    def log_prob(self, value: Parts) -> Tensor:
        r"""Return :math:`\sum_{m\,present} \log p(x_m)` of every row, ``(..., n)``, in nats."""
        each = zip(value.parts, self.of, strict=True)
        return torch.stack([part.filled.log_prob(p) for part, p in each]).sum(0)


class Joint(nn.Module):
    r"""p(x_1, ..., x_m | z) = p(x_1 | z) ... p(x_m | z), one likelihood a part.

    Parameters
    ----------
    likelihoods
        Modules that map ``(z, part)`` to a distribution over x of the part, such as `Decoder`.

    Examples
    --------
    >>> decoders = [Decoder(MLP(2, 16), Head(16, g, BERNOULLI)) for g in (64, 9)]
    >>> parts = Parts((Batch(torch.ones(5, 64)), Batch(torch.ones(5, 9))))
    >>> Joint(decoders)(torch.zeros(7, 5, 2), parts).log_prob(parts).shape
    torch.Size([7, 5])
    """

    def __init__(self, likelihoods: Iterable[nn.Module]) -> None:
        super().__init__()
        self.likelihoods = nn.ModuleList(likelihoods)

    def forward(self, z: Tensor, batch: Parts | Batch) -> Jointly:
        """Return p(x | z); a batch that has no parts tells every likelihood the same."""
        parts = batch.parts if isinstance(batch, Parts) else (batch,) * len(self.likelihoods)
        _demand_one_each("likelihoods", self.likelihoods, parts)
        each = zip(self.likelihoods, parts, strict=True)
        return Jointly(tuple(likelihood(z, part.filled) for likelihood, part in each))


def _demand_one_each(what: str, modules: nn.ModuleList, parts: Sequence[Batch]) -> None:
    if len(modules) != len(parts):
        raise ValueError(f"{len(modules)} {what} for {len(parts)} parts, but it takes one each")


def joint_and_single_bounds(
    vae: VAE,
    batch: Parts,
    generator: Generator | None = None,
    beta: float | Tensor = 1.0,
    *,
    alone: float = 1.0,
    weights: Sequence[float] = (),
) -> tuple[Terms, Tensor, Tensor]:
    r"""Return the terms of the joint ELBO, its mean, and the mean of what trains all experts.

    .. math:: L = ELBO(x_1, ..., x_m; q) + \lambda \sum_m ELBO(x_m; q_m)

    The posterior of one part, q_m, is fused of its expert alone. A joint bound trains a product, in
    which an expert may lean on the others; by its own bound, a lower bound on :math:`\log p(x_m)`,
    every expert learns to stand alone. All parts are taken at every step: to draw some of them
    instead bounds the joint evidence less tightly (Daunhawer et al., ICLR 2022).

    Parameters
    ----------
    vae
        Of a `Fused` posterior and a `Joint` likelihood.
    alone
        Weight :math:`\lambda` of the bounds of single parts; they count where others are present.
    weights
        Of the log-likelihood of every part, in all bounds; none are ones.

    Returns
    -------
    tuple
        Terms of the joint ELBO, its mean over cells, and the mean of L.

    References
    ----------
    Wu and Goodman. Multimodal generative models for scalable weakly-supervised learning. 2018.
    """
    posterior, likelihood = vae.posterior, vae.likelihood
    assert isinstance(posterior, Fused)
    assert isinstance(likelihood, Joint)
    said, present = posterior.said(batch), batch.present
    q = posterior.fused(said, batch, present)
    z, log_share = draws_of(q, 1, generator)
    prior, beside = vae.prior(batch), present & (present.sum(-1, keepdim=True) > 1)
    log_px, single = torch.zeros((), device=z.device), torch.zeros((), device=z.device)
    scales = weights or [1.0] * len(batch.parts)
    for m, (part, scale) in enumerate(zip(batch.parts, scales, strict=True)):
        own = torch.zeros_like(present)
        own[:, m] = present[:, m]
        q_m = posterior.fused(said, batch, own)
        z_m, share_m = draws_of(q_m, 1, generator)
        # Where a part is absent, or stands alone anyway, its own draw decodes to nothing new.
        z_m = torch.where(beside[:, m, None], z_m, z[:1])
        log_both = scale * part.filled.log_prob(
            likelihood.likelihoods[m](torch.cat([z, z_m]), part.filled)
        )
        log_px = log_px + log_both[: len(z)]
        bound_m = elbo(Terms(z_m, q_m, prior, log_both[len(z) :], share_m), beta)
        single = single + torch.where(beside[:, m], bound_m, 0.0).mean()
    terms = Terms(z, q, prior, log_px, log_share)
    bound = elbo(terms, beta).mean()
    return terms, bound, bound + alone * single
