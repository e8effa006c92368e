"""Minibatches: a set of rows, of one kind of measurement or of several at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, SupportsIndex

import torch
from torch import Tensor
from torch.distributions import Independent


@dataclass(frozen=True)
class Minibatch:
    """n rows of tensors, however deep they lie in its fields: in other minibatches, in tuples.

    What has one row for each of the n, or one for all of them, may be a field of a subclass: it
    travels along.

    Examples
    --------
    >>> cells = Batch(torch.ones(5, 64), s=torch.zeros(5, 2))
    >>> len(cells), cells[1:3].s.shape, cells.device, len(cells.tensors)
    (5, torch.Size([2, 2]), device(type='cpu'), 2)
    >>> cells.map(lambda t: 2 * t).x.sum(), cells.to(dtype=torch.float64).s.dtype
    (tensor(640.), torch.float64)
    >>> cells.log_prob(Bernoulli(torch.zeros(64))).shape
    torch.Size([5])
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def log_prob(self, p: Any) -> Tensor:
        """Return log p(x) of every row under a distribution over what was observed, ``(..., n)``,
        in nats."""
        raise NotImplementedError

    def map(self, f: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with f(t) in place of every tensor t, in one order at every call."""
        made = {at.name: mapped(getattr(self, at.name), f) for at in fields(self) if at.init}
        return replace(self, **made)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tensors[0].device

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of `map`."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(note)
        return found

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return the same on a device, and what is floating of another type: masks, codes and row
        numbers keep theirs."""

        def moved(t: Tensor) -> Tensor:
            return t.to(device or t.device, dtype if dtype and t.is_floating_point() else t.dtype)

        return self.map(moved)

    def __getitem__(self, rows: SupportsIndex | slice | Tensor) -> Self:
        """Return some of the rows, by a slice, a mask or numbers ``(m,)``; or one, by its number.

        Raises ValueError where a tensor has neither a row for each nor one for all."""
        n = len(self)
        if not isinstance(rows, slice | Tensor):
            row = range(n)[rows]
            rows = slice(row, row + 1)

        def chosen(t: Tensor) -> Tensor:
            if not t.dim() or len(t) == 1 != n:
                return t  # the same for all rows
            if len(t) != n:
                raise ValueError(
                    f"A tensor of shape {tuple(t.shape)} in a minibatch of {n} rows: give it "
                    f"{n} rows, or 1 for all"
                )
            return t[rows]

        return self.map(chosen)


def mapped(value: Any, f: Callable[[Tensor], Any]) -> Any:
    """Return f(t) of a tensor t, or of every tensor in minibatches, tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Minibatch):
        return value.map(f)
    if isinstance(value, dict):
        return {key: mapped(inner, f) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        made = [mapped(inner, f) for inner in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


@dataclass(frozen=True)
class Batch(Minibatch):
    """A minibatch of n cells.

    Attributes
    ----------
    x
        What is observed, ``(n, g)``.
    s
        Covariates, ``(n, c)``, if there are any.
    observed
        True where an entry of `x` was observed, ``(n, g)``; None if all were.
    rows
        Numbers of the cells in their dataset, int64 ``(n,)``, for posteriors with parameters of
        every cell's own.
    present
        True where a cell was measured at all, ``(n,)``; None if all were. What an absent cell
        holds, NaN included, touches nothing.
    label
        Number of every cell's label, int64 ``(n,)``, -1 where it is not known; None if none is.

    Examples
    --------
    >>> batch = Batch(torch.ones(5, 64), s=torch.zeros(5, 2))
    >>> len(batch[:3]), batch.to(dtype=torch.float64).x.dtype
    (3, torch.float64)
    >>> x = torch.tensor([[2.0, 3.0], [torch.nan, torch.nan]])
    >>> Batch(x, present=torch.tensor([True, False])).filled.x
    tensor([[2., 3.],
            [1., 1.]])
    """

    x: Tensor
    s: Tensor | None = None
    observed: Tensor | None = None
    rows: Tensor | None = None
    present: Tensor | None = None
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def log_prob(self, p: Any) -> Tensor:
        """Return log p(x) of every row, of the observed entries alone: 0 where a cell is absent."""
        if self.observed is None:
            log_px: Tensor = p.log_prob(self.x)
        else:
            log_px = _marginal_log_prob(p, self.x, self.observed)
        return log_px if self.present is None else torch.where(self.present, log_px, 0.0)

    @property
    def filled(self) -> Self:
        """The same where the cells that are absent hold numbers that every network and law can
        take, so that nothing of them, NaN included, is seen again: not even in a gradient."""
        there = self.present
        if there is None:
            return self

        def fill(t: Tensor) -> Tensor:
            if t is there or not t.dim() or len(t) != len(self):
                return t
            value = 1.0 if t.is_floating_point() else 0  # 0 is the number of some category
            return t.masked_fill(~there.view(-1, *[1] * (t.dim() - 1)), value)

        return self.map(fill)


def _marginal_log_prob(p: Any, x: Tensor, observed: Tensor) -> Tensor:
    """Return log p of the observed entries, under a distribution of ours or of torch's."""
    if hasattr(p, "marginal_log_prob"):
        found: Tensor = p.marginal_log_prob(x, observed)
        return found
    if not isinstance(p, Independent) or p.reinterpreted_batch_ndims != 1:
        raise TypeError(
            f"A {type(p).__name__} cannot leave out entries that were not observed: give it a "
            "method marginal_log_prob(value, observed), or use a distribution of scvae.core"
        )
    alone = p.base_dist.log_prob(torch.where(observed, x, 1.0))
    return torch.where(observed, alone, 0.0).sum(-1)


@dataclass(frozen=True)
class Parts(Minibatch):
    """A minibatch of n cells that were measured in several ways.

    Attributes
    ----------
    parts
        One minibatch of the n cells a kind of measurement; ``part.present`` says of which cells.
    s, rows, label
        As in `Batch`, for what looks at no part, such as a prior.

    Examples
    --------
    >>> parts = Parts((Batch(torch.ones(5, 64)), Batch(torch.ones(5, 9))))
    >>> parts.present.shape
    torch.Size([5, 2])
    """

    parts: tuple[Batch, ...]
    s: Tensor | None = None
    rows: Tensor | None = None
    label: Tensor | None = None

    def __post_init__(self) -> None:
        if len(set(map(len, self.parts))) != 1:
            found = ", ".join(str(len(part)) for part in self.parts) or "none"
            raise ValueError(f"Parts of one minibatch hold the same rows, but these hold {found}")

    def __len__(self) -> int:
        return len(self.parts[0])

    def log_prob(self, p: Any) -> Tensor:
        """Return the log-probability of all parts that are present, together, of every row."""
        log_px: Tensor = p.log_prob(self)
        return log_px

    @property
    def present(self) -> Tensor:
        """True where a part of a cell was measured, ``(n, m)``."""
        everywhere = torch.ones(len(self), dtype=torch.bool, device=self.parts[0].x.device)
        return torch.stack([_or(part.present, everywhere) for part in self.parts], dim=-1)


def _or(given: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if given is None else given
