"""Whether the memory has room for a network that trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scvae.data.hold.residence import free_memory
from scvae.errors import ConfigError
from scvae.models.keep.weights import weight_shapes
from scvae.models.network import Architecture

COPIES = 6  # of the weights: themselves, gradient, two moments, their average, the best so far


def check_room(a: Architecture) -> None:
    """Raise ConfigError where the weights would take more memory than there is."""
    one, two = (_weights(replace(a, n_layers=n)) for n in (1, 2))  # of more, any number as large
    number = one + (two - one) * (a.n_layers - 1)
    needed, free = 4 * COPIES * number, free_memory()
    if needed > free:
        raise ConfigError(
            f"n_latent={a.n_latent}, n_hidden={a.n_hidden} and n_layers={a.n_layers} make a "
            f"network of {number:,} weights, which take {needed / 1e9:,.1f} GB while it trains; "
            f"{free / 1e9:,.1f} GB are free. Give less: scvae.fit(adata, n_latent=30, "
            "n_hidden=128, n_layers=1)"
        )


def _weights(a: Architecture) -> int:
    return sum(int(np.prod(shape, dtype=object)) for shape in weight_shapes(a).values())
