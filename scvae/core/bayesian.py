r"""Variational Bayes: a posterior over parameters that all rows share.

.. math::
    \log p(x_1, \dots, x_N) \ge E_{q(\theta)}\left[\sum_n \log p(x_n \mid \theta)\right]
        - KL(q(\theta)\,\|\,p(\theta))

Seen from theta, the whole data set is one row, so that its terms are those of any latent.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from scvae.core.batch import Batch
from scvae.core.objectives import scale_to_dataset
from scvae.core.vae import VAE, Terms


class Bayesian(nn.Module):
    r"""A module whose parameters :math:`\theta` are a global latent variable.

    It keeps a copy of the module, whose parameters are drawn from :math:`q(\theta)` from now on;
    those without ``requires_grad`` stay as they are. ``elbo(bayes.terms(...))`` bounds the
    logarithm of the evidence of the whole data set.

    Parameters
    ----------
    module
        What has p trainable parameters, such as a linear layer or a `Decoder`.
    prior, posterior
        Modules that map a `Batch` of one row to a distribution over all p parameters, one after
        the other as ``torch.nn.utils.parameters_to_vector`` has them, batch shape ``(1,)``:
        such as `StandardNormal` and `MeanField`, which with trainable parameters as a prior is
        empirical Bayes.

    Raises
    ------
    ValueError
        If the module has no trainable parameters, or prior or posterior are over others than p.

    References
    ----------
    Hoffman, Blei, Wang and Paisley. Stochastic variational inference. JMLR, 2013.
    Blundell, Cornebise, Kavukcuoglu and Wierstra. Weight uncertainty in neural networks. ICML,
    2015.

    Examples
    --------
    Linear regression with noise of variance 1, by minibatches of 10 of 100 rows:

    >>> start = Gaussian(torch.zeros(1, 3), torch.ones(3))
    >>> bayes = Bayesian(torch.nn.Linear(2, 1), StandardNormal(3), MeanField(start))
    >>> x, y = torch.randn(10, 2), torch.randn(10, 1)
    >>> one = torch.ones(1)
    >>> terms = bayes.terms(lambda line: Gaussian(line(x), one).log_prob(y), n_cells=100)
    >>> elbo(terms).shape
    torch.Size([1])
    >>> bayes.at(bayes.q.mean)(x).shape
    torch.Size([10, 1])
    """

    def __init__(self, module: nn.Module, prior: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior, self.posterior = prior, posterior
        self.module = deepcopy(module)
        self._shapes = {
            name: parameter.shape
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }
        if not self._shapes:
            raise ValueError(
                f"{type(module).__name__} has no parameters that require a gradient: "
                "there is nothing to have a posterior of"
            )
        _hold_as_buffers(self.module)
        self._check_width("prior", prior)
        self._check_width("posterior", posterior)

    @property
    def _sizes(self) -> list[int]:
        """How many numbers every parameter holds; p in all."""
        return [shape.numel() for shape in self._shapes.values()]

    def _check_width(self, name: str, module: nn.Module) -> None:
        with torch.no_grad():
            found = module(self._one_row()).event_shape
        if found != (sum(self._sizes),):
            raise ValueError(
                f"The {name} is over {tuple(found)}, but the module has {sum(self._sizes)} "
                "parameters: give a distribution over as many"
            )

    @property
    def q(self) -> Any:
        """q(theta), batch shape ``(1,)``."""
        return self.posterior(self._one_row())

    def at(self, theta: Tensor) -> Callable[..., Any]:
        """Return the module as a function, with all p parameters those of `theta` ``(..., p)``.

        A `VAE` takes it for a likelihood: ``VAE(prior, encoder, bayes.at(bayes.q.mean))``; and
        ``torch.vmap(lambda theta: bayes.at(theta)(x))(draws)`` are predictions by many draws.
        """
        sizes = self._sizes
        if theta.numel() != sum(sizes):
            raise ValueError(
                f"theta of shape {tuple(theta.shape)} holds {theta.numel()} numbers, but the "
                f"module has {sum(sizes)} parameters: give one draw, such as bayes.q.sample()"
            )
        parts = theta.reshape(-1).split(sizes)
        values = {
            name: part.view(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

        def with_values(*arguments: Any) -> Any:
            return functional_call(self.module, values, arguments)

        return with_values

    def terms(
        self,
        bound: Callable[[Callable[..., Any]], Tensor],
        n_cells: int,
        samples: int = 1,
        generator: Generator | None = None,
    ) -> Terms:
        r"""Return the terms of the bound of the whole data set, batch shape ``(1,)``.

        `log_px` is :math:`\frac NB \sum_n \log p(x_n \mid \theta)` of the minibatch, so that the
        KL of theta is counted once for all N rows.

        Parameters
        ----------
        bound
            From the module with parameters drawn, a function, to log p(x_n | theta) of every row
            of a minibatch, ``(B,)``, in nats; or to a bound on it, such as the ELBO where rows have
            latent variables of their own, too.
        n_cells
            N, rows of the data set.
        samples
            Draws of theta.

        Raises
        ------
        ValueError
            If `bound` gives anything but one number for each of at least one row, or there are
            no rows.
        """
        if n_cells < 1:
            raise ValueError(f"n_cells={n_cells}, but it is the number of all rows, at least 1")

        def likelihood(theta: Tensor, batch: Batch) -> _Whole:
            return _Whole([bound(self.at(draw)) for draw in theta], n_cells)

        vae: Any = VAE(self.prior, self.posterior, _Called(likelihood))
        terms: Terms = vae.terms(self._one_row(), samples, generator)
        return terms

    def _one_row(self) -> Batch:
        like = next(chain(self.parameters(), self.buffers()), torch.zeros(()))
        return Batch(like.new_zeros(1, 0))


class _Called(nn.Module):
    """A function where a module is asked for."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Whole:
    """p(all rows | theta) at k draws, from the log-densities of a minibatch at each."""

    def __init__(self, of_draws: list[Tensor], n_cells: int) -> None:
        for per_cell in of_draws:
            if per_cell.dim() != 1 or not len(per_cell):
                raise ValueError(
                    f"The bound has shape {tuple(per_cell.shape)}, but one number for every row of "
                    "a minibatch is needed, (B,) with B at least 1: sum over all other axes"
                )
        self.total = torch.stack([scale_to_dataset(per_cell, n_cells) for per_cell in of_draws])

    def log_prob(self, value: Tensor) -> Tensor:
        return self.total[:, None]


def _hold_as_buffers(module: nn.Module) -> None:
    """Make buffers, which nothing trains or stores, of parameters that require a gradient."""
    held: dict[nn.Parameter, Tensor] = {}  # one for one: shared parameters stay shared
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.requires_grad:
                delattr(part, name)
                tensor = held.setdefault(parameter, parameter.detach())
                part.register_buffer(name, tensor, persistent=False)
