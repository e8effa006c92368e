"""What holds cells and genes but is no AnnData in memory, and the call that makes one of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

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
        return _of_path(os.fspath(adata))
    if isinstance(adata, type):
        return MAKE_ONE
    if type(adata).__module__.startswith("anndata.") and name in COUSINS:
        return COUSINS[name]
    if isinstance(getattr(adata, "mod", None), Mapping):
        return _of_modalities(adata)
    if not (hasattr(adata, "var_names") and hasattr(adata, "obs_names")):
        return MAKE_ONE
    is_here = isinstance(adata.obs, pd.DataFrame) and isinstance(adata.var, pd.DataFrame)
    return None if is_here else IN_A_FILE


def _of_path(path: str | bytes) -> str:
    """Return the call that reads a file of this name."""
    name = str(path).lower().rstrip("/")
    readers = {
        ".h5": "scanpy.read_10x_h5",
        ".zarr": "anndata.read_zarr",
        ".h5mu": "mudata.read_h5mu",
        ".loom": "anndata.io.read_loom",
    }
    reader = next((call for end, call in readers.items() if name.endswith(end)), None)
    return f"adata = {reader or 'anndata.read_h5ad'}({path!r})"


def _of_modalities(mdata: Any) -> str:
    """Return the call that takes the genes of several kinds of measurement."""
    names = list(mdata.mod)
    genes = next((name for name in names if str(name).lower() in OF_GENES), None)
    if genes is None and len(names) == 1:
        genes = names[0]
    if genes is not None:
        return f"adata = mdata[{genes!r}]"
    return f"adata = mdata[...], with the one of the genes; it holds {names}"
