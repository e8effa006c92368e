r"""The average of the weights along training, which is what a fit evaluates and keeps.

Weights of one step carry the noise of its minibatch. Their average over the last part of training
does not, so that training may go at a higher rate:

.. math:: \bar\theta_t = \Big(\frac ut\Big)^{\eta + 1} \bar\theta_u
          + \Big(1 - \Big(\frac ut\Big)^{\eta + 1}\Big)\,\theta_t

from an update at step u to the next at step t: step i counts in proportion to :math:`i^\eta`, so
that the first steps are forgotten however long training goes on (polynomial-decay averaging:
Shamir and Zhang, "Stochastic gradient descent for non-smooth optimization", ICML 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from scvae.core.vae import VAE

POWER = 4  # eta: about the last fifth of the steps counts
EVERY = 5  # steps between updates: one takes a pass over all weights


def snapshot(vae: VAE) -> dict[str, Tensor]:
    """Return a copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}


@torch.no_grad()
def update_average(average: dict[str, Tensor], vae: VAE, last: int, step: int) -> None:
    """Move `average`, which was updated after step `last`, towards the weights after `step`."""
    weight = 1 - (last / step) ** (POWER + 1)
    for name, now in vae.state_dict().items():
        if now.is_floating_point():
            average[name].lerp_(now, weight)
        else:
            average[name].copy_(now)


@contextmanager
def with_weights(vae: VAE, weights: dict[str, Tensor]) -> Iterator[None]:
    """Give `vae` other weights, in the same memory, and its own back afterwards."""
    own = snapshot(vae)
    vae.load_state_dict(weights)
    try:
        yield
    finally:
        vae.load_state_dict(own)
