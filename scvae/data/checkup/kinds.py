"""Whether the features are genes, by what the data say that they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvae.data.checkup.report import Finding, Kind
from scvae.data.read.features import COLUMNS, OTHERS, control_types
from scvae.data.read.several import kind_called

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def no_genes(adata: AnnData) -> list[Finding]:
    """Find features that all are of one kind that is no gene, which are taken for genes."""
    for column in COLUMNS:
        kinds = adata.var[column].dropna().astype(str).unique() if column in adata.var else []
        if len(kinds) == 1 and OTHERS.search(kinds[0]):
            return [Finding("warning", Kind.CELLS_AND_GENES, _text(column, kinds[0]))]
    return []


def controls_beside(adata: AnnData, genes: pd.Index) -> list[Finding]:
    """Find controls beside the genes to fit, by what the data say that they are."""
    found = control_types(adata, genes)
    if found is None:
        return []
    column, types = found
    shown = ", ".join(f"{number:,} of {kind!r}" for kind, number in types.items())
    text = (
        f"adata.var[{column!r}] calls features controls: {shown}; their counts do not say what a "
        f"cell is. Leave them out: adata = adata[:, ~adata.var[{column!r}].isin({list(types)})]"
        ".copy()"
    )
    return [Finding("warning", Kind.CONTROLS, text)]


def _text(column: str, kind: str) -> str:
    text = f"All features are {kind!r} (adata.var[{column!r}]) and are taken for genes, which "
    if (other := kind_called(kind)) is None:
        return f"{text}have another noise; there is no model of these."
    return (
        f"{text}have another noise. Take them for what they are: scvae.fit(adata, "
        f"modalities={other!r})"
    )
