"""A training step on CUDA, launched at once instead of kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Generator, Tensor

from scvae.core.batch import Minibatch

EAGER_STEPS = 3  # before a graph is captured: libraries choose their kernels and workspaces


class GraphedStep:
    """A step as one CUDA graph.

    A minibatch of 128 cells keeps a data-centre GPU busy for less time than Python needs to launch
    its kernels one after another. Captured as a graph, the step is one launch. Minibatches of one
    length share a graph; an epoch has at most two lengths.

    Parameters
    ----------
    step
        Takes a step on a minibatch at a learning rate and a KL weight, and returns the bound. It
        must leave all that it changes in the same memory, and ask the device for nothing.
    noise
        Source of its random numbers, on the device.
    """

    def __init__(
        self, step: Callable[[Minibatch, Tensor, Tensor], Tensor], noise: Generator
    ) -> None:
        self.step, self.noise = step, noise
        # What changes from step to step must lie on the device: a graph repeats all else.
        self.rate = torch.zeros((), device=noise.device)
        self.beta = torch.zeros((), device=noise.device)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Minibatch, Tensor]] = {}
        self.taken = 0

    def __call__(self, minibatch: Minibatch, rate: float, beta: float) -> Tensor:
        """Take the step, by a graph once enough were taken without one; return the bound."""
        self.rate.fill_(rate)
        self.beta.fill_(beta)
        self.taken += 1
        if self.taken <= EAGER_STEPS:
            return self._on_the_side(minibatch)
        if len(minibatch) not in self.graphs:
            self.graphs[len(minibatch)] = self._capture(minibatch)
        graph, inputs, bound = self.graphs[len(minibatch)]
        for to, value in zip(inputs.tensors, minibatch.tensors, strict=True):
            to.copy_(value, non_blocking=True)
        graph.replay()
        return bound.clone()

    @cached_property
    def side(self) -> torch.cuda.Stream:
        """Stream of the steps before a graph and of its capture, which may not be the main one."""
        return torch.cuda.Stream(self.noise.device)

    def _on_the_side(self, minibatch: Minibatch) -> Tensor:
        main = torch.cuda.current_stream(self.noise.device)
        self.side.wait_stream(main)
        with torch.cuda.stream(self.side):
            bound = self.step(minibatch, self.rate, self.beta)
        main.wait_stream(self.side)
        return bound

    def _capture(self, minibatch: Minibatch) -> tuple[torch.cuda.CUDAGraph, Minibatch, Tensor]:
        """Record the step, without taking it, on copies of the minibatch's tensors."""
        inputs = minibatch.map(Tensor.clone)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.noise)
        pool = next((g.pool() for g, _, _ in self.graphs.values()), None)
        # Of this thread alone: another may read ahead, and bring counts to the device meanwhile.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=pool, stream=self.side, capture_error_mode=mode):
            bound = self.step(inputs, self.rate, self.beta)
        return graph, inputs, bound
