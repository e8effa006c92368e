"""Differential expression: decided by counts of replicates, sized by them and by the model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from scvae.analysis.design import Design, make_design, permutations
from scvae.analysis.glm import Tested, adjust, f_test, fit, fit_means, size_factors
from scvae.analysis.samples import Samples, csr, mean_amounts, names_of, sum_samples
from scvae.arguments import (
    check_name,
    check_names,
    check_positive,
    check_seed,
    check_whole,
    shown,
)
from scvae.data.checkup.association import cramers_v
from scvae.data.read.covariates import column
from scvae.errors import ConfigError, DataError
from scvae.models.fitted import Fitted

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_COUNTS, COUNTED = 15, 5  # a gene is tested with so many counts in all, so many in half
CONFOUNDED = 0.9  # Cramér's V from which two columns are taken to tell the same
FLOOR = 1e-7  # of a share: a change of what is not expressed is none
FDR = 0.05
LOG2 = float(np.log(2))
NO_NULL: dict[str, object] = {
    **{"found": 0, "permutations": 0, "null_found": np.nan, "null_share": np.nan}
}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; it prints itself.

    Attributes
    ----------
    table
        A row a gene and group, by p within the group.
    null
        A row a group: design, replicates, genes found at an FDR of 0.05 (``found``) and in the
        mean over ``permutations`` of the condition (``null_found``), and the share of p < 0.05
        in these (``null_share``, 0.05 where p are what they say).
    notes
        What cannot be known, and why.
    """

    table: pd.DataFrame
    null: pd.DataFrame
    notes: list[str]

    def __str__(self) -> str:
        lines = ["differential expression by group", self.null.round(3).to_string(index=False)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def compare(
    model: Fitted,
    adata: AnnData,
    condition: str,
    *,
    groups: str | None = None,
    replicate: str | None = None,
    levels: tuple[str, str] | None = None,
    covariates: str | Sequence[str] | None = None,
    layer: str | None = None,
    batch: str = "own",
    min_cells: int = 10,
    min_effect: float = 0.25,
    samples: int = 5,
    max_permutations: int = 20,
    key_added: str | None = None,
    seed: int = 0,
) -> Comparison:
    r"""Return which genes differ between two conditions, group by group.

    The decision is by raw counts, summed over the cells of every replicate: a negative binomial
    regression and its quasi-likelihood F test (see `scvae.analysis.glm`). Replicates that are in
    both arms are paired. Cells of one donor are no replicates: tests on single cells find hundreds
    of genes where nothing differs (Squair et al., "Confronting false discoveries in single-cell
    differential expression", Nature Communications 2021). Denoised values are never tested.

    Every call repeats the test with the condition permuted, over replicates or within pairs, and
    tells how many genes it finds there, beside how many it finds.

    Parameters
    ----------
    model
        A fitted model; its genes are compared.
    adata
        Cells with raw counts of these.
    condition
        Column of ``obs`` with the conditions.
    groups
        Column of groups, such as cell types, each compared by itself; None takes all cells as one.
    replicate
        Column of donors, animals or cultures. None gives effects without p.
    levels
        (treated, reference); None where the column has two, of which the first by name is the
        reference.
    covariates
        Columns that differ between replicates and are to be accounted for: categories or numbers,
        the same for all cells of a replicate in an arm.
    layer
        Where the counts are; as for `Model.embed`.
    batch
        Batch in which expression is denoised; "own" leaves what differs between replicates.
    min_cells
        Samples of fewer cells are left out, and named.
    min_effect
        :math:`\log_2` fold change that ``probability`` is of.
    samples
        Draws of every cell's latent vector.
    max_permutations
        Of the condition; 0 makes no null.
    key_added
        Also write the table to ``uns[key_added]``; None writes nothing.
    seed
        Of permutations and draws.

    Returns
    -------
    Comparison
        ``table`` with ``gene``, ``group``; ``lfc``, ``lfc_low``, ``lfc_high``: :math:`\log_2` fold
        change of counts and its 95 % interval (wide, of a gene that one arm lacks); ``p``, ``fdr``
        (Benjamini and Hochberg, by group);
        ``probability`` that :math:`|\mathrm{lfc}|` is above `min_effect` (flat prior);
        ``lfc_model``, ``lfc_model_low``, ``lfc_model_high``: of denoised expression, over
        replicates and draws, of a model that draws like cells together: smaller, as a rule;
        ``mean_expression`` (counts per 10,000); ``expressing`` and ``expressing_reference``
        (shares of cells); ``n_replicates``, ``n_cells`` and both with ``_reference``.

    Raises
    ------
    DataError
        If a column is missing, the condition has one level, or a covariate varies in a sample.
    ConfigError
        If `levels` are not two of the condition's.

    Examples
    --------
    >>> import numpy as np
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=400, n_genes=50)
    >>> adata.obs["donor"] = np.arange(400) % 8
    >>> adata.obs["drug"] = np.where(adata.obs["donor"] < 4, "yes", "no")
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> found = scvae.analysis.compare(model, adata, "drug", replicate="donor")
    >>> len(found.table), found.null["permutations"].item()
    (50, 20)
    """
    seed, samples = check_seed(seed), check_whole("samples", samples, 5)
    min_cells = check_whole("min_cells", min_cells, 10)
    most = check_whole("max_permutations", max_permutations, 20, least=0)
    min_effect = check_positive("min_effect", min_effect, "0.25")
    key_added = check_name("key_added", key_added, "compared", or_none=True)
    obs, notes = adata.obs, []
    arm, treated, reference = arms_of(obs, check_name("condition", condition, "stim"), levels)
    group = names_of(obs, groups, "groups") if groups else np.full(len(obs), "all", dtype=object)
    unit = names_of(obs, replicate, "replicate") if replicate else arm.astype(str).astype(object)
    if replicate is None:
        notes.append(
            "no p-values: cells of one donor are not independent. Name the column of donors, "
            "animals or cultures: compare(..., replicate='donor')"
        )
    notes += _confounded(model, obs, condition, arm)
    dataset = model.read(adata, layer=layer)
    summed = sum_samples(csr(dataset), group, unit, arm)
    amounts = mean_amounts(model, dataset, summed, batch, samples, seed)
    columns = _covariates(obs, check_names("covariates", covariates, ["sex"]), summed)
    genes, rng = np.array(model.origin.genes, dtype=object), np.random.default_rng(seed)
    tables, nulls = [], []
    for name in sorted(set(group)):
        table, null, said = _compare_group(
            name, summed, amounts, columns, genes, min_cells, min_effect, most, replicate, rng
        )
        notes += [f"{name}: {line}" for line in said]
        if table is not None:
            tables.append(table)
            nulls.append(null)
    if not tables:
        raise DataError(
            f"No group has {min_cells} cells of {treated!r} and of {reference!r} in a replicate. "
            "Take larger groups, or min_cells=1."
        )
    found = Comparison(pd.concat(tables, ignore_index=True), pd.DataFrame(nulls), notes)
    _warn(found.null)
    if key_added is not None:
        adata.uns[key_added] = found.table.copy()
    return found


# -- what is asked -------------------------------------------------------------------------------


def arms_of(
    obs: pd.DataFrame, condition: str, levels: tuple[str, str] | None
) -> tuple[np.ndarray, str, str]:
    """Return 1 for treated, 0 for reference, -1 for other cells, and the names of both."""
    names = names_of(obs, condition, "condition")
    known = sorted(set(names))
    if len(known) < 2:
        raise DataError(
            f"adata.obs[{condition!r}] (given as condition) has one level, {known}; "
            "two are compared."
        )
    if levels is None and len(known) > 2:
        raise ConfigError(
            f"adata.obs[{condition!r}] has {len(known)} levels, {known[:9]}; say which two: "
            f"levels=({known[1]!r}, {known[0]!r})"
        )
    asked = [known[1], known[0]] if levels is None else check_names("levels", levels, known[:2])
    if len(asked) != 2 or asked[0] == asked[1] or not set(asked) <= set(known):
        raise ConfigError(
            f"levels={shown(levels)}, but they must be two of {known[:9]}: "
            f"levels=({known[1]!r}, {known[0]!r})"
        )
    return np.where(names == asked[0], 1, np.where(names == asked[1], 0, -1)), asked[0], asked[1]


def _confounded(model: Fitted, obs: pd.DataFrame, condition: str, arm: np.ndarray) -> list[str]:
    """Say so, if the condition and the batch that the model corrects for tell the same."""
    batch = model.origin.covariates.batch
    if batch is None:
        return []
    _, codes = np.unique(names_of(obs, batch, "batch")[arm >= 0], return_inverse=True)
    v = cramers_v(codes, arm[arm >= 0])
    # Donors of one arm each are nested, as they should be: batches no larger than replicates.
    if v < CONFOUNDED or codes.max(initial=0) > 1:
        return []
    said = (
        f"{condition!r} and the batches {batch!r} go together (Cramér's V {v:.2f}): no correction "
        "can tell an effect of the one from the other's"
    )
    warnings.warn(said + ".", stacklevel=3)
    return [said]


def _covariates(obs: pd.DataFrame, names: list[str], summed: Samples) -> np.ndarray:
    """Return columns of numbers for every sample, ``(S, c)``."""
    parts = [np.empty((len(summed.table), 0))]
    inside = summed.of_cell >= 0
    for name in names:
        values = column(obs, name, "covariates")[inside]
        by_sample = values.groupby(summed.of_cell[inside])
        if (by_sample.nunique() > 1).any():
            raise DataError(
                f"adata.obs[{name!r}] (given as covariates) differs between cells of one "
                "replicate in one arm; a covariate of a comparison is one value for each."
            )
        first = by_sample.first()
        numeric = pd.api.types.is_numeric_dtype(first) and not pd.api.types.is_bool_dtype(first)
        coded = first if numeric else pd.get_dummies(first.astype(str), drop_first=True)
        parts.append(np.asarray(coded, dtype=float).reshape(len(first), -1))
    return np.hstack(parts)


def _warn(null: pd.DataFrame) -> None:
    bad = null[(null["null_found"] > FDR * null["found"].clip(lower=20)) & (null["found"] > 0)]
    if len(bad):
        warnings.warn(
            f"With the condition permuted, genes are found, too: {bad['null_found'].max():.1f} in "
            f"the mean in {bad['group'].iloc[0]!r}. Replicates differ by more than the condition "
            "(sex, age, run?); give what is known of them: covariates=[...].",
            stacklevel=3,
        )


# -- one group -----------------------------------------------------------------------------------


def _compare_group(
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
        nothing: dict[str, object] = {
            "found": 0,
            "permutations": 0,
            "null_found": np.nan,
            "null_share": np.nan,
        }
        return table, null | nothing, notes
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
    nothing: dict[str, object] = {
        "found": 0,
        "permutations": 0,
        "null_found": np.nan,
        "null_share": np.nan,
    }
    if not len(rows):
        return nothing
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
    table["p"], table["fdr"] = p, adjust(p)
    found, share = [], []
    for arm in permutations(design, most, rng):
        again = tested_arm(counts, design.permuted(arm), size)
        found.append(int((adjust(again.p) < FDR).sum()))
        share.append(float((again.p < 0.05).mean()))
    if not found:
        return NO_NULL | {"found": int((table["fdr"] < FDR).sum())}
    return {
        "found": int((table["fdr"] < FDR).sum()),
        "permutations": len(found),
        "null_found": float(np.mean(found)),
        "null_share": float(np.mean(share)),
    }


def tested_arm(counts: np.ndarray, design: Design, size: np.ndarray) -> Tested:
    """Return the test of the arm, of counts ``(g, n)``."""
    full = fit(counts, design.matrix, size)
    null = fit_means(counts, design.others, size, full.dispersion)
    return f_test(full, counts, design.matrix, -1, null)
