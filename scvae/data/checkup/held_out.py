"""Groups of cells that are held out as a whole, so that nothing is learned of them."""

from __future__ import annotations

import numpy as np

from scvae.data.checkup.columns import FEW_CELLS
from scvae.data.checkup.report import SHOWN, Finding, Kind
from scvae.data.read.covariates import Encoded


def unseen_groups(encoded: Encoded, held_out: np.ndarray, validation: object) -> list[Finding]:
    """Find batches and categories without a cell to train on.

    Parameters
    ----------
    encoded
        Batch and covariates of all cells.
    held_out
        Rows that are held out, ``(m,)``.
    validation
        How the user chose them: a share, or a column of adata.obs.
    """
    rest = np.ones(len(encoded.codes), dtype=bool)
    rest[held_out] = False
    start, findings, covariates = 0, [], encoded.covariates
    for name, categories in covariates.categories.items():
        there = encoded.design[:, start : start + len(categories)] > 0
        start += len(categories)
        missing = np.flatnonzero(there.any(0) & ~there[rest].any(0))
        is_told = len(encoded.codes) < FEW_CELLS * len(categories)  # that they are so small
        if len(missing) and (isinstance(validation, str) or not is_told):
            role = "batch" if name == covariates.batch else "covariate"
            names = [categories[i] for i in missing]
            n = int(there[:, missing].any(1).sum())
            findings.append(_finding(name, role, names, n, validation))
    return findings


def _finding(name: str, role: str, unseen: list[str], n: int, validation: object) -> Finding:
    where = f"adata.obs[{name!r}]"
    which = ", ".join(map(repr, unseen[:SHOWN])) + (", ..." if len(unseen) > SHOWN else "")
    text = (
        f"validation={validation!r} holds out all {n:,} cells of {len(unseen)} categories of "
        f"{where} ({role}): {which}. Nothing is learned of them: their effect stays what it was at "
        "random before training, in their embedding and in the held-out ELBO, by which the weights "
        "are chosen. "
    )
    if isinstance(validation, str):
        text += "Hold out a share of every one, or leave validation out: scvae.fit(adata, "
        text += "validation=0.1). To keep them from the fit, leave them out: "
        text += f"adata = adata[~{where}.astype(str).isin({unseen})].copy()"
    else:
        text += "They are few; another seed may do: scvae.fit(adata, seed=1). Or leave them out: "
        text += f"adata = adata[~{where}.astype(str).isin({unseen})].copy()"
    return Finding("warning", Kind.HELD_OUT, text)
