"""Differential expression: the regression against known answers, the decision by replicates."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import optimize, special, stats

import scvae
from scvae.analysis import compare, glm
from scvae.analysis.design import make_design, permutations
from scvae.analysis.samples import csr, mean_amounts, sum_samples

RNG = np.random.default_rng


def drawn(means: np.ndarray, dispersion: float, seed: int) -> np.ndarray:
    rng = RNG(seed)
    return rng.poisson(rng.gamma(1 / dispersion, means * dispersion)).astype(float)


def two_arms(n_genes: int, n: int, seed: int, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return counts ``(g, 2 n)`` of genes of which the first half change, and the design."""
    arm = np.repeat([0.0, 1.0], n)
    base = np.exp(RNG(seed).normal(4, 1, n_genes))[:, None]
    change = np.where(np.arange(n_genes) < n_genes // 2, effect, 0.0)[:, None] * arm
    return drawn(base * np.exp(change), 0.1, seed + 1), np.column_stack([np.ones(2 * n), arm])


# -- regression ----------------------------------------------------------------------------------


def test_the_deviance_is_twice_the_distance_to_the_saturated_likelihood() -> None:
    counts, means, phi = np.array([[0.0, 3.0, 12.0]]), np.array([[2.0, 3.5, 9.0]]), 0.3

    def log_prob(mu: np.ndarray) -> np.ndarray:
        r = 1 / phi
        return stats.nbinom.logpmf(counts, r, r / (r + mu)).sum(axis=1)

    saturated = log_prob(np.maximum(counts, 1e-12))
    expected = 2 * (saturated - log_prob(means))
    assert glm.deviance(counts, means, phi) == pytest.approx(expected, rel=1e-6)
    poisson = 2 * (special.xlogy(counts, counts / means) - counts + means).sum(axis=1)
    assert glm.deviance(counts, means, 0.0) == pytest.approx(poisson)


def test_the_fit_is_where_the_likelihood_is_largest() -> None:
    counts, design = two_arms(5, 4, seed=0)
    design = np.column_stack([design, RNG(1).normal(size=8)])
    size = np.exp(RNG(2).normal(size=8) * 0.3)
    fit = glm.fit_means(counts, design, size, 0.1)
    for gene in range(5):

        def loss(beta: np.ndarray, gene: int = gene) -> float:
            mu = np.exp(design @ beta) * size
            return float(-stats.nbinom.logpmf(counts[gene], 10, 10 / (10 + mu)).sum())

        best = optimize.minimize(loss, [4, 0, 0], method="BFGS", tol=1e-9)
        assert fit.coefficients[gene] == pytest.approx(best.x, abs=2e-3)


def test_a_gene_of_one_arm_alone_is_fitted_without_bounds() -> None:
    counts = np.vstack([two_arms(50, 4, 0)[0], [0, 0, 0, 0, 40, 60, 50, 30.0]])
    design = two_arms(50, 4, 0)[1]
    fit = glm.fit_means(counts, design, np.ones(8), 0.1)
    assert fit.means[-1, :4].max() < 1e-3
    assert fit.means[-1, 4:] == pytest.approx(45, rel=1e-3)
    assert glm.degrees_of_freedom(fit.means, design)[-1] == 3


def test_size_factors_are_those_of_depth_not_of_the_largest_gene() -> None:
    counts = np.full((4, 100), 20.0) * np.array([1, 2, 3, 4])[:, None]
    counts[3, 0] = 1e6
    found = glm.size_factors(counts)
    assert found / found[0] == pytest.approx(np.array([1, 2, 3, 4]))


def test_the_dispersion_is_found() -> None:
    counts, design = two_arms(2000, 5, seed=3)
    assert glm.fit(counts, design, np.ones(10)).dispersion == pytest.approx(0.1, rel=0.1)


def test_variances_are_drawn_towards_their_prior_as_far_as_it_is_known() -> None:
    rng = RNG(0)
    true = 4 / rng.chisquare(4, 20_000) * np.exp(0.5)  # scaled inverse chi-squared, d0 = 4
    seen = true * rng.chisquare(5, 20_000) / 5
    shrunken, prior = glm.shrink(seen, np.full(20_000, 5.0), np.zeros(20_000))
    assert prior == pytest.approx(4, rel=0.15)
    assert shrunken == pytest.approx((4 * np.exp(0.5) + 5 * seen) / 9, rel=0.1)
    same, none = glm.shrink(rng.chisquare(5, 20_000) / 5, np.full(20_000, 5.0), np.zeros(20_000))
    assert none > 100
    assert same == pytest.approx(1, rel=0.15)


def test_one_donor_alone_does_not_make_an_effect() -> None:
    counts, design = two_arms(500, 4, seed=0)
    counts[7] = [11, 8, 4, 2, 2, 415, 2, 4]
    full = glm.fit(counts, design, np.ones(8))
    null = glm.fit_means(counts, design[:, :1], np.ones(8), full.dispersion)
    assert glm.f_test(full, counts, design, 1, null).p[7] > 0.05


def test_p_is_uniform_where_nothing_differs_and_intervals_hold_the_truth() -> None:
    counts, design = two_arms(4000, 4, seed=5, effect=0.7)
    full = glm.fit(counts, design, np.ones(8))
    null = glm.fit_means(counts, design[:, :1], np.ones(8), full.dispersion)
    tested = glm.f_test(full, counts, design, 1, null)
    assert 0.04 < (tested.p[2000:] < 0.05).mean() < 0.06
    assert (tested.p[:2000] < 0.05).mean() > 0.7
    truth = np.where(np.arange(4000) < 2000, 0.7, 0.0)
    half = stats.t.ppf(0.975, tested.df) * tested.error
    assert 0.93 < (np.abs(tested.coefficient - truth) < half).mean() < 0.97


def test_rates_of_false_discovery_are_those_of_the_step_up() -> None:
    p = np.array([0.001, 0.01, 0.03, np.nan, 0.5])
    assert glm.adjust(p)[[0, 1, 2, 4]] == pytest.approx([0.004, 0.02, 0.04, 0.5])
    assert np.isnan(glm.adjust(p)[3])


def test_what_permutations_find_as_well_is_not_found() -> None:
    rng = RNG(0)
    heavy = stats.norm.sf(np.abs(rng.standard_t(3, size=(40, 500)))) * 2  # too small, far out
    arrangements = [(heavy[i], list(np.delete(heavy, i, axis=0))) for i in range(40)]
    found = [(glm.adjust_by_permutations(p, rest) < 0.05).any() for p, rest in arrangements]
    assert np.mean(found) <= 0.05
    assert np.mean([(glm.adjust(p) < 0.05).any() for p in heavy]) > 0.5
    p, rest = rng.random(500), list(rng.random((40, 500)))
    p[:50] *= 1e-6
    both = glm.adjust_by_permutations(p, rest)
    assert (both[:50] < 0.05).all()
    assert (both >= glm.adjust(p)).all()
    assert (np.diff(both[np.argsort(p)]) >= 0).all()
    assert glm.adjust_by_permutations(p, []) == pytest.approx(glm.adjust(p))


# -- design --------------------------------------------------------------------------------------


def test_replicates_in_both_arms_are_paired_and_others_left_out() -> None:
    arm = np.array([0, 1, 0, 1, 0])
    design, taken = make_design(arm, np.array(["a", "a", "b", "b", "c"]), np.empty((5, 0)))
    assert design.paired
    assert taken.tolist() == [True] * 4 + [False]
    assert design.free == 1


def test_permutations_are_all_there_once_without_the_true_one() -> None:
    arm = np.array([0, 0, 0, 1, 1, 1])
    design, _ = make_design(arm, np.array(list("abcdef")), np.empty((6, 0)))
    found = permutations(design, 100, RNG(0))
    assert len(found) == 20 / 2 - 1  # mirror images are one
    assert all(p.sum() == 3 and not np.array_equal(p, arm) for p in found)
    pairs, _ = make_design(np.tile([0, 1], 4), np.repeat(list("abcd"), 2), np.empty((8, 0)))
    within = permutations(pairs, 100, RNG(0))
    assert len(within) == 2**4 / 2 - 1
    assert all(set(p[[2 * i, 2 * i + 1]]) == {0.0, 1.0} for p in within for i in range(4))
    agreement = [abs(np.corrcoef(p, pairs.arm)[0, 1]) for p in within]
    assert agreement == sorted(agreement)


# -- of cells ------------------------------------------------------------------------------------


def planted(paired: bool, seed: int = 0, effect: float = 4.0) -> AnnData:
    """Return cells of 8 donors; in "b" 8 genes (of uns) are counted `effect` times as often."""
    adata = scvae.simulate(640, 60, n_types=2, n_batches=1, seed=seed)
    donor = np.arange(640) % 8
    stim = (np.arange(640) // 8) % 2 if paired else donor % 2
    counts = adata.X.toarray()
    chosen = np.argsort(-counts.sum(axis=0))[6:14]
    less = counts[:, chosen] * np.where(stim, 1, 1 / effect)[:, None]
    counts[:, chosen] = np.floor(less + RNG(seed).random((640, 8)))  # the rest by chance
    adata.X, adata.uns["planted"] = counts, list(adata.var_names[chosen])
    adata.obs["donor"] = pd.Categorical([f"d{i}" for i in donor])
    adata.obs["stim"] = np.where(stim, "b", "a")
    return adata


@pytest.fixture(scope="module", params=[True, False], ids=["paired", "unpaired"])
def compared(request: pytest.FixtureRequest) -> tuple[AnnData, scvae.Model, bool]:
    adata = planted(request.param)
    model = scvae.fit(adata, n_hidden=32, max_steps=150, progress=False)
    return adata, model, request.param


def test_planted_genes_are_found_and_few_others(compared: tuple) -> None:
    adata, model, paired = compared
    before = set(adata.uns)
    found = compare(model, adata, "stim", replicate="donor", groups="cell_type", key_added="de")
    assert set(adata.uns) == before | {"de"}
    del adata.uns["de"]
    assert found.null["paired"].tolist() == [paired] * 2
    assert list(found.table["group"].unique()) == ["type_0", "type_1"]
    for _, table in found.table.groupby("group"):
        is_planted = table["gene"].isin(adata.uns["planted"])
        chosen = table[is_planted & table["p"].notna()]
        assert len(chosen) >= 6
        assert (chosen["fdr"] < 0.05).all()
        assert (table["fdr"][~is_planted] < 0.05).mean() < 0.1
        assert ((chosen["lfc_low"] < 2.2) & (chosen["lfc_high"] > 1.8)).all()
        assert (chosen["probability"] > 0.9).all()
    assert (found.null["null_found"] < 1).all()
    assert "null_found" in str(found)


def test_exchanging_the_levels_turns_every_effect(compared: tuple) -> None:
    adata, model, _ = compared
    options = {"replicate": "donor", "max_permutations": 0}
    one = compare(model, adata, "stim", **options).table.set_index("gene")
    other = compare(model, adata, "stim", levels=("a", "b"), **options).table.set_index("gene")
    other = other.loc[one.index]
    assert other["p"].to_numpy() == pytest.approx(one["p"].to_numpy(), rel=1e-3, abs=1e-12)
    assert other["lfc_low"].to_numpy() == pytest.approx(-one["lfc_high"].to_numpy(), abs=1e-3)
    assert other["lfc_model"].to_numpy() == pytest.approx(-one["lfc_model"].to_numpy(), abs=1e-6)


def test_rows_in_another_order_change_nothing(compared: tuple) -> None:
    adata, model, _ = compared
    order = RNG(0).permutation(adata.n_obs)
    options = {"replicate": "donor", "max_permutations": 3}
    one, other = (compare(model, a, "stim", **options).table for a in (adata, adata[order].copy()))
    columns = ["gene", "lfc", "p", "fdr", "expressing", "n_cells"]
    pd.testing.assert_frame_equal(one[columns], other[columns])


def test_without_replicates_there_is_no_p(compared: tuple) -> None:
    adata, model, _ = compared
    found = compare(model, adata, "stim")
    assert found.table["p"].isna().all()
    assert found.table["lfc_model"].notna().all()
    assert any("replicate='donor'" in note for note in found.notes)
    shares = model.amount(adata, samples=20).mean(1)
    stim = (adata.obs["stim"] == "b").to_numpy()
    expected = np.log2(shares[stim].mean(0) / shares[~stim].mean(0))
    seen = found.table.set_index("gene").loc[model.origin.genes, "lfc_model"].to_numpy()
    assert seen == pytest.approx(expected, abs=0.05)
    assert np.corrcoef(seen, expected)[0, 1] > 0.95


def test_too_few_replicates_have_effects_and_a_reason(compared: tuple) -> None:
    adata, model, _ = compared
    few = adata[adata.obs["donor"].isin(["d0", "d1"])].copy()
    found = compare(model, few, "stim", replicate="donor")
    assert found.table[["p", "fdr"]].isna().all(axis=None)
    assert found.table["lfc_model"].notna().all()
    assert any("no p" in note and "replicates" in note for note in found.notes)


def test_absent_and_small_groups_are_named(compared: tuple) -> None:
    adata, model, _ = compared
    adata = adata.copy()
    group = np.where(adata.obs["stim"] == "b", "only b", "x").astype(object)
    group[::3] = "big"
    adata.obs["group"] = group
    adata.obs.loc[adata.obs_names[0], "group"] = "one cell"
    found = compare(model, adata, "stim", replicate="donor", groups="group", max_permutations=0)
    assert set(found.table["group"]) == {"big"}
    assert any(note.startswith("only b") and "one arm" in note for note in found.notes)
    assert any(note.startswith("one cell") for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "stimm"}, "did you mean condition='stim'"),
        ({"condition": "one"}, "one level"),
        ({"condition": "three"}, "say which two"),
        ({"levels": ("a", "c")}, "must be two of"),
        ({"covariates": "noise"}, "differs between cells"),
        ({"replicate": "missing"}, "no column 'missing'"),
        ({"min_cells": 10_000}, "No group has"),
    ],
)
def test_what_cannot_be_compared_is_refused(compared: tuple, options: dict, message: str) -> None:
    adata, model, _ = compared
    adata = adata.copy()
    adata.obs["one"], adata.obs["noise"] = "same", RNG(0).normal(size=adata.n_obs)
    adata.obs["three"] = np.array(["a", "b", "c"])[np.arange(adata.n_obs) % 3]
    with pytest.raises(ValueError, match=message):
        compare(model, adata, **({"condition": "stim", "replicate": "donor"} | options))


def test_a_condition_that_is_the_batch_is_told(simulated: AnnData) -> None:
    adata = simulated.copy()
    model = scvae.fit(adata, batch="batch", n_hidden=8, max_steps=3, progress=False)
    adata.obs["donor"] = np.arange(adata.n_obs) % 5
    with pytest.warns(UserWarning, match="go together"):
        compare(model, adata, "batch", replicate="donor", min_cells=1, max_permutations=0)


def test_a_covariate_of_donors_takes_out_what_it_explains() -> None:
    adata = planted(paired=False, seed=3)
    sex = adata.obs["donor"].isin(["d0", "d1", "d2", "d5"])
    counts = np.asarray(adata.X).copy()
    counts[:, 20] = np.floor(counts[:, 20] * np.where(sex, 8, 1) + 1)
    adata.X, adata.obs["sex"] = counts, np.where(sex, "f", "m")
    model = scvae.fit(adata, n_hidden=8, max_steps=3, progress=False)
    options = {"replicate": "donor", "max_permutations": 0}
    plain = compare(model, adata, "stim", **options).table.set_index("gene").loc["gene_20"]
    told = compare(model, adata, "stim", covariates="sex", **options)
    told = told.table.set_index("gene").loc["gene_20"]
    assert told["lfc_high"] - told["lfc_low"] < 0.5 * (plain["lfc_high"] - plain["lfc_low"])


# -- samples -------------------------------------------------------------------------------------


def test_samples_are_sums_of_their_cells_and_amounts_their_means(
    fitted: tuple[AnnData, scvae.Model],
) -> None:
    adata, model = fitted
    group, arm = adata.obs["cell_type"].astype(str).to_numpy(), np.arange(adata.n_obs) % 3 - 1
    dataset = model.read(adata)
    summed = sum_samples(csr(dataset), group, (np.arange(adata.n_obs) % 2).astype(str), arm)
    amounts = mean_amounts(model, dataset, summed, "own", 2, seed=0)
    # Posterior draws differ by how cells are taken together; here they are all taken at once.
    each = model.amount(dataset, samples=2, batch="own")
    for row in range(len(summed.table)):
        own = summed.of_cell == row
        assert summed.counts[row] == pytest.approx(adata.X[own].toarray().sum(0))
        assert summed.expressing[row] == pytest.approx((adata.X[own].toarray() > 0).sum(0))
        assert amounts[row] == pytest.approx(each[own].mean(0), rel=1e-4)
    assert (summed.of_cell[arm < 0] == -1).all()


def test_a_null_that_finds_too_much_is_told() -> None:
    from scvae.analysis.compare import _warn

    null = pd.DataFrame({"group": ["a"], "found": [30], "null_found": [12.0]})
    with pytest.warns(UserWarning, match="12.0 in the mean"):
        _warn(null)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _warn(null.assign(null_found=0.5))
