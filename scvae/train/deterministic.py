"""Algorithms of torch that give the same bits at every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scvae.errors import ConfigError

# cuBLAS shares its workspace between streams unless told to keep one of this size for each. torch
# looks at the variable once, at the first product on a GPU.
VARIABLE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Let torch take deterministic algorithms alone, and raise where it has none.

    The choice holds for the whole process while the context lasts; afterwards it is as it was.

    Raises
    ------
    ConfigError
        If cuBLAS was not told to be deterministic, which must be said before it is first used.
    """
    if not wanted:
        yield
        return
    if os.environ.get(VARIABLE) not in WORKSPACES:
        raise ConfigError(
            f"deterministic=True, but the environment variable {VARIABLE} is "
            f"{os.environ.get(VARIABLE)!r}. Set it before the GPU is first used, best in the "
            f"shell: export {VARIABLE}={WORKSPACES[0]}"
        )
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
