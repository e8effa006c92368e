"""Which genes a model is fitted on, and where they are in another AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.arguments import check_names
from scvae.data.read.forms import check_anndata
from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def check_unique(adata: AnnData) -> None:
    """Raise if `adata` is no AnnData, or gene names repeat: genes are matched by name."""
    check_anndata(adata)
    if adata.var_names.is_unique:
        return
    repeated = adata.var_names[adata.var_names.duplicated()]
    raise DataError(
        f"adata.var_names has {len(repeated)} duplicated genes (first: {repeated[0]!r}); genes are "
        "matched by name, so names must be unique: adata.var_names_make_unique()"
    )


def choose_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray | None:
    """Return positions of the genes to fit, or None for all.

    Parameters
    ----------
    genes
        Name of a boolean column of adata.var (such as "highly_variable"), or gene names.
    """
    check_unique(adata)
    if genes is None:
        return None
    if not isinstance(genes, str):
        names = check_names("genes", genes, ["CD3D", "CD8A"])
        if not names or len(set(names)) < len(names):
            raise DataError(
                f"genes={names[:9]} must hold at least one name, and each once. "
                "Drop the repeats: genes=list(dict.fromkeys(genes))"
            )
        return match_genes(adata, names)
    if genes not in adata.var:
        hint = (
            "; run sc.pp.highly_variable_genes(adata) first" if genes == "highly_variable" else ""
        )
        raise DataError(f"adata.var has no column {genes!r} (given as genes){hint}.")
    mask = adata.var[genes]
    if not pd.api.types.is_bool_dtype(mask) or mask.isna().any() or not mask.any():
        raise DataError(f"adata.var[{genes!r}] must be boolean with at least one True.")
    return np.flatnonzero(mask.to_numpy())


def match_genes(adata: AnnData, names: list[str]) -> np.ndarray | None:
    """Return positions of `names` in `adata`, or None if they are its genes in its order."""
    check_unique(adata)
    if len(names) == adata.n_vars and list(adata.var_names) == names:
        return None
    positions = adata.var_names.get_indexer(pd.Index(names))
    missing = [name for name, position in zip(names, positions, strict=True) if position < 0]
    if missing:
        raise DataError(
            f"adata lacks {len(missing)} of the {len(names)} genes of the model "
            f"(first: {missing[:5]}). Genes are matched by name, in any order; "
            "give data with all of them, or fit on the shared genes: "
            "scvae.fit(adata, genes=shared)"
        )
    return positions
