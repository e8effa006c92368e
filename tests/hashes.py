"""What a matrix, a table and an AnnData hold, as hashes."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from typing import Any

from anndata import AnnData
from scipy import sparse


def digest(value: Any) -> str:
    if sparse.issparse(value):
        parts: list[Any] = [value.format, value.shape, value.data, value.indices, value.indptr]
    elif isinstance(value, Mapping):
        parts = [(key, digest(value[key])) for key in value]
    else:
        parts = [value]
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()


SLOTS = ("X", "obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns")


def digests(adata: AnnData, besides: tuple[str, ...] = ()) -> dict[str, str]:
    """Return a hash of everything in `adata`, without the named keys of obsm and uns."""
    found = {}
    for slot in SLOTS:
        value = getattr(adata, slot)
        if isinstance(value, Mapping):
            found |= {f"{slot}/{key}": digest(value[key]) for key in value if key not in besides}
        else:
            found[slot] = digest(value)
    return found
