"""Arguments of a fit that depend on which kinds of measurement there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scvae.arguments import is_number, refuse, shown
from scvae.data.read.several import Sources
from scvae.errors import ConfigError


def check_bounds(alone: Any, weights: Any, kinds: list[str]) -> tuple[float, dict[str, float]]:
    """Return the weights of the bounds of single kinds, and of the log-likelihoods of kinds."""
    if not is_number(alone) or not 0 <= alone < math.inf:
        raise refuse("alone", alone, "a number of 0 or more", 1.0)
    if weights is None:
        return float(alone), {}
    if not isinstance(weights, Mapping) or not weights.keys() <= set(kinds):
        raise ConfigError(
            f"weights={shown(weights)}, but they are numbers for some of {kinds}: "
            f"weights={{{kinds[-1]!r}: 2.0}}"
        )
    for kind, weight in weights.items():
        if not is_number(weight) or not 0 < weight < math.inf:
            raise refuse(f"weights[{kind!r}]", weight, "a positive number", 2.0)
    if len(kinds) == 1:
        raise ConfigError(f"weights={shown(weights)}, but there is {kinds[0]} alone: weights=None")
    return float(alone), {kind: float(weight) for kind, weight in weights.items()}


def check_arguments_of_rna(sources: Sources, genes: Any, library_size: Any, robust: bool) -> None:
    """Raise for arguments that the kinds which are there cannot take."""
    kinds = [part.kind for part in sources.parts]
    if robust and kinds != ["rna"]:
        raise ConfigError(f"robust=True is of RNA alone, but there are {kinds}: robust=False")
    if "rna" not in kinds and genes is not None:
        raise ConfigError(f"genes={shown(genes)}, but there are no genes, only {kinds}: genes=None")
    if "rna" not in kinds and library_size != "observed":
        raise ConfigError(
            f"library_size={shown(library_size)} is of RNA, but there is only {kinds}: "
            "library_size='observed'"
        )
    if len(kinds) > 1 and library_size == "latent":
        raise ConfigError(
            "library_size='latent' is one more latent of RNA alone, but there are "
            f"{kinds}: library_size='observed'"
        )
