"""How model files of older formats become those of today; one step a format.

Format 1 had no checksums, named the record "summary", and kept the weight of the encoder's first
layer as ``(n_hidden, n_in)``. Its earliest files do not name the prior, which was N(0, I) then; a
history in it does not speak of interruptions and rollbacks, of which there were none.

Format 2 had a linear map of the latent space as its embedding, which stays what it was, and one
weight in every layer for activations and covariates side by side.

Format 3 decoded all genes for the embedding, and did not say which.

Format 4 knew RNA alone, and said what it is of it among what all kinds of measurement share.

Format 5 took components of logarithms alone, and called them those of expression.

Formats 1 and 2 numbered the container by the same number. A new format needs a higher `FORMAT` and
a step here, and a small file in ``tests/files``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from scvae.io import Contents, Migration

FORMAT = 6  # of models and checkpoints; `scvae.io` has a number of its own for the container
GENES, LOADINGS = "embedding.coordinates.genes", "embedding.coordinates.loadings"
FIRST_WEIGHT = "posterior.hidden.layers.0.weight"
LAYER_WEIGHT = re.compile(r"(posterior|likelihood)\.hidden\.layers\.\d+\.weight")


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
    architecture = content["architecture"]
    n_covariates = {
        "posterior": architecture["n_covariates"] if architecture["encode_covariates"] else 0,
        "likelihood": architecture["n_covariates"],
    }
    weights = {name: value for name, value in tensors.items() if name != "axes"}
    for name in tensors:
        layer = LAYER_WEIGHT.fullmatch(name)
        if layer and n_covariates[layer[1]]:
            weights |= _split(name, tensors[name], n_covariates[layer[1]])
    axes = {"embedding.coordinates.axes": tensors["axes"]}
    return {**weights, **axes}, {**content, "embedding": {"coordinates": "latent", "clusters": 0}}


def migrate_3_to_4(tensors: dict[str, Tensor], content: dict[str, Any]) -> Contents:
    """Return the contents of a file of format 3 as format 4 has them."""
    spec, loadings = content["embedding"], tensors.get(LOADINGS)
    if loadings is None:
        return tensors, {**content, "embedding": {**spec, "genes": 0}}
    genes = len(loadings) + content["architecture"]["outside"]  # whose share has no weight
    padded = torch.nn.functional.pad(loadings, (0, 0, 0, genes - len(loadings)))
    whole = {LOADINGS: padded, GENES: torch.arange(genes)}
    return {**tensors, **whole}, {**content, "embedding": {**spec, "genes": genes}}


OF_RNA = ("n_genes", "likelihood", "dispersion", "latent_library", "outside")


def migrate_4_to_5(tensors: dict[str, Tensor], content: dict[str, Any]) -> Contents:
    """Return the contents of a file of format 4 as format 5 has them."""
    shared, origin = dict(content["architecture"]), dict(content["origin"])
    rna = {name: shared.pop(name) for name in OF_RNA}
    names, layer, size = (origin.pop(name) for name in ("genes", "layer", "library_size"))
    part = {"names": names, "layer": layer, "library_size": size, "place": None}
    architecture = {"parts": {"rna": rna}, **shared, "fusion": "product"}
    origin = {"parts": {"rna": part}, "counts": "whole", **origin}
    return tensors, {**content, "architecture": architecture, "origin": origin}


def migrate_5_to_6(tensors: dict[str, Tensor], content: dict[str, Any]) -> Contents:
    """Return the contents of a file of format 5 as format 6 has them."""
    spec = content["embedding"]
    if spec["coordinates"] == "expression":
        spec = {**spec, "coordinates": "logs"}
    return tensors, {**content, "embedding": spec}


def _split(name: str, weight: Tensor, n_covariates: int) -> dict[str, Tensor]:
    """Return W and V of one weight of activations, then covariates."""
    inputs = 0 if name == FIRST_WEIGHT else 1
    w, v = weight.split([weight.shape[inputs] - n_covariates, n_covariates], inputs)
    rows = v if inputs == 0 else v.t()
    covariate_weight = name.removesuffix("weight") + "covariate_weight"
    return {name: w.contiguous(), covariate_weight: rows.contiguous()}


MIGRATIONS: dict[int, Migration] = {
    1: migrate_1_to_2,
    2: migrate_2_to_3,
    3: migrate_3_to_4,
    4: migrate_4_to_5,
    5: migrate_5_to_6,
}
