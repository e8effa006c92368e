"""Kinds of features: genes are not fitted together with antibodies, peaks or guides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = ("feature_types", "feature_type", "modality")
# Words for what is no gene. Columns of these names also hold biotypes, which are all genes.
OTHERS = re.compile(
    r"antibod|antigen|^protein$|^proteins$|\badt\b|\bhto\b|hashtag|peak|atac|chromatin|crispr|guide"
    r"|sgrna|multiplex|^custom$|^prot$|vdj",
    re.IGNORECASE,
)
GENES = re.compile(r"gene|rna|gex", re.IGNORECASE)


def check_one_kind(adata: AnnData, genes: pd.Index) -> None:
    """Raise if features of other kinds stand beside genes among those to fit.

    Raises
    ------
    DataError
        With the kinds, and the call that keeps the genes.
    """
    for column in COLUMNS:
        if column not in adata.var:
            continue
        kinds = adata.var[column].reindex(genes).dropna().astype(str).value_counts()
        others = [kind for kind in kinds.index if OTHERS.search(kind)]
        if not others or len(kinds) < 2:
            continue
        of_genes = [kind for kind in kinds.index if GENES.search(kind) and kind not in others]
        wanted = (of_genes or list(kinds.index))[0]
        shown = ", ".join(f"{number:,} of {kind!r}" for kind, number in kinds.items())
        raise DataError(
            f"adata.var[{column!r}] has several kinds of features: {shown}. Their counts have "
            "nothing in common, and library sizes would be those of the largest; fit one kind: "
            f"adata = adata[:, adata.var[{column!r}] == {wanted!r}].copy()"
        )


# Control probes and spike-ins, peaks and antibodies, as their makers name them; what tools that
# count add to the genes; and columns of a table of cells that were read with those of genes.
CONTROLS = (
    r"(?:ERCC-\d+|[Ee]rcc-\d{5}|gSpikein[-_]|RNA[-_]SPIKE|ArrayControl|Antisense[-_]|NegControl|NegPrb"
    r"|Negative[-_ ]?\d+$|BLANK[-_ ]?|Blank[-_ ]?\d|Intergenic|DeprecatedCodeword"
    r"|UnassignedCodeword|SystemControl|FalseCode|DECOY|SIRV\d|antisense_"
    r"|(?:chr[\dXYM]+|(?:GL|KI|JH)\d+\.\d+)[:_-]\d+[_-]\d+$"
    r"|.*_TotalSeq|(?:ADT|HTO|Hashtag|antibody|sgRNA)[-_]|Hashtag\d"
    r"|__(?:no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)$"
    r"|N_(?:unmapped|multimapping|noFeature|ambiguous)$"
    r"|n(?:Count|Feature)_|(?:n_counts|n_genes|n_genes_by_counts|total_counts|Unnamed: \d+)$"
    r"|pct_counts_|percent[._]m)"
)
CONTROL_TYPES = re.compile(r"control|codeword|blank|spike", re.IGNORECASE)


def control_types(adata: AnnData, genes: pd.Index) -> tuple[str, dict[str, int]] | None:
    """Return the column of types and how many features to fit it calls controls, by their type; or
    None, if there are none."""
    for column in COLUMNS:
        if column in adata.var:
            types = adata.var[column].reindex(genes).dropna().astype(str).value_counts()
            found = {str(kind): int(n) for kind, n in types.items() if CONTROL_TYPES.search(kind)}
            if found:
                return column, found
    return None


def are_controls(names: pd.Index) -> np.ndarray:
    """Return whether every name is that of a control, or of a peak or antibody, ``(g,)``."""
    match = re.compile(CONTROLS).match
    return np.array([match(name) is not None for name in names.astype(str)], dtype=bool)
