"""Proteins and chromatin of simulated cells, of the same latent vectors as their RNA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.arguments import is_number, refuse, shown
from scvae.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("rna", "protein", "chromatin")
SPREAD = 0.3  # of the log background of a protein over cells
DISPERSION = 10.0  # inverse, of proteins
DEPTH = 0.2  # fragments a region


def check_kinds(modalities: Any, missing: Any) -> tuple[list[str], float]:
    """Return the kinds asked for, in their order, and the share of cells without each."""
    given = [modalities] if isinstance(modalities, str) else modalities
    is_list = isinstance(given, list | tuple) and len(given) > 0
    if not is_list or not all(isinstance(kind, str) and kind in KINDS for kind in given):
        raise ConfigError(
            f"modalities={shown(modalities)}, but they are some of {list(KINDS)}: "
            "modalities=['rna', 'protein']"
        )
    if not is_number(missing) or not 0 <= missing < 1:
        raise refuse("missing", missing, "a share of the cells, from 0 to below 1", 0.3)
    return [kind for kind in KINDS if kind in given], float(missing)


def measured(
    rna: AnnData, kinds: list[str], n_proteins: int, n_regions: int, missing: float, seed: int
) -> Any:
    """Return a MuData of the cells of `rna` in several kinds."""
    from anndata import AnnData
    from mudata import MuData

    rng = np.random.default_rng([seed, 1])
    z, batches = rna.obsm["z"].astype(np.float64), rna.obs["batch"].cat.codes.to_numpy()
    obs = rna.obs[["cell_type", "batch"]]
    makers = {"protein": (_proteins, n_proteins), "chromatin": (_regions, n_regions)}
    parts = {}
    for kind in kinds:
        if kind == "rna":
            parts[kind] = rna
            continue
        make, n_features = makers[kind]
        x, var, layers = make(rng, z, batches, n_features)
        counts = sparse.csr_matrix(x.astype(np.float32))
        parts[kind] = AnnData(counts, obs.copy(), var, layers=layers)
    absent = _absent(rng, rna.n_obs, len(kinds), missing)
    held = {kind: parts[kind][~absent[:, i]].copy() for i, kind in enumerate(kinds)}
    mdata = MuData(held)  # which has an order of its own where cells lack a kind
    of_rna = rna.obs_names.get_indexer(mdata.obs_names)
    mdata.obs = obs.iloc[of_rna].copy()
    mdata.obsm["z"], mdata.uns["truth"] = rna.obsm["z"][of_rna], rna.uns["truth"]
    return mdata


def _absent(rng: np.random.Generator, n: int, m: int, share: float) -> np.ndarray:
    """Return which kinds cells lack, ``(n, m)``: never all, and no kind by more than its share."""
    absent = rng.random((n, m)) < share
    everything = absent.all(axis=1)
    absent[everything, rng.integers(m, size=int(everything.sum()))] = False
    return absent


def _proteins(
    rng: np.random.Generator, z: np.ndarray, batches: np.ndarray, g: int
) -> tuple[np.ndarray, pd.DataFrame, dict[str, np.ndarray]]:
    """Return counts of proteins, of background or of foreground by the latent vector."""
    n, n_batches = len(z), int(batches.max()) + 1
    loc = rng.normal(1.5, 0.5, g) + 0.3 * rng.normal(size=(n_batches, g))
    fold = rng.uniform(2.0, 3.5, g)
    direction = rng.normal(size=(z.shape[1], g)) / np.sqrt(z.shape[1])
    odds = 4 * (z @ direction) - rng.uniform(0.0, 2.0, g)
    is_foreground = rng.random((n, g)) < 1 / (1 + np.exp(-odds))
    log_mean = loc[batches] + SPREAD * rng.normal(size=(n, g)) + fold * is_foreground
    counts = rng.poisson(np.exp(log_mean) * rng.gamma(DISPERSION, 1 / DISPERSION, (n, g)))
    var = pd.DataFrame(
        {"background": loc.mean(0), "log_fold": fold}, index=[f"protein_{i}" for i in range(g)]
    )
    return counts, var, {"foreground": is_foreground, "mean": np.exp(log_mean).astype(np.float32)}


def _regions(
    rng: np.random.Generator, z: np.ndarray, batches: np.ndarray, g: int
) -> tuple[np.ndarray, pd.DataFrame, dict[str, np.ndarray]]:
    """Return fragments in regions: Poisson, of a share of the depth by the latent vector."""
    logits = rng.normal(size=g) + z @ (0.7 * rng.normal(size=(z.shape[1], g)))
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    depth = DEPTH * g * np.exp(0.3 * rng.normal(size=(len(z), 1)))
    counts = rng.poisson(depth * share)
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    counts[empty, share[empty].argmax(axis=1)] = 1
    names = [f"chr1_{1000 * i}_{1000 * i + 500}" for i in range(g)]
    return counts, pd.DataFrame(index=names), {"accessibility": share.astype(np.float32)}
