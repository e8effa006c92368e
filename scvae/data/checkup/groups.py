"""Batches that are small, and what goes together with the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scvae.data.checkup.association import cramers_v, name_the_same_groups
from scvae.data.checkup.columns import odd_columns
from scvae.data.checkup.copies import copied_columns, told_copies
from scvae.data.checkup.report import SHOWN, Finding, Kind, listed
from scvae.data.read.covariates import Covariates, Encoded

FEW_CELLS = 30  # of a batch
GOES_TOGETHER = 0.8  # Cramér's V
MOST_CATEGORIES = 100  # of a column that may be a label


def odd_groups(obs: pd.DataFrame, encoded: Encoded, label: str | None) -> list[Finding]:
    """Find small batches, and what goes with the batch; see `examine` for the parameters."""
    covariates, codes = encoded.covariates, encoded.codes
    batch, others = covariates.batch, covariates.others
    copies = copied_columns(encoded)
    odd = odd_columns(obs, encoded, copies) + told_copies(copies, encoded)
    if batch is None:
        return odd
    findings = odd + _small_batches(codes, obs[batch], covariates)
    for name in (name for name in others if name in covariates.categories):
        if copies.get(name) == batch:
            continue
        findings += _confounded_covariate(codes, obs[name], batch)
    if label is not None:
        return findings + _confounded_label(codes, obs[label], batch)
    return findings + _other_columns(codes, obs, batch, besides={batch, *others})


def _small_batches(codes: np.ndarray, values: pd.Series, covariates: Covariates) -> list[Finding]:
    batch, sizes = covariates.batch, np.bincount(codes, minlength=covariates.n_batches)
    text = (
        f"adata.obs[{batch!r}] has {len(sizes)} batches of {sizes.min():,} to "
        f"{sizes.max():,} cells."
    )
    findings = [Finding("info", Kind.BATCHES, text)]
    small = np.flatnonzero(sizes < FEW_CELLS)
    if len(small):
        least = int(np.argmin(sizes))
        smallest = f"{covariates.batches[least]!r} with {sizes[least]}"
        given = [values[codes == code].tolist()[0] for code in small[: SHOWN + 1]]
        text = (
            f"{len(small)} of {len(sizes)} batches in adata.obs[{batch!r}] have fewer than "
            f"{FEW_CELLS} cells (smallest: {smallest}); so few hardly tell a batch effect. "
            "Merge them with others, or leave them out: "
            f"adata = adata[~adata.obs[{batch!r}].isin({listed(given)})].copy()"
        )
        findings.append(Finding("warning", Kind.BATCHES, text))
    return findings


def _association(codes: np.ndarray, values: pd.Series) -> float:
    """Return Cramér's V with the batch, over the cells where the value is known."""
    others = _codes(values)
    known = others >= 0
    return cramers_v(codes[known], others[known])


def _codes(values: pd.Series) -> np.ndarray:
    """Return the group of every cell, -1 where it is missing."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.codes.to_numpy()
    try:
        return pd.factorize(values)[0]
    except TypeError:  # lists, for one, are no names
        return pd.factorize(values.map(str))[0]


def _confounded_covariate(codes: np.ndarray, values: pd.Series, batch: str) -> list[Finding]:
    v = _association(codes, values)
    text = _go_together(batch, f"adata.obs[{values.name!r}] (covariate)", v)
    if v <= GOES_TOGETHER:
        return [Finding("info", Kind.CONFOUNDING, f"{text}.")]
    text += (
        ", so the covariate explains little that the batch does not. "
        f"Leave it out: scvae.fit(adata, batch={batch!r})"
    )
    return [Finding("warning", Kind.CONFOUNDING, text)]


def _confounded_label(codes: np.ndarray, values: pd.Series, batch: str) -> list[Finding]:
    v = _association(codes, values)
    text = _go_together(batch, f"adata.obs[{values.name!r}] (label)", v)
    if v <= GOES_TOGETHER:
        return [Finding("info", Kind.CONFOUNDING, f"{text}.")]
    return [Finding("warning", Kind.CONFOUNDING, f"{text}. {_lost('labels')}")]


def _go_together(batch: str, other: str, v: float) -> str:
    return (
        f"adata.obs[{batch!r}] (batch) and {other}: Cramer's V is {v:.2f}, where 0 is independent "
        "and 1 is told by each other"
    )


def _lost(what: str) -> str:
    return (
        f"Correcting for the batch takes out differences between the {what}, too. "
        "Compare with a fit without it: scvae.fit(adata)"
    )


def _other_columns(
    codes: np.ndarray, obs: pd.DataFrame, batch: str, besides: set[str]
) -> list[Finding]:
    """Find what else goes with the batch, the strongest first; other names of it do no harm."""
    associated = []
    for name in obs.columns[~obs.columns.duplicated(keep=False)]:
        others = None if name in besides else _label_codes(obs[name])
        if others is None:
            continue
        known = others >= 0
        if not name_the_same_groups(codes[known], others[known]):
            associated.append((cramers_v(codes[known], others[known]), name))
    associated.sort(key=lambda pair: -pair[0])
    high = [pair for pair in associated if pair[0] > GOES_TOGETHER]
    low = associated[len(high) : len(high) + SHOWN]
    findings = []
    if high:
        text = f"adata.obs[{batch!r}] (batch) goes together with {_valued(high)}. {_lost('groups')}"
        findings.append(Finding("warning", Kind.CONFOUNDING, text))
    if low:
        text = f"adata.obs[{batch!r}] (batch) can be told apart from {_valued(low)}."
        findings.append(Finding("info", Kind.CONFOUNDING, text))
    return findings


def _valued(pairs: Sequence[tuple[float, str]]) -> str:
    shown = ", ".join(f"{name!r} ({v:.2f})" for v, name in pairs[:SHOWN])
    more = f" and {len(pairs) - SHOWN} more columns" if len(pairs) > SHOWN else ""
    return f"{shown}{more} (Cramer's V: 0 is independent, 1 is told by each other)"


def _label_codes(values: pd.Series) -> np.ndarray | None:
    """Return the groups of a column that may be a label, -1 where missing, or None."""
    dtype = values.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
        return None
    if len(np.unique(_codes(values.iloc[:1000]))) > MOST_CATEGORIES + 1:
        return None  # names of cells, say, which would take long to compare
    codes = _codes(values)
    return codes if 2 <= len(np.unique(codes[codes >= 0])) <= MOST_CATEGORIES else None
