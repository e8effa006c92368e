"""Algorithms of torch that give the same bits at every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# cuBLAS shares its workspace between streams unless told to keep one of this size for each.
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Let torch take deterministic algorithms alone, and raise where it has none.

    The choice holds for the whole process while the context lasts; afterwards it is as it was.
    """
    if not wanted:
        yield
        return
    for name, value in WORKSPACE.items():
        os.environ.setdefault(name, value)  # read once, at the first product on a GPU
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
