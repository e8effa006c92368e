"""Priors over the latent space: modules that map a minibatch to p(z), batch shape ``(n,)``."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from scvae.core.batch import Batch, Minibatch
from scvae.core.distributions import Gaussian, Mixture
from scvae.core.networks import evaluating


class StandardNormal(nn.Module):
    """Return p(z) = N(0, I) over `n_latent` dimensions for every cell of a batch.

    Examples
    --------
    >>> StandardNormal(2)(Batch(torch.ones(5, 64))).batch_shape
    torch.Size([5])
    """

    zeros: Tensor
    ones: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        zeros = torch.zeros(n_latent, dtype=torch.float32)
        self.register_buffer("zeros", zeros, persistent=False)
        self.register_buffer("ones", torch.ones_like(zeros), persistent=False)

    def forward(self, batch: Minibatch) -> Gaussian:
        return Gaussian(self.zeros, self.ones).expand((len(batch),))


class MixtureOfGaussians(nn.Module):
    r"""Return :math:`p(z) = \sum_c w_c N(z; \mu_c, \mathrm{diag}\,\sigma_c^2)`, all learned.

    Where data come in groups, N(0, I) pays for the empty space between them; a mixture need not.
    At the start all components are alike but for their means, which are drawn from
    :math:`N(0, 1 - \mathrm{width}^2)`, so that the whole is about N(0, I).

    Parameters
    ----------
    n_latent, n_components
        Latent dimensions, and Gaussians in the mixture.
    width
        Standard deviation of every component at the start, below 1.
    generator
        Source of the initial means.

    Examples
    --------
    >>> prior = MixtureOfGaussians(2, n_components=10)
    >>> prior(Batch(torch.ones(5, 64))).log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    >>> prior.components.batch_shape
    torch.Size([10])
    """

    def __init__(
        self,
        n_latent: int,
        n_components: int,
        *,
        width: float = 0.7,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < width <= 1:
            raise ValueError(f"width={width}, but it must be above 0 and at most 1")
        loc = torch.empty(n_components, n_latent, dtype=torch.float32)
        if not loc.is_meta:  # where the draw would be of nothing, and imports sympy for a second
            loc.normal_(0.0, math.sqrt(1 - width**2), generator=generator)
        self.logits = nn.Parameter(torch.zeros(n_components, dtype=torch.float32))
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full(loc.shape, math.log(width), dtype=loc.dtype))

    @property
    def components(self) -> Gaussian:
        """The Gaussians, batch shape ``(c,)``."""
        return Gaussian(self.loc, self.log_scale.exp())

    def forward(self, batch: Minibatch) -> Mixture:
        return Mixture(self.logits, self.components).expand((len(batch),))


class VampPrior(nn.Module):
    r"""Return :math:`p(z) = \sum_c w_c\,q(z \mid u_c)`: the posterior at learned pseudo-inputs u.

    The best prior for the ELBO is the aggregated posterior; this is its affordable form (Tomczak
    and Welling, "VAE with a VampPrior", AISTATS 2018). Give it the model's own posterior module.

    Parameters
    ----------
    posterior
        Module that maps a `Batch` to a `Gaussian`.
    pseudo_inputs
        Where the u_c start, such as some of the data, ``(c, g)``; or a `Batch` of them, with all
        that the posterior is conditional on, which is not learned.
    s
        Covariates of the pseudo-inputs, ``(c, n_covariates)``, where they are not in a batch.
    lowest
        Below which no pseudo-input is shown to the posterior, such as 0 for counts. None means 0
        where none starts below, and no bound otherwise.

    Examples
    --------
    >>> posterior = Encoder(MLP(64, 16, n_covariates=3), Head(16, 2, GAUSSIAN))
    >>> prior = VampPrior(posterior, torch.ones(10, 64), torch.zeros(10, 3))
    >>> prior(Batch(torch.ones(5, 64))).log_prob(torch.zeros(5, 2)).shape, prior.told[0].shape
    (torch.Size([5]), torch.Size([10, 3]))
    """

    def __init__(
        self,
        posterior: nn.Module,
        pseudo_inputs: Tensor | Batch,
        s: Tensor | None = None,
        *,
        lowest: float | None = None,
    ) -> None:
        super().__init__()
        self.posterior = posterior
        given = pseudo_inputs if isinstance(pseudo_inputs, Batch) else Batch(pseudo_inputs, s)
        x, *told = given.tensors
        self.pseudo_inputs = nn.Parameter(x.detach().clone())
        self.logits = nn.Parameter(x.new_zeros(len(x)))
        self._given = given.map(lambda t: t[:0])  # its fields; what they hold is below
        self._names = ["s" if t is given.s else f"told_{i}" for i, t in enumerate(told)]
        for name, value in zip(self._names, told, strict=True):
            self.register_buffer(name, value)
        starts_below = bool((x < 0).any())
        self.lowest = (-math.inf if starts_below else 0.0) if lowest is None else lowest

    def forward(self, batch: Minibatch) -> Mixture:
        # In evaluation mode: pseudo-inputs must not enter the averages of a normalisation layer.
        with evaluating(self.posterior):
            components = self.posterior(self._shown())
        return Mixture(self.logits, components).expand((len(batch),))

    @property
    def told(self) -> list[Tensor]:
        """What goes with the pseudo-inputs, in the order of the fields of their batch."""
        return [self.get_buffer(name) for name in self._names]

    def _shown(self) -> Batch:
        tensors = iter([self._inside(), *self.told])
        return self._given.map(lambda _: next(tensors))

    def _inside(self) -> Tensor:
        """Return the pseudo-inputs where data can be; those outside keep their gradient, to come
        back by."""
        u = self.pseudo_inputs
        return u + (u.clamp(min=self.lowest) - u).detach()
