"""The development sets: real counts with labels, the same 2,000 genes for every method."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SCVAE_DATA", HERE.parent.parent / "shared" / "data"))
WORK = HERE / "work"

SETS = (
    "pbmc_facs",
    "baron_human1",
    "pbmc3k",
    "pbmc4k_scdcc",
    "paul15_myeloid",
    "worm_embryo_sub",
    "kang_ifnb",
    "pbmc_6batch",
)


def load(name: str, *, whole: bool = False) -> anndata.AnnData:
    """Return one set, its highly variable genes alone, or the whole of it."""
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        raise SystemExit(f"{path} is not there; set SCVAE_DATA to the folder of the sets.")
    adata = anndata.read_h5ad(path)
    return adata if whole or "hvg" not in adata.var else adata[:, adata.var["hvg"]].copy()


def batch_column(adata: anndata.AnnData) -> str | None:
    """Return "batch" where there is more than one."""
    return "batch" if "batch" in adata.obs and adata.obs["batch"].nunique() > 1 else None


def held_out(name: str, n: int) -> np.ndarray:
    """Return the held-out rows that every method shares: the peer's own, where it has run."""
    path = WORK / f"{name}.held_out.npy"
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        np.save(path, np.random.default_rng(0).permutation(n)[: n // 10])
    rows: np.ndarray = np.load(path)
    return rows
