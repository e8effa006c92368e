"""Whether the features are genes, by what the data say that they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvae.data.checkup.report import Finding, Kind
from scvae.data.read.features import COLUMNS, OTHERS
from scvae.data.read.several import kind_called

if TYPE_CHECKING:
    from anndata import AnnData


def no_genes(adata: AnnData) -> list[Finding]:
    """Find features that all are of one kind that is no gene, which are taken for genes."""
    for column in COLUMNS:
        kinds = adata.var[column].dropna().astype(str).unique() if column in adata.var else []
        if len(kinds) == 1 and OTHERS.search(kinds[0]):
            return [Finding("warning", Kind.CELLS_AND_GENES, _text(column, kinds[0]))]
    return []


def _text(column: str, kind: str) -> str:
    text = f"All features are {kind!r} (adata.var[{column!r}]) and are taken for genes, which "
    if (other := kind_called(kind)) is None:
        return f"{text}have another noise; there is no model of these."
    return (
        f"{text}have another noise. Take them for what they are: scvae.fit(adata, "
        f"modalities={other!r})"
    )
