"""Neighbours in an embedding, and their layout in two dimensions; the data stay as they are."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from scvae.arguments import check_name, check_seed
from scvae.data.read.genes import check_unique
from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def neighbors(adata: AnnData, key: str = "X_scvae", *, seed: int = 0) -> AnnData:
    """Return a copy of ``obs`` and ``obsm[key]`` alone, with the neighbour graph of the embedding.

    For `sc.tl.umap` and `sc.tl.leiden` without a trace in `adata`, whose counts are not copied.

    Parameters
    ----------
    adata
        Cells with the embedding in ``obsm[key]``.
    key
        Slot of the embedding.
    seed
        Of the neighbour search.

    Raises
    ------
    DataError
        If there is no such embedding.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=100, n_genes=30)
    >>> scvae.analysis.neighbors(adata, "z").obsp["connectivities"].shape
    (100, 100)
    """
    check_unique(adata)
    key, seed = check_name("key", key, "X_scvae"), check_seed(seed)
    if key not in adata.obsm:
        held = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise DataError(
            f"adata.obsm has no {key!r} (given as key); it holds: {held}. scvae.fit(adata) writes "
            "'X_scvae'."
        )
    import scanpy as sc
    from anndata import AnnData

    light = AnnData(obs=adata.obs.copy(), obsm={key: np.array(adata.obsm[key])})
    sc.pp.neighbors(light, use_rep=key, n_neighbors=min(15, light.n_obs - 1), random_state=seed)
    return light


def lay_out(graph: AnnData, *, seed: int = 0) -> AnnData:
    """Write ``obsm["X_umap"]`` to what `neighbors` returned, and return it.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=100, n_genes=30)
    >>> graph = scvae.analysis.neighbors(adata, "z")
    >>> scvae.analysis.lay_out(graph).obsm["X_umap"].shape
    (100, 2)
    """
    import scanpy as sc

    # The spectral start needs more cells than it has dimensions, by some margin.
    start = "spectral" if graph.n_obs > 15 else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn: a seed means one thread, which is meant
        sc.tl.umap(graph, init_pos=start, random_state=seed)
    return graph


def layout(adata: AnnData, key: str, recompute: bool, seed: int) -> np.ndarray:
    """Return the UMAP of an embedding, ``(n, 2)``: the one that `adata` holds, or a new one.

    Parameters
    ----------
    key
        Slot of the embedding.
    recompute
        Make a new one even if ``obsm["X_umap"]`` was made of this embedding.
    seed
        Of a new one.
    """
    if recompute or not _has_umap_of(adata, key):
        adata = lay_out(neighbors(adata, key, seed=seed), seed=seed)
    return np.asarray(adata.obsm["X_umap"])[:, :2]


def _has_umap_of(adata: AnnData, key: str) -> bool:
    if "X_umap" not in adata.obsm:
        return False
    made = adata.uns.get("neighbors")
    return made is None or made.get("params", {}).get("use_rep") == key
