"""Which genes a model is fitted on, and where they are in another AnnData."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvae.arguments import check_names, is_switch, shown
from scvae.data.read.forms import check_anndata
from scvae.data.read.marks import marks
from scvae.data.read.naming import other_names
from scvae.data.read.source import genes_of, is_raw
from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

FEW_NAMES = 20  # that a message lists
FOUND = "[gene for gene in genes if gene in adata.var_names]"


def check_unique(adata: AnnData) -> None:
    """Raise if `adata` is no AnnData, or gene names repeat: genes are matched by name."""
    check_anndata(adata)
    if odd := _no_text(adata.var_names):
        raise DataError(
            f"adata.var_names holds {shown(odd[0])}, which is no text; genes are matched by name: "
            "adata.var_names = adata.var_names.astype(str)"
        )
    if adata.var_names.is_unique:
        return
    repeated = adata.var_names[adata.var_names.duplicated()]
    raise DataError(
        f"adata.var_names has {len(repeated)} duplicated genes (first: {repeated[0]!r}); genes are "
        "matched by name, so names must be unique: adata.var_names_make_unique()"
    )


def _no_text(names: pd.Index) -> list[Any]:
    """Return the names that are no text."""
    if names.inferred_type == "string" and not names.hasnans:
        return []
    return [name for name in names if not isinstance(name, str)]


def choose_genes(
    adata: AnnData, genes: str | Sequence[Any] | None, layer: str | None = None
) -> np.ndarray | None:
    """Return positions of the genes to fit in the matrix that `layer` names, or None for all.

    Parameters
    ----------
    genes
        Name of a column of adata.var that marks them (such as "highly_variable"), a mask as long as
        adata has genes, or gene names; None takes those of adata.
    """
    check_unique(adata)
    names = _chosen(adata, genes)
    if names is None:
        names = list(adata.var_names)
    return match_genes(adata, names, layer, of="asked for")


def _chosen(adata: AnnData, genes: str | Sequence[Any] | None) -> list[str] | None:
    """Return the names of the genes to fit, or None for all."""
    if genes is None:
        return None
    if isinstance(genes, str):
        return _marked(adata, genes)
    if isinstance(genes, pd.DataFrame):
        raise DataError(
            f"genes is a table of {len(genes)} rows; genes are names or a column that marks them: "
            "scvae.fit(adata, genes=list(genes.index)), if its rows are named as they are"
        )
    if isinstance(genes, Iterator):
        genes = list(genes)
    if _is_mask(genes):
        return _masked(adata, genes)
    if isinstance(genes, int | np.integer):
        raise DataError(
            f"genes={shown(genes)} is a number; genes are a column that marks them, or names: "
            f"sc.pp.highly_variable_genes(adata, n_top_genes={shown(genes)}, flavor='seurat_v3') "
            "marks as many in adata.var, for genes='highly_variable'"
        )
    if _are_positions(genes, adata.n_vars):
        raise DataError(
            f"genes={shown(genes)} are numbers; genes are names: "
            "scvae.fit(adata, genes=adata.var_names[genes]) takes those at these positions"
        )
    names = check_names("genes", genes, ["CD3D", "CD8A"])
    if not names:
        raise DataError(
            "genes=[] is empty; a fit needs at least 2 genes. Leave it out to take all."
        )
    if len(names) == 1:
        raise DataError(f"genes={names} is one gene; a fit needs at least 2.")
    if len(set(names)) < len(names):
        raise DataError(
            f"genes={names[:9]} must hold each name once. "
            "Drop the repeats: genes=list(dict.fromkeys(genes))"
        )
    return names


def _marked(adata: AnnData, column: str) -> list[str]:
    if column not in adata.var:
        hint = (
            "; run sc.pp.highly_variable_genes(adata) first" if column == "highly_variable" else ""
        )
        if column in adata.var_names:
            hint = f"; it is a gene: genes=[{column!r}, ...]"
        elif near := get_close_matches(column, [str(name) for name in adata.var.columns], n=1):
            hint = f"; did you mean genes={near[0]!r}?"
        end = "" if hint.endswith("?") else "."
        raise DataError(f"adata.var has no column {column!r} (given as genes){hint}{end}")
    where = f"adata.var[{column!r}]"
    mask = marks(adata.var[column], where, "genes")
    if mask.sum() < 2:
        raise DataError(
            f"{where} must be boolean with at least two True; it has {mask.sum()} of {len(mask)}."
        )
    return list(adata.var_names[mask])


def _is_mask(genes: Any) -> bool:
    try:
        values = list(genes)
    except TypeError:
        return False
    return bool(values) and all(is_switch(value) or value is pd.NA for value in values)


def _are_positions(genes: Any, n: int) -> bool:
    """Return whether these are whole numbers that say where genes are."""
    if not isinstance(genes, list | tuple | range | np.ndarray | pd.Index):
        return False
    values = np.asarray(genes, dtype=object)
    return bool(
        values.ndim == 1
        and len(values)
        and all(isinstance(at, int | np.integer) and not is_switch(at) for at in values)
        and all(0 <= at < n for at in values)
    )


def _masked(adata: AnnData, genes: Any) -> list[str]:
    if len(genes) != adata.n_vars:
        raise DataError(
            f"genes is a mask of {len(genes)} values, but adata has {adata.n_vars} genes; give a "
            "value for each, or names: scvae.fit(adata, genes=adata.var_names[mask])"
        )
    if isinstance(genes, pd.Series) and set(genes.index) == set(adata.var_names):
        genes = genes[adata.var_names]  # by name, as pandas does
    mask = marks(pd.Series(list(genes), dtype=object), "genes", "genes")
    if mask.sum() < 2:
        raise DataError(f"genes is a mask with {mask.sum()} True; a fit needs at least 2 genes.")
    return list(adata.var_names[mask])


def match_genes(
    adata: AnnData, names: list[str], layer: str | None = None, *, of: str = "of the model"
) -> np.ndarray | None:
    """Return positions of `names` in the matrix that `layer` names, or None if they are its genes
    in its order."""
    there = unique_genes(adata, layer)
    if len(names) == len(there) and list(there) == names:
        return None
    positions = there.get_indexer(pd.Index(names))
    missing = [name for name, position in zip(names, positions, strict=True) if position < 0]
    if missing:
        raise DataError(lacking(adata, names, missing, of, layer))
    return positions


def unique_genes(adata: AnnData, layer: str | None) -> pd.Index:
    """Return the names of the columns of the matrix that `layer` names, each of which is once."""
    check_unique(adata)
    there = genes_of(adata, layer)
    if not there.is_unique:
        raise DataError(
            "adata.raw.var_names has duplicated genes; genes are matched by name. Make an AnnData "
            "of it with unique names: adata = adata.raw.to_adata(); adata.var_names_make_unique()"
        )
    return there


def lacking(
    adata: AnnData, names: list[str], missing: list[str], of: str, layer: str | None = None
) -> str:
    """Return the error of missing genes."""
    problem = (
        f"adata lacks {len(missing)} of the {len(names)} genes {of} (first: {missing[:5]}; adata's "
        f"own: {list(adata.var_names[:3])})"
    )
    if set(missing) <= set(adata.obs_names):
        return f"{problem}. They are in the rows, where cells belong: adata = adata.T.copy()"
    if is_raw(adata, layer):
        return (
            f"adata.raw lacks {len(missing)} of the {len(names)} genes {of} (first: {missing[:5]}; "
            f"its own: {list(adata.raw.var_names[:3])}). Keep those that it has: "
            "adata = adata[:, adata.var_names.isin(adata.raw.var_names)].copy()"
        )
    if of == "asked for":
        found = [name for name in names if name not in missing]
        if len(found) < 2:
            return f"{problem}. A fit needs at least 2; adata.var_names lists those it has."
        code = repr(found) if 1 < len(found) <= FEW_NAMES else FOUND
        return f"{problem}. Fit those that are there: scvae.fit(adata, genes={code})"
    others = other_names(adata, names, missing)
    if others is not None:
        return f"{problem}. {others}"
    if adata.raw is not None and set(missing) <= set(adata.raw.var_names):
        return f"{problem}. adata.raw has them, if it holds counts: model.embed(adata, layer='raw')"
    told = f"{problem}. Genes are matched by name, in any order; give data with all of them"
    if len(missing) == len(names):
        return told
    return f"{told}, or fit on the shared genes: scvae.fit(adata, genes=shared)"
