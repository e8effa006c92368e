"""Rows in equal parts: the minibatches of a pass, and what a process of several takes of each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def equal_parts(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return the rows in their order, in equal parts of about `size`.

    Equal parts leave no last minibatch of one cell, unless that is asked for."""
    most = len(rows) // min(size, 2)
    return rows.tensor_split(max(1, min(round(len(rows) / size), most)))


@dataclass(frozen=True)
class Share:
    """What one process takes of every minibatch, of those that train together.

    Attributes
    ----------
    rank, size
        Number of the process, and of all.
    """

    rank: int
    size: int

    def of(self, rows: Tensor) -> Tensor:
        """Return its part of the rows of a minibatch, in their order."""
        return rows.tensor_split(self.size)[self.rank]

    def near_of(self, rows: Tensor) -> Tensor:
        """Return its part by the numbers of the rows: of the first process the lowest, so that
        every process reads another part of a file. They stay in their order."""
        chosen = rows.argsort().tensor_split(self.size)[self.rank]
        return rows[chosen.sort().values]
