r"""Fusion of experts: one posterior from several, each of which may be absent for a cell.

m experts are one `Gaussian` of batch shape ``(n, m)``: put them side by side with `side_by_side`.
`present` ``(n, m)`` marks the experts that have something to say about a cell. What an absent
expert holds, NaN included, touches neither the result nor any gradient; a cell of which all experts
are absent gets the prior. Absent inputs must be filled before they enter an expert's network, as
`Encoder` does: a NaN inside a network is one in the gradients of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scvae.core.distributions import Gaussian, Mixture
from scvae.core.shapes import broadcast_shape


def side_by_side(experts: Sequence[Gaussian]) -> Gaussian:
    """Return m Gaussians of batch shape ``(n,)`` as one of batch shape ``(n, m)``.

    Examples
    --------
    >>> side_by_side([Gaussian(torch.zeros(5, 3), torch.ones(3)) for _ in range(2)]).batch_shape
    torch.Size([5, 2])
    """
    shape = broadcast_shape(*(expert.loc.shape for expert in experts))
    loc = torch.stack([expert.loc.expand(shape) for expert in experts], dim=-2)
    return Gaussian(loc, torch.stack([expert.scale.expand(shape) for expert in experts], dim=-2))


def product_of_experts(
    experts: Gaussian,
    prior: Gaussian,
    present: Tensor | None = None,
    *,
    prior_expert: bool = True,
) -> Gaussian:
    r"""Return :math:`q(z) \propto p(z) \prod_{m\,present} q_m(z)`, a Gaussian.

    Precisions add, means are averaged by precision:

    .. math:: \sigma^{-2} = \sigma_0^{-2} + \sum_m \sigma_m^{-2}, \qquad
              \mu = \sigma^2 \left(\mu_0\sigma_0^{-2} + \sum_m \mu_m\sigma_m^{-2}\right)

    Parameters
    ----------
    experts
        Batch shape ``(n, m)``, event ``(d,)``.
    prior
        p(z), batch shape ``(n,)`` or ``()``.
    present
        Boolean, broadcast to ``(n, m)``; None if all experts are.
    prior_expert
        Whether the prior is one of the experts. Without it, it stands in where all are absent.

    References
    ----------
    Hinton. Training products of experts by minimizing contrastive divergence. 2002.
    Wu and Goodman. Multimodal generative models for scalable weakly-supervised learning. 2018.

    Examples
    --------
    >>> experts = Gaussian(torch.randn(5, 2, 3), torch.ones(3))
    >>> product_of_experts(experts, Gaussian(torch.zeros(3), torch.ones(3))).loc.shape
    torch.Size([5, 3])
    """
    there = _presence(experts, present)
    return _product(*_safe(experts, there), there, prior, prior_expert)


def mixture_of_experts(
    experts: Gaussian,
    prior: Gaussian,
    present: Tensor | None = None,
    *,
    logits: Tensor | None = None,
) -> Mixture:
    r"""Return :math:`q(z) = \sum_{m\,present} w_m q_m(z)`.

    Parameters
    ----------
    experts, prior, present
        As in `product_of_experts`.
    logits
        Log-weights up to a constant, broadcast to ``(n, m)``: fixed numbers, or the output of a
        gate network. They are renormalised over the experts present; None weighs these the same.

    References
    ----------
    Shi, Siddharth, Paige and Torr. Variational mixture-of-experts autoencoders for multi-modal
    deep generative models. NeurIPS, 2019.

    Examples
    --------
    >>> experts = Gaussian(torch.tensor([[[0.0], [8.0]]]), torch.ones(1))
    >>> prior = Gaussian(torch.zeros(1), torch.ones(1))
    >>> mixture_of_experts(experts, prior).mean
    tensor([[4.]])
    >>> mixture_of_experts(experts, prior, torch.tensor([[True, False]])).mean
    tensor([[0.]])
    """
    there = _presence(experts, present)
    gates = experts.loc.new_zeros(()) if logits is None else logits
    return _mixture(gates.expand(there.shape), experts, there, prior)


def mixture_of_products(
    experts: Gaussian,
    prior: Gaussian,
    present: Tensor | None = None,
    *,
    prior_expert: bool = True,
) -> Mixture:
    r"""Return the uniform mixture of the products over all non-empty sets of present experts.

    .. math:: q(z) = \frac{1}{2^{|present|} - 1} \sum_{\emptyset \ne S \subseteq present}
              q_S(z), \qquad q_S \propto p(z) \prod_{m \in S} q_m(z)

    Parameters are those of `product_of_experts`; the mixture has 2^m - 1 components.

    References
    ----------
    Sutter, Daunhawer and Vogt. Generalized multimodal ELBO. ICLR, 2021.

    Examples
    --------
    >>> experts = Gaussian(torch.zeros(5, 2, 3), torch.ones(3))
    >>> mixture_of_products(experts, Gaussian(torch.zeros(3), torch.ones(3))).log_weights.shape
    torch.Size([5, 3])
    """
    there = _presence(experts, present)
    sets = subsets(there.shape[-1], there.device)
    complete = (there[..., None, :] | ~sets).all(-1)
    loc, scale = (t[..., None, :, :] for t in _safe(experts, there))
    product = _product(loc, scale, sets, _beside(prior), prior_expert)
    return _mixture(loc.new_zeros(complete.shape), product, complete, prior)


def subsets(m: int, device: torch.device | None = None) -> Tensor:
    """Return the 2^m - 1 non-empty subsets of m things, as boolean rows.

    Examples
    --------
    >>> subsets(2)
    tensor([[ True, False],
            [False,  True],
            [ True,  True]])
    """
    codes = torch.arange(1, 2**m, device=device)
    return (codes[:, None] >> torch.arange(m, device=device)) % 2 == 1


def _presence(experts: Gaussian, present: Tensor | None) -> Tensor:
    if present is None:
        present = torch.ones((), dtype=torch.bool, device=experts.loc.device)
    return present.expand(experts.batch_shape)


def _safe(experts: Gaussian, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and scales of the experts, ``(n, m, d)``, of those that are there alone."""
    # Replaced before anything is computed: 0 * NaN is NaN, forwards and backwards.
    loc = torch.where(there[..., None], experts.loc, 0.0)
    return loc, torch.where(there[..., None], experts.scale, 1.0)


def _product(
    loc: Tensor, scale: Tensor, members: Tensor, prior: Gaussian, prior_expert: bool
) -> Gaussian:
    member = members[..., None]
    always = torch.ones((), dtype=torch.bool, device=loc.device)
    needs_prior = always if prior_expert else ~member.any(-2)
    smallest = torch.where(member, scale, torch.inf).detach().amin(-2)
    with_prior = torch.minimum(smallest, prior.scale.detach())
    # Scales in units of the smallest: its own precision would be infinite in float32 below 1e-19.
    unit = torch.where(needs_prior, with_prior, smallest)
    beside = unit[..., None, :]
    precision = torch.where(member, (beside / torch.where(member, scale, beside)).square(), 0.0)
    of_prior = (unit / torch.where(needs_prior, prior.scale, unit)).square()
    of_prior = torch.where(needs_prior, of_prior, 0.0)
    total = precision.sum(-2) + of_prior
    moment = (precision * loc).sum(-2) + of_prior * prior.loc
    return Gaussian(moment / total, unit * total.rsqrt())


def _mixture(logits: Tensor, components: Gaussian, there: Tensor, prior: Gaussian) -> Mixture:
    """Return the mixture of the components that are there, or the prior where none is."""
    stand_in = _beside(prior)
    loc = torch.where(there[..., None], components.loc, stand_in.loc)
    scale = torch.where(there[..., None], components.scale, stand_in.scale)
    none = ~there.any(-1, keepdim=True)
    logits = torch.where(none, 0.0, torch.where(there, logits, -torch.inf))
    return Mixture(logits, Gaussian(loc, scale))


def _beside(prior: Gaussian) -> Gaussian:
    """Return the prior with an axis for experts."""
    return Gaussian(prior.loc[..., None, :], prior.scale[..., None, :])
