"""A dataset where training happens, handed out in minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Self

import numpy as np
import torch
from scipy import sparse
from torch import Generator, Tensor

from scvae.core.batch import Batch
from scvae.core.csr import SPARSE, is_fast
from scvae.data.hold.counts import Counts
from scvae.data.hold.parts import Share, equal_parts
from scvae.data.hold.residence import ahead, fits
from scvae.data.hold.shards import Shards

AHEAD = 64  # minibatches sent to a GPU, or made there, at once
MOST = 2**28  # bytes of dense counts that are made there at once, or one minibatch


@dataclass(frozen=True)
class Cells(Batch):
    """A minibatch of cells.

    Attributes
    ----------
    x
        Counts, float32 ``(n, g)``; for an encoder, perhaps as compressed sparse rows.
    s
        Covariates: one-hot categories, then standardised numbers, ``(n, c)``.
    batch
        Code of every cell's batch, int64 ``(n,)``.
    log_library
        Logarithm of every cell's observed library size, ``(n, 1)``: of the observed genes, unless
        it counts those that are not fitted, too.
    hidden
        True where a gene is not shown to the encoder, ``(n, g)``; None if all are.
    """

    s: Tensor
    _: KW_ONLY
    batch: Tensor
    log_library: Tensor
    hidden: Tensor | None = None

    @property
    def filled(self) -> Self:
        """The same with counts of zero where a cell is absent: all else is known of it."""
        if self.present is None:
            return self
        return replace(self, x=self.x.masked_fill(~self.present[:, None], 0.0))


@dataclass(frozen=True)
class Dataset:
    """All cells, sparse; rows leave in the order of the index that asks for them.

    Minibatches are made dense where training happens. The counts lie there, too, if they fit; else
    they stay in host memory, or on disk, and are sent ahead, many minibatches at a time.

    Attributes
    ----------
    counts
        Counts of n cells.
    s, batch, log_library
        As in `Cells`, for all n cells, where training happens.
    is_streamed
        Whether the counts lie in host memory or on disk, and are sent from there.
    present, observed
        True for the cells, ``(n,)``, and for the features, ``(g,)``, or entries, ``(n, g)``, that
        were measured; None if all were.
    label
        As in `Cells`, for all n cells.
    is_compressed
        Whether x of minibatches is held as compressed sparse rows: see `for_encoder`.
    """

    counts: Counts | Shards
    s: Tensor
    batch: Tensor
    log_library: Tensor
    is_streamed: bool = False
    present: Tensor | None = None
    observed: Tensor | None = None
    label: Tensor | None = None
    is_compressed: bool = False

    @classmethod
    def build(
        cls,
        counts: sparse.csr_matrix | Shards,
        design: np.ndarray,
        codes: np.ndarray,
        library: np.ndarray,
        device: torch.device | str,
        *,
        stream: bool | None = None,
        present: np.ndarray | None = None,
        observed: np.ndarray | None = None,
        label: np.ndarray | None = None,
    ) -> Dataset:
        """Move covariates, batch codes and library sizes ``(n,)`` to `device`, and the counts.

        `stream` leaves the counts in host memory; None does so if they do not fit (see `fits`).
        `present` and `observed` mark cells and entries that were measured; None says all. `label`
        ``(n,)`` is as in `Cells`.
        """
        held: Counts | Shards
        if isinstance(counts, Shards):
            held, stream = counts, True
        else:
            held = Counts.from_csr(counts)
            if stream is None:
                stream = not fits(held.nbytes, torch.device(device))
            held = held if stream else held.to(device)
        return cls(
            held,
            torch.from_numpy(design).to(device),
            torch.from_numpy(codes).to(device),
            torch.from_numpy(np.log(library).astype(np.float32)).to(device)[:, None],
            stream,
            present=_on(device, present),
            observed=_on(device, observed),
            label=_on(device, label),
        )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def device(self) -> torch.device:
        """Where minibatches are made."""
        return self.s.device

    def of_batches(self, s: Tensor, batch: Tensor) -> Dataset:
        """Return the same cells as of other batches and covariates."""
        return replace(self, s=s, batch=batch)

    @property
    def for_encoder(self) -> Dataset:
        """The same cells for an encoder that takes compressed sparse rows, where these are faster:
        on processors that multiply them, if few counts are not zero and all were measured."""
        few = self.counts.entries <= SPARSE * len(self) * self.counts.n_genes
        is_whole = self.present is None and self.observed is None
        suits = few and is_whole and self.device.type == "cpu" and is_fast()
        return replace(self, is_compressed=True) if suits else self

    @property
    def place(self) -> str:
        """Where the counts are, in words."""
        if isinstance(self.counts, Shards):
            return "streamed from disk"
        return "streamed from host memory" if self.is_streamed else "on the device"

    def near(self, rows: Tensor) -> tuple[Dataset, Tensor]:
        """Return a dataset that hands out the given rows fast, again and again, and their numbers
        in it: they alone, in memory, of counts on disk."""
        if not isinstance(self.counts, Shards):
            return self, rows
        held = self.counts.take(rows.cpu())
        fitting = fits(held.nbytes, self.device)
        present, observed = None if self.present is None else self.present[rows], self.observed
        few = Dataset(
            held.to(self.device) if fitting else held,
            *(self.s[rows], self.batch[rows], self.log_library[rows]),
            is_streamed=not fitting,
            present=present,
            observed=observed if observed is None or observed.dim() == 1 else observed[rows],
            label=None if self.label is None else self.label[rows],
        )
        return few, _all(rows)

    def in_order(self, rows: Tensor) -> Tensor:
        """Return the given rows in an order in which one pass over them is fast."""
        return rows.sort().values if isinstance(self.counts, Shards) else rows

    def cells(self, rows: Tensor) -> Cells:
        """Return the given rows, in their order."""
        if self.is_streamed or isinstance(self.counts, Shards):
            return self._described(rows, self._x(self._sent(rows), _all(rows)))
        return self._described(rows, self._x(self.counts, rows))

    def minibatches(self, rows: Tensor, size: int, share: Share | None = None) -> Iterator[Cells]:
        """Yield the given rows in their order, in equal parts of about `size`; of each what this
        process is to have, if it has a share alone."""
        parts = equal_parts(rows, size)
        lengths = [len(part) for part in parts]
        if share is not None:
            own = share.near_of if isinstance(self.counts, Shards) else share.of
            parts = tuple(map(own, parts))
        yield from self.given(parts, lengths)

    def given(
        self, parts: Sequence[Tensor], lengths: Sequence[int] | None = None
    ) -> Iterator[Cells]:
        """Yield a minibatch of each of these sets of rows; where the sets are parts of larger ones,
        `lengths` are those of these."""
        if not isinstance(self.counts, Shards) and not self.is_streamed:
            yield from self._cut(parts, parts, self.counts)
            return
        windows = self._windows([len(part) for part in parts] if lengths is None else lengths)
        groups = [list(parts[window]) for window in windows]
        for group, counts in zip(groups, ahead(self._sent, map(torch.cat, groups)), strict=True):
            places = torch.arange(len(counts), device=self.device).split([len(p) for p in group])
            yield from self._cut(group, places, counts)

    def _windows(self, lengths: Sequence[int]) -> list[slice]:
        """Return which minibatches are sent together."""
        if isinstance(self.counts, Shards):
            return self.counts.windows(lengths)
        return [slice(start, start + AHEAD) for start in range(0, len(lengths), AHEAD)]

    def _cut(
        self, parts: Sequence[Tensor], places: Sequence[Tensor], counts: Counts
    ) -> Iterator[Cells]:
        """Yield the cells of every part, whose counts are at its places of `counts`; on a GPU, many
        made at once, as it makes all of them as soon as one.

        What launches its kernels one by one for a part takes longer than a training step on it.
        """
        most = self._at_once(4 * counts.n_genes * max(map(len, parts), default=0))
        for start in range(0, len(parts), most):
            group, its = (list(each[start : start + most]) for each in (parts, places))
            if len(group) == 1:
                yield self._described(group[0], self._x(counts, its[0]))
                continue
            made = self._described(torch.cat(group), counts.dense(torch.cat(its)))
            for first, last in pairwise(accumulate(map(len, group), initial=0)):
                yield made.map(partial(_slice, start=first, stop=last))

    def _x(self, counts: Counts, rows: Tensor) -> Tensor:
        return counts.compressed(rows) if self.is_compressed else counts.dense(rows)

    def _at_once(self, nbytes: int) -> int:
        """Return how many minibatches are made together, of which the largest takes `nbytes`."""
        return 1 if self.device.type == "cpu" else max(1, min(AHEAD, MOST // max(nbytes, 1)))

    def shuffled(
        self, rows: Tensor, size: int, generator: Generator, share: Share | None = None
    ) -> Iterator[Cells]:
        """Yield the given rows once each, in a random order; `share` as for `minibatches`."""
        if isinstance(self.counts, Shards):
            order = self.counts.shuffled(rows.cpu(), size, generator).to(rows.device)
            yield from self.minibatches(order, size, share)
            return
        yield from self.minibatches(shuffled(rows, generator), size, share)

    def _described(self, rows: Tensor, x: Tensor) -> Cells:
        batch, log_library = self.batch[rows], self.log_library[rows]
        present, observed = None if self.present is None else self.present[rows], self.observed
        if observed is not None:
            observed = observed.expand(len(rows), -1) if observed.dim() == 1 else observed[rows]
        label = None if self.label is None else self.label[rows]
        return Cells(
            *(x, self.s[rows], observed, None, present, label),
            batch=batch,
            log_library=log_library,
        )

    def _sent(self, rows: Tensor) -> Counts:
        """Return the counts of the given rows, on their way to the device."""
        return self.counts.take(rows.cpu(), pinned=self.device.type == "cuda").to(self.device)


def _on(device: torch.device | str, told: np.ndarray | None) -> Tensor | None:
    return None if told is None else torch.from_numpy(told).to(device)


def shuffled(rows: Tensor, generator: Generator) -> Tensor:
    """Return the rows in a random order."""
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order.to(rows.device)]


def _slice(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop]


def _all(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)
