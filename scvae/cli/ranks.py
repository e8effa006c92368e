"""Which of several processes that torchrun started this one is."""

from __future__ import annotations


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    from scvae.train.ranks import Ranks

    ranks = Ranks.here()
    return ranks is None or ranks.rank == 0
