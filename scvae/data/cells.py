"""A dataset where training happens, handed out in minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Generator, Tensor

from scvae.core.vae import Batch
from scvae.data.counts import Counts


@dataclass(frozen=True)
class Cells(Batch):
    """A minibatch of cells.

    Attributes
    ----------
    x
        Counts, float32 ``(n, g)``.
    s
        Covariates: one-hot categories, then standardised numbers, ``(n, c)``.
    batch
        Code of every cell's batch, int64 ``(n,)``.
    log_library
        Logarithm of every cell's observed library size, ``(n, 1)``.
    """

    s: Tensor
    _: KW_ONLY
    batch: Tensor
    log_library: Tensor


@dataclass(frozen=True)
class Dataset:
    """All cells, sparse, on one device; rows leave in the order of the index that asks for them.

    Attributes
    ----------
    counts
        Counts of n cells.
    s, batch, log_library
        As in `Cells`, for all n cells.
    """

    counts: Counts
    s: Tensor
    batch: Tensor
    log_library: Tensor

    @classmethod
    def build(
        cls,
        counts: sparse.csr_matrix,
        design: np.ndarray,
        codes: np.ndarray,
        library: np.ndarray,
        device: torch.device | str,
    ) -> Dataset:
        """Move counts, covariates, batch codes and library sizes ``(n,)`` to `device`."""
        return cls(
            Counts.from_csr(counts, device),
            torch.from_numpy(design).to(device),
            torch.from_numpy(codes).to(device),
            torch.from_numpy(np.log(library).astype(np.float32)).to(device)[:, None],
        )

    def __len__(self) -> int:
        return len(self.counts)

    def cells(self, rows: Tensor) -> Cells:
        """Return the given rows, in their order."""
        return Cells(
            self.counts.dense(rows),
            self.s[rows],
            batch=self.batch[rows],
            log_library=self.log_library[rows],
        )

    def batches(self, rows: Tensor, size: int) -> Iterator[Cells]:
        """Yield the given rows in their order, in equal parts of about `size`.

        Equal parts leave no last minibatch of one cell, unless that is asked for.
        """
        most = len(rows) // min(size, 2)
        for part in torch.tensor_split(rows, max(1, min(round(len(rows) / size), most))):
            yield self.cells(part)

    def shuffled(self, rows: Tensor, size: int, generator: Generator) -> Iterator[Cells]:
        """Yield the given rows once each, in a random order."""
        order = torch.randperm(len(rows), generator=generator, device=generator.device)
        yield from self.batches(rows[order.to(rows.device)], size)
