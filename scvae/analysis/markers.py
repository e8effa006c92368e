"""Genes that mark a group of cells, in every batch: ranked by effect, without p."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvae.analysis.samples import Samples, csr, mean_amounts, names_of, sum_samples
from scvae.arguments import check_name, check_seed, check_whole
from scvae.errors import DataError
from scvae.models.fitted import Fitted

if TYPE_CHECKING:
    from anndata import AnnData

FLOOR = 1e-5  # of a share, added: 0.1 of 10,000 counts is about what one can tell from none


def markers(
    model: Fitted,
    adata: AnnData,
    groups: str,
    *,
    batch: str | None = None,
    min_cells: int = 10,
    layer: str | None = None,
    key_added: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Return genes that mark every group against the rest and against the group nearest to it.

    .. math:: \mathrm{score}_{gc} = \min_b \min\Big(
              \log_2 \frac{\bar\rho_{cb}}{\frac{1}{C-1}\sum_{c'\ne c}\bar\rho_{c'b}},\;
              \log_2 \frac{\bar\rho_{cb}}{\bar\rho_{n(c)b}}\Big)

    of denoised shares, means over the cells of a group in a batch. The least over batches: a gene
    that marks the group in one batch alone is none. There is no p: groups made of the same counts
    differ in some genes always (Neufeld et al., "Inference after latent variable estimation for
    single-cell RNA sequencing data", Biostatistics 2022).

    Parameters
    ----------
    model
        A fitted model.
    adata
        Cells with raw counts of its genes.
    groups
        Column of ``obs``: types or clusters.
    batch
        Column over which the effect must hold: batches or donors; None takes the model's batch.
    min_cells
        Of a group in a batch that has a say.
    layer
        Where the counts are; as for `Model.embed`.
    key_added
        Also write ``uns[key_added]`` as `sc.tl.rank_genes_groups` does, for its plots; None writes
        nothing.
    seed
        Of the draws of latent vectors.

    Returns
    -------
    pandas.DataFrame
        By ``group``, best first: ``gene``, ``score`` and ``lfc_rest``, ``lfc_nearest`` (means over
        batches), all :math:`\log_2`; ``nearest`` (a group); ``expressing`` and ``expressing_rest``
        (shares of cells with a count); ``n_batches``.

    Raises
    ------
    DataError
        If fewer than two groups have enough cells.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=300, n_genes=50)
    >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
    >>> scvae.analysis.markers(model, adata, "cell_type").groupby("group").size().tolist()
    [50, 50, 50, 50]
    """
    key_added = check_name("key_added", key_added, "rank_genes_groups", or_none=True)
    min_cells, seed = check_whole("min_cells", min_cells, 10), check_seed(seed)
    group = names_of(adata.obs, groups, "groups")
    home = check_name("batch", batch, "donor", or_none=True) or model.origin.covariates.batch
    unit = names_of(adata.obs, home, "batch") if home else np.full(len(group), "all", dtype=object)
    dataset = model.read_rna(adata, layer)
    arm = np.where(_is_large(group, unit, min_cells), 0, -1)
    summed = sum_samples(csr(dataset), group, unit, arm)
    kept = sorted(set(summed.table["group"]))
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} groups of adata.obs[{groups!r}] have {min_cells} cells in a batch; two "
            "are needed. Take larger groups, or min_cells=1."
        )
    shares = mean_amounts(model, dataset, summed, "own", 1, seed)[:, 0] + FLOOR
    genes = np.array(model.origin.genes, dtype=object)
    table = pd.concat([_of_group(n, kept, summed, shares, genes) for n in kept], ignore_index=True)
    if key_added is not None:
        adata.uns[key_added] = _as_scanpy(table, kept, groups)
    return table


def _is_large(group: np.ndarray, unit: np.ndarray, least: int) -> np.ndarray:
    """Return whether a cell's group has enough cells in its batch, ``(n,)``."""
    cells = pd.DataFrame({"group": group, "unit": unit})
    sizes: np.ndarray = cells.groupby(["group", "unit"])["unit"].transform("size").to_numpy()
    return sizes >= least


def _of_group(
    name: str, kept: list[str], summed: Samples, shares: np.ndarray, genes: np.ndarray
) -> pd.DataFrame:
    """Return the rows of one group, best first."""
    group, unit = (summed.table[c].to_numpy() for c in ("group", "replicate"))
    own, near = group == name, _nearest(name, kept, group, shares)
    rest, nearest = [], []
    for row in np.flatnonzero(own):
        others = shares[(unit == unit[row]) & ~own]
        if len(others):
            rest.append(np.log2(shares[row] / others.mean(0)))
        beside = shares[(unit == unit[row]) & (group == near)]
        if len(beside):
            nearest.append(np.log2(shares[row] / beside[0]))
    # In no batch with others: against all of them, wherever they are.
    rest = rest or [np.log2(shares[own].mean(0) / shares[~own].mean(0))]
    nearest = nearest or [np.log2(shares[own].mean(0) / shares[group == near].mean(0))]
    cells, expressing = summed.table["cells"].to_numpy(), summed.expressing
    found = pd.DataFrame(
        {
            "group": name,
            "gene": genes,
            "score": np.min([*rest, *nearest], axis=0),
            "lfc_rest": np.mean(rest, axis=0),
            "lfc_nearest": np.mean(nearest, axis=0),
            "nearest": near,
            "expressing": expressing[own].sum(0) / cells[own].sum(),
            "expressing_rest": expressing[~own].sum(0) / cells[~own].sum(),
            "n_batches": len(rest),
        }
    )
    return found.sort_values("score", ascending=False, kind="stable")


def _nearest(name: str, kept: list[str], group: np.ndarray, shares: np.ndarray) -> str:
    """Return the group whose mean log expression is nearest."""
    logs = {other: np.log1p(1e4 * shares[group == other].mean(0)) for other in kept}
    others = [other for other in kept if other != name]
    return min(others, key=lambda other: float(np.linalg.norm(logs[other] - logs[name])))


def _as_scanpy(table: pd.DataFrame, kept: list[str], groups: str) -> dict[str, Any]:
    """Return the table as scanpy keeps one; its plots look for p, which are NaN."""
    fields = {"names": "gene", "scores": "score", "logfoldchanges": "lfc_rest"}
    parts = {name: table[table["group"] == name] for name in kept}
    types = {"names": object, "scores": np.float32, "logfoldchanges": np.float32}
    params = {"groupby": groups, "reference": "rest", "method": "scvae", "use_raw": False}
    nothing = pd.DataFrame(dict.fromkeys(kept, np.full(len(table) // len(kept), np.nan)))
    p = dict.fromkeys(("pvals", "pvals_adj"), nothing.to_records(index=False))
    return {"params": params, **p} | {
        field: pd.DataFrame(
            {name: part[column].to_numpy(types[field]) for name, part in parts.items()}
        ).to_records(index=False)
        for field, column in fields.items()
    }
