"""Random numbers of a seed, for the laws of the engine."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers, float64."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
