"""Several kinds of measurement: what a fit takes, what it answers, and cells that lack a kind."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse

import scvae
from scvae import ConfigError, DataError
from scvae.core.joint import joint_and_single_bounds
from scvae.core.objectives import elbo
from scvae.data.hold.several import Datasets
from scvae.errors import ScvaeWarning

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
KINDS = ["rna", "protein", "chromatin"]
SMALL: dict[str, Any] = {"n_latent": 4, "n_hidden": 8, "max_steps": 6, "progress": False}


def cells(missing: float = 0.3, kinds: list[str] = KINDS, seed: int = 2) -> Any:
    sizes = {"n_proteins": 5, "n_regions": 30, "missing": missing}
    return scvae.simulate(60, 12, modalities=kinds, **sizes, seed=seed)


def fit(data: Any, **arguments: Any) -> scvae.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scvae.fit(data, **{**SMALL, **arguments})


@pytest.fixture(scope="module")
def several() -> tuple[Any, scvae.Model]:
    mdata = cells()
    return mdata, fit(mdata, batch="batch")


def dataset(model: scvae.Model, mdata: Any) -> Datasets:
    read = model.read(mdata)
    assert isinstance(read, Datasets)
    return read


# -- what was measured -----------------------------------------------------------------------------


def test_a_cell_has_the_counts_of_the_modalities_that_have_it(
    several: tuple[Any, scvae.Model],
) -> None:
    mdata, model = several
    held = dataset(model, mdata).cells(torch.arange(mdata.n_obs))
    for kind, part in zip(KINDS, held.parts, strict=True):
        adata = mdata[kind]
        there = mdata.obs_names.isin(adata.obs_names)
        assert 0 < there.sum() < mdata.n_obs
        np.testing.assert_array_equal(part.present.numpy(), there)
        by_name = adata[mdata.obs_names[there]].X.toarray()
        np.testing.assert_array_equal(part.x.numpy()[there], by_name)
        assert not part.x[~part.present].any()
        assert part.log_library.isfinite().all()


def test_rows_out_follow_rows_in(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    plain = pd.DataFrame(model.embed(mdata), index=mdata.obs_names)
    np.testing.assert_array_equal(plain, mdata.obsm["X_scvae"])
    turned = {kind: mdata[kind][::-1, ::-1].copy() for kind in reversed(KINDS)}
    again = mudata.MuData(turned)
    again.obs["batch"] = mdata.obs["batch"].reindex(again.obs_names)
    assert list(again.obs_names) != list(mdata.obs_names)
    found = model.embed(again)
    np.testing.assert_allclose(found, plain.loc[again.obs_names], rtol=1e-4, atol=1e-4)


def test_what_an_absent_part_holds_changes_nothing(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    held = dataset(model, mdata).cells(torch.arange(mdata.n_obs))
    spoilt = [torch.where(part.present[:, None], part.x, torch.nan) for part in held.parts]
    parts = [
        part.__class__(**{**vars(part), "x": x}) for part, x in zip(held.parts, spoilt, strict=True)
    ]
    other = held.__class__(tuple(parts), held.s, batch=held.batch)
    for minibatch in (held, other):
        model.vae.zero_grad()
        noise = torch.Generator().manual_seed(0)
        _, bound, climbed = joint_and_single_bounds(model.vae, minibatch, noise)
        climbed.backward()
        gradients = [p.grad.clone() for p in model.vae.parameters() if p.grad is not None]
        if minibatch is held:
            expected = [bound, climbed, *gradients]
    model.vae.zero_grad(set_to_none=True)
    for one, same in zip([bound, climbed, *gradients], expected, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, same)


def test_a_cell_measured_by_nothing_is_named() -> None:
    mdata = cells(kinds=["rna", "protein"], missing=0.0)
    first = mdata.obs_names[7]
    parts = {kind: mdata[kind][mdata.obs_names != first].copy() for kind in ("rna", "protein")}
    nothing = AnnData(np.ones((1, 2)), obs=pd.DataFrame(index=[first]))
    with pytest.raises(DataError, match=f"1 of 60 cells were measured in none .*first: '{first}'"):
        fit(mudata.MuData({**parts, "hto": nothing}))


def test_a_mask_says_what_was_measured_not_zeros() -> None:
    mdata = cells(kinds=["rna", "protein"], missing=0.0)
    mdata.obs["has_adt"] = np.arange(60) % 3 > 0
    model = fit(mdata, measured={"protein": "has_adt"})
    part = mdata["protein"][mdata.obs["has_adt"].to_numpy()].copy()
    dropped = mudata.MuData({"rna": mdata["rna"].copy(), "protein": part})
    np.testing.assert_allclose(
        fit(dropped).embed(dropped), mdata.obsm["X_scvae"], rtol=1e-4, atol=1e-4
    )
    zeros = cells(kinds=["rna", "protein"], missing=0.0)
    x = zeros["protein"].X.toarray()
    zeros.mod["protein"].X = np.where(np.arange(60)[:, None] % 3 > 0, x, 0)
    assert not np.allclose(fit(zeros).embed(zeros), model.embed(dropped), atol=1e-3)


def test_entries_that_were_not_measured_may_be_anything() -> None:
    found = []
    for fill in (0.0, 999.0, np.nan):
        mdata = cells(kinds=["rna", "protein"], missing=0.0)
        protein = mdata.mod["protein"]
        seen = np.ones(protein.shape, dtype=bool)
        seen[:20, :2] = False
        protein.X = np.where(seen, protein.X.toarray(), fill)
        protein.layers["seen"] = seen
        model = fit(mdata, measured={"protein": "seen"})
        found.append(mdata.obsm["X_scvae"])
        np.testing.assert_array_equal(model.embed(mdata), found[-1])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert model.record.elbo_held_out is not None


def test_what_marked_the_measured_in_the_fit_marks_it_ever_after(tmp_path: Path) -> None:
    mdata = cells(kinds=["rna", "protein"])
    protein = mdata.mod["protein"]
    seen = np.ones(protein.shape, dtype=bool)
    nothing = protein.obs_names.intersection(mdata["rna"].obs_names)[20:24]  # of any protein
    seen[:9, :2], seen[protein.obs_names.isin(nothing)] = False, False
    protein.layers["seen"] = seen
    model = fit(mdata, measured={"protein": "seen"})
    model.save(tmp_path / "m.scvae")
    again = scvae.load(tmp_path / "m.scvae", device="cpu")
    assert again.origin.parts["protein"].measured == "seen"
    np.testing.assert_array_equal(again.embed(mdata), mdata.obsm["X_scvae"])
    absent = ~mdata.obs_names.isin(protein.obs_names) | mdata.obs_names.isin(nothing)
    np.testing.assert_array_equal(model.contributions(mdata)["protein"] == 0, absent)
    turned = mudata.MuData({"rna": mdata["rna"], "protein": protein[::-1, ::-1].copy()})
    table = pd.DataFrame(again.embed(turned), index=turned.obs_names)
    expected = mdata.obsm["X_scvae"]
    np.testing.assert_allclose(table.loc[mdata.obs_names], expected, rtol=1e-4, atol=1e-4)
    bare = mdata.copy()
    del bare.mod["protein"].layers["seen"]
    others = again.embed(bare)  # where nothing is marked, all was measured
    assert not np.allclose(others, expected, atol=1e-3)


@pytest.mark.parametrize("layer", [None, {"protein": "counts"}])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_the_remedy_for_values_that_are_missing_works(layer: Any, form: Any) -> None:
    mdata = cells(kinds=["rna", "protein"], missing=0.0)
    protein = mdata.mod["protein"]
    x = protein.X.toarray()
    x[:9, 1] = np.nan
    protein.layers["counts"], protein.X = form(x), form(x)
    with pytest.raises(DataError, match="has 9 NaN") as caught:
        fit(mdata, layer=layer)
    told = str(caught.value)
    remedy, call = told.split("say so: ")[1].split("; else")[0].split(", then scvae.")
    known = {"mdata": mdata, "np": np}
    exec(remedy, known)
    eval(call, {**known, "fit": fit})
    held = dataset(fit(mdata, layer=layer, measured={"protein": "seen"}), mdata)
    assert int((~held.cells(torch.arange(60)).parts[1].observed).sum()) == 9


def test_a_mask_of_other_values_is_refused() -> None:
    mdata = cells(kinds=["rna", "protein"], missing=0.0)
    mdata.mod["protein"].layers["seen"] = mdata["protein"].X.toarray() + 2
    with pytest.raises(DataError, match=r"layers\['seen'\] .* must be boolean"):
        fit(mdata, measured={"protein": "seen"})


# -- bounds ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["product", "mixture", "mixture-of-products"])
def test_the_joint_bound_is_the_elbo_and_single_bounds_those_of_single_kinds(fusion: str) -> None:
    mdata = cells()
    model = fit(mdata, fusion=fusion, prior="normal")
    held = dataset(model, mdata)
    rows = torch.arange(mdata.n_obs)
    batch = held.cells(rows)

    def bounds(alone: float) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.Generator().manual_seed(1)
        return joint_and_single_bounds(model.vae, batch, noise, alone=alone, across=0.0)[1:]

    (joint, nothing), (same, both) = bounds(0.0), bounds(2.0)
    terms = model.vae.terms(batch, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(joint, elbo(terms).mean())
    assert torch.equal(joint, nothing)
    assert torch.equal(joint, same)
    beside, n_parts = torch.zeros(60), batch.present.sum(1)
    for m in range(3):
        only = held.only([m]).cells(rows)
        noise = torch.Generator().manual_seed(5)
        bound = elbo(model.vae.terms(only, 200, noise))
        beside += torch.where(batch.present[:, m] & (n_parts > 1), bound, 0.0)
    torch.testing.assert_close(both - joint, 2 * beside.mean(), rtol=0.05, atol=0.5)


@torch.no_grad()
@pytest.mark.parametrize("across", [0.3, 1.0])
def test_single_kinds_decode_the_others_too(across: float) -> None:
    mdata = cells(kinds=["rna", "protein"])
    model = fit(mdata, prior="normal")
    held, rows = dataset(model, mdata), torch.arange(mdata.n_obs)
    batch = held.cells(rows)
    vae, both = model.vae, batch.present.all(1)
    more, noise = torch.zeros(()), torch.Generator()
    for seed in range(200):
        bounds = [
            joint_and_single_bounds(vae, batch, noise.manual_seed(seed), across=weight)[2]
            for weight in (0.0, across)
        ]
        more += (bounds[1] - bounds[0]) / 200
    expected = torch.zeros(len(rows))
    for m, other in ((0, 1), (1, 0)):
        q = vae.encode(held.only([m]).cells(rows))
        z = q.sample((200,), generator=torch.Generator().manual_seed(7))
        part = batch.parts[other].filled
        log_p = part.log_prob(vae.likelihood.likelihoods[other](z, part)).mean(0)
        expected += torch.where(both, across * log_p, 0.0)
    torch.testing.assert_close(more, expected.mean(), rtol=0.02, atol=0.1)


@torch.no_grad()
def test_a_product_knows_at_least_what_every_expert_knows(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    batch = dataset(model, mdata).cells(torch.arange(mdata.n_obs))
    q, said = model.vae.encode(batch), model.vae.posterior.said(batch)
    of_expert = torch.where(batch.present[..., None], said.scale, torch.inf).amin(1)
    assert (q.scale <= of_expert * (1 + 1e-6)).all()
    shares = model.contributions(mdata)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert (shares[KINDS].to_numpy()[~batch.present.numpy()] == 0).all()
    precision = q.scale.square().reciprocal().reciprocal().mean(-1)
    np.testing.assert_allclose(shares["prior"], precision, rtol=1e-4)


def test_weights_of_kinds_and_of_single_bounds_are_told_and_change_the_fit() -> None:
    mdata = cells(kinds=["rna", "protein"])
    plain = fit(mdata).embed(mdata)
    for change in ({"alone": 0.0}, {"weights": {"protein": 3.0}}):
        model = fit(mdata, **change)
        assert not np.allclose(model.embed(mdata), plain, atol=1e-4)
        told = str(model.summary())
        assert ("added with weight 0" if "alone" in change else "protein 3") in told


# -- answers ---------------------------------------------------------------------------------------


def test_any_subset_of_kinds_is_embedded(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    rna = mdata["rna"]
    alone = model.embed(rna)
    held = dataset(model, mdata).only([0])
    there = mdata.obs_names.get_indexer(rna.obs_names)
    np.testing.assert_allclose(alone, model.embed_dataset(held)[there], rtol=1e-4, atol=1e-4)
    both = mudata.MuData({kind: mdata[kind] for kind in ("rna", "chromatin")})
    assert model.embed(both).shape == (both.n_obs, 4)
    with pytest.raises(DataError, match="none of which is one of the model's"):
        model.embed(mudata.MuData({"hto": mdata["protein"]}))


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_by_one_kind_is_that_of_cells_that_have_no_other(
    several: tuple[Any, scvae.Model], kind: str, tmp_path: Path
) -> None:
    mdata, model = several
    alone = mudata.MuData({kind: mdata[kind]})
    for name in ("batch", "cell_type"):
        alone.obs[name] = mdata.obs[name].reindex(alone.obs_names)
    found = pd.DataFrame(model.embed(mdata, modality=kind), index=mdata.obs_names)
    there = mdata.obs_names.isin(alone.obs_names)
    np.testing.assert_array_equal(found.isna().all(axis=1), ~there)
    expected = model.embed(alone)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(found.loc[alone.obs_names], expected, **close)
    np.testing.assert_allclose(model.embed(alone, modality=kind), expected, **close)
    assert not np.allclose(found[there], mdata.obsm["X_scvae"][there], atol=1e-2)
    mean, spread = model.embed(mdata, modality=kind, return_std=True)
    np.testing.assert_array_equal(np.isnan(spread), np.isnan(mean))
    path = model.embed(mdata, modality=kind, out=tmp_path / "e.zarr")
    np.testing.assert_array_equal(anndata.read_zarr(path).obsm["X_scvae"], mean)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_cells_of_nan_regions_are_left_out_by_the_call_that_is_named(is_sparse: bool) -> None:
    mdata = cells(0.0, ["rna", "chromatin"])
    counts = mdata["chromatin"].X.toarray().astype(np.float32)
    counts[:7] = np.nan
    mdata["chromatin"].X = sparse.csr_matrix(counts) if is_sparse else counts
    with pytest.raises(DataError, match="has 210 NaN") as error:
        fit(mdata)
    call = str(error.value).split("modality: ")[1].split("; else")[0]
    exec(call, {"mdata": mdata, "np": np})
    assert mdata["chromatin"].n_obs == 53
    assert np.isfinite(fit(mdata).embed(mdata)).all()


def test_a_modality_that_the_model_does_not_know_is_told(several: tuple[Any, scvae.Model]) -> None:
    parts = {kind: several[0][kind] for kind in ("rna", "protein")}
    model = fit(mudata.MuData(parts))
    known = parts["rna"].obs_names.union(parts["protein"].obs_names)
    regions = several[0]["chromatin"]
    further = regions[regions.obs_names.isin(known)].copy()
    mdata = mudata.MuData({**parts, "chromatin": further})
    with pytest.warns(ScvaeWarning, match=r"mdata holds \['chromatin'\], which the model does not"):
        found = model.embed(mdata)
    expected = pd.DataFrame(model.embed(mudata.MuData(parts)), index=mudata.MuData(parts).obs_names)
    np.testing.assert_array_equal(found, expected.loc[mdata.obs_names])


def test_cells_to_be_checked_are_drawn_from_those_that_were_measured(
    several: tuple[Any, scvae.Model],
) -> None:
    mdata, model = several
    measured = mdata["protein"]
    few = model.predictive_check(mdata, modality="protein", max_cells=measured.n_obs)
    named = mudata.MuData({"protein": measured})
    named.obs["batch"] = mdata.obs["batch"].reindex(named.obs_names)
    alone = model.predictive_check(named, modality="protein")
    np.testing.assert_allclose(few["observed_mean"], alone["observed_mean"], rtol=1e-6)


def test_an_embedding_by_a_kind_that_is_not_there_is_refused(
    several: tuple[Any, scvae.Model],
) -> None:
    mdata, model = several
    with pytest.raises(ConfigError, match=r"modality='adt' is not known; give one of 'rna'"):
        model.embed(mdata, modality="adt")
    with pytest.raises(DataError, match=r"modality='protein', but none of the .* cells was"):
        model.embed(mdata["rna"], modality="protein")


def test_what_was_not_measured_is_imputed(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    for kind in KINDS:
        table = model.normalized(mdata, modality=kind)
        assert list(table.index) == list(mdata.obs_names)
        assert list(table.columns) == model.origin.parts[kind].names
        assert (table.to_numpy() >= 0).all()
        middle, low, high = model.normalized(
            mdata, modality=kind, return_interval=0.8, samples=25, background=kind == "protein"
        )
        assert (low <= high).all(axis=None)
        assert middle.shape == low.shape
    rna = model.normalized(mdata, modality="rna", library_size=7.0)
    np.testing.assert_allclose(rna.sum(axis=1), 7.0, rtol=1e-4)
    front, whole = (
        model.normalized(mdata, modality="protein", background=b) for b in (False, True)
    )
    assert (whole > front).all(axis=None)


def test_intervals_cover_what_the_model_draws() -> None:
    mdata = cells(missing=0.0, kinds=["rna", "protein"])
    model = fit(mdata)
    new = model.sample(150, seed=3)
    _, low, high = model.normalized(new, modality="protein", return_interval=0.9, samples=100)
    x = new["protein"].X.toarray()
    inside = ((low.to_numpy() <= x) & (x <= high.to_numpy())).mean()
    assert 0.85 < inside < 0.99


def test_foreground_is_told_where_it_was_measured(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    table = model.foreground(mdata)
    there = mdata.obs_names.isin(mdata["protein"].obs_names)
    np.testing.assert_array_equal(table.notna().all(axis=1), there)
    assert table[there].to_numpy().min() >= 0
    assert table[there].to_numpy().max() <= 1 + 1e-5


def test_the_likelihood_of_a_kind_given_another_adds_up(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    asked = {"samples": 400, "seed": 1}
    protein = model.log_likelihood(mdata, modality="protein", **asked)
    rna_given = model.log_likelihood(mdata, modality="rna", given="protein", **asked)
    both = mudata.MuData({kind: mdata[kind] for kind in ("rna", "protein")})
    whole = pd.Series(model.log_likelihood(both, **asked), index=both.obs_names)
    there = ~np.isnan(rna_given)
    expected = whole.reindex(mdata.obs_names).to_numpy()[there]
    assert abs(((protein + rna_given)[there] - expected).mean()) < 0.5  # of about -85 nats
    assert np.isnan(protein).sum() == 60 - mdata["protein"].n_obs
    with pytest.raises(ConfigError, match="two kinds"):
        model.log_likelihood(mdata, given="rna")


def test_all_kinds_are_drawn_together_and_checked_one_by_one(
    several: tuple[Any, scvae.Model],
) -> None:
    mdata, model = several
    drawn = model.sample(9, batch="batch_1")
    assert [drawn[kind].shape for kind in KINDS] == [(9, 12), (9, 5), (9, 30)]
    assert set(drawn.obs["batch"]) == {"batch_1"}
    assert drawn.obsm["X_scvae"].shape == (9, 4)
    for kind in KINDS:
        table = model.predictive_check(mdata, modality=kind)
        observed = mdata[kind].X.toarray().mean(0)
        np.testing.assert_allclose(table["observed_mean"], observed, rtol=1e-6)


def test_a_check_is_of_the_entries_that_were_measured(several: tuple[Any, scvae.Model]) -> None:
    mdata = cells(kinds=["rna", "protein"], missing=0.0)
    protein = mdata.mod["protein"]
    seen = np.ones(protein.shape, dtype=bool)
    seen[:20, :2], seen[:, 3] = False, False
    x = np.where(seen, protein.X.toarray(), np.nan)
    protein.X, protein.layers["seen"] = np.nan_to_num(x), seen
    model = fit(mdata, measured={"protein": "seen"})
    other = mdata.copy()
    other.mod["protein"].X = np.where(seen, x, 500.0)
    table = model.predictive_check(mdata, modality="protein")
    pd.testing.assert_frame_equal(model.predictive_check(other, modality="protein"), table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing of protein 3
        expected = np.nanmean(x, 0), np.nanvar(x, 0, ddof=1), np.nanmean(x == 0, 0, where=seen)
    for name, values in zip(("mean", "variance", "zeros"), expected, strict=True):
        np.testing.assert_allclose(table[f"observed_{name}"], values, rtol=1e-6)
    assert (table.isna().all(axis=1) == [False, False, False, True, False]).all()
    plotted = scvae.plot.fit_check(model, mdata, modality="protein")
    assert plotted[0].get_title().startswith("mean, 5 proteins")
    plotted[0].figure.draw_without_rendering()


def test_what_was_not_measured_cannot_be_checked(several: tuple[Any, scvae.Model]) -> None:
    mdata, model = several
    few = model.predictive_check(mdata, modality="chromatin", max_cells=20)
    assert few.shape == (30, 6)
    with pytest.raises(DataError, match=r"modality='protein', but none of the .* was measured"):
        model.predictive_check(mdata["rna"], modality="protein")
    with pytest.raises(ConfigError, match=r"modality='adt' is not known; .*'protein'"):
        scvae.plot.fit_check(model, mdata, modality="adt")


# -- files -----------------------------------------------------------------------------------------


def test_a_file_holds_all_kinds(several: tuple[Any, scvae.Model], tmp_path: Path) -> None:
    mdata, model = several
    model.save(tmp_path / "model.scvae")
    again = scvae.load(tmp_path / "model.scvae", device="cpu")
    assert (again.architecture, again.origin) == (model.architecture, model.origin)
    assert again.record == model.record.without_times()
    np.testing.assert_array_equal(again.embed(mdata), mdata.obsm["X_scvae"])
    mdata.write(tmp_path / "cells.h5mu")
    read = mudata.read_h5mu(tmp_path / "cells.h5mu")
    assert read.uns["scvae"]["modalities"]["protein"] == "protein"


def test_a_fit_resumed_is_the_fit_to_the_bit(tmp_path: Path) -> None:
    mdata = cells()
    fit(mdata)
    expected, kept = mdata.obsm["X_scvae"].copy(), tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scvae.models.keep.checkpoint.SECONDS_BETWEEN", 0.0)

        def stop(run: Any) -> None:
            if run.taken == 4:
                raise RuntimeError("a crash")

        from scvae.models.keep.checkpoint import Checkpoint

        usual = Checkpoint.keep
        patch.setattr(Checkpoint, "keep", lambda self, run: (usual(self, run), stop(run)))
        with pytest.raises(RuntimeError, match="a crash"):
            fit(mdata, checkpoint=kept)
    fit(mdata, checkpoint=kept)
    np.testing.assert_array_equal(mdata.obsm["X_scvae"], expected)
    with pytest.raises(scvae.FileError, match="of another fit"):
        fit(mdata, checkpoint=kept, alone=0.5)


# -- what is taken ---------------------------------------------------------------------------------


def test_names_types_and_slots_all_lead_to_the_same_fit() -> None:
    mdata = cells(missing=0.0, kinds=["rna", "protein"])
    expected = fit(mdata).embed(mdata)
    named = mudata.MuData({"a": mdata["rna"], "b": mdata["protein"]})
    fit(named, modalities={"protein": "b", "rna": "a"})
    rna, protein = mdata["rna"], mdata["protein"]
    whole = AnnData(sparse.hstack([rna.X, protein.X], format="csr"), rna.obs.copy())
    whole.var_names = [*rna.var_names, *protein.var_names]
    whole.var["feature_types"] = ["Gene Expression"] * 12 + ["Antibody Capture"] * 5
    taken_apart = "12 of 'Gene Expression', 5 of 'Antibody Capture'.*as rna and protein"
    with pytest.warns(ScvaeWarning, match=taken_apart):
        scvae.fit(whole.copy(), max_steps=2, progress=False)
    model = fit(whole)
    assert any("Antibody Capture" in text for text in model.record.warnings)
    report = scvae.check(whole)
    assert any("== 'Gene Expression'].copy()" in found.text for found in report.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named_types = {"rna": "Gene Expression", "protein": "Antibody Capture"}
        scvae.fit(whole.copy(), modalities=named_types, max_steps=2, progress=False)
    np.testing.assert_array_equal(model.embed(whole), whole.obsm["X_scvae"])
    table, array = rna.copy(), rna.copy()
    table.obsm["adt"] = protein.to_df()
    array.obsm["adt"] = protein.X.toarray()
    for data in (table, array):
        fit(data, modalities={"protein": "adt"})
    for data in (named, whole, table, array):
        np.testing.assert_allclose(data.obsm["X_scvae"], expected, rtol=1e-4, atol=1e-4)
    assert model.origin.parts["protein"].place == "Antibody Capture"


@pytest.mark.parametrize("kind", ["protein", "chromatin"])
def test_one_kind_alone_is_fitted(kind: str, tmp_path: Path) -> None:
    mdata = cells(missing=0.0)
    alone = mudata.MuData({kind: mdata[kind]})
    alone.obs["batch"] = mdata.obs["batch"]
    model = fit(alone, batch="batch")
    adata = mdata[kind].copy()
    other = fit(adata, modalities=kind, batch="batch")
    np.testing.assert_array_equal(adata.obsm["X_scvae"], alone.obsm["X_scvae"])
    other.save(tmp_path / "m.scvae")
    np.testing.assert_array_equal(
        scvae.load(tmp_path / "m.scvae", device="cpu").embed(adata), model.embed(alone)
    )
    assert model.normalized(alone).shape == adata.shape
    assert model.sample(3).shape == (3, adata.n_vars)


def test_chromatin_is_of_ones_where_that_is_chosen() -> None:
    mdata = cells(missing=0.0, kinds=["rna", "chromatin"])
    ones = cells(missing=0.0, kinds=["rna", "chromatin"])
    ones.mod["chromatin"].X = (ones["chromatin"].X > 0).astype(np.float32)
    law = {"chromatin": "bernoulli"}
    fit(mdata, likelihood=law)
    model = fit(ones, likelihood=law)
    # The depth of a cell is what was counted; what is modelled is whether anything was.
    assert model.architecture.parts["chromatin"].likelihood == "bernoulli"
    drawn = model.sample(40)["chromatin"].X
    assert set(np.unique(drawn.toarray())) <= {0, 1}
    with pytest.warns(ScvaeWarning, match=r"zeros and ones alone.*\{'chromatin': 'bernoulli'\}"):
        scvae.fit(ones, **SMALL)
    with pytest.raises(ConfigError, match="is of chromatin"):
        fit(cells(kinds=["rna", "protein"]), likelihood=law)
    with pytest.raises(ConfigError, match="likelihood="):
        fit(mdata, likelihood={"protein": "nb"})


def test_cells_of_known_truth_are_imputed_better_than_by_the_mean() -> None:
    mdata = scvae.simulate(400, 60, modalities=["rna", "protein"], n_proteins=8, seed=1)
    hidden = np.arange(400) % 2 == 0
    part = mdata["protein"][~hidden].copy()
    mosaic = mudata.MuData({"rna": mdata["rna"], "protein": part})
    model = fit(mosaic, n_latent=8, n_hidden=32, max_steps=250)
    found = model.normalized(mosaic, modality="protein", background=True)
    truth = np.log1p(mdata["protein"][hidden].layers["mean"])
    said = np.log1p(found.loc[mdata["protein"].obs_names[hidden]].to_numpy())
    by_mean = np.log1p(part.X.toarray()).mean(0)
    assert ((said - truth) ** 2).mean() < 0.7 * ((by_mean - truth) ** 2).mean()
    correlated = [np.corrcoef(said[:, i], truth[:, i])[0, 1] for i in range(8)]
    assert np.mean(correlated) > 0.6


def spoilt(what: str) -> Any:
    mdata = cells(missing=0.0)
    protein = mdata.mod["protein"]
    if what == "clr":
        del protein.layers["foreground"], protein.layers["mean"]
        protein.X = np.log1p(protein.X.toarray()) - 1.2
    elif what == "nan":
        protein.X = np.where(np.arange(5) == 2, np.nan, protein.X.toarray())
    elif what == "tf-idf":
        mdata.mod["chromatin"].X = mdata["chromatin"].X * 0.37
    elif what == "empty":
        mdata.mod["protein"] = protein[:, :0].copy()
    return mdata


@pytest.mark.parametrize(
    ("what", "arguments", "error"),
    [
        ("clr", {}, r"mdata\['protein'\].X has non-integer values .* protein 'protein_0'"),
        ("nan", {}, r"mdata\['protein'\].X has 60 NaN.*measured=\{'protein': 'seen'\}"),
        ("tf-idf", {}, r"mdata\['chromatin'\].X has non-integer"),
        ("empty", {}, r"mdata\['protein'\] has no features"),
        ("", {"modalities": {"protein": "adt"}}, "protein is 'adt', which is not there"),
        ("", {"modalities": {"guides": "rna"}}, "the kind 'guides'"),
        ("", {"modalities": {"rna": "rna", "protein": "rna"}}, "one place twice"),
        ("", {"modalities": []}, "says which kind is where"),
        ("", {"measured": {"protein": "nothing"}}, "neither a boolean layer"),
        ("", {"measured": {"guides": "x"}}, "measured names 'guides'"),
        ("", {"library_size": "latent"}, "one more latent of RNA alone"),
        ("", {"layer": "counts"}, "whose layer it is"),
        ("", {"weights": {"guides": 1.0}}, "weights="),
        ("", {"weights": {"protein": -1.0}}, "positive number"),
        ("", {"alone": -1.0}, "alone=-1.0"),
        ("", {"fusion": "sum"}, "fusion='sum'"),
    ],
)
def test_bad_input_gets_one_clear_error(what: str, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((DataError, ConfigError), match=error) as refused:
        fit(spoilt(what), **arguments)
    if what:
        report = scvae.check(spoilt(what), batch="batch")
        assert str(refused.value) in [finding.text for finding in report.errors]


def test_a_check_tells_what_a_fit_takes() -> None:
    mdata = cells()
    report = scvae.check(mdata, batch="batch")
    assert report.ok
    assert any("mdata['rna'].X" in finding.text for finding in report.findings)
    with pytest.raises(DataError, match=r"holds \['a'\], none of which is known .*'rna': 'a'"):
        fit(mudata.MuData({"a": mdata["rna"]}))
    (error,) = scvae.check(mudata.MuData({"a": mdata["rna"]})).errors
    assert "say what they are" in error.text


def test_a_layer_that_has_the_counts_is_taken_and_named() -> None:
    mdata = cells(missing=0.0, kinds=["rna", "protein"])
    expected = fit(mdata).embed(mdata)
    protein = mdata.mod["protein"]
    protein.layers["counts"] = protein.X.copy()
    protein.X = np.log1p(protein.X.toarray()) - 1.2
    with pytest.warns(ScvaeWarning, match=r"layer=\{'protein': 'counts'\}"):
        model = scvae.fit(mdata, **SMALL)
    np.testing.assert_array_equal(mdata.obsm["X_scvae"], expected)
    assert model.origin.parts["protein"].layer == "counts"
    fit(mdata, layer={"protein": "counts"})
    np.testing.assert_array_equal(mdata.obsm["X_scvae"], expected)


def test_parts_of_other_cells_and_other_axes_are_refused() -> None:
    mdata = cells(missing=0.0, kinds=["rna", "protein"])
    with pytest.raises(DataError, match="axis=1"):
        fit(mudata.MuData({"rna": mdata["rna"], "protein": mdata["rna"].copy()}, axis=1))
    other = mdata["protein"].copy()
    other.obs_names = [f"other_{i}" for i in range(60)]
    with pytest.raises(DataError, match="no cell in common"):
        fit(mudata.MuData({"rna": mdata["rna"], "protein": other}))
    stale = mudata.MuData({"rna": mdata["rna"].copy(), "protein": mdata["protein"].copy()})
    stale.mod["protein"].obs_names = [f"other_{i}" for i in range(60)]
    with pytest.raises(DataError, match=r"mdata.update\(\)"):
        fit(stale)


def test_genes_without_counts_are_left_out_of_their_modality_by_the_call() -> None:
    mdata = cells(kinds=["rna", "protein"], missing=0.0)
    x = mdata["rna"].X.toarray()
    x[:, 3] = 0
    mdata.mod["rna"].X = x
    text = next(f.text for f in scvae.check(mdata).findings if "have no counts" in f.text)
    call = re.search(r"sc\.pp\.filter_genes\(.*\)", text)
    assert call is not None
    eval(call[0], {"sc": sc, "mdata": mdata})
    assert mdata["rna"].n_vars == x.shape[1] - int((x.sum(0) == 0).sum())
    assert not any("genes have no counts" in f.text for f in scvae.check(mdata).findings)
