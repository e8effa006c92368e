"""Genes of a model in data that have only some of them: the others were not observed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.data.read.genes import lacking, unique_genes
from scvae.data.read.naming import other_names
from scvae.errors import DataError, warn

if TYPE_CHECKING:
    from anndata import AnnData

FEW = 0.5  # of the genes of a model: with fewer, what a cell is may not be told
ENSEMBL = re.compile(r"ENS([A-Z]*)G\d{6,}(\.\d+)?(_PAR_Y)?$")
TRANSCRIPT = re.compile(r"(?:ENS[A-Z]*T\d{6,}|[NX][MR]_\d+)")
MOST = 0.8  # of the names, to say how genes are written
WRITINGS: dict[str, Callable[[str], bool]] = {
    "Ensembl ids": lambda name: ENSEMBL.match(name) is not None,
    "transcripts": lambda name: TRANSCRIPT.match(name) is not None,
    "numbers": str.isdigit,
    "symbols in capitals, as of human": str.isupper,
    "symbols with one capital, as of mouse": lambda name: name[:1].isupper() and name[1:].islower(),
}


def observed_genes(adata: AnnData, names: Sequence[str], layer: str | None) -> np.ndarray:
    """Return which of the genes `names` are in the matrix that `layer` names, bool ``(g,)``.

    Raises
    ------
    DataError
        If there is none of them, or most of those that are missing are there under other names.
    """
    there = unique_genes(adata, layer)
    observed = np.asarray(pd.Index(names).isin(there))
    if observed.all():
        return observed
    missing = [name for name, is_there in zip(names, observed, strict=True) if not is_there]
    others = other_names(adata, names, missing)
    if not observed.any() or (observed.mean() < FEW and others is not None):
        error = lacking(adata, list(names), missing, "of the model")
        written = _written_otherwise(names, list(there)) if others is None else None
        raise DataError(f"{error}. {written}" if written else error)
    _tell(int(observed.sum()), names, missing, others)
    return observed


def _tell(n: int, names: Sequence[str], missing: list[str], others: str | None) -> None:
    """Say how many genes of the model are there, and `others`, of those that are by other names."""
    text = (
        f"adata has {n:,} of the model's {len(names):,} genes; the other {len(missing):,} (first: "
        f"{missing[:3]}) are taken as not observed"
    )
    if others is not None:
        warn(f"{text}. {others}")
        return
    if n < FEW * len(names):
        text += (
            ". With fewer than half of them, what a cell is may not be told: fit the model on the "
            "genes that both have, scvae.fit(reference, genes=shared)"
        )
    warn(text + ".")


def _written_otherwise(model: Sequence[str], data: Sequence[str]) -> str | None:
    """Say how the names of genes of a model and of data differ, if all do."""
    known, found = _writing(model), _writing(data)
    if known == found == "Ensembl ids" and not _species(model) & _species(data):
        return (
            f"The model's genes begin with {min(_species(model))}, adata's with "
            f"{min(_species(data))}: ids of another species, of which a model says little."
        )
    if known == found or None in (known, found):
        return None
    if "transcripts" in (known, found):
        return (
            f"The model's are {known}, adata's are {found}: add up the transcripts of every gene, "
            "as tximport does."
        )
    if {"Ensembl ids", "numbers"} & {known, found}:
        return f"The model's genes are {known}, adata's are {found}: give adata.var_names those."
    return (
        f"The model's genes are {known}, adata's are {found}: a model of one species says little "
        "of another, whose genes need not do the same."
    )


def _species(names: Sequence[str]) -> set[str]:
    """Return what the Ensembl ids among names begin with: ENSG of human, ENSMUSG of mouse."""
    found = (ENSEMBL.match(name) for name in names)
    return {f"ENS{match[1]}G" for match in found if match is not None}


def _writing(names: Sequence[str]) -> str | None:
    """Return how most of the names are written."""
    for what, way in WRITINGS.items():
        if sum(map(way, names)) > MOST * len(names):
            return what
    return None


def in_their_places(counts: sparse.csr_matrix, observed: np.ndarray) -> sparse.csr_matrix:
    """Return counts of the observed genes ``(n, o)`` among all, ``(n, g)``."""
    places = np.flatnonzero(observed).astype(counts.indices.dtype)
    arrays = (counts.data, places[counts.indices], counts.indptr)
    return sparse.csr_matrix(arrays, shape=(counts.shape[0], len(observed)))
