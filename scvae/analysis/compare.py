"""Differential expression: decided by counts of replicates, sized by them and by the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.analysis.decision import FDR, compare_group
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
from scvae.errors import ConfigError, DataError, warn
from scvae.models.fitted import Fitted

if TYPE_CHECKING:
    from anndata import AnnData

CONFOUNDED = 0.9  # Cramér's V from which two columns are taken to tell the same


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

    Examples
    --------
    >>> import pandas as pd
    >>> import scvae
    >>> null = pd.DataFrame({"group": ["all"], "found": [3], "null_found": [0.1]})
    >>> print(scvae.analysis.Comparison(pd.DataFrame(), null, ["four donors tell little"]))
    differential expression by group
    group  found  null_found
      all      3         0.1
    note: four donors tell little
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
    max_permutations: int = 40,
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
    tells how many genes it finds there, beside how many it finds. No false discovery rate is less
    than these say: donors differ in some genes by more than any regression expects.

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
        Of the condition, all there are where these are fewer (34 of four donors against four);
        0 makes no null.
    key_added
        Also write the table to ``uns[key_added]``; None writes nothing.
    seed
        Of permutations and draws.

    Returns
    -------
    Comparison
        ``table`` with ``gene``, ``group``; ``lfc``, ``lfc_low``, ``lfc_high``: :math:`\log_2` fold
        change of counts and its 95 % interval (wide, of a gene that one arm lacks); ``p``, ``fdr``
        (by group, the larger of Benjamini and Hochberg's and of what permutations find);
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
    (50, 34)
    """
    seed, samples = check_seed(seed), check_whole("samples", samples, 5)
    min_cells = check_whole("min_cells", min_cells, 10)
    most = check_whole("max_permutations", max_permutations, 40, least=0)
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
    dataset = model.read_rna(adata, layer)
    summed = sum_samples(csr(dataset), group, unit, arm)
    amounts = mean_amounts(model, dataset, summed, batch, samples, seed)
    columns = _covariates(obs, check_names("covariates", covariates, ["sex"]), summed)
    genes, rng = np.array(model.origin.genes, dtype=object), np.random.default_rng(seed)
    tables, nulls = [], []
    for name in sorted(set(group)):
        table, null, said = compare_group(
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
    warn(said + ".")
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
        warn(
            f"With the condition permuted, genes are found, too: {bad['null_found'].max():.1f} in "
            f"the mean in {bad['group'].iloc[0]!r}. Replicates differ by more than the condition "
            "(sex, age, run?); give what is known of them: covariates=[...]."
        )
