"""The labelled cells in a model's file: a section of its own, without counts.

Nothing of it is trusted before it is checked; every function raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scvae.data.read.labels import UNLABELLED
from scvae.io import shown
from scvae.models.keep.weights import LARGEST, LARGEST_LOG_LIBRARY
from scvae.models.label.reference import Reference
from scvae.models.network import Architecture

SECTION = "reference"  # of the header, and with a dot before the names of its tensors
TEXTS = ("column", "names", "parents", "colours")
LEAST = "least_temperature"  # not written where it is 0, as in files of before it
TENSORS = ("loc", "scale", "label", "batch", "log_px", "log_library", "expression")
HEX = re.compile(r"#[0-9a-f]{6}")
HIGHEST = 8.0  # temperature
LEAST_SCALE = torch.finfo(torch.float32).tiny


def describe_reference(reference: Reference) -> dict[str, Any]:
    """Return what the header says of a reference."""
    texts = {name: getattr(reference, name) for name in TEXTS}
    least = reference.least_temperature
    return texts | {LEAST: least} if least else texts


def reference_tensors(reference: Reference) -> dict[str, Tensor]:
    """Return its tensors by their names in a file."""
    return {f"{SECTION}.{name}": getattr(reference, name) for name in TENSORS}


def take_reference(
    tensors: dict[str, Tensor], content: dict[str, Any]
) -> tuple[dict[str, Tensor], Any]:
    """Take the section out of the contents of a file, and return it."""
    start = f"{SECTION}."
    names = [name for name in tensors if name.startswith(start)]
    own = {name.removeprefix(start): tensors.pop(name) for name in names}
    return own, content.pop(SECTION, None)


def read_reference(tensors: Mapping[str, Tensor], fields: Any, a: Architecture) -> Reference | None:
    """Return the reference of a section, if there is one and it can be one of such a model."""
    if fields is None and not tensors:
        return None
    if not isinstance(fields, dict) or sorted({**fields, LEAST: 0.0}) != sorted((*TEXTS, LEAST)):
        raise ValueError(f"its reference is described by {shown(fields)}")
    least = fields.get(LEAST, 0.0)
    if type(least) is not float or not 0 <= least <= HIGHEST:
        raise ValueError(f"its reference has {LEAST}={shown(least)}")
    if sorted(tensors) != sorted(TENSORS):
        raise ValueError(f"its reference has the tensors {sorted(tensors)}")
    _check_texts(fields)
    _check_tensors(tensors, a, len(fields["names"]))
    return Reference(**{**fields, **tensors})


def _check_texts(fields: Mapping[str, Any]) -> None:
    names = fields["names"]
    if not isinstance(fields["column"], str) or not _are_texts(names) or len(names) < 2:
        raise ValueError("its reference has no column or fewer than two labels")
    if len(set(names)) < len(names):
        raise ValueError("its reference has a label twice")
    for name in ("parents", "colours"):
        given = fields[name]
        if given is not None and (not _are_texts(given) or len(given) != len(names)):
            raise ValueError(f"its reference has {name} that are not one a label")
    if not all(HEX.fullmatch(colour) for colour in fields["colours"] or []):
        raise ValueError("its reference has colours that are none")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _check_tensors(tensors: Mapping[str, Tensor], a: Architecture, n_labels: int) -> None:
    if a.rna is None or len(a.parts) > 1:
        raise ValueError("its reference is of RNA, but the model is not, or not alone")
    n, real, whole = tensors["label"].numel(), torch.float32, torch.int64
    expected = {
        "loc": ((n, a.n_latent), real, -LARGEST, LARGEST),
        "scale": ((n, a.n_latent), real, LEAST_SCALE, LARGEST),
        "label": ((n,), whole, UNLABELLED, n_labels - 1),
        "batch": ((n,), whole, 0, a.n_batches - 1),
        "log_px": ((n,), real, -1e12, 1e12),
        "log_library": ((n,), real, -LARGEST_LOG_LIBRARY, LARGEST_LOG_LIBRARY),
        "expression": ((n_labels, a.rna.n_genes), real, 0, 1.001),
    }
    for name, (shape, dtype, least, most) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"its reference has {name} of shape {tuple(tensor.shape)}")
        if tensor.numel() and not (least <= tensor.min() and tensor.max() <= most):
            raise ValueError(f"its reference has {name} outside {least:g} to {most:g}")
    sizes = torch.bincount(tensors["label"][tensors["label"] >= 0], minlength=n_labels)
    if (sizes < 2).any():
        raise ValueError("its reference has a label of fewer than two cells")
