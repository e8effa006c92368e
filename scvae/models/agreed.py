"""What processes that train together must agree on before they begin."""

from __future__ import annotations

from dataclasses import replace

from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.data.hold.shards import Shards
from scvae.errors import ConfigError
from scvae.train.ranks import Ranks


def check_size(ranks: Ranks | None, batch_size: int, n_train: int) -> None:
    """Raise where a minibatch has too few cells for all processes."""
    if ranks is None or batch_size >= 2 * ranks.size:
        return
    most = n_train // 2
    more = f"batch_size={2 * ranks.size}, or " if 2 * ranks.size <= n_train else ""
    raise ConfigError(
        f"batch_size={batch_size}, but {ranks.size} processes share every minibatch, and each "
        f"needs two cells of it: {more}fewer processes"
        + ("" if more else f", {most} at most for {n_train} cells to train on")
    )


def agreed(dataset: Dataset | Datasets, ranks: Ranks | None) -> Dataset | Datasets:
    """Return the cells as all processes train on them. Of counts on disk, which the order of the
    cells depends on, each may hold as much as the one with the least memory.

    Raises ConfigError where some processes keep on disk what others hold in memory."""
    if ranks is None or isinstance(dataset, Datasets):
        return dataset  # the order of several kinds does not depend on where they are
    held = dataset.counts
    found = [one[0] for one in ranks.all_of([held.memory if isinstance(held, Shards) else -1])]
    least = min(found)
    if least == max(found) == -1:
        return dataset
    if least == -1:
        raise ConfigError(
            f"Process {found.index(-1)} of {ranks.size} holds the counts in memory, and process "
            f"{found.index(max(found))} leaves them on disk. Say to all how much they may take: "
            "scvae.on_disk(path, memory=2_000_000_000)"
        )
    assert isinstance(held, Shards)
    return replace(dataset, counts=replace(held, memory=least * ranks.size))
