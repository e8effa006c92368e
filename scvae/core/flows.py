r"""Normalising flows: distributions bent by invertible maps, to be posteriors or priors.

.. math:: z = f(u), \quad u \sim q_0, \qquad
          \log q(z) = \log q_0(u) - \log\left|\det \frac{\partial f}{\partial u}\right|
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from scvae.core.batch import Batch
from scvae.core.distributions.mixture import sampled
from scvae.core.networks import Linear
from scvae.core.shapes import broadcast_shape

STEEPEST = 3.0  # logarithm of how far one coupling may stretch, which keeps its inverse exact


class Coupling(nn.Module):
    r"""An affine coupling: half of z stays and says how the other half is stretched and shifted.

    .. math:: z_a' = z_a, \qquad z_b' = z_b\,e^{s(z_a, h)} + t(z_a, h)

    The Jacobian is triangular, its log-determinant :math:`\sum s`. At the start it is the identity.

    Parameters
    ----------
    n_latent, n_hidden, n_context
        Widths of z, of the hidden layer of s and t, and of the context h.
    last
        Whether the last half is moved, or the first.
    generator
        Source of the initial weights.
    """

    def __init__(
        self,
        n_latent: int,
        n_hidden: int,
        n_context: int = 0,
        *,
        last: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.last, self.n_first = last, n_latent // 2
        n_moved = n_latent - self.n_first if last else self.n_first
        n_given = n_latent - n_moved + n_context
        self.hidden = Linear(n_given, n_hidden, generator)
        self.out = Linear(n_hidden + n_given, 2 * n_moved, generator)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z' and log|det|, ``(..., d)`` and ``(...)``."""
        kept, moved = self._halves(z)
        log_scale, shift = self._scale_and_shift(kept, context)
        return self._whole(kept, moved * log_scale.exp() + shift), log_scale.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `forward` maps to z, and log|det| of `forward` there."""
        kept, moved = self._halves(z)
        log_scale, shift = self._scale_and_shift(kept, context)
        return self._whole(kept, (moved - shift) * (-log_scale).exp()), log_scale.sum(-1)

    def _scale_and_shift(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is not None:
            kept = torch.cat([kept, context.expand(*kept.shape[:-1], context.shape[-1])], -1)
        # The input goes past the hidden layer, too: a linear map of it is exact.
        numbers = self.out(torch.cat([torch.tanh(self.hidden(kept)), kept], -1))
        raw, shift = numbers.chunk(2, dim=-1)
        return STEEPEST * torch.tanh(raw / STEEPEST), shift

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, last = z[..., : self.n_first], z[..., self.n_first :]
        return (first, last) if self.last else (last, first)

    def _whole(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved] if self.last else [moved, kept], dim=-1)


class Pushforward(Distribution):
    """The law of what `couplings`, one after the other, make of samples of `base`.

    Parameters
    ----------
    base
        Any distribution over ``(d,)``, batch shape ``(...)``.
    couplings
        Invertible maps, such as `Coupling`.
    context
        What they are told, ``(..., c)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, base: Distribution, couplings: Sequence[Any], context: Tensor | None = None
    ) -> None:
        self.base, self.couplings, self.context = base, couplings, context
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def support(self) -> Any:
        return self.base.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Pushforward:
        return Pushforward(self.base.expand(batch_shape), self.couplings, self.context)

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw reparameterised samples ``sample_shape + (..., d)``, from `generator` if given."""
        return self._pushed(sampled(self.base.rsample, sample_shape, generator))

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw samples ``sample_shape + (..., d)`` without gradients."""
        with torch.no_grad():
            return self._pushed(sampled(self.base.sample, sample_shape, generator))

    def _pushed(self, z: Tensor) -> Tensor:
        for coupling in self.couplings:
            z, _ = coupling(z, self.context)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(z) of every row, ``(...)``."""
        shape = broadcast_shape(value.shape[:-1], self.batch_shape)
        value, total = value.expand(*shape, value.shape[-1]), value.new_zeros(shape)
        for coupling in reversed(self.couplings):
            value, log_det = coupling.inverse(value, self.context)
            total = total + log_det
        log_prob: Tensor = self.base.log_prob(value) - total
        return log_prob


class Flow(nn.Module):
    r"""A posterior or prior of another one, made more expressive by affine couplings.

    It starts as `base`. There is no closed form of its KL, which the samples of z estimate; a
    diagonal Gaussian bent by a flow can hold correlations, bananas and more.

    Parameters
    ----------
    base
        Module from a `Batch` to a distribution over ``(n_latent,)``: an `Encoder`, `MeanField`,
        `StandardNormal`.
    n_latent
        Dimensions of z, at least 2.
    n_layers, n_hidden
        Couplings, which move the halves of z in turns, and the width of their hidden layers.
    context, n_context
        Module from a `Batch` to ``(n, n_context)`` numbers that the couplings are told, such as
        ``Encoder(MLP(n_in, n_context), torch.nn.Identity())``: without it, all rows are bent alike.
    generator
        Source of the initial weights.

    References
    ----------
    Rezende and Mohamed. Variational inference with normalizing flows. ICML, 2015.
    Dinh, Sohl-Dickstein and Bengio. Density estimation using Real NVP. ICLR, 2017.

    Examples
    --------
    >>> flow = Flow(StandardNormal(3), 3)
    >>> q = flow(Batch(torch.zeros(5, 8)))
    >>> q.log_prob(q.rsample((7,))).shape
    torch.Size([7, 5])
    """

    def __init__(
        self,
        base: nn.Module,
        n_latent: int,
        *,
        n_layers: int = 4,
        n_hidden: int = 32,
        context: nn.Module | None = None,
        n_context: int = 0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if n_latent < 2:
            raise ValueError(
                f"n_latent={n_latent}, but a coupling needs 2 entries at least: one moves the other"
            )
        if (context is None) != (n_context == 0):
            raise ValueError(
                f"n_context={n_context}, but context={context}: give both the module and the "
                "width of what it returns, or neither"
            )
        self.base, self.context = base, context
        self.n_latent, self.n_context = n_latent, n_context
        self.couplings = nn.ModuleList(
            Coupling(n_latent, n_hidden, n_context, last=i % 2 == 0, generator=generator)
            for i in range(n_layers)
        )

    def forward(self, batch: Batch) -> Pushforward:
        base, context = self.base(batch), None
        if base.event_shape != (self.n_latent,):
            raise ValueError(
                f"n_latent={self.n_latent}, but the base is over {tuple(base.event_shape)}: "
                "give the flow the width of its base"
            )
        if self.context is not None:
            context = self.context(batch)
            if context.shape[-1] != self.n_context:
                raise ValueError(
                    f"n_context={self.n_context}, but the context has {context.shape[-1]} numbers "
                    "for each row: give the width of what its module returns"
                )
        return Pushforward(base, list(self.couplings), context)
