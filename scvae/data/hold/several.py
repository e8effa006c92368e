"""Cells that were measured in several ways, handed out in minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Generator, Tensor

from scvae.core.batch import Parts
from scvae.data.hold.cells import Cells, Dataset, shuffled
from scvae.data.hold.parts import Share, equal_parts


@dataclass(frozen=True)
class CellParts(Parts):
    """A minibatch of cells, each measured in some of several ways.

    Attributes
    ----------
    parts
        The cells of every kind; ``present`` says which were measured.
    s, batch, label
        As in `Cells`.
    """

    parts: tuple[Cells, ...]
    s: Tensor
    _: KW_ONLY
    batch: Tensor


@dataclass(frozen=True)
class Datasets:
    """All cells of several kinds of measurement; see `Dataset`, whose questions it answers.

    Attributes
    ----------
    parts
        The same cells in every kind; those that were not measured in it have ``present`` False.
    """

    parts: tuple[Dataset, ...]

    @staticmethod
    def of(parts: Sequence[Dataset]) -> Dataset | Datasets:
        """Return the cells of all kinds, or of the only one."""
        return parts[0] if len(parts) == 1 else Datasets(tuple(parts))

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def s(self) -> Tensor:
        """Covariates, ``(n, c)``."""
        return self.parts[0].s

    @property
    def batch(self) -> Tensor:
        """Code of every cell's batch, ``(n,)``."""
        return self.parts[0].batch

    @property
    def present(self) -> Tensor:
        """Which kinds every cell was measured in, ``(n, m)`` of bool."""
        everyone = torch.ones(len(self), dtype=torch.bool, device=self.device)
        each = [everyone if part.present is None else part.present for part in self.parts]
        return torch.stack(each, dim=-1)

    @property
    def device(self) -> torch.device:
        """Where minibatches are made."""
        return self.parts[0].device

    @property
    def is_streamed(self) -> bool:
        """Whether counts of any kind lie in host memory and are sent from there."""
        return any(part.is_streamed for part in self.parts)

    @property
    def place(self) -> str:
        """Where the counts are, in words."""
        return "; ".join(dict.fromkeys(part.place for part in self.parts))

    def near(self, rows: Tensor) -> tuple[Datasets, Tensor]:
        """Return this and the given rows: see `Dataset.near`."""
        return self, rows

    def in_order(self, rows: Tensor) -> Tensor:
        """Return the given rows as they are: see `Dataset.in_order`."""
        return rows

    def of_batches(self, s: Tensor, batch: Tensor) -> Datasets:
        """Return the same cells as of other batches and covariates."""
        return Datasets(tuple(part.of_batches(s, batch) for part in self.parts))

    def cells(self, rows: Tensor) -> CellParts:
        """Return the given rows, in their order."""
        return _together([part.cells(rows) for part in self.parts])

    def minibatches(
        self, rows: Tensor, size: int, share: Share | None = None
    ) -> Iterator[CellParts]:
        """Yield the given rows in their order, as `Dataset.minibatches` does."""
        whole = equal_parts(rows, size)
        parts = whole if share is None else tuple(map(share.of, whole))
        yield from self.given(parts, [len(part) for part in whole])

    def given(
        self, parts: Sequence[Tensor], lengths: Sequence[int] | None = None
    ) -> Iterator[CellParts]:
        """Yield a minibatch of each of these sets of rows, as `Dataset.given` does."""
        each = [kind.given(parts, lengths) for kind in self.parts]
        yield from (_together(parts) for parts in zip(*each, strict=True))

    def shuffled(
        self, rows: Tensor, size: int, generator: Generator, share: Share | None = None
    ) -> Iterator[CellParts]:
        """Yield the given rows once each, in a random order; `share` as for `minibatches`."""
        yield from self.minibatches(shuffled(rows, generator), size, share)

    def only(self, kept: Sequence[int]) -> Datasets:
        """Return the same as if no other kinds than those of these numbers had been measured."""
        absent = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        return Datasets(
            tuple(
                part if i in kept else replace(part, present=absent)
                for i, part in enumerate(self.parts)
            )
        )


def _together(parts: Sequence[Cells]) -> CellParts:
    first = parts[0]
    return CellParts(tuple(parts), first.s, label=first.label, batch=first.batch)
