"""Covariates that say the same of every cell: one grouping under two names, one number in two
units."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scvae.data.checkup.association import name_the_same_groups
from scvae.data.checkup.report import Finding, Kind
from scvae.data.read.covariates import Encoded

SAME = 1 - 1e-9  # correlation, squared, of a number with itself in another unit


def copied_columns(encoded: Encoded) -> dict[str, str]:
    """Return the columns that say what another one before says, with its name; the batch is the
    first."""
    copies: dict[str, str] = {}
    seen: list[tuple[str, np.ndarray]] = []
    for name, values in _columns(encoded):
        same = next((before for before, others in seen if _are_copies(others, values)), None)
        if same is None:
            seen.append((name, values))
        else:
            copies[name] = same
    return copies


def told_copies(copies: dict[str, str], encoded: Encoded) -> list[Finding]:
    """Say which columns are copies, with the call that leaves all of them out."""
    batch, others = encoded.covariates.batch, encoded.covariates.others
    rest = [name for name in others if name not in copies]
    asked = [f"batch={batch!r}"] if batch is not None else []
    asked += [f"covariates={rest!r}"] if rest else []
    findings = []
    for name, same in copies.items():
        role = "batch" if same == batch else "covariate"
        text = (
            f"adata.obs[{same!r}] ({role}) and adata.obs[{name!r}] (covariate) say the same of "
            "every cell, by other names or in another unit: an effect has no place of its own "
            f"among them. Leave {name!r} out: scvae.fit(adata, {', '.join(asked)})"
        )
        findings.append(Finding("warning", Kind.COVARIATES, text))
    return findings


def _columns(encoded: Encoded) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and values of the columns: whole numbers of groups, and float64 of amounts."""
    covariates, start = encoded.covariates, 0
    for name, categories in covariates.categories.items():
        yield name, encoded.design[:, start : start + len(categories)].argmax(axis=1)
        start += len(categories)
    for column, name in enumerate(covariates.numbers, start):
        yield name, encoded.design[:, column].astype(np.float64)


def _are_copies(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.kind == other.dtype.kind == "f":
        return float(np.mean(one * other)) ** 2 > SAME * np.mean(one**2) * np.mean(other**2)
    return name_the_same_groups(one, other)
