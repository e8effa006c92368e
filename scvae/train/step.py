"""One training step: eagerly, or on CUDA as one captured graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Generator, Tensor

from scvae.core.objectives import elbo
from scvae.core.vae import VAE, Batch
from scvae.train.optimizer import AdamW

EAGER_STEPS = 3  # before a graph is captured: libraries choose their kernels and workspaces


class Step:
    """Ascend the mean ELBO of one minibatch by AdamW.

    Parameters
    ----------
    vae
        The model, on the device of the minibatches.
    weight_decay
        Decoupled weight decay of the posterior network alone; the likelihood is left free to fit.
    noise
        Source of the latent noise, on the same device.
    """

    def __init__(self, vae: VAE, weight_decay: float, noise: Generator) -> None:
        self.vae, self.weight_decay, self.noise = vae, weight_decay, noise
        self.optimizer = AdamW(vae.parameters(), decayed=vae.posterior.parameters())

    def __call__(self, batch: Batch, rate: float | Tensor, beta: float | Tensor) -> Tensor:
        """Take one step at a learning rate and a KL weight; return the bound, on the device."""
        bound = elbo(self.vae.terms(batch, generator=self.noise), beta).mean()
        (-bound).backward()
        self.optimizer.step(rate, self.weight_decay)
        self.optimizer.zero_grad()
        return bound.detach()


class NotFiniteError(ArithmeticError):
    """A step would have made the weights useless; they are as they were before it.

    Attributes
    ----------
    term
        "reconstruction" or "KL", if one of them was not finite.
    entry
        Column of x where the log-probability was not finite, if there is one.
    parameter
        Name of the first parameter whose gradient was not finite, if there is one.
    """

    def __init__(self, term: str | None, entry: int | None, parameter: str | None) -> None:
        super().__init__(term, entry, parameter)
        self.term, self.entry, self.parameter = term, entry, parameter

    def described(self, entry_name: Callable[[int], str]) -> str:
        """Return what was not finite, in words."""
        words = [f"the {self.term}"] if self.term else []
        words += [f"gene {entry_name(self.entry)!r}"] if self.entry is not None else []
        words += [f"the gradient of {self.parameter!r}"] if self.parameter else []
        return ", ".join(words)


class CheckedStep(Step):
    """The same step, which looks at every number before it touches the weights.

    Raises `NotFiniteError`; asks the device for an answer at every step, so that it is slower.
    """

    def __call__(self, batch: Batch, rate: float | Tensor, beta: float | Tensor) -> Tensor:
        """Take the step, or raise NotFiniteError and leave the weights."""
        terms = self.vae.terms(batch, generator=self.noise)
        bound = elbo(terms, beta).mean()
        (-bound).backward()
        parameter = self._wrong_gradient()
        if parameter is not None or not bound.isfinite():
            self.optimizer.zero_grad()
            term = next(
                (
                    name
                    for name, value in (("reconstruction", terms.reconstruction), ("KL", terms.kl))
                    if not value.isfinite().all()
                ),
                None,
            )
            raise NotFiniteError(term, self._wrong_entry(terms.z, batch), parameter)
        self.optimizer.step(rate, self.weight_decay)
        self.optimizer.zero_grad()
        return bound.detach()

    def _wrong_gradient(self) -> str | None:
        named = ((name, p.grad) for name, p in self.vae.named_parameters())
        wrong = (name for name, grad in named if grad is not None and not grad.isfinite().all())
        return next(wrong, None)

    @torch.no_grad()
    def _wrong_entry(self, z: Tensor, batch: Batch) -> int | None:
        """Return the first column that is not finite itself, or whose log-probability is not."""
        entry_log_prob = getattr(self.vae.decode(z, batch), "entry_log_prob", lambda x: x)
        for values in (batch.x, entry_log_prob(batch.x)):
            wrong = ~values.isfinite().flatten(0, -2).all(0)
            if wrong.any():
                return int(wrong.nonzero()[0])
        return None


class GraphedStep(Step):
    """The same step on CUDA, launched at once instead of kernel by kernel.

    A minibatch of 128 cells keeps a data-centre GPU busy for less time than Python needs to launch
    its kernels one after another. Captured as a CUDA graph, the step is one launch. Minibatches of
    one length share a graph; an epoch has at most two lengths.
    """

    def __init__(self, vae: VAE, weight_decay: float, noise: Generator) -> None:
        super().__init__(vae, weight_decay, noise)
        # What changes from step to step must lie on the device: a graph repeats all else.
        self.rate = torch.zeros((), device=noise.device)
        self.beta = torch.zeros((), device=noise.device)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Batch, Tensor]] = {}
        self.taken = 0

    def __call__(self, batch: Batch, rate: float | Tensor, beta: float | Tensor) -> Tensor:
        """Take the step, by a graph once enough were taken without one."""
        self.rate.fill_(rate)
        self.beta.fill_(beta)
        self.taken += 1
        if self.taken <= EAGER_STEPS:
            return self._on_the_side(batch)
        if len(batch) not in self.graphs:
            self.graphs[len(batch)] = self._capture(batch)
        graph, inputs, bound = self.graphs[len(batch)]
        for to, value in zip(_tensors(inputs), _tensors(batch), strict=True):
            to.copy_(value, non_blocking=True)
        graph.replay()
        return bound.clone()

    @cached_property
    def side(self) -> torch.cuda.Stream:
        """Stream of the steps before a graph and of its capture, as capturing asks."""
        return torch.cuda.Stream(self.noise.device)

    def _eagerly(self, batch: Batch) -> Tensor:
        return super().__call__(batch, self.rate, self.beta)

    def _on_the_side(self, batch: Batch) -> Tensor:
        main = torch.cuda.current_stream(self.noise.device)
        self.side.wait_stream(main)
        with torch.cuda.stream(self.side):
            bound = self._eagerly(batch)
        main.wait_stream(self.side)
        return bound

    def _capture(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, Tensor]:
        """Record the step, without taking it, on copies of the minibatch's tensors."""
        copies = {name: value.clone() for name, value in _named(batch).items()}
        inputs = dataclasses.replace(batch, **copies)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.noise)
        pool = next((g.pool() for g, _, _ in self.graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=self.side):
            bound = self._eagerly(inputs)
        return graph, inputs, bound


def make_step(vae: VAE, weight_decay: float, noise: Generator) -> Step:
    """Return the fastest step of the device of `noise`."""
    kind = GraphedStep if noise.device.type == "cuda" else Step
    return kind(vae, weight_decay, noise)


def _named(batch: Batch) -> dict[str, Tensor]:
    fields = ((field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch))
    return {name: value for name, value in fields if isinstance(value, Tensor)}


def _tensors(batch: Batch) -> list[Tensor]:
    return list(_named(batch).values())
