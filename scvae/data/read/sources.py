"""Where the counts of every kind of measurement are, and of which cells."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.errors import ConfigError, DataError, warn

if TYPE_CHECKING:
    from anndata import AnnData

FEATURES = {"rna": "gene", "protein": "protein", "chromatin": "region"}


@dataclass(frozen=True)
class Source:
    """Where the counts of one kind of measurement are.

    Attributes
    ----------
    kind
        "rna", "protein" or "chromatin".
    adata
        Cells that were measured, with the features of the kind.
    place
        What the user calls it: a modality, a kind of features, a slot of obsm; None where the data
        hold nothing else.
    written
        How the user writes it.
    rows
        Number of every cell of `adata` among all cells; None if it has them all, in order.
    observed
        True where an entry was measured, ``(n, g)``; None if all were.
    marked_by
        Name of the column or layer that marks what was measured, if one does.
    """

    kind: str
    adata: AnnData
    place: str | None = None
    written: str = "adata"
    rows: np.ndarray | None = None
    observed: np.ndarray | None = None
    marked_by: str | None = None

    def present(self, n: int) -> np.ndarray | None:
        """Return which of all n cells were measured; None if all were."""
        if self.rows is None or len(self.rows) == n:
            return None
        there = np.zeros(n, dtype=bool)
        there[self.rows] = True
        return there

    def widened(self, counts: sparse.csr_matrix, n: int) -> sparse.csr_matrix:
        """Return counts with a row for each of n cells, empty where it was not measured."""
        if self.rows is None:
            return counts
        of_cell = np.full(n, -1)
        of_cell[self.rows] = np.arange(len(self.rows))
        ordered = counts[of_cell[of_cell >= 0]]
        length = np.zeros(n, dtype=np.int64)
        length[of_cell >= 0] = np.diff(ordered.indptr)
        indptr = np.concatenate([[0], np.cumsum(length)])
        return sparse.csr_matrix((ordered.data, ordered.indices, indptr), (n, counts.shape[1]))

    def observed_of(self, n: int, columns: np.ndarray | None = None) -> np.ndarray | None:
        """Return which entries of all n cells were measured, of some columns in their order; None
        if all were."""
        if self.observed is None:
            return None
        observed = self.observed if columns is None else self.observed[:, columns]
        if self.rows is None:
            return observed
        of_all = np.zeros((n, observed.shape[1]), dtype=bool)
        of_all[self.rows] = observed
        return of_all

    def spread(self, sizes: np.ndarray, n: int) -> np.ndarray:
        """Return one size for each of n cells, a typical one where it was not measured."""
        if self.rows is None:
            return sizes
        typical = float(np.exp(np.log(sizes).mean())) if len(sizes) else 1.0
        of_all = np.full(n, typical, dtype=np.float64)
        of_all[self.rows] = sizes
        return of_all

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Let errors and warnings about an AnnData speak of what the user gave."""
        if self.place is None:
            yield
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except (DataError, ConfigError) as error:
                raise type(error)(self.retold(str(error))) from error
        for one in caught:
            warn(self.retold(str(one.message)))

    def retold(self, text: str) -> str:
        """Return words about an AnnData of genes as words about this."""
        whole = "mdata" if self.written.startswith("mdata") else "adata"
        text = re.sub(r"\blayer='(\w+)'", rf"layer={{'{self.kind}': '\1'}}", text)
        law = r"likelihood='bernoulli'"
        text = text.replace(law, "likelihood={'chromatin': 'bernoulli'}")
        text = re.sub(r"\bgene(s?)\b(?!=)", rf"{FEATURES[self.kind]}\1", text)
        text = re.sub(r"(?<!filter_genes)(?<!filter_cells)(?<!isnan)\(adata", "(\0", text)
        if ".obsm" in self.written:
            text = text.replace("adata.X", self.written)
        text = re.sub(r"\badata\b(?!\.obsm)", self.written, text)
        return text.replace("(\0", f"({whole}")


@dataclass(frozen=True)
class Sources:
    """All that is measured of some cells.

    Attributes
    ----------
    obs
        What is known of all cells, which may be measured in some of the kinds.
    parts
        Where every kind is.
    notes
        What was taken for what, where its name did not say it.
    """

    obs: pd.DataFrame
    parts: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.obs)
