"""How model files of older formats become those of today; one step a format.

Format 1 had no checksums, named the record "summary", and kept the weight of the encoder's first
layer as ``(n_hidden, n_in)``. Its earliest files do not name the prior, which was N(0, I) then; a
history in it does not speak of interruptions and rollbacks, of which there were none.

Format 2 had a linear map of the latent space as its embedding, which stays what it was.

A new format needs a higher `scvae.io.FORMAT`, a step here, and a small file in ``tests/files``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scvae.io import Contents, Migration

FIRST_WEIGHT = "posterior.hidden.layers.0.weight"


def migrate_1_to_2(tensors: dict[str, Tensor], content: dict[str, Any]) -> Contents:
    """Return the contents of a file of format 1 as format 2 has them."""
    architecture = {"prior": "normal", **content["architecture"]}
    record = dict(content.get("summary", {}))
    if "history" in record:
        record["history"] = {"interrupted": False, "rollbacks": [], **record["history"]}
    weight = tensors[FIRST_WEIGHT].t().contiguous()
    rest = {name: value for name, value in content.items() if name != "summary"}
    return (
        {**tensors, FIRST_WEIGHT: weight},
        {**rest, "architecture": architecture, "record": record},
    )


def migrate_2_to_3(tensors: dict[str, Tensor], content: dict[str, Any]) -> Contents:
    """Return the contents of a file of format 2 as format 3 has them."""
    weights = dict(tensors)
    axes = {"embedding.coordinates.axes": weights.pop("axes")}
    return {**weights, **axes}, {**content, "embedding": {"coordinates": "latent", "clusters": 0}}


MIGRATIONS: dict[int, Migration] = {1: migrate_1_to_2, 2: migrate_2_to_3}
