"""The tensors of a model's file: which must be there, of which shape, type and values.

The shapes are those of the network on torch's meta device, whose tensors take no memory: a header
cannot have weights made that the file does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from scvae.io import shown
from scvae.models.embedding import EmbeddingSpec
from scvae.models.network import Architecture, blank_vae, widths_of

EMBEDDING = "embedding."  # before the names of the embedding's tensors, beside the weights
GENES, PATTERNS = f"{EMBEDDING}coordinates.genes", f"{EMBEDDING}patterns.kinds"
OF_A_LAYER = 14  # tensors at least: two of it and five of its norm, in encoder and decoder
COUNTER = "num_batches_tracked"
LARGEST = 1e7  # of any trained value: their products over two layers stay within float32
POSITIVE = ("library_scale", "size_scale", "alignment.variance", "coordinates.unit", ".scale")
LARGEST_LOG_LIBRARY = 60.0  # 1e26 transcripts of a cell

Shape = tuple[int, ...]
Shapes = Iterator[tuple[str, Shape]]


def expected_shapes(a: Architecture, embedding: EmbeddingSpec) -> dict[str, Shape]:
    """Return the shape of every tensor in a model's file, by its name."""
    of_embedding = {EMBEDDING + name: shape for name, shape in _embedding(a, embedding)}
    return {**of_embedding, **weight_shapes(a)}


def _embedding(a: Architecture, spec: EmbeddingSpec) -> Shapes:
    if spec.coordinates == "latent":
        yield "coordinates.axes", (a.n_latent, a.n_latent)
    else:
        yield "coordinates.genes", (spec.genes,)
        if spec.coordinates == "roots":
            yield "coordinates.unit", (spec.genes,)
        yield "coordinates.loadings", (spec.genes, a.n_latent)
        yield "coordinates.centre", (a.n_latent,)
        yield "coordinates.covariates", (a.n_covariates,)
    if spec.clusters:
        yield "alignment.log_weight", (spec.clusters,)
        groups = a.n_batches * max(1, spec.patterns)
        yield "alignment.centre", (spec.clusters, groups, a.n_latent)
        yield "alignment.variance", (spec.clusters,)
        yield "alignment.offset", (spec.clusters, groups, a.n_latent)
        yield "alignment.strength", ()
    if spec.patterns:
        yield "patterns.kinds", (spec.patterns, len(a.parts))


def weight_shapes(a: Architecture) -> dict[str, Shape]:
    """Return the shape of every tensor of the network, by its name."""
    with torch.device("meta"):
        vae = blank_vae(a)
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}


def check_model(tensors: Mapping[str, Tensor], a: Architecture, embedding: EmbeddingSpec) -> None:
    """Raise ValueError unless `tensors` are those of a model of this architecture."""
    of_a_layer = OF_A_LAYER // (2 if a.rna is not None and a.rna.linear else 1)
    if of_a_layer * a.n_layers > len(tensors):  # before they are built
        raise ValueError(f"{a.n_layers} layers would need more than its {len(tensors)} tensors")
    check_tensors(tensors, expected_shapes(a, embedding))
    genes = tensors.get(GENES)
    if genes is not None and int(genes.max()) >= (n := sum(widths_of(a))):
        raise ValueError(f"{GENES} has number {int(genes.max())}, but there are {n} features")


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> None:
    """Raise ValueError unless `tensors` have these names and shapes, and possible values."""
    for name in shapes.keys() - tensors.keys():
        raise ValueError(f"it lacks the tensor {name}")
    for name in tensors.keys() - shapes.keys():
        raise ValueError(f"it has an unknown tensor {shown(name)}")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, shapes[name])


def _check_tensor(name: str, tensor: Tensor, shape: Shape) -> None:
    dtype = torch.int64 if _is_whole(name) else torch.float32
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} of {tensor.dtype}, "
            f"but the network's has {shape} of {dtype}"
        )
    least, most = _range(name)
    if tensor.numel() and not (least <= tensor.min() and tensor.max() <= most):  # NaN is neither
        raise ValueError(f"{name} has values that are not finite, or outside {least:g} to {most:g}")


def _is_whole(name: str) -> bool:
    return name in (GENES, PATTERNS) or name.endswith(COUNTER)


def _range(name: str) -> tuple[float, float]:
    """Return the least and the largest value of a tensor."""
    if name == PATTERNS:
        return 0, 1
    if _is_whole(name):
        return 0, 2**62
    if name.endswith("running_var"):
        return 0, torch.finfo(torch.float32).max
    if name.endswith(POSITIVE):
        return torch.finfo(torch.float32).tiny, LARGEST
    if name == f"{EMBEDDING}alignment.strength":
        return 0, 1
    if name.endswith(("library_loc", "size_loc", ".log_target")):
        return -LARGEST_LOG_LIBRARY, LARGEST_LOG_LIBRARY
    return -LARGEST, LARGEST
