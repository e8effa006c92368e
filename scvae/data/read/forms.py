"""What holds cells and genes but is no AnnData in memory, and the call that makes one of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from scvae.data.read.paths import what_reads
from scvae.errors import DataError

IN_A_FILE = "adata = adata.to_memory()"
MAKE_ONE = "adata = anndata.AnnData(counts), or anndata.read_h5ad(path)"
# Of anndata's objects that are none, by the names of their classes.
COUSINS = {
    "Raw": "adata = adata.raw.to_adata()",
    "AnnCollection": "adata = collection[:].to_adata()",
    "AnnCollectionView": "adata = view.to_adata()",
}
OF_GENES = ("rna", "gex", "gene_expression", "gene expression", "expression", "mrna")


def is_anndata(adata: object) -> bool:
    """Return whether `adata` is one, or holds named cells and genes as one does."""
    return _remedy(adata) is None


def check_anndata(adata: object) -> None:
    """Raise unless `adata` is one; names the call that makes one of what it is."""
    remedy = _remedy(adata)
    if remedy is not None:
        what = "class" if isinstance(adata, type) else type(adata).__name__
        if remedy == IN_A_FILE:
            raise DataError(f"adata is opened lazily; its cells are needed in memory: {remedy}")
        raise DataError(f"adata is a {what}; an AnnData is needed: {remedy}")


def _remedy(adata: Any) -> str | None:
    """Return the call that makes an AnnData of `adata`, or None if it is one."""
    name = type(adata).__name__
    if isinstance(adata, str | os.PathLike):
        return what_reads(str(os.fspath(adata)))
    if isinstance(adata, type):
        return MAKE_ONE
    if adata is None:
        return f"{MAKE_ONE}. Functions that change adata in place return None: leave 'adata =' out"
    if isinstance(adata, pd.DataFrame):
        return "adata = anndata.AnnData(adata)"
    if _are_several(adata):
        return "adata = anndata.concat(adata, label='batch', index_unique='-')"
    if type(adata).__module__.startswith("anndata.") and name in COUSINS:
        return COUSINS[name]
    if isinstance(getattr(adata, "mod", None), Mapping):
        return _of_modalities(adata)
    if not (hasattr(adata, "var_names") and hasattr(adata, "obs_names")):
        return MAKE_ONE
    is_here = isinstance(adata.obs, pd.DataFrame) and isinstance(adata.var, pd.DataFrame)
    return None if is_here else IN_A_FILE


def _are_several(data: Any) -> bool:
    """Return whether these are several AnnData, which make one."""
    parts = list(data.values()) if isinstance(data, dict) else data
    return isinstance(parts, list | tuple) and bool(parts) and all(map(is_anndata, parts))


def _of_modalities(mdata: Any) -> str:
    """Return the call that takes the genes of several kinds of measurement."""
    names = list(mdata.mod)
    genes = next((name for name in names if str(name).lower() in OF_GENES), None)
    if genes is None and len(names) == 1:
        genes = names[0]
    if genes is not None:
        return f"adata = mdata[{genes!r}]"
    return f"adata = mdata[...], with the one of the genes; it holds {names}"
