"""Arguments of a fit that depend on which kinds of measurement there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scvae.arguments import check_choice, is_number, refuse, shown
from scvae.choices import CHROMATIN_LIKELIHOODS, LIKELIHOODS
from scvae.data.read.sources import Sources
from scvae.errors import ConfigError

LAWS: dict[str, tuple[str, ...]] = {"rna": LIKELIHOODS, "chromatin": CHROMATIN_LIKELIHOODS}


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


def check_likelihood(likelihood: Any) -> dict[str, Any]:
    """Return the law of the counts of kinds that have a choice, as far as it was given."""
    if isinstance(likelihood, Mapping) and likelihood and likelihood.keys() <= LAWS.keys():
        return {
            kind: check_choice(f"likelihood[{kind!r}]", law, LAWS[kind])
            for kind, law in likelihood.items()
        }
    if isinstance(likelihood, Mapping):
        raise ConfigError(
            f"likelihood={shown(likelihood)}, but it is of some of {list(LAWS)}: "
            "likelihood={'chromatin': 'bernoulli'}"
        )
    if isinstance(likelihood, str) and likelihood == "bernoulli":
        return {"chromatin": likelihood}
    return {"rna": check_choice("likelihood", likelihood, LIKELIHOODS)}


def check_arguments_of_kinds(
    sources: Sources,
    genes: Any,
    library_size: Any,
    robust: bool,
    laws: Mapping[str, Any],
    linear: bool,
) -> None:
    """Raise for arguments that the kinds which are there cannot take."""
    kinds = [part.kind for part in sources.parts]
    if "chromatin" in laws and "chromatin" not in kinds:
        raise ConfigError(f"likelihood='bernoulli' is of chromatin, but there are {kinds}.")
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
    if linear and kinds != ["rna"]:
        raise ConfigError("decoder='linear' is of RNA alone; with other kinds: decoder='network'")
