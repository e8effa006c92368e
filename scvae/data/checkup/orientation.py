"""Whether cells are where they belong, in the rows: by names that only genes or cells have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.data.checkup.report import Finding, Kind

if TYPE_CHECKING:
    from anndata import AnnData

LOOKED_AT = 2_000  # names, evenly spread
MOST, FEWEST = 0.5, 5  # share of the names; names that nearly every set of genes has
IDS = re.compile(
    r"(?:ENS[A-Z]*G\d{11}|FBgn\d{7}|WBGene\d{8}|AT[1-5CM]G\d{5}|Y[A-P][LR]\d{3}[CW])(?:\W|_|$)",
    re.IGNORECASE,
)
BARCODES = re.compile(r"(?:^|[^A-Za-z])[ACGTN]{8,}(?:$|[^A-Za-z])")
EVERYWHERE = re.findall(
    r"\S+",
    """ACTB ACTG1 B2M EEF1A1 EEF2 FTH1 FTL GAPDH HSP90AB1 HSPA8 MALAT1 NACA PTMA TMSB10 TMSB4X TPT1
    UBA52 UBC YBX1 MT-CO1 MT-CO2 MT-CO3 MT-CYB MT-ND1 MT-ND2 MT-ND4 RPL3 RPL5 RPL8 RPL13 RPL32
    RPLP0 RPLP1 RPS2 RPS3 RPS6 RPS14 RPS18 RPS27""",
)
# As human genes are written, and those of the mouse and of fish.
GENES = frozenset(
    name for gene in EVERYWHERE for name in (gene, gene.capitalize(), gene.lower())
) | frozenset(gene.capitalize().replace("Mt-", "mt-") for gene in EVERYWHERE)


def turned(adata: AnnData) -> list[Finding]:
    """Find genes in the rows, where cells belong, with the call that turns the matrix."""
    rows, columns = adata.obs_names, adata.var_names
    if _are_genes(rows) and not _are_genes(columns):
        what = f"rows named as genes are (first: {rows[0]!r})"
    elif _share(columns, BARCODES) >= MOST > _share(rows, BARCODES):
        what = f"columns named as cells are, by barcodes (first: {columns[0]!r})"
    else:
        return []
    text = (
        f"adata has {adata.n_obs:,} rows and {adata.n_vars:,} columns, with {what}. Cells belong "
        "in the rows, genes in the columns; a model of this would embed genes. Turn it: "
        "adata = adata.T.copy()"
    )
    return [Finding("warning", Kind.ORIENTATION, text)]


def _are_genes(names: pd.Index) -> bool:
    return _share(names, IDS) >= MOST or int(names.isin(GENES).sum()) >= FEWEST


def _share(names: pd.Index, pattern: re.Pattern[str]) -> float:
    """Return the share of names, of some evenly spread, that are of this kind."""
    places = np.unique(np.linspace(0, max(len(names) - 1, 0), LOOKED_AT).astype(int))
    some = names[places[: len(names)]].astype(str)
    return float(np.mean([pattern.search(name) is not None for name in some])) if len(some) else 0.0
