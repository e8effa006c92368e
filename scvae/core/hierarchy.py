r"""Hierarchies of latent variables.

.. math:: p(z_1, z_2) = p(z_1 \mid z_2)\,p(z_2)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import Distribution

from scvae.core.batch import Batch
from scvae.core.distributions.mixture import sampled
from scvae.core.shapes import broadcast_shape


class Chain(Distribution):
    """The law of z = (z_1, z_2) side by side, z_2 drawn first.

    Parameters
    ----------
    top
        p(z_2), batch shape ``(...)``.
    below
        From z_2 ``(..., d_2)`` and `batch` to p(z_1 | z_2).
    n_below
        d_1, the width of z_1.
    batch
        The minibatch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, top: Distribution, below: Callable[[Tensor, Batch], Any], n_below: int, batch: Batch
    ) -> None:
        self.top, self.below, self.n_below, self.batch = top, below, n_below, batch
        event = Size((n_below + top.event_shape[0],))
        super().__init__(top.batch_shape, event, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.top.has_rsample

    @property
    def support(self) -> Any:
        return self.top.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Chain:
        return Chain(self.top.expand(batch_shape), self.below, self.n_below, self.batch)

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw reparameterised samples ``sample_shape + (..., d)``, from `generator` if given."""
        above = sampled(self.top.rsample, sample_shape, generator)
        p = self._given(above)
        if not p.has_rsample:
            raise TypeError(
                f"p(z_1 | z_2) is a {type(p).__name__}, whose samples have no gradient: "
                "use sample(), and train a posterior of it by score_function_elbo"
            )
        return torch.cat([sampled(p.rsample, (), generator), above], dim=-1)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draw samples ``sample_shape + (..., d)`` without gradients."""
        with torch.no_grad():
            above = sampled(self.top.sample, sample_shape, generator)
            return torch.cat([sampled(self._given(above).sample, (), generator), above], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z_1 | z_2) + log p(z_2) of every row, ``(...)``."""
        value = value.expand(*broadcast_shape(value.shape[:-1], self.batch_shape), value.shape[-1])
        below, above = value[..., : self.n_below], value[..., self.n_below :]
        log_prob: Tensor = self._given(above).log_prob(below) + self.top.log_prob(above)
        return log_prob

    def _given(self, above: Tensor) -> Any:
        """Return p(z_1 | z_2)."""
        p = self.below(above, self.batch)
        if p.event_shape != (self.n_below,):
            raise ValueError(
                f"n_below={self.n_below}, but p(z_1 | z_2) is over {tuple(p.event_shape)}: "
                "give the width of what `below` returns"
            )
        return p


class Hierarchical(nn.Module):
    r"""Return :math:`p(z) = p(z_1 \mid z_2)\,p(z_2)` over z = (z_1, z_2) side by side.

    A prior, or a posterior :math:`q(z_1 \mid z_2, x)\,q(z_2 \mid x)`; the KL between two is
    estimated from the samples of z. Of a likelihood that sees z_1 alone, the network takes
    ``z[..., :n_below]``. A hierarchy may be the top of another.

    Parameters
    ----------
    top
        Module that maps a `Batch` to a distribution over z_2, such as `StandardNormal`.
    below
        Module that maps ``(z_2, batch)``, z_2 ``(..., n, d_2)``, to a distribution over z_1, such
        as a `Decoder` with a Gaussian head.
    n_below
        d_1, the width of z_1.

    References
    ----------
    Sønderby, Raiko, Maaløe, Sønderby and Winther. Ladder variational autoencoders. NIPS, 2016.

    Examples
    --------
    >>> below = Decoder(MLP(2, 16), Head(16, 3, GAUSSIAN))
    >>> prior = Hierarchical(StandardNormal(2), below, n_below=3)
    >>> prior(Batch(torch.zeros(5, 8))).sample((7,)).shape
    torch.Size([7, 5, 5])
    """

    def __init__(self, top: nn.Module, below: nn.Module, n_below: int) -> None:
        super().__init__()
        self.top, self.below, self.n_below = top, below, n_below

    def forward(self, batch: Batch) -> Chain:
        return Chain(self.top(batch), self.below, self.n_below, batch)
