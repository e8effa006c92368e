"""scvae.check: it finds what was planted, says what fit would say, reads once, changes nothing."""

from __future__ import annotations

import dataclasses
import html
import math
import random
import re
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from hashes import SLOTS, digest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

import scvae
from scvae import ConfigError, DataError
from scvae.data.checkup.association import cramers_v, name_the_same_groups
from scvae.data.checkup.report import WIDTH, Finding, Kind, Report, warning_texts
from scvae.data.hold.counts import Counts
from scvae.data.read import source
from scvae.data.read import survey as survey_module
from scvae.data.read.choice import look
from scvae.data.read.normalisation import Traces, recognise
from scvae.data.read.survey import survey
from scvae.models import fit as fit_module
from scvae.models import pace, prepare
from scvae.models.budget import RunSize, usual_run
from scvae.models.pace import _seconds_of_step

law = settings(deadline=None, derandomize=True, max_examples=100)
QUICK: dict[str, Any] = {"max_steps": 2, "n_latent": 3, "n_hidden": 8, "progress": False}
Change = Callable[[AnnData], Any]


@pytest.fixture
def adata(simulated: AnnData) -> AnnData:
    """150 cells of 40 genes in two batches of more than 30, with nothing to complain of."""
    return simulated.copy()


def dense(adata: AnnData) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else np.array(adata.X)


def texts(report: Report, what: str, level: str | None = None) -> list[str]:
    return [f.text for f in report.findings if f.what == what and level in (None, f.level)]


# -- association of two groupings ------------------------------------------------------------------


def corrected_v(one: np.ndarray, other: np.ndarray) -> float:
    """Return Bergsma's V from scipy's own chi squared."""
    table = stats.contingency.crosstab(one, other).count
    n, (k, r) = table.sum(), table.shape
    phi2 = stats.chi2_contingency(table, correction=False).statistic / n
    phi2 = max(0, phi2 - (k - 1) * (r - 1) / (n - 1))
    k, r = k - (k - 1) ** 2 / (n - 1), r - (r - 1) ** 2 / (n - 1)
    return math.sqrt(phi2 / min(k - 1, r - 1))


@st.composite
def groupings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw two groupings of 12 cells or more, each of two groups or more."""
    n = draw(st.integers(12, 60))
    pair = []
    for _ in range(2):
        k = draw(st.integers(2, 5))
        codes = np.array(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
        codes[:2] = 0, 1
        pair.append(codes)
    return pair[0], pair[1]


@law
@given(groupings())
def test_cramers_v_is_that_of_scipys_chi_squared(pair: tuple[np.ndarray, np.ndarray]) -> None:
    v = cramers_v(*pair)
    assert v == pytest.approx(corrected_v(*pair), abs=1e-6)
    assert 0 <= v <= 1
    assert v == pytest.approx(cramers_v(*pair[::-1]), abs=1e-12)
    assert v == pytest.approx(cramers_v(7 - 3 * pair[0], pair[1]), abs=1e-12)
    order = np.random.default_rng(0).permutation(len(pair[0]))
    assert v == pytest.approx(cramers_v(pair[0][order], pair[1][order]), abs=1e-12)


@law
@given(groupings())
def test_a_grouping_tells_itself_under_any_names(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = pair
    assert cramers_v(one, 40 - 7 * one) == pytest.approx(1)
    assert name_the_same_groups(one, 40 - 7 * one)
    crossed = stats.contingency.crosstab(one, other).count
    of_one, of_other = (crossed > 0).sum(axis=1), (crossed > 0).sum(axis=0)
    assert name_the_same_groups(one, other) == bool((of_one == 1).all() and (of_other == 1).all())


def test_without_samples_to_spare_cramers_v_is_the_usual_one() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(4, size=200_000)
    other = np.where(rng.random(200_000) < 0.4, one, rng.integers(3, size=200_000))
    table = stats.contingency.crosstab(one, other).count
    usual = stats.contingency.association(table, method="cramer")
    assert cramers_v(one, other) == pytest.approx(usual, abs=1e-3)
    assert usual > 0.3


def test_small_groups_do_not_go_together_by_chance() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(20, size=100), rng.integers(20, size=100)) for _ in range(200)]
    usual = [
        stats.contingency.association(stats.contingency.crosstab(*pair).count) for pair in pairs
    ]
    assert np.mean(usual) > 0.4
    assert np.mean([cramers_v(*pair) for pair in pairs]) < 0.1


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_what_has_no_association_has_none(n: int) -> None:
    assert cramers_v(np.zeros(n, int), np.arange(n) % 2) == 0
    assert cramers_v(np.arange(n), np.arange(n)) == 0


# -- one look at every value -----------------------------------------------------------------------

WRONG = {"NaN": np.nan, "infinite": -np.inf, "negative": -2.0, "non-integer": 0.5}


@st.composite
def matrices(draw: st.DrawFn, *, wrong: bool) -> np.ndarray:
    """Draw a small matrix of counts, some times two, with values that are none if `wrong`."""
    n, g = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    values = [0, 0, 0, 1, 2, 3, 6, 300] + (list(WRONG.values()) if wrong else [])
    drawn = draw(st.lists(st.sampled_from(values), min_size=n * g, max_size=n * g))
    factor = draw(st.lists(st.sampled_from([1, 2]), min_size=n, max_size=n))
    return np.array(drawn, dtype=np.float64).reshape(n, g) * np.array(factor)[:, None]


FORMATS: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "float32": lambda matrix: sparse.csr_matrix(matrix.astype(np.float32)),
}


@law
@given(matrices(wrong=True), st.sampled_from(list(FORMATS)), st.integers(1, 30), st.integers(1, 30))
def test_every_value_is_tallied_whatever_the_blocks(
    matrix: np.ndarray, kind: str, block_values: int, piece_values: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_VALUES", block_values)
        patch.setattr(survey_module, "PIECE_VALUES", piece_values)
        seen = survey(FORMATS[kind](matrix))
    with np.errstate(invalid="ignore"):
        masks = {
            "NaN": np.isnan(matrix),
            "infinite": np.isinf(matrix),
            "negative": (matrix < 0) & np.isfinite(matrix),
            "non-integer": (matrix > 0) & np.isfinite(matrix) & (matrix % 1 != 0),
        }
    assert set(seen.tallies) == {kind for kind, mask in masks.items() if mask.any()}
    for name, tally in seen.tallies.items():
        rows, columns = np.nonzero(masks[name])
        assert tally.number == len(rows)
        assert (tally.first.row, tally.first.column) == (rows[0], columns[0])
        assert tally.first.kind == name
    np.testing.assert_array_equal(seen.genes_of_cells, (matrix != 0).sum(axis=1))
    np.testing.assert_array_equal(seen.cells_of_genes, (matrix != 0).sum(axis=0))
    assert seen.stored == np.count_nonzero(matrix)
    assert (seen.summary is None) == bool(seen.tallies)
    assert seen.kept is None


def common_factor(row: np.ndarray) -> int:
    row = row[row > 0].astype(int)
    return int(np.gcd.reduce(row)) if len(np.unique(row)) > 1 else 1


@law
@given(matrices(wrong=False), st.data(), st.sampled_from(list(FORMATS)))
def test_counts_are_summarised_whatever_the_blocks(
    matrix: np.ndarray, data: st.DataObject, kind: str
) -> None:
    g = matrix.shape[1]
    columns = np.array(data.draw(st.permutations(range(g)))[: data.draw(st.integers(1, g))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_VALUES", data.draw(st.integers(1, 30)))
        patch.setattr(survey_module, "PIECE_VALUES", data.draw(st.integers(1, 30)))
        seen = survey(FORMATS[kind](matrix), columns)
        again = survey(FORMATS[kind](matrix), columns, keep=True)
    summary = seen.summary
    assert summary is not None
    chosen = matrix[:, columns]
    np.testing.assert_array_equal(seen.totals, chosen.sum(axis=1))
    np.testing.assert_array_equal(summary.gene_totals, chosen.sum(axis=0))
    np.testing.assert_array_equal(summary.factors, [common_factor(row) for row in chosen])
    assert seen.largest == chosen.max()
    ordered = np.sort(np.vstack([np.full((2, chosen.shape[1]), 2), chosen]), axis=0)
    np.testing.assert_array_equal(summary.peaks, ordered[:-3:-1])
    same_key = summary.keys[:, None] == summary.keys
    np.testing.assert_array_equal(same_key, (chosen[:, :, None] == chosen[:, None]).all(axis=0))
    np.testing.assert_array_equal(again.counts.toarray(), chosen)
    for field in dataclasses.fields(summary):
        np.testing.assert_array_equal(
            getattr(again.summary, field.name), getattr(summary, field.name)
        )


@pytest.mark.parametrize("wrong", [0, 0.25])
def test_an_entry_in_parts_is_one_value_and_a_stored_zero_none(wrong: float) -> None:
    values = np.array([4, 1, 3, 0, 2.5 + wrong, 2.5, 0])
    indices, starts = np.array([2, 0, 2, 1, 0, 0, 1]), np.array([0, 3, 4, 7])
    seen = survey(sparse.csr_matrix((values, indices, starts), shape=(3, 3)))
    assert seen.genes_of_cells.tolist() == [2, 0, 1]
    assert seen.cells_of_genes.tolist() == [2, 0, 1]
    assert seen.stored == 3
    if wrong:
        fault = seen.first_fault
        assert fault is not None
        assert (fault.row, fault.column, fault.value) == (2, 0, 5.25)
    else:
        assert seen.totals.tolist() == [8, 0, 5]


def test_a_survey_may_stop_at_the_first_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "PIECE_VALUES", 1)
    matrix = np.ones((20, 3))
    matrix[5], matrix[9] = 0.5, 0.5
    assert survey(sparse.csr_matrix(matrix)).tallies["non-integer"].number == 6
    assert survey(sparse.csr_matrix(matrix), stop_at_fault=True).tallies["non-integer"].number == 3


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of rows of every block that is read."""
    rows: list[int] = []

    def blocks(matrix: Any) -> Any:
        for block in source.blocks(matrix):
            rows.append(block.shape[0])
            yield block

    monkeypatch.setattr(survey_module, "blocks", blocks)
    return rows


def test_the_counts_are_read_once(adata: AnnData, reads: list[int]) -> None:
    scvae.check(adata, batch="batch")
    assert sum(reads) == adata.n_obs
    scvae.fit(adata, batch="batch", **QUICK)
    assert sum(reads) == 2 * adata.n_obs


def test_x_and_the_layer_used_instead_are_read_once(adata: AnnData, reads: list[int]) -> None:
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    assert scvae.check(adata, batch="batch").ok
    assert sum(reads) == 2 * adata.n_obs


def test_of_a_layer_without_counts_no_more_is_read_than_shows_it(
    adata: AnnData, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK_VALUES", 10 * adata.n_vars)
    counts = dense(adata)
    del adata.layers["expression"]
    adata.layers["counts"], adata.layers["umi"], adata.X = np.log1p(counts), counts, None
    assert scvae.check(adata).ok
    assert sum(reads) == 10 + adata.n_obs


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_a_file_is_looked_at_in_bounded_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK_VALUES", 2**15)
    matrix = np.random.default_rng(0).poisson(1.0, size=(6000, 500)).astype(np.float32)
    AnnData(FORMATS[kind](matrix)).write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    scvae.check(backed[:10].to_memory())
    tracemalloc.start()
    report = scvae.check(backed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    backed.file.close()
    assert report.ok
    assert peak < matrix.nbytes / 3


# -- whatever holds the matrix ---------------------------------------------------------------------


def retold(report: Report) -> list[Finding]:
    """Return the findings without how the matrix is stored."""
    stored = re.compile(r"(dense|CSR|CSC) of \w+ in (memory|a file)")
    return [dataclasses.replace(f, text=stored.sub("", f.text)) for f in report.findings]


ODD: dict[str, Change] = {
    "sound": lambda adata: None,
    "logged": lambda adata: setattr(adata, "X", adata.X.log1p()),
    "odd": lambda adata: [spoil(adata) for spoil in ODDITIES.values()],
}


@pytest.mark.parametrize("state", ODD)
@pytest.mark.parametrize("kind", ["dense", "csc", "csr array"])
def test_every_format_gives_the_same_report(adata: AnnData, state: str, kind: str) -> None:
    ODD[state](adata)
    expected = scvae.check(adata, batch="batch")
    adata.X = FORMATS[kind](dense(adata))
    found = scvae.check(adata, batch="batch")
    assert retold(found) == retold(expected)
    assert (found.nbytes, found.steps) == (expected.nbytes, expected.steps)


@pytest.mark.parametrize("state", ODD)
@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_a_file_gives_the_same_report(
    adata: AnnData, state: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ODD[state](adata)
    adata.X = FORMATS[kind](dense(adata))
    expected = scvae.check(adata, batch="batch", genes=["gene_7", "gene_2", "gene_9"])
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    content = path.read_bytes()
    backed = anndata.read_h5ad(path, backed="r")
    monkeypatch.setattr(source, "BLOCK_VALUES", 300)
    found = scvae.check(backed, batch="batch", genes=["gene_7", "gene_2", "gene_9"])
    assert backed.isbacked
    backed.file.close()
    assert retold(found) == retold(expected)
    assert path.read_bytes() == content


@pytest.mark.parametrize("state", ODD)
@pytest.mark.parametrize("kind", list(FORMATS))
def test_nothing_is_changed_and_nothing_is_said_aloud(
    adata: AnnData, state: str, kind: str
) -> None:
    adata.layers["counts"] = adata.X.copy()
    ODD[state](adata)
    adata.X = FORMATS[kind](dense(adata))
    before = {slot: digest(getattr(adata, slot)) for slot in SLOTS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scvae.check(adata, batch="batch", label="cell_type")
    assert {slot: digest(getattr(adata, slot)) for slot in SLOTS} == before


def test_a_view_is_looked_at_as_its_copy_and_stays_a_view(adata: AnnData) -> None:
    view = adata[::2, 5:]
    assert retold(scvae.check(view)) == retold(scvae.check(view.copy()))
    assert view.is_view


def test_disordered_rows_are_not_put_in_order(adata: AnnData) -> None:
    counts = adata.X
    starts = counts.indptr[:-1][np.diff(counts.indptr) > 1]
    counts.indices[[starts, starts + 1]] = counts.indices[[starts + 1, starts]]
    counts.data[[starts, starts + 1]] = counts.data[[starts + 1, starts]]
    counts.has_sorted_indices = False
    adata.X = counts
    before = digest(adata.X)
    assert scvae.check(adata).ok
    assert digest(adata.X) == before


# -- in the words of fit ---------------------------------------------------------------------------


def put(row: int, column: int, value: float) -> Change:
    def change(adata: AnnData) -> None:
        adata.X = dense(adata)
        adata.X[row, column] = value

    return change


def rename(adata: AnnData) -> None:
    names = list(adata.var_names)
    adata.var_names = names[:-2] + names[:2]


def miss(adata: AnnData) -> None:
    adata.obs["batch"] = adata.obs["batch"].astype(str).where(np.arange(adata.n_obs) != 7)


def isolate(adata: AnnData) -> None:
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) == 7, "alone", adata.obs["batch"])


def understate(adata: AnnData) -> None:
    adata.obs["total"] = 1.0


def swap(adata: AnnData) -> None:
    adata.layers["counts"] = adata.X.copy()
    adata.layers["scaled"] = adata.X * 0.3


def keep_raw(adata: AnnData) -> None:
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()


# What is done to the data, the arguments, and the words that must be there.
REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    "NaN": (put(3, 5, np.nan), {}, "NaN values (first: nan at cell 'cell_3', gene 'gene_5')"),
    "infinite": (put(3, 5, np.inf), {}, "infinite values (first: inf at cell 'cell_3'"),
    "negative": (put(3, 5, -7), {}, "negative values (first: -7 at cell 'cell_3'"),
    "non-integer": (put(3, 5, 0.25), {}, "non-integer values (first: 0.25 at cell 'cell_3'"),
    "logged, in raw": (keep_raw, {}, "adata.raw holds some"),
    "no matrix": (lambda adata: setattr(adata, "X", None), {}, "adata.X is empty"),
    "no layer": (lambda adata: None, {"layer": "count"}, "adata.layers has no 'count'"),
    "another layer": (swap, {"layer": "scaled"}, "adata.layers['counts'] holds some"),
    "an empty cell": (lambda adata: put(4, slice(None), 0)(adata), {}, "first: 'cell_4'"),
    "names twice": (rename, {}, "2 duplicated genes (first: 'gene_0')"),
    "no batch": (lambda adata: None, {"batch": "donor"}, "no column 'donor'"),
    "missing batch": (miss, {"batch": "batch"}, "missing for 1 of 150 cells (first: 'cell_7')"),
    "lonely batch": (isolate, {"batch": "batch"}, "1 batches with one cell (first: 'alone')"),
    "given twice": (lambda adata: None, {"batch": "batch", "covariates": ["batch"]}, "twice"),
    "no covariate": (lambda adata: None, {"covariates": "depth"}, "no column 'depth'"),
    "no genes": (lambda adata: None, {"genes": "highly_variable"}, "'highly_variable'"),
    "unknown genes": (lambda adata: None, {"genes": ["gene_0", "CD3D"]}, "'CD3D'"),
    "no totals": (lambda adata: None, {"library_size": "observd"}, "library_size='observed'"),
    "few totals": (understate, {"library_size": "total"}, "is 1.0 at cell 'cell_0'"),
    "few cells": (lambda adata: adata._inplace_subset_obs(range(9)), {}, "9 cells"),
    "one gene": (lambda adata: adata._inplace_subset_var([0]), {}, "1 genes; a fit needs"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", REFUSED)
def test_what_fit_refuses_is_the_first_error_in_its_words(adata: AnnData, fault: str) -> None:
    change, arguments, words = REFUSED[fault]
    change(adata)
    report = scvae.check(adata, **arguments)
    with pytest.raises(DataError) as refused:
        scvae.fit(adata, **arguments, **QUICK)
    assert report.errors[0].text == str(refused.value)
    assert words in report.errors[0].text
    assert not report.ok


LOOKS: dict[str, Callable[[np.ndarray], Any]] = {
    "counts": sparse.csr_matrix,
    "counts by gene": sparse.csc_matrix,
    "dense counts": np.asarray,
    "logged": np.log1p,
    "negative": lambda counts: -counts,
    "missing": lambda counts: np.where(counts > 2, np.nan, counts),
    "zeros": np.zeros_like,
    "words": lambda counts: counts.astype(str).astype(object),
    "broken": lambda counts: broken(sparse.csr_matrix(counts)),
    "an empty cell": lambda counts: counts * (np.arange(len(counts)) != 3)[:, None],
}


def broken(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    counts.indices = counts.indices.copy()
    counts.indices[-1] = counts.shape[1]
    return counts


def taken_as_is(adata: AnnData, slot: str, matrix: Any) -> None:
    """Put a matrix into X or a layer, or leave it out where AnnData does not take it."""
    try:
        if slot == "X":
            adata.X = matrix
        else:
            adata.layers[slot] = matrix
    except (ValueError, TypeError):
        return


def request_of(seed: int) -> tuple[AnnData, dict[str, Any]]:
    """Draw an AnnData, good or bad, and arguments that fit it or, one in a few, do not."""
    rng = np.random.default_rng(seed)

    def mostly(usual: Any, *others: Any, share: float = 0.15) -> Any:
        return others[rng.integers(len(others))] if rng.random() < share else usual

    n, g = mostly(12, 9, share=0.03), mostly(4, 1, share=0.03)
    counts = rng.poisson(2.0, (n, g)) + 1.0
    adata = AnnData(np.zeros((n, g)))
    adata.obs["lane"] = mostly(["a", "b"] * 6, ["a"] * 12, [1, 2, 3] * 4)[:n]
    adata.obs["alone"] = ["a"] * (n - 1) + ["b"]
    adata.obs["age"] = np.arange(n) * mostly(1.0, 0.0, np.nan)
    adata.obs["total"] = mostly(1e3, 0.0)
    adata.var["chosen"] = np.arange(g) < mostly(3, 0)
    adata.X = None
    for slot in ("X", "counts", "umi", "raw"):
        if rng.random() < (0.9 if slot == "X" else 0.3):
            taken_as_is(adata, slot, LOOKS[rng.choice(list(LOOKS))](counts))
    if rng.random() < 0.3:
        adata.raw = AnnData(counts, obs=adata.obs, var=adata.var)
    return adata, {
        "batch": mostly(mostly(None, "lane", share=0.5), "alone", "age", "absent"),
        "covariates": mostly([], ["age"], ["lane", "age"], ["absent"]),
        "layer": mostly(None, "counts", "umi", "absent", share=0.3),
        "genes": mostly(None, "chosen", ["1", "0"], ["0", "9"], [], "absent"),
        "library_size": mostly("observed", "total", "absent"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in (0, 100, 200)], ids=str)
def test_the_check_lists_as_an_error_what_fit_raises(
    seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scvae.models.check.seconds_of_run", lambda *_: 1.0)
    monkeypatch.setattr(fit_module, "train_plan", interrupted)
    outcomes = {agreed(*request_of(seed)) for seed in seeds}
    assert "" in outcomes
    assert len(outcomes) > 10  # kinds of errors, and none


def agreed(adata: AnnData, arguments: dict[str, Any]) -> str:
    """Return the start of the error that both give, or nothing."""
    report = scvae.check(adata, **arguments)
    raised = []
    try:
        scvae.fit(adata, **arguments, **QUICK)
    except (DataError, ConfigError) as error:
        raised.append(str(error))
    except KeyboardInterrupt:
        pass
    assert [finding.text for finding in report.errors[:1]] == raised
    return "".join(raised)[:40]


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_everything_that_is_wrong_is_said_at_once(adata: AnnData) -> None:
    rename(adata)
    put(3, 5, -7)(adata)
    adata.X[4] = 0
    report = scvae.check(
        adata, batch="donor", covariates=["cell_type", "depth"], genes="hvg", label="kind"
    )
    said = "\n".join(finding.text for finding in report.errors)
    for words in ("duplicated genes", "'donor'", "'depth'", "-7", "'cell_4'", "'kind'"):
        assert words in said
    assert len(report.errors) == len({finding.text for finding in report.errors}) == 6


def test_what_is_no_anndata_is_said_to_be_none() -> None:
    report = scvae.check(np.ones((20, 3)))  # type: ignore[arg-type]
    assert [finding.level for finding in report.findings] == ["error"]
    assert "adata is a ndarray; an AnnData is needed" in report.errors[0].text


def test_a_view_of_a_file_is_refused_and_looked_at(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    view = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")[::2]
    report = scvae.check(view, batch="batch")
    assert [finding.text[:30] for finding in report.errors] == ["adata is a view of a file, whi"]
    assert texts(report, "total counts")


@pytest.mark.parametrize(
    ("cells", "genes"), [(0, 40), (150, 0), (0, 0), (1, 1), (10, 2)], ids=lambda size: str(size)
)
def test_no_size_is_too_small_to_be_looked_at(adata: AnnData, cells: int, genes: int) -> None:
    report = scvae.check(adata[:cells, :genes].copy())
    assert bool(texts(report, "cells and genes", "error")) == (cells < 10 or genes < 2)
    assert not texts(report, "normalisation")


# -- warnings --------------------------------------------------------------------------------------


def silence(adata: AnnData) -> None:
    put(slice(None), 3, 0)(adata)  # type: ignore[arg-type]


def copy_gene(adata: AnnData) -> None:
    adata.X = dense(adata)
    adata.X[:, 9] = adata.X[:, 2]


def fill(adata: AnnData) -> None:
    adata.X = dense(adata)
    adata.X[11] *= 1000


def thin(adata: AnnData) -> None:
    put(12, slice(None), 0)(adata)  # type: ignore[arg-type]
    adata.X[12, 0] = 2


def shrink(adata: AnnData) -> None:
    adata.obs["batch"] = ["few" if i < 7 else f"many_{i % 2}" for i in range(adata.n_obs)]


def confound(adata: AnnData) -> None:
    mixed = np.arange(adata.n_obs) % 50 == 0
    adata.obs["site"] = np.where(mixed, "elsewhere", adata.obs["batch"].astype(str))


ODDITIES: dict[str, Change] = {
    "silent genes": silence,
    "identical genes": copy_gene,
    "a full cell": fill,
    "a thin cell": thin,
    "batches": shrink,
    "confounding": confound,
}
NAMED = {
    "silent genes": ("first: 'gene_3'",),
    "identical genes": ("'gene_9' has exactly the counts of 'gene_2'",),
    "a full cell": ("Cell 'cell_11'", "times the median"),
    "a thin cell": ("Cell 'cell_12' has 2 counts",),
    "batches": ("1 of 3 batches in adata.obs['batch']", "'few' with 7"),
    "confounding": ("adata.obs['batch']", "'site' (0."),
}


def mend(text: str, adata: AnnData) -> AnnData:
    """Run the code that `text` ends with."""
    code = re.search(r"(adata = .*\.copy\(\)|sc\.pp\..*\)|x = .*\.to_numpy\(\))$", text)
    assert code, text
    names = {"adata": adata, "np": np, "sc": sc}
    exec(code[0], names)
    return names["adata"]


def is_odd(name: str, report: Report) -> list[str]:
    what = {"a full cell": "total counts", "a thin cell": "total counts"}.get(name, name)
    return [text for text in texts(report, what, "warning") if NAMED[name][0] in text]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODDITIES)
def test_an_oddity_is_found_named_and_mended(adata: AnnData, name: str) -> None:
    assert not scvae.check(adata, batch="batch").warnings
    ODDITIES[name](adata)
    report = scvae.check(adata, batch="batch")
    assert report.ok
    assert len(report.warnings) == 1
    (text,) = is_odd(name, report)
    for words in NAMED[name]:
        assert words in text
    if name != "confounding":
        assert not scvae.check(mend(text, adata), batch="batch").warnings


@pytest.mark.filterwarnings("ignore")
def test_oddities_do_not_hide_one_another(adata: AnnData) -> None:
    for spoil in ODDITIES.values():
        spoil(adata)
    report = scvae.check(adata, batch="batch")
    assert [name for name in ODDITIES if is_odd(name, report)] == list(ODDITIES)


@pytest.mark.filterwarnings("ignore")
def test_code_that_mends_a_layer_or_chosen_genes_means_them(adata: AnnData) -> None:
    fill(adata)
    adata.X[20, :5] = 1e7  # of genes that are not fitted
    adata.layers["mine"], adata.X = adata.X.copy(), adata.X * 0
    adata.var["chosen"] = np.arange(adata.n_vars) > 5
    arguments: dict[str, Any] = {"batch": "batch", "layer": "mine", "genes": "chosen"}
    (warning,) = scvae.check(adata, **arguments).warnings
    mended = mend(warning.text, adata)
    assert set(adata.obs_names) - set(mended.obs_names) == {"cell_11"}
    assert not scvae.check(mended, **arguments).warnings


def test_genes_that_were_not_chosen_are_not_odd(adata: AnnData) -> None:
    silence(adata)
    copy_gene(adata)
    chosen = [name for name in adata.var_names if name not in ("gene_3", "gene_9")]
    assert not scvae.check(adata, genes=chosen).warnings
    assert len(scvae.check(adata).warnings) == 2


def test_rare_genes_with_the_same_counts_are_no_copies(adata: AnnData) -> None:
    adata.X = dense(adata)
    adata.X[:, [4, 6]] = 0
    adata.X[:9, [4, 6]] = 1
    assert not scvae.check(adata).warnings
    adata.X[9, [4, 6]] = 1
    assert "'gene_6' has exactly the counts of 'gene_4'" in scvae.check(adata).warnings[0].text


@pytest.mark.parametrize(
    ("genes", "peak", "second", "expected"),
    [
        (10, 24, 3, True),
        (9, 24, 3, False),
        (12, 23, 3, False),
        (12, 20, 2, True),
        (12, 19, 1, False),
    ],
)
def test_genes_with_their_counts_in_one_cell_are_found(
    adata: AnnData, genes: int, peak: int, second: int, expected: bool
) -> None:
    counts = np.minimum(dense(adata), 2)
    counts[7, :genes], counts[8, :genes] = peak, second
    counts[7:9, 30:] = 100  # in two cells
    counts[7, 5] = 60
    counts[20], counts[20, 0] = 0, 1  # a poor cell is no reason to be silent
    adata.layers["mine"], adata.X = sparse.csr_matrix(counts), adata.X * 0
    found = texts(scvae.check(adata, layer="mine"), "lone counts", "warning")
    assert len(found) == expected
    if expected:
        assert found[0].startswith(f"{genes} of 40 genes have one cell with 20 counts or more")
        assert "(highest: 'gene_5', 60)" in found[0]
        assert "highly_variable_genes(adata, layer='mine', flavor=" in found[0]


def test_few_lone_genes_of_many_or_few_cells_are_nothing() -> None:
    counts = np.ones((40, 3000), np.float32)
    counts[7, :14] = 30
    assert not texts(scvae.check(AnnData(counts)), "lone counts")
    counts[7, :15] = 30
    assert texts(scvae.check(AnnData(counts)), "lone counts")
    assert not texts(scvae.check(AnnData(counts[5:9])), "lone counts")


def test_many_names_are_cut_short(adata: AnnData) -> None:
    adata.X = dense(adata)
    adata.X[:, 1:] = adata.X[:, [0]]
    (text,) = texts(scvae.check(adata), "identical genes")
    assert "and 38 more genes" in text
    assert "'gene_5', ...]" in text
    assert "gene_6" not in text


# -- batches and labels ----------------------------------------------------------------------------


def test_a_label_that_the_batch_tells_is_found(adata: AnnData) -> None:
    report = scvae.check(adata, batch="batch", label="cell_type")
    v = cramers_v(adata.obs["batch"].cat.codes, adata.obs["cell_type"].cat.codes)
    assert f"V is {v:.2f}" in texts(report, "confounding", "info")[0]
    confound(adata)
    (text,) = texts(scvae.check(adata, batch="batch", label="site"), "confounding", "warning")
    codes = pd.factorize(adata.obs["site"])[0]
    assert f"V is {cramers_v(adata.obs['batch'].cat.codes, codes):.2f}" in text
    assert "adata.obs['site'] (label)" in text


def test_a_covariate_that_the_batch_tells_is_found(adata: AnnData) -> None:
    confound(adata)
    report = scvae.check(adata, batch="batch", covariates=["site", "cell_type", "library_size"])
    (text,) = texts(report, "confounding", "warning")
    assert "adata.obs['site'] (covariate)" in text
    assert "Leave it out: scvae.fit(adata, batch='batch')" in text
    (weak,) = texts(report, "confounding", "info")
    assert "adata.obs['cell_type'] (covariate)" in weak


def test_cells_without_a_label_do_not_count(adata: AnnData) -> None:
    known = np.arange(adata.n_obs) % 3 > 0
    adata.obs["kind"] = adata.obs["cell_type"].astype(str).where(known)
    report = scvae.check(adata, batch="batch", label="kind")
    expected = scvae.check(adata[known].copy(), batch="batch", label="kind")
    assert report.ok
    assert texts(report, "confounding") == texts(expected, "confounding")


def test_another_name_of_the_batch_does_no_harm(adata: AnnData) -> None:
    adata.obs["sample"] = "sample of " + adata.obs["batch"].astype(str)
    report = scvae.check(adata, batch="batch")
    assert not report.warnings
    assert "'sample'" not in str(report)


def test_the_strongest_associations_come_first_and_names_of_cells_not_at_all(
    adata: AnnData,
) -> None:
    batches = adata.obs["batch"].astype(str).to_numpy()
    for share in (30, 90, 10, 60):
        adata.obs[f"share_{share}"] = np.where(np.arange(150) % 100 < share, batches, "other")
    adata.obs["barcode"] = [f"AAAC-{i}" for i in range(150)]
    adata.obs["number"] = np.arange(150)
    within = adata.obs.groupby("batch", observed=True).cumcount() % 55
    adata.obs["many"] = [f"{batch}-{i}" for i, batch in zip(within, batches, strict=True)]
    adata.obs["listed"] = [[1]] * 149 + [[2]]
    adata.obs["flag"] = np.arange(150) % 2 == 0
    adata.obs["one"] = "the same"
    (low,) = texts(scvae.check(adata, batch="batch"), "confounding", "info")
    (high,) = texts(scvae.check(adata, batch="batch"), "confounding", "warning")
    assert re.findall(r"'share_(\d+)'", high + low) == ["90", "60", "30", "10"]
    assert "'share_90'" in high
    values = [float(value) for value in re.findall(r"\((\d\.\d\d)\)", high + low)]
    assert values == sorted(values, reverse=True)
    for name in ("barcode", "many", "number", "one", "library_size"):
        assert name not in high + low


@pytest.mark.parametrize(("n", "shown"), [(2, True), (100, True), (101, False), (140, False)])
@pytest.mark.parametrize("dtype", ["category", "object"])
def test_columns_with_many_categories_are_no_labels(
    adata: AnnData, n: int, shown: bool, dtype: str
) -> None:
    adata.obs["kind"] = pd.Series(
        [f"kind {i % n}" for i in range(150)], index=adata.obs_names, dtype=dtype
    )
    adata.obs.loc[adata.obs_names[-3:], "kind"] = None  # known of other cells
    assert adata.obs["kind"].nunique() == n
    assert ("'kind'" in str(scvae.check(adata, batch="batch"))) == shown


def test_without_a_batch_nothing_is_said_of_it(adata: AnnData) -> None:
    report = scvae.check(adata)
    assert {finding.what for finding in report.findings} == {
        "counts", "total counts", "memory", "training",
    }  # fmt: skip


@pytest.mark.parametrize("values", [[1, 2], [1.0, 2.0], [True, False], ["1", "2"]], ids=str)
def test_small_batches_of_any_type_are_left_out_by_the_code(
    adata: AnnData, values: list[Any]
) -> None:
    few = np.arange(adata.n_obs) < 12
    adata.obs["run"] = pd.Series(np.where(few, values[0], values[1]), index=adata.obs_names)
    (warning,) = scvae.check(adata, batch="run", label="cell_type").warnings
    assert mend(warning.text, adata).n_obs == adata.n_obs - 12


# -- normalisation ---------------------------------------------------------------------------------


@st.composite
def normalised(draw: st.DrawFn) -> tuple[np.ndarray, bool, float | None, np.ndarray]:
    """Draw counts with a one in every cell, and what normalisation made of them."""
    n, g = draw(st.integers(10, 30)), draw(st.integers(5, 20))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    counts = rng.poisson(rng.gamma(0.7, 6.0, size=(n, g))).astype(np.float64)
    counts[:, 0], counts[:, 1] = 1, rng.integers(2, 9, size=n)
    total = draw(st.sampled_from([1.5, 100.3, 1e4, 1e6]))
    logarithm, cut = draw(st.booleans()), draw(st.booleans())
    values = counts / counts.sum(axis=1, keepdims=True) * total
    if cut:
        counts, values = counts[:, :4], values[:, :4]
    values = np.log1p(values) if logarithm else values
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return counts, logarithm, None if cut else total, values.astype(dtype)


@law
@given(normalised(), st.sampled_from(["dense", "csr", "csc"]))
def test_normalisation_is_recognised_and_undone(
    drawn: tuple[np.ndarray, bool, float | None, np.ndarray], kind: str
) -> None:
    counts, logarithm, total, values = drawn
    adata = AnnData(FORMATS[kind](values))
    report = scvae.check(adata)
    (text,) = texts(report, "normalisation", "warning")
    assert ("log-normalised" in text) == logarithm
    if total is not None:
        assert f"sums to {total:,.6g} in every cell" in text
    mend(text, adata)
    np.testing.assert_array_equal(adata.layers["counts"], counts)
    assert scvae.check(adata, layer="counts").ok


@pytest.mark.parametrize("layer", ["scaled", "it's"])
def test_normalisation_of_a_layer_is_undone(adata: AnnData, layer: str) -> None:
    expected = dense(adata)
    expected[:, 0] = 1  # so that a count of one is in every cell
    adata.layers[layer] = expected / expected.sum(axis=1, keepdims=True)
    adata.X = None
    (text,) = texts(scvae.check(adata, layer=layer), "normalisation", "warning")
    mend(text, adata)
    np.testing.assert_array_equal(adata.layers["counts"], expected)


def test_a_layer_of_zeros_holds_no_counts(adata: AnnData) -> None:
    adata.layers["counts"], adata.layers["umi"] = adata.X * 0, adata.X
    adata.X = adata.X.log1p()
    report = scvae.check(adata)
    with pytest.warns(UserWarning, match="using the raw counts") as caught:
        scvae.fit(adata, **QUICK)
    assert [warning.text for warning in report.warnings] == [str(caught[0].message)]
    assert "adata.layers['umi']" in report.warnings[0].text


def test_counts_kept_elsewhere_are_pointed_at(adata: AnnData) -> None:
    values = adata.copy()
    sc.pp.normalize_total(values, target_sum=1e4)
    sc.pp.log1p(values)
    adata.layers["counts"], adata.X = adata.X, values.X
    report = scvae.check(adata)
    assert report.ok
    (text,) = texts(report, "normalisation", "info")
    assert "exp(adata.X) - 1 sums to 10,000 in every cell" in text
    assert "adata.layers['counts'] holds counts" in text
    assert "using the raw counts in adata.layers['counts']" in report.warnings[0].text
    assert any("The raw counts are in adata.layers['counts']" in t for t in texts(report, "counts"))
    values.raw = AnnData(adata.layers["counts"], obs=adata.obs, var=adata.var)
    assert "adata.raw" in texts(scvae.check(values), "normalisation")[0]


@law
@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 30.0]))
def test_arbitrary_numbers_are_not_taken_for_normalised_counts(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, scale, size=(20, 8)) * (rng.random((20, 8)) < 0.6)
    seen = survey(values)
    assert seen.traces is not None
    assert recognise(seen.traces, 20) is None
    (text,) = texts(scvae.check(AnnData(values)), "normalisation")
    assert "no sign of normalisation" in text
    assert "scvae.fit(adata, counts='rounded')" in text


def test_a_few_cells_that_fit_are_no_pattern(adata: AnnData) -> None:
    adata.X = dense(adata)
    adata.X[:20] *= 0.3
    traces = survey(adata.X).traces
    assert isinstance(traces, Traces)
    assert len(traces.sums) == 20
    assert recognise(traces, adata.n_obs) is None
    assert recognise(traces, 30) is not None


def test_centred_values_cannot_be_undone(adata: AnnData) -> None:
    adata.X = stats.zscore(np.log1p(dense(adata)) + 1e-3 * np.arange(150)[:, None])
    (text,) = texts(scvae.check(adata), "normalisation", "warning")
    share = (adata.X < 0).sum() / np.count_nonzero(adata.X)
    assert f"{share:.0%} of the values of adata.X that are not zero are negative" in text
    assert "cannot be had back" in text


def test_whole_multiples_of_counts_are_found(adata: AnnData) -> None:
    factors = np.random.default_rng(0).integers(2, 9, size=(150, 1))
    adata.X = dense(adata) * factors
    (warning,) = scvae.check(adata).warnings
    assert f"(first: {factors[0, 0]} in cell 'cell_0')" in warning.text
    adata.X[np.arange(150) % 2 == 0, 0] = 1
    assert not scvae.check(adata).warnings


def test_rounded_normalised_values_are_found(adata: AnnData) -> None:
    sc.pp.normalize_total(adata, target_sum=1e4)
    adata.X = np.rint(dense(adata))
    (warning,) = scvae.check(adata).warnings
    low, high = adata.X.sum(axis=1).min(), adata.X.sum(axis=1).max()
    assert f"about the same total, {low:,.0f} to {high:,.0f}" in warning.text


# -- what training takes ---------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [3, 255, 256, 40_000, 3_000_000_000])
@pytest.mark.parametrize("genes", [None, ["gene_3", "gene_0", "gene_30"]])
def test_memory_is_that_of_the_counts_in_training(
    adata: AnnData, largest: int, genes: list[str] | None
) -> None:
    adata.X = np.minimum(dense(adata), 3).astype(np.float64)
    adata.X[0, 3] = largest
    columns = None if genes is None else adata.var_names.get_indexer(genes)
    counts = look(adata, None, columns).require().counts
    assert scvae.check(adata, genes=genes).nbytes == Counts.from_csr(counts).nbytes


@pytest.mark.parametrize("n", [10, 11, 150, 3000, 50_000])
def test_steps_are_those_of_fit(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []

    def train_plan(plan: Any, *args: Any, **more: Any) -> None:
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "train_plan", train_plan)
    adata = AnnData(sparse.csr_matrix(np.random.default_rng(0).integers(1, 5, size=(n, 3))))
    with pytest.raises(KeyboardInterrupt):
        scvae.fit(adata, progress=False)
    report = scvae.check(adata)
    (plan,) = plans
    assert report.steps == plan.schedule.steps
    (text,) = texts(report, "training")
    assert f"{plan.schedule.steps:,} steps at most, of {plan.batch_size} cells each" in text
    assert f"{len(plan.held_out_rows):,} of {n:,} cells" in text


# -- what fit keeps --------------------------------------------------------------------------------


def use_a_layer(adata: AnnData) -> None:
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [[], ["a layer"], *([name] for name in ODDITIES), list(ODDITIES)])
def test_fit_keeps_the_warnings_of_the_check(
    adata: AnnData, names: list[str], tmp_path: Path
) -> None:
    for name in names:
        {**ODDITIES, "a layer": use_a_layer}[name](adata)
    report = scvae.check(adata, batch="batch")
    assert len(report.warnings) == len(names)
    model = scvae.fit(adata, batch="batch", **QUICK)
    expected = [finding.text for finding in report.warnings]
    assert warning_texts(report.findings) == model.record.warnings == expected
    assert list(adata.uns["scvae"]["warnings"]) == expected
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad").uns["scvae"]["warnings"]
    assert list(back) == expected
    model.save(tmp_path / "model")
    assert scvae.load(tmp_path / "model").record.warnings == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [1, -1, 3])
def test_fit_keeps_the_warnings_of_the_chosen_genes(adata: AnnData, step: int) -> None:
    fill(adata)
    silence(adata)
    genes = list(adata.var_names)[::step]
    model = scvae.fit(adata, genes=genes, **QUICK)
    assert model.record.warnings == warning_texts(scvae.check(adata, genes=genes).findings)
    assert len(model.record.warnings) == 2
    assert "first: 'gene_3'" in model.record.warnings[0]


def test_only_what_fit_always_said_is_said_aloud(adata: AnnData) -> None:
    for spoil in ODDITIES.values():
        spoil(adata)
    with pytest.warns(UserWarning, match="genes have no counts") as caught:
        scvae.fit(adata, batch="batch", **QUICK)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", [Kind.SILENT_GENES, Kind.BATCHES], ids=str)
def test_a_fit_says_aloud_what_is_of_a_kind_whatever_it_is_called(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    adata.X = adata.X.toarray()
    adata.X[:, 4] = 0
    adata.obs["run"] = np.where(np.arange(adata.n_obs) < 12, "few", "many")
    report = scvae.check(adata, batch="run")
    assert all(isinstance(finding.what, Kind) for finding in report.findings)
    monkeypatch.setattr(prepare, "ALOUD", {kind})
    expected = [finding.text for finding in report.warnings if finding.what is kind]
    assert len(expected) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scvae.fit(adata, batch="run", **QUICK)
    assert [str(warning.message) for warning in caught] == expected


# -- the report ------------------------------------------------------------------------------------

words = st.one_of(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
    st.from_regex(r"[a-z]{9,12}(-[a-z]{9,12}){2}", fullmatch=True),
    st.text("xyz", min_size=70, max_size=150),
)
findings = st.builds(
    Finding,
    st.sampled_from(["error", "warning", "info"]),
    st.sampled_from(["counts", "batches", "identical genes"]),
    st.lists(words, min_size=1, max_size=40).map(" ".join),
)


@law
@given(st.lists(findings, min_size=1, max_size=8))
def test_the_table_is_aligned_and_holds_every_word(found: list[Finding]) -> None:
    report = Report(tuple(found))
    headline, *lines = str(report).split("\n")
    errors, warned = len(report.errors), len(report.warnings)
    assert re.findall(r"\d+", headline) == [str(errors), str(warned)]
    assert report.ok == (errors == 0)
    start = 4 + max(len(f.level) for f in found) + max(len(f.what) for f in found)
    rows: list[tuple[str, str, str]] = []
    for line in lines:
        assert len(line) <= WIDTH or " " not in line[start:]
        head, text = line[:start], line[start:]
        assert text
        assert not text.startswith(" ")
        if head.strip():
            level, what = head.split(None, 1)
            rows.append((level, what.strip(), text))
        else:
            rows[-1] = (*rows[-1][:2], f"{rows[-1][2]} {text}")
    order = ["error", "warning", "info"]
    expected = sorted(found, key=lambda finding: order.index(finding.level))
    assert rows == [(f.level, f.what, f.text) for f in expected]


def test_the_page_shows_names_as_they_are(adata: AnnData) -> None:
    adata.obs_names = [f"<script>alert('{i}')</script>&amp;" for i in range(adata.n_obs)]
    fill(adata)
    report = scvae.check(adata)
    page = report._repr_html_()
    assert "<script" not in page
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    assert set(cells[2::3]) == {finding.text for finding in report.findings}
    assert "<script>alert('11')" in " ".join(cells)


@pytest.mark.parametrize(
    ("of_step", "expected"), [(0.01, "6 s"), (0.5, "4 minutes"), (20.0, "2.8 hours")]
)
def test_the_time_is_that_of_all_steps_and_evaluations(
    of_step: float, expected: str, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scvae.models.pace._seconds_of_step", lambda *_: of_step)
    run = usual_run(adata.n_obs)
    report = scvae.check(adata)
    minibatches = run.steps + 40 * run.n_held_out / run.batch_size / 3
    assert report.seconds == pytest.approx(of_step * minibatches)
    assert texts(report, "training")[0].endswith(f" that is about {expected} on this CPU.")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.seconds = 3.0  # type: ignore[misc]


def test_steps_are_timed_without_touching_random_states(adata: AnnData) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    _seconds_of_step.cache_clear()
    assert scvae.check(adata).seconds > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]  # noqa: NPY002


def test_the_first_steps_do_not_count_and_a_network_is_timed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted are steps of 100 s while the machine warms up, then of 1, 2, ... s."""
    steps = [100.0] * pace.WARM + [float(i + 1) for i in range(pace.TIMED)]
    moments = iter([*np.cumsum([value for step in steps for value in (0.0, step)])])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(moments))
    _seconds_of_step.cache_clear()
    run = RunSize(n_held_out=10, batch_size=20, steps=100)
    device = torch.device("cpu")
    first = pace.seconds_of_run(run, 30, device)
    assert first == pytest.approx(4.0 * (100 + 40 * 10 / 20 / 3))
    assert pace.seconds_of_run(run, 30, device) == first  # the clock has no more moments to give
    _seconds_of_step.cache_clear()


def test_a_full_gpu_is_told_of(adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> float:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("scvae.models.check.seconds_of_run", refuse)
    report = scvae.check(adata)
    assert report.seconds is None
    assert report.steps
    assert texts(report, "training")[0].endswith("or scvae.fit(adata, batch_size=64)")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_steps_are_timed_where_gradients_are_off(mode: Any, adata: AnnData) -> None:
    _seconds_of_step.cache_clear()
    with mode():
        assert scvae.check(adata).seconds > 0
