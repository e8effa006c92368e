"""Columns of obs that are not what they seem: numbers as text, labels as numbers, no names."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from scvae.data.checkup.report import Finding, Kind
from scvae.data.read.covariates import Covariates, Encoded, names_of_cells, plain

MISSING = frozenset(
    {
        *("nan", "none", "na", "n/a", "n.a.", "#n/a", "null", "<na>", "nat", "", "-", "?", "."),
        *("missing", "unknown", "unspecified", "undefined", "unassigned", "no data", "nd"),
        *("not available", "not applicable", "not provided", "not specified", "not known"),
        *("not collected", "not reported", "not determined"),
    }
)
FEW_CELLS = 3  # of a category, on average
MANY = 30  # whole numbers that are no labels any more
FEW_LABELS = 20
LABELS = re.compile(
    r"batch|donor|plate|lane|sample|cluster|patient|subject|replicate|leiden|louvain|group"
    r"|chemistry|library|individual|mouse|animal|slide|section|pool|assay|orig\.ident|sex|gender"
    r"|condition|treatment|genotype|protocol|tissue|experiment|dataset|study|cell[_ ]?type|chip"
    r"|flow[_ ]?cell|channel|well$|run$|(?:^|[_ ])id$",
    re.IGNORECASE,
)
MANY_LABELS = re.compile(
    r"(?:donor|patient|subject|individual|sample|batch|plate|mouse|animal|library)[_ .]?"
    r"(?:id|no|nr|number)?$",
    re.IGNORECASE,
)  # names of columns that hold labels, be they ever so many
AS_TEXT = re.compile(r"-?\d+(?:[.,]\d+)?(?:e[-+]?\d+)?\s*%?$", re.IGNORECASE)
OUTLYING = 20  # standard deviation over the width of the middle half; 0.74 if normal
TELLS = 0.9  # correlation ratio of a number with the batch


def odd_columns(obs: pd.DataFrame, encoded: Encoded, copies: Collection[str]) -> list[Finding]:
    """Find what is odd in the batch and covariates, and say what each was taken as.

    `copies` are those of which it is told that they say what another says."""
    covariates = encoded.covariates
    findings = []
    for name, categories in covariates.categories.items():
        findings += _odd_names(obs[name], categories)
        if name != covariates.batch:
            findings += _taken_as_categories(obs[name], categories)
    for name in covariates.numbers:
        findings += _taken_as_number(obs[name])
        findings += _outlying(obs[name])
        if name not in copies:
            findings += _tells_batch(obs[name], covariates, encoded.codes)
    return findings


def _warning(text: str) -> Finding:
    return Finding("warning", Kind.COVARIATES, text)


def _odd_names(values: pd.Series, categories: Sequence[str]) -> list[Finding]:
    """Find names that say that none is known, and those that differ in spaces or case alone."""
    where, findings = f"adata.obs[{values.name!r}]", []
    cells = names_of_cells(values)
    missing = [name for name in categories if _says_missing(name)]
    if missing:
        number = int(cells.isin(missing).sum())
        findings.append(
            _warning(
                f"{where} has categories that say that nothing is known: {missing}, of {number:,} "
                "cells, which are taken for a group like others. Leave them out: "
                f"adata = adata[~{where}.astype(str).isin({missing})].copy()"
            )
        )
    alike: dict[str, list[str]] = {}
    for name in categories:
        alike.setdefault(plain(name), []).append(name)
    doubles = [names for names in alike.values() if len(names) > 1]
    if doubles:
        number = int(cells.isin([name for names in doubles for name in names[1:]]).sum())
        same = {name: names[0] for names in doubles for name in names[1:]}
        findings.append(
            _warning(
                f"{where} has categories that differ in spaces or case alone, or in how a letter "
                f"or number is written: {doubles[:5]}; the "
                f"{number:,} cells of the latter are groups of their own. Make them one: "
                f"{where} = {where}.astype(str).replace({same})"
            )
        )
    return findings


def _says_missing(name: str) -> bool:
    return " ".join(name.replace("_", " ").split()).lower() in MISSING


def _taken_as_categories(values: pd.Series, categories: Sequence[str]) -> list[Finding]:
    where = f"adata.obs[{values.name!r}]"
    known = [name.strip() for name in categories if not _says_missing(name)]
    written = all(AS_TEXT.match(name) for name in known)
    cleaned = [name.rstrip("% ").replace(",", ".") for name in known] if written else known
    numbers = pd.to_numeric(pd.Series(cleaned, dtype=object), errors="coerce")
    tidy = ".str.rstrip('% ').str.replace(',', '.')" if cleaned != known else ""
    call = f"{where} = {where}.astype(str){tidy}.astype(float)"
    told = f"{where} is taken as {len(categories):,} categories of {len(values):,} cells"
    is_text = bool(known) and bool(np.isfinite(numbers).all())
    if is_text and ((numbers != numbers.round()).any() or len(numbers) > MANY):
        return [_warning(f"{told}, but holds numbers as text. To take them as numbers: {call}")]
    if len(values) < FEW_CELLS * len(categories):
        text = (
            f"{told}: so few cells each that it can explain anything away. Leave {values.name!r} "
            "out of covariates=..., or make groups of several cells."
        )
        return [_warning(text)]
    other = f". To take them as numbers: {call}" if is_text else "."
    return [Finding("info", Kind.COVARIATES, f"{told}{other}")]


def _taken_as_number(values: pd.Series) -> list[Finding]:
    where, distinct = f"adata.obs[{values.name!r}]", values.unique()
    call = f"{where} = {where}.astype(str).astype('category')"
    text = f"{where} is taken as a number, from {distinct.min():g} to {distinct.max():g}"
    is_whole = bool((distinct == np.round(distinct.astype(float))).all())
    n_labels, name = len(distinct), str(values.name)
    are_many = MANY_LABELS.search(name) is not None and n_labels * FEW_CELLS <= len(values)
    if not is_whole or (n_labels > max(FEW_LABELS, MANY) and not are_many):
        return [Finding("info", Kind.COVARIATES, f"{text}.")]
    text = f"{text}. If these are labels and not amounts: {call}"
    is_label = n_labels > 2 and (
        are_many or (n_labels <= FEW_LABELS and LABELS.search(name) is not None)
    )
    return [Finding("warning" if is_label else "info", Kind.COVARIATES, text)]


def _outlying(values: pd.Series) -> list[Finding]:
    """Find values so far out that, standardised, all others are alike."""
    amounts = values.to_numpy(dtype=np.float64)
    low, middle, high = np.quantile(amounts, [0.25, 0.5, 0.75])
    if not 0 < (high - low) * OUTLYING < amounts.std():
        return []
    far, where = amounts[np.abs(amounts - middle).argmax()], f"adata.obs[{values.name!r}]"
    text = (
        f"{where} is {low:.4g} to {high:.4g} in half of the cells, with a standard deviation of "
        f"{amounts.std():.4g}, by values as far out as {far:.4g}: standardised, the others are all "
        f"alike. Clip it: {where} = {where}.clip({where}.quantile(0.01), {where}.quantile(0.99))"
    )
    return [_warning(text)]


def _tells_batch(values: pd.Series, covariates: Covariates, codes: np.ndarray) -> list[Finding]:
    if covariates.batch is None:
        return []
    ratio = correlation_ratio(values.to_numpy(dtype=np.float64), codes)
    if ratio <= TELLS:
        return []
    text = (
        f"adata.obs[{covariates.batch!r}] (batch) and adata.obs[{values.name!r}] (covariate): the "
        f"correlation ratio is {ratio:.2f}, where 1 is a number that the batch tells"
    )
    text += (
        ", so the covariate explains little that the batch does not. "
        f"Leave it out: scvae.fit(adata, batch={covariates.batch!r})"
    )
    return [Finding("warning", Kind.CONFOUNDING, text)]


def correlation_ratio(values: np.ndarray, codes: np.ndarray) -> float:
    r"""Return how much of a number a grouping tells,

    .. math:: \eta = \sqrt{\max(0, 1 - \frac{(n-1) SS_{within}}{(n-k) SS_{total}})} ,

    corrected for the chance of many small groups; 0 without spread.
    """
    sizes = np.bincount(codes)
    means = np.bincount(codes, values) / np.maximum(sizes, 1)
    within, total = np.square(values - means[codes]).sum(), values.var() * len(values)
    free = len(values) - int((sizes > 0).sum())
    if free < 1 or total <= 0:
        return 0.0
    return float(max(0.0, 1 - (len(values) - 1) * within / (free * total)) ** 0.5)
