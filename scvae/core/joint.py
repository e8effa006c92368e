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
from scvae.core.networks import counting
from scvae.core.objectives import elbo
from scvae.core.vae import VAE, Terms, draws_of

ACROSS = 0.3  # nats of another kind that count as one of the own, in bounds of single kinds

Fuse = Callable[[Gaussian, Gaussian, Tensor], Distribution]


class Fused(nn.Module):
    r"""q(z | x_1, ..., x_m): one Gaussian expert a part, fused over the parts that are present.

    Parameters
    ----------
    experts
        Modules that map the `Batch` of one part to a `Gaussian` over z, such as `Encoder`, one a
        part.
    fuse
        `product_of_experts`, `mixture_of_experts` or `mixture_of_products`; a `functools.partial`
        of one sets its arguments.
    prior
        Module that maps a minibatch to the `Gaussian` that stands in where nothing is present and
        is an expert of the products; None makes it N(0, I).
    whole
        Whether experts are given absent cells, too, filled with ones, which their `BatchNorm` does
        not count; else those that are present alone, which a GPU has to be waited for to name.
        None is True on a GPU.

    Examples
    --------
    >>> encoders = [Encoder(MLP(g, 16), Head(16, 2, GAUSSIAN)) for g in (64, 9)]
    >>> parts = Parts((Batch(torch.ones(5, 64)), Batch(torch.ones(5, 9))))
    >>> Fused(encoders)(parts).loc.shape
    torch.Size([5, 2])
    >>> posterior = Fused(encoders, mixture_of_experts)
    >>> said = posterior.said(parts)
    >>> said.batch_shape, posterior.fused(said, parts, parts.present).mean.shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        experts: Iterable[nn.Module],
        fuse: Fuse = product_of_experts,
        prior: nn.Module | None = None,
        whole: bool | None = False,
    ) -> None:
        super().__init__()
        self.experts, self.fuse, self.prior = nn.ModuleList(experts), fuse, prior
        self.whole = whole

    def forward(self, batch: Parts) -> Distribution:
        return self.fused(self.said(batch), batch, batch.present)

    def said(self, batch: Parts) -> Gaussian:
        """Return what every expert says of every cell, batch shape ``(n, m)``; of a cell that is
        absent it may be anything."""
        _demand_one_each("experts", self.experts, batch.parts)
        whole = batch.parts[0].x.device.type != "cpu" if self.whole is None else self.whole
        form = _of_all if whole else _of_present
        each = zip(self.experts, batch.parts, strict=True)
        return side_by_side(
            [expert(part) if part.present is None else form(expert, part) for expert, part in each]
        )

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
    assert part.present is not None
    rows = part.present.nonzero()[:, 0]
    if len(rows) == len(part):
        whole: Gaussian = expert(part)
        return whole
    some = part.filled[rows if len(rows) else rows.new_zeros(1)]  # of none, the width is wanted
    q: Gaussian = expert(some)
    rows = rows if len(rows) else rows.new_zeros(1)
    shape = (len(part), q.loc.shape[-1])
    loc = q.loc.new_zeros(shape).index_copy(0, rows, q.loc)
    scale = q.scale.new_ones(shape).index_copy(0, rows, q.scale.expand_as(q.loc))
    return Gaussian(loc, scale)


def _of_all(expert: nn.Module, part: Batch) -> Gaussian:
    """Return what `_of_present` does, having given the expert all cells."""
    there = part.present
    assert there is not None
    with counting(expert, there):
        q: Gaussian = expert(part.filled)
    loc, scale = torch.where(there[:, None], q.loc, 0.0), torch.where(there[:, None], q.scale, 1.0)
    return Gaussian(loc, scale)


@dataclass(frozen=True)
class Jointly:
    """Distributions over the parts of a minibatch, independent of each other.

    Attributes
    ----------
    of
        Over x of every part, batch shape ``(..., n)``.

    Examples
    --------
    >>> p = Jointly((Poisson(torch.zeros(5, 64)), Bernoulli(torch.zeros(5, 9))))
    >>> p.log_prob(Parts((Batch(torch.ones(5, 64)), Batch(torch.ones(5, 9))))).shape
    torch.Size([5])
    >>> [x.shape for x in p.sample()], [mean[0, 0].item() for mean in p.mean]
    ([torch.Size([5, 64]), torch.Size([5, 9])], [1.0, 0.5])
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
    across: float = ACROSS,
    weights: Sequence[float] = (),
) -> tuple[Terms, Tensor, Tensor]:
    r"""Return the terms of the joint ELBO, its mean, and the mean of what trains all experts.

    .. math::
        L &= ELBO(x; q) + \lambda \sum_m L_m \\
        L_m &= E_{q_m}\Big[\log p(x_m \mid z)
               + \gamma \sum_{k \ne m} \log p(x_k \mid z)\Big] - \beta\,KL(q_m \,\|\, p)

    The posterior of one part, q_m, is fused of its expert alone. A joint bound trains a product, in
    which an expert may lean on the others; by its own bound every expert learns to stand alone, and
    by :math:`\gamma` to say of a cell what the other parts are decoded from: at 0, L_m is a lower
    bound on :math:`\log p(x_m)`, at 1 on :math:`\log p(x)`. All parts are taken at every step: to
    draw some of them instead bounds the joint evidence less tightly (Daunhawer et al., ICLR 2022).

    Parameters
    ----------
    vae
        Of a `Fused` posterior and a `Joint` likelihood.
    alone
        Weight :math:`\lambda` of the bounds of single parts; they count where others are present.
    across
        Weight :math:`\gamma` of the other parts in them.
    weights
        Of the log-likelihood of every part, in all bounds; none are ones.

    Returns
    -------
    tuple
        Terms of the joint ELBO, its mean over cells, and the mean of L.

    References
    ----------
    Wu and Goodman. Multimodal generative models for scalable weakly-supervised learning. 2018.
    Sutter, Daunhawer and Vogt. Generalized multimodal ELBO. ICLR 2021.
    """
    posterior, likelihood = vae.posterior, vae.likelihood
    assert isinstance(posterior, Fused)
    assert isinstance(likelihood, Joint)
    said, present = posterior.said(batch), batch.present
    q = posterior.fused(said, batch, present)
    z, log_share = draws_of(q, 1, generator)
    prior, beside = vae.prior(batch), present & (present.sum(-1, keepdim=True) > 1)
    singles = [posterior.fused(said, batch, own) for own in _one_each(present)]
    drawn = [draws_of(q_m, 1, generator) for q_m in singles]
    # Where a part is absent, or stands alone anyway, its own draw decodes to nothing new.
    each = zip(beside.T, drawn, strict=True)
    draws = [z, *(torch.where(there[:, None], z_m, z[:1]) for there, (z_m, _) in each)]
    log_px, *log_ps = _log_likelihoods(likelihood, batch, draws, across, weights)
    single = torch.zeros((), device=z.device)
    for m, (q_m, (_, share_m)) in enumerate(zip(singles, drawn, strict=True)):
        bound_m = elbo(Terms(draws[m + 1], q_m, prior, log_ps[m], share_m), beta)
        single = single + torch.where(beside[:, m], bound_m, 0.0).mean()
    terms = Terms(z, q, prior, log_px, log_share)
    bound = elbo(terms, beta).mean()
    return terms, bound, bound + alone * single


def _one_each(present: Tensor) -> list[Tensor]:
    """Return `present` ``(n, m)`` of every part alone."""
    eye = torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    return [present & own for own in eye]


def _log_likelihoods(
    likelihood: Joint,
    batch: Parts,
    draws: Sequence[Tensor],
    across: float,
    weights: Sequence[float],
) -> list[Tensor]:
    """Return weighed log-likelihoods of all parts by the first draws of z, and by those of every
    part, of which the other parts count less. Every part is decoded once, by all draws."""
    found: list[Any] = [0.0] * len(draws)
    weights = weights or [1.0] * len(batch.parts)
    for k, (part, weight) in enumerate(zip(batch.parts, weights, strict=True)):
        shares = [1.0, *(1.0 if m == k else across for m in range(len(batch.parts)))]
        taken = [i for i, share in enumerate(shares) if share]
        z = torch.cat([draws[i] for i in taken])
        log_p = weight * part.filled.log_prob(likelihood.likelihoods[k](z, part.filled))
        for i, own in zip(taken, log_p.split([len(draws[i]) for i in taken]), strict=True):
            found[i] = found[i] + shares[i] * own
    return found
