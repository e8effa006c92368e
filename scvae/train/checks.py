"""A look at every number between the gradients and the optimiser's step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scvae.core.batch import Batch, Minibatch
from scvae.core.vae import VAE, Terms


class NotFiniteError(ArithmeticError):
    """Something was not finite, and the weights are of no more use, or would have become so.

    Attributes
    ----------
    term
        "reconstruction", "KL", "training ELBO" or "held-out ELBO", if it was not finite.
    entry
        Column of x where the log-probability was not finite, if there is one.
    parameter
        Name of the first parameter whose gradient was not finite, if there is one.
    """

    def __init__(
        self, term: str | None, entry: int | None = None, parameter: str | None = None
    ) -> None:
        super().__init__(term, entry, parameter)
        self.term, self.entry, self.parameter = term, entry, parameter

    def described(self, entry_name: Callable[[int], str]) -> str:
        """Return what was not finite, in words."""
        words = [f"the {self.term}"] if self.term else []
        words += [f"gene {entry_name(self.entry)!r}"] if self.entry is not None else []
        words += [f"the gradient of {self.parameter!r}"] if self.parameter else []
        return ", ".join(words)


def check_finite(vae: VAE, minibatch: Minibatch, terms: Terms, bound: Tensor) -> None:
    """Raise NotFiniteError, with the gradients forgotten, unless the bound and they are finite.

    It asks the device for an answer, which takes time at every step.
    """
    parameter = _wrong_gradient(vae)
    if parameter is None and bound.isfinite():
        return
    vae.zero_grad(set_to_none=True)
    named = (("reconstruction", terms.reconstruction), ("KL", terms.kl))
    term = next((name for name, value in named if not value.isfinite().all()), None)
    raise NotFiniteError(term, _wrong_entry(vae, terms.z, minibatch), parameter)


def _wrong_gradient(vae: VAE) -> str | None:
    named = ((name, p.grad) for name, p in vae.named_parameters())
    wrong = (name for name, grad in named if grad is not None and not grad.isfinite().all())
    return next(wrong, None)


@torch.no_grad()
def _wrong_entry(vae: VAE, z: Tensor, minibatch: Minibatch) -> int | None:
    """Return the first column that is not finite itself, or whose log-probability is not."""
    if not isinstance(minibatch, Batch):
        return None  # whose columns are not of one matrix
    entry_log_prob = getattr(vae.decode(z, minibatch), "entry_log_prob", lambda x: x)
    for values in (minibatch.x, entry_log_prob(minibatch.x)):
        wrong = ~values.isfinite().flatten(0, -2).all(0)
        if wrong.any():
            return int(wrong.nonzero()[0])
    return None
