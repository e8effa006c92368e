"""Genes hidden from the encoder in training, so that it can do without some of them later."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Generator

from scvae.data.hold.cells import Cells

SHARE = 0.25  # of the cells of a minibatch: more cost the others
FEWEST = 0.1  # share of the genes that a cell keeps at least, in the mean


def hiding(minibatches: Iterator[Cells], generator: Generator) -> Iterator[Cells]:
    """Yield the minibatches with genes hidden from the encoder, in the first quarter of the cells.

    Each of these cells keeps a share of the genes between `FEWEST` and 1, drawn evenly, and every
    gene with that probability. What is drawn comes from `generator`, which lies on the CPU.
    """
    for cells in minibatches:
        some = round(SHARE * len(cells))
        hidden = torch.zeros(cells.x.shape, dtype=torch.bool)
        kept = FEWEST + (1 - FEWEST) * torch.rand(some, 1, generator=generator)
        hidden[:some] = torch.rand(some, cells.x.shape[1], generator=generator) > kept
        yield dataclasses.replace(cells, hidden=hidden.to(cells.device))
