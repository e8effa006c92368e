"""What is asked of a model: which batches, which features, how many draws, where to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from scvae.arguments import check_names, check_seed, check_whole, shown
from scvae.errors import ConfigError


def draws(samples: int, seed: int, device: torch.device, usual: int = 1) -> tuple[int, Generator]:
    """Return the number of draws and what they are drawn from."""
    samples = check_whole("samples", samples, usual, least=None)
    if samples < 1:
        raise ConfigError(f"samples={samples}, but at least one is needed: samples=1")
    return samples, Generator(device).manual_seed(check_seed(seed))


def some_rows(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return at most so many of the given rows, drawn at random, in order."""
    if len(rows) <= most:
        return np.sort(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def code_of(batch: str, known: list[str]) -> int:
    """Return the code of one batch."""
    if str(batch) not in known:
        raise ConfigError(f"batch={shown(batch)} is not one of the model's: {known}.")
    return known.index(str(batch))


def codes_of(batch: str | Sequence[str], known: list[str]) -> list[int]:
    """Return the batches to average over; none stands for every cell's own."""
    if isinstance(batch, list | tuple) and batch:
        return [code_of(name, known) for name in batch]
    if str(batch) in known:
        return [known.index(str(batch))]
    if str(batch) == "own":
        return []
    if str(batch) == "average":
        return list(range(len(known)))
    raise ConfigError(
        f"batch={shown(batch)} is not one of the model's: {known}; or give "
        "batch='average' (mean over all), batch='own' (as measured)."
    )


def positions_of(
    role: str, names: Sequence[str] | None, known: list[str], device: torch.device
) -> Tensor:
    """Return where the features `names` are among those that a model knows; None takes all."""
    if names is None:
        return torch.arange(len(known), device=device)
    asked = check_names(role, names, known[:2])
    places = {name: i for i, name in enumerate(known)}
    missing = [name for name in asked if name not in places]
    if missing:
        raise ConfigError(
            f"{role} has {len(missing)} names that the model was not fitted on "
            f"(first: {missing[:5]}). model.origin.genes lists those it knows."
        )
    return torch.tensor([places[name] for name in asked], dtype=torch.long, device=device)


def check_out(out: Any, shape: tuple[int, ...]) -> None:
    """Raise unless `out` is an array of floating-point numbers of this shape."""
    found = getattr(out, "shape", None)
    if not isinstance(found, tuple):
        raise ConfigError(
            f"out={shown(out)}, but it must be an array of shape {shape}: "
            f"out=numpy.empty({shape}, numpy.float32)"
        )
    if tuple(found) != shape:
        raise ConfigError(
            f"out has shape {tuple(found)}, but the result has {shape}: cells x genes."
        )
    flags = getattr(out, "flags", None)
    is_writeable = getattr(flags, "writeable", True)
    if not isinstance(dtype := getattr(out, "dtype", None), np.dtype) or dtype.kind != "f":
        raise ConfigError(
            f"out is a {type(out).__name__} of {dtype}, but the result needs floating-point "
            f"numbers: out=numpy.empty({shape}, numpy.float32)"
        )
    if not is_writeable:
        raise ConfigError(f"out may not be written to: out=numpy.empty({shape}, numpy.float32)")


def as_stored(found: Tensor, out: Any) -> np.ndarray:
    """Return numbers in host memory, to be written to `out`.

    Where it holds halves they are rounded here, which numpy would take ten times as long for."""
    halves = getattr(out, "dtype", None) == np.float16
    return (found.half() if halves and found.is_floating_point() else found).cpu().numpy()


def rows_of(found: Any, n: int, function: Any) -> Tensor:
    """Return what a function of a minibatch of n cells returned, or raise if it is not n rows."""
    if not isinstance(found, Tensor):
        raise ConfigError(f"function={shown(function)} did not return a tensor.")
    if not found.dim() or len(found) != n:
        raise ConfigError(
            f"function={shown(function)} returned {tuple(found.shape)} for a minibatch of {n} "
            f"cells, but it must return a row for each, ({n}, ...), or None."
        )
    return found
