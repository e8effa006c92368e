"""Several processes that train one model together, by torch.distributed.

Every rank holds the whole model and takes its part of every minibatch; what they do is what one
process does with the whole minibatch, but for the latent noise, which every rank draws for itself.
Gradients are summed as one flat buffer, which also carries the bound, the number of cells, and
whether a rank was told to stop: all of them stop at the same step, and see the same numbers.
Batch normalisation is by the mean and variance of the whole minibatch.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from scvae.core.networks import BatchNorm
from scvae.core.vae import VAE
from scvae.errors import ConfigError, TrainingError
from scvae.train.meeting import meet

STRIDE = 0x9E3779B97F4A7C15  # between the seeds of ranks


@dataclass
class Ranks:
    """This process among those that train together.

    Attributes
    ----------
    rank, size
        Number of this process, and of all.
    told
        Whether this one was told to stop (Ctrl-C).
    failed
        Whether one of them has failed where all are to fail.
    """

    rank: int
    size: int
    told: bool = field(default=False, init=False)
    failed: bool = field(default=False, init=False)

    @classmethod
    def here(cls) -> Ranks | None:
        """Return this process among those that `torchrun` or the user started, or None if alone."""
        if not dist.is_available():
            return None
        if not dist.is_initialized():
            if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
                return None
            _begin()
        size = dist.get_world_size()
        return cls(dist.get_rank(), size) if size > 1 else None

    # -- a step --------------------------------------------------------------------------------

    def backward(self, vae: VAE, climbed: Tensor, bound: Tensor, cells: int) -> Tensor:
        """Leave the gradients of minus the mean of what all ranks climb; return their mean bound.

        Raises KeyboardInterrupt, in all ranks at the same step, if one of them was told to stop.
        """
        (-climbed * cells).backward()
        parameters = list(vae.parameters())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        more = torch.stack([bound.detach() * cells, *bound.new_tensor([cells, self.told])])
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), more])
        self.sum(flat)
        summed, n, told = flat[-3:].unbind()
        if told > 0:
            vae.zero_grad(set_to_none=True)
            raise KeyboardInterrupt
        parts = flat[:-3].div_(n).split([p.numel() for p in parameters])
        for parameter, own in zip(parameters, parts, strict=True):
            parameter.grad = own.view(parameter.shape)
        return summed / n

    def own(self, shared: Generator) -> Generator:
        """Return a source of draws of this rank's own, from one that all ranks share."""
        seed = int(torch.randint(2**62, (1,), generator=shared))
        return Generator(shared.device).manual_seed(seed + self.rank)

    def sum(self, values: Tensor) -> None:
        """Put the sum over all ranks in the place of `values`."""
        with _explained():
            dist.all_reduce(values)

    def all_of(self, own: Sequence[int]) -> list[list[int]]:
        """Return the numbers, as many in each, that every rank has."""
        numbers = torch.tensor(own, dtype=torch.int64, device=self.device)
        found = [torch.empty_like(numbers) for _ in range(self.size)]
        with _explained():
            dist.all_gather(found, numbers)
        return [one.tolist() for one in found]

    @property
    def device(self) -> str:
        """Where numbers lie that are sent."""
        return "cuda" if dist.get_backend() == "nccl" else "cpu"

    def vary(self, noise: Generator, taken: int) -> None:
        """Let the noise of this rank be its own, from step `taken` on; the first keeps its own."""
        if self.rank:
            seed = noise.initial_seed() + STRIDE * self.rank + taken
            noise.manual_seed(seed % 2**63)

    @contextlib.contextmanager
    def normalising(self, vae: VAE) -> Iterator[None]:
        """Let batch normalisation of `vae` be by the minibatches of all ranks."""
        norms = [module for module in vae.modules() if isinstance(module, BatchNorm)]
        for norm in norms:
            norm.forward = partial(self._normalised, norm)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in norms:
                del norm.forward

    def _normalised(self, norm: BatchNorm, h: Tensor) -> Tensor:
        """Return rows ``(n, width)`` by the moments of the rows of all ranks, in training."""
        if not norm.training:
            return BatchNorm.forward(norm, h)
        assert norm.running_mean is not None
        about = norm.running_mean.clone()  # sums of squares about it lose no digits
        shifted, counted = h - about, h.new_ones(len(h), 1)
        if norm.counted is not None:
            counted = norm.counted[:, None].to(h.dtype)
        sums = (counted * shifted).sum(0), (counted * shifted.square()).sum(0)
        own = torch.cat([*sums, counted.sum(0)])
        first, second, n = _Summed.apply(self, own).split([h.shape[1], h.shape[1], 1])
        offset = first / n.clamp(min=1)
        variance = (second / n.clamp(min=1) - offset.square()).clamp(min=0)
        return norm.by_moments(h, n, about + offset, variance)

    # -- inference -----------------------------------------------------------------------------

    def gathered(self, own: Tensor, lengths: Sequence[int], *, to_all: bool) -> list[Tensor]:
        """Return the rows of the first ranks, as many as `lengths` has and of these numbers: in all
        ranks, or in the first, and none in the others."""
        padded = own.new_zeros(max(lengths), *own.shape[1:])
        padded[: len(own)] = own
        padded = padded.to(self.device)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with _explained():
            if to_all:
                dist.all_gather(found, padded)
            else:
                dist.gather(padded, None if self.rank else found)
        if self.rank and not to_all:
            return []
        return [rows[:n] for rows, n in zip(found, lengths, strict=False)]

    @contextlib.contextmanager
    def as_one(self) -> Iterator[None]:
        """Let all ranks raise where one does, once they all are at the end of such a block.

        Blocks may lie in each other; one that fails ends those around it, in all ranks alike."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.failed:
                raise
            error = raised
        failed = [rank for rank, (is_so,) in enumerate(self.all_of([error is not None])) if is_so]
        if not failed:
            return
        self.failed = True
        if error is not None:
            raise error
        raise TrainingError(
            f"Process {failed[0]} of {self.size} has failed, and its error says why; this one ends "
            "with it. Nothing was written."
        )

    # -- together ------------------------------------------------------------------------------

    def check_same(self, digest: str, taken: int) -> None:
        """Raise, in all ranks, unless all of them are about to do the same.

        Parameters
        ----------
        digest
            Hexadecimal digits of all that a run depends on.
        taken
            Steps that were taken before.
        """
        found = self.all_of([*bytes.fromhex(digest), taken])
        different = [rank for rank, other in enumerate(found) if other != found[0]]
        if not different:
            return
        if all(other[:-1] == found[0][:-1] for other in found):
            raise ConfigError(
                f"Process {different[0]} of {self.size} found another checkpoint than process 0. "
                "Give a folder that all of them see: checkpoint=..."
            )
        raise ConfigError(
            f"Process {different[0]} of {self.size} was given other data or arguments than process "
            "0, or has other versions of scvae or torch. Start all with the same call."
        )

    @contextlib.contextmanager
    def together(self, vae: VAE) -> Iterator[None]:
        """Train as one: batch normalisation, and the end by Ctrl-C, are those of all ranks."""
        with self.normalising(vae), self.listening():
            yield

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let Ctrl-C end the step that all ranks take next, instead of this one where it is."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, self._stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _stop(self, number: int, frame: Any) -> None:
        if self.told:
            raise KeyboardInterrupt  # twice: at once
        self.told = True


def _begin() -> None:
    """Join the processes that `torchrun` started, each with its own GPU where there are as many."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    with _explained():
        meet()
    atexit.register(_end)


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what it means that the other ranks do not answer."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[:1]
        raise TrainingError(
            "Another process of this job has ended or does not answer, so this one ends, too. "
            "Nothing was written but the last checkpoint, where one was asked for: the same call "
            f"goes on from it. ({' '.join(reason)[:200]})"
        ) from error


class _Summed(torch.autograd.Function):
    """The sum over all ranks of a tensor."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, own: Tensor) -> Tensor:
        ctx.ranks = ranks
        whole = own.detach().clone()
        ranks.sum(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        whole = grads[0].contiguous().clone()
        ctx.ranks.sum(whole)
        return None, whole
