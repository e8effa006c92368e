"""The comparison of one group of cells: what was measured, the effects, the test and its null."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from scvae.analysis.design import Design, make_design, permutations
from scvae.analysis.glm import (
    Tested,
    adjust,
    adjust_by_permutations,
    f_test,
    fit,
    fit_means,
    size_factors,
)
from scvae.analysis.samples import Samples

LEAST_COUNTS, COUNTED = 15, 5  # a gene is tested with so many counts in all, so many in half
FLOOR = 1e-7  # of a share: a change of what is not expressed is none
FDR = 0.05
LOG2 = float(np.log(2))
NO_NULL: dict[str, object] = {
    **{"found": 0, "permutations": 0, "null_found": np.nan, "null_share": np.nan}
}


def compare_group(
    name: str,
    summed: Samples,
    amounts: np.ndarray,
    covariates: np.ndarray,
    genes: np.ndarray,
    min_cells: int,
    min_effect: float,
    most: int,
    replicate: str | None,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame | None, dict[str, object], list[str]]:
    """Return table, null and notes of one group; no table where an arm has no sample."""
    own = np.flatnonzero(summed.table["group"] == name)
    small = own[summed.table["cells"].to_numpy()[own] < min_cells]
    own = np.setdiff1d(own, small)
    notes = []
    if len(small):
        notes.append(f"{len(small)} samples of fewer than {min_cells} cells are left out")
    arm = summed.table["arm"].to_numpy()[own]
    if len(set(arm)) < 2:
        return None, {}, [*notes, "no cells in one arm; not compared"]
    design, taken = make_design(
        arm, summed.table["replicate"].to_numpy()[own].astype(str), covariates[own]
    )
    own = own[taken]
    if not taken.all():
        notes.append(f"paired; {int((~taken).sum())} samples without a partner are left out")
    table = _described(name, summed, own, design, genes)
    _add_denoised(table, amounts[own], design)
    reason = _why_not(design, replicate)
    null: dict[str, object] = {"group": name, "paired": design.paired, "replicates": len(own)}
    if reason:
        notes += [reason] if replicate else []
        return table, null | NO_NULL, notes
    null |= _add_test(table, summed.counts[own], design, min_effect, most, rng)
    return table.sort_values("p", kind="stable", na_position="last"), null, notes


def _why_not(design: Design, replicate: str | None) -> str:
    """Return why there can be no p, or nothing."""
    if replicate is None:
        return "no replicates"
    if design.free < 0:
        return "no p: the condition cannot be told from the covariates"
    n = [int((design.arm == arm).sum()) for arm in (1, 0)]
    if min(n) < 2 or design.free < 2:
        need = "3 replicates in both arms" if design.paired else "2 replicates in each arm"
        return f"no p: {n[0]} and {n[1]} replicates; at least {need} are needed"
    return ""


def _described(
    name: str, summed: Samples, own: np.ndarray, design: Design, genes: np.ndarray
) -> pd.DataFrame:
    """Return the table without effects: what was measured."""
    counts, cells = summed.counts[own], summed.table["cells"].to_numpy()[own]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    found = {
        "gene": genes,
        "group": name,
        **dict.fromkeys(("lfc", "lfc_low", "lfc_high", "p", "fdr", "probability"), np.nan),
        **dict.fromkeys(("lfc_model", "lfc_model_low", "lfc_model_high"), np.nan),
        "mean_expression": 1e4 * share.mean(axis=0),
    }
    for arm, suffix in ((1, ""), (0, "_reference")):
        inside = design.arm == arm
        found[f"expressing{suffix}"] = summed.expressing[own][inside].sum(0) / cells[inside].sum()
        found[f"n_replicates{suffix}"] = int(inside.sum())
        found[f"n_cells{suffix}"] = int(cells[inside].sum())
    return pd.DataFrame(found)


def _add_denoised(table: pd.DataFrame, amounts: np.ndarray, design: Design) -> None:
    r"""Write the fold change of denoised expression, and its interval over replicates and draws.

    Variances within and between draws add (Rubin, "Multiple imputation for nonresponse in surveys",
    1987); the interval is Student's."""
    logs = np.log2(np.maximum(amounts, FLOOR))
    treated, reference = logs[design.arm == 1], logs[design.arm == 0]
    if design.paired:
        treated = treated[np.argsort(design.replicate[design.arm == 1])]
        reference = reference[np.argsort(design.replicate[design.arm == 0])]
        treated, reference = treated - reference, np.zeros((1, *logs.shape[1:]))
    effect = treated.mean(0) - reference.mean(0)  # (k, g)
    parts = [arm for arm in (treated, reference) if len(arm) > 1]
    df = sum(len(part) - 1 for part in parts)
    table["lfc_model"] = effect.mean(0)
    if df < 1 or (not design.paired and len(parts) < 2):
        return
    within = sum(part.var(0, ddof=1) / len(part) for part in parts)
    between = effect.var(0, ddof=1) if len(effect) > 1 else 0.0
    half = stats.t.ppf(0.975, df) * np.sqrt(np.mean(within, axis=0) + between)
    table["lfc_model_low"], table["lfc_model_high"] = effect.mean(0) - half, effect.mean(0) + half


def _add_test(
    table: pd.DataFrame,
    sums: np.ndarray,
    design: Design,
    min_effect: float,
    most: int,
    rng: np.random.Generator,
) -> dict[str, object]:
    """Write effects of counts and p, and return the null."""
    counted = (sums >= COUNTED).sum(axis=0) >= max(2, len(sums) // 2)
    rows = np.flatnonzero(counted & (sums.sum(axis=0) >= LEAST_COUNTS))
    counts, size = sums[:, rows].T, size_factors(sums)
    if not len(rows):
        return NO_NULL
    tested = tested_arm(counts, design, size)
    p = np.full(len(table), np.nan)
    p[rows] = tested.p
    lfc, error = tested.coefficient / LOG2, tested.error / LOG2
    half = stats.t.ppf(0.975, np.maximum(tested.df, 1e-3)) * error
    beyond = [
        stats.t.sf((min_effect - sign * lfc) / error, np.maximum(tested.df, 1e-3))
        for sign in (1, -1)
    ]
    values = {"lfc": lfc, "lfc_low": lfc - half, "lfc_high": lfc + half}
    for name, value in (values | {"probability": beyond[0] + beyond[1]}).items():
        table.loc[rows, name] = value
    arms = permutations(design, most, rng)
    again = [tested_arm(counts, design.permuted(arm), size).p for arm in arms]
    table["p"], table["fdr"] = p, adjust_by_permutations(p, again)
    found: dict[str, object] = {"found": int((table["fdr"] < FDR).sum())}
    if not again:
        return NO_NULL | found
    return found | {
        "permutations": len(again),
        "null_found": float(np.mean([(adjust(p) < FDR).sum() for p in again])),
        "null_share": float(np.mean([(p < 0.05).mean() for p in again])),
    }


def tested_arm(counts: np.ndarray, design: Design, size: np.ndarray) -> Tested:
    """Return the test of the arm, of counts ``(g, n)``."""
    full = fit(counts, design.matrix, size)
    null = fit_means(counts, design.others, size, full.dispersion)
    return f_test(full, counts, design.matrix, -1, null)
