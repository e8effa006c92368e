"""The report of a fit: its terms add up, its verdicts follow the history, it is safe to show."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import scvae
from scvae.models import written
from scvae.models.judge.convergence import convergence, late_gain
from scvae.models.judge.held_out import active_dimensions, measure_held_out
from scvae.models.judge.summary import Summary, summarise
from scvae.models.keep.record import HeldOut, Record
from scvae.train.history import History

Fitted = tuple[AnnData, scvae.Model]
law = settings(deadline=None, derandomize=True, max_examples=60)
QUICK: dict[str, Any] = {"max_steps": 5, "n_latent": 6, "n_hidden": 16, "progress": False}


def fit(adata: AnnData, **arguments: Any) -> scvae.Model:
    return scvae.fit(adata, **{**QUICK, **arguments})


# -- what is measured on the held-out cells --------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "mixture": {"prior": "mixture"},
    "normal": {"prior": "normal"},
    "latent library": {"library_size": "latent", "likelihood": "zinb"},
    "streamed": {"stream": True},
    "many held out": {"validation": 0.8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_less_kl_is_the_elbo_that_chose_the_weights(kind: str) -> None:
    adata = scvae.simulate(800, 30)
    record = fit(adata, batch="batch", **KINDS[kind]).record
    terms = record.held_out
    assert terms.kl > 0
    elbo = terms.reconstruction - terms.kl
    assert elbo == pytest.approx(record.elbo_held_out, rel=1e-6)
    assert 0 <= terms.active <= 6


def test_measuring_changes_nothing_of_the_fit(
    simulated: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, unmeasured = simulated.copy(), simulated.copy()
    before = torch.get_rng_state()
    one = fit(measured)
    monkeypatch.setattr(written, "measure_held_out", lambda *given: HeldOut(0.0, 0.0, None))
    other = fit(unmeasured)
    np.testing.assert_array_equal(measured.obsm["X_scvae"], unmeasured.obsm["X_scvae"])
    assert one.record.history.validation == other.record.history.validation
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_measures_the_same(simulated: AnnData) -> None:
    one, same, other = (fit(simulated.copy(), seed=seed).record.held_out for seed in (3, 3, 4))
    assert one == same
    assert one.kl != other.kl


def test_what_is_measured_is_written_and_read(simulated: AnnData, tmp_path: Path) -> None:
    adata = simulated.copy()
    model = fit(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = anndata.read_h5ad(tmp_path / "cells.h5ad").uns["scvae"]["held_out"]
    assert {k: float(v) for k, v in stored.items()} == dataclasses.asdict(model.record.held_out)
    model.save(tmp_path / "model.scvae")
    assert scvae.load(tmp_path / "model.scvae").record.held_out == model.record.held_out


def test_a_single_held_out_cell_tells_nothing_of_dimensions() -> None:
    adata = scvae.simulate(40, 20)
    adata.obs["held"] = np.arange(40) == 7
    model = fit(adata, validation="held")
    assert model.record.held_out.active is None
    assert "active dimensions" not in str(model.summary())
    assert "collapse" not in str(model.summary())
    assert "active" not in adata.uns["scvae"]["held_out"]


# -- active dimensions -----------------------------------------------------------------------------


def flatten_latents(model: scvae.Model, flat: list[int]) -> scvae.Model:
    """Return the model with an encoder that tells no cells apart in the dimensions `flat`."""
    vae = copy.deepcopy(model.vae)
    head = vae.posterior.head.linear
    with torch.no_grad():
        head.weight[flat] = 0.0
        head.bias[flat] = 3.0
    return scvae.Model(vae, model.embedding, model.architecture, model.origin, model.record)


@pytest.mark.parametrize("n_flat", [0, 1, 17, 30])
def test_planted_collapsed_dimensions_are_not_active(trained: Fitted, n_flat: int) -> None:
    adata, model = trained
    chosen = np.random.default_rng(n_flat).permutation(30)[:n_flat].tolist()
    planted = flatten_latents(model, chosen)
    dataset, rows = planted.read(adata), torch.arange(adata.n_obs)
    whole = measure_held_out(model.vae, dataset, rows, 100, 30)
    assert whole.active == 30
    assert measure_held_out(planted.vae, dataset, rows, 100, 30).active == 30 - n_flat


@law
@given(st.lists(st.sampled_from([0.0, 0.005, 0.02, 1.5]), min_size=1, max_size=8))
def test_a_dimension_is_active_from_a_hundredth_of_the_prior_on(variances: list[float]) -> None:
    noise = torch.randn(400, len(variances), generator=torch.Generator().manual_seed(0))
    loc = (noise - noise.mean(0)) / noise.std(0) * torch.tensor(variances).sqrt() + 100.0
    expected = sum(variance > 0.01 for variance in variances)
    assert active_dimensions(loc, torch.ones(len(variances))) == expected
    # Units of the latent space are a matter of taste where the prior is learned.
    assert active_dimensions(7.0 * loc, torch.full((len(variances),), 49.0)) == expected


# -- verdicts --------------------------------------------------------------------------------------


def planted(validation: list[float], **changes: Any) -> dict[str, Any]:
    """Return what the record of a fit says with these held-out ELBOs, one every 10 steps."""
    steps = [10 * (i + 1) for i in range(len(validation))]
    schedule = {"steps": changes.pop("planned", steps[-1])}
    best = steps[int(np.argmax(validation))]
    ones = [1.0] * len(steps)
    history = History(steps, validation, validation, ones, best, **changes)
    return {"history": history, "schedule": schedule}


FLAT = [-900.0, -500.0, -410.0, *[-400.0] * 37]
RISING = [-900.0 + 10 * i for i in range(40)]
FALLING = [-900.0, -500.0, -400.0, *[-401.0 - i for i in range(37)]]


@pytest.mark.parametrize(
    ("record", "verdict", "said"),
    [
        (planted(FLAT), "converged", "converged; 400 of 400 steps, the weights of step 40 kept"),
        (planted(FALLING), "converged", "the weights of step 30 kept"),
        (planted(RISING), "still improving", "by 100.00 nats in the last quarter"),
        (planted(FLAT[:20], planned=400, stopped_early=True), "stopped early", "200 of 400 steps"),
        (
            planted(RISING[:5], planned=400, stopped_early=True, interrupted=True),
            "interrupted",
            "interrupted; 50 of 400 steps",
        ),
        (planted([-500.0]), "still improving", "10 of 10 steps"),
        ({}, "unknown", "not recorded"),
        ({"history": History()}, "unknown", "not recorded"),
    ],
)
def test_verdicts_follow_the_history(record: dict[str, Any], verdict: str, said: str) -> None:
    found = convergence(Record(**record))
    assert found.verdict == verdict
    assert said in found.text
    assert bool(found.advice) == (verdict in ("still improving", "interrupted"))


def test_the_advice_can_be_typed_and_asks_for_more_steps() -> None:
    assert "scvae.fit(adata, max_steps=800)" in convergence(Record(**planted(RISING))).advice


@law
@given(st.floats(0.0, 50.0), st.integers(1, 29))
def test_the_late_gain_is_what_the_last_quarter_added(gain: float, at: int) -> None:
    before = [-400.0] * 30
    before[at] = -390.0
    late = [-420.0] * 8 + [-390.0 + gain, -421.0]
    assert late_gain(planted(before + late)["history"], 400) == pytest.approx(gain, abs=1e-9)


@pytest.mark.slow
def test_a_fit_of_few_steps_is_still_improving_and_a_long_one_is_not(simulated: AnnData) -> None:
    short = fit(simulated.copy(), max_steps=20).summary()
    assert short.convergence.verdict == "still improving"
    long = fit(simulated.copy(), max_steps=1200, early_stopping=False).summary()
    assert long.convergence.verdict == "converged"
    patient = fit(simulated.copy(), max_steps=3000).summary()
    assert patient.convergence.verdict == "stopped early"


# -- warnings --------------------------------------------------------------------------------------


def report(model: scvae.Model, **changes: Any) -> Summary:
    """Return the report of a model with another record."""
    record = dataclasses.replace(model.record, **changes)
    return scvae.Model(
        model.vae, model.embedding, model.architecture, model.origin, record
    ).summary()


@pytest.mark.parametrize(
    ("n_latent", "active", "is_few"),
    [
        (1, 0, True),
        (1, 1, False),
        (4, 1, True),  # a quarter, but a single one
        (4, 2, False),
        (30, 0, True),
        (30, 7, True),
        (30, 8, False),
        (30, 30, False),
    ],
)
def test_few_active_dimensions_are_called_a_collapse(
    fitted: Fitted, n_latent: int, active: int, is_few: bool
) -> None:
    model = fitted[1]
    architecture = dataclasses.replace(model.architecture, n_latent=n_latent)
    found = summarise(architecture, model.origin, Record(held_out=held(active)), 10)
    assert any("collapse" in text for text in found.warnings) == is_few
    assert f"{active} of {n_latent}" in str(found)


def test_a_collapsed_model_is_told(trained: Fitted) -> None:
    _, model = trained
    (warning,) = [t for t in report(model, held_out=held(2)).warnings if "collapse" in t]
    assert "2 of 30" in warning
    assert not [t for t in report(model, held_out=held(20)).warnings if "collapse" in t]


def held(active: int) -> HeldOut:
    return HeldOut(reconstruction=-400.0, kl=3.0, active=active)


def test_weights_of_a_time_before_the_kl_counted_are_told(trained: Fitted) -> None:
    _, model = trained
    early = planted(FALLING)
    early["history"].beta = [0.25, 0.5, 0.75, *[1.0] * 37]
    (warning,) = [t for t in report(model, **early).warnings if "KL weight" in t]
    assert "0.75" in warning
    assert "step 30" in warning
    assert not [t for t in report(model, **planted(FLAT)).warnings if "KL weight" in t]


def test_rollbacks_are_told(trained: Fitted) -> None:
    _, model = trained
    text = str(report(model, **planted(FLAT, rollbacks=[40, 1200])))
    assert "not finite 2 times (after step 40, 1,200)" in text
    assert "learning_rate" in text
    assert "not finite once" in str(report(model, **planted(FLAT, rollbacks=[40])))
    assert "not finite" not in str(report(model, **planted(FLAT)))


def test_what_to_do_is_among_the_warnings(trained: Fitted) -> None:
    found = report(trained[1], **planted(RISING))
    assert found.convergence.advice in found.warnings
    assert f"Warning: {found.convergence.advice}" in str(found)


def test_what_the_check_of_the_data_said_is_said_again(trained: Fitted) -> None:
    found = report(trained[1], **planted(FLAT), held_out=held(20), warnings=["Look at gene 7."])
    assert found.warnings == ("Look at gene 7.",)
    assert "Look at gene 7." in found._repr_html_()


def test_a_converged_fit_has_no_warnings(trained: Fitted) -> None:
    quiet = report(trained[1], **planted(FLAT), held_out=held(20), warnings=[])
    assert quiet.warnings == ()


# -- what is shown ---------------------------------------------------------------------------------


def told(found: Summary) -> dict[str, str]:
    return {name.strip(): value for rows in found.sections.values() for name, value in rows}


def test_the_report_tells_data_network_objective_and_training(trained: Fitted) -> None:
    _, model = trained
    rows, record = told(model.summary()), model.record
    assert rows["cells trained on"] == "540"
    assert rows["cells held out"] == "60"
    assert rows["genes"] == "100"
    assert rows["batches"] == "2 of 'batch': 'batch_0', 'batch_1'"
    assert rows["counts"] == "adata.X, on the device"
    assert rows["likelihood"] == "nb, a dispersion per gene"
    assert rows["latent dimensions"].startswith("30, prior a mixture")
    assert rows["final KL weight"] == "1"
    assert rows["held-out ELBO"] == f"{record.elbo_held_out:,.1f}"
    assert rows["reconstruction"] == f"{record.held_out.reconstruction:,.1f}"
    assert rows["KL"] == f"{record.held_out.kl:,.1f}"
    assert rows["active dimensions"].startswith(f"{record.held_out.active} of 30")
    assert f"{record.history.cells_per_second:,.0f} cells/s" in rows["time"]
    assert rows["device"] == str(model.device)
    n = sum(tensor.numel() for tensor in model.vae.parameters())
    assert f"{n:,} weights" in rows["encoder, decoder"]


def test_the_report_names_a_layer_and_covariates(simulated: AnnData) -> None:
    adata = simulated.copy()
    adata.layers["raw"], adata.X = adata.X, None
    model = fit(adata, layer="raw", covariates=["cell_type", "library_size"], likelihood="poisson")
    rows = told(model.summary())
    assert rows["counts"].startswith("adata.layers['raw']")
    assert rows["covariates"] == "'cell_type' (category), 'library_size' (number)"
    assert rows["likelihood"] == "poisson"
    assert "batches" not in rows


def test_many_batches_are_counted() -> None:
    adata = scvae.simulate(400, 20, n_batches=30)
    assert told(fit(adata, batch="batch").summary())["batches"].endswith(" and 24 more")


def test_a_report_is_text_and_a_table(trained: Fitted) -> None:
    found = trained[1].summary()
    assert repr(found) == str(found)
    html = found._repr_html_()
    for name, value in told(found).items():
        assert name in str(found)
        assert value in str(found)
        assert name in html
    assert html.count("<tr>") == html.count("</tr>") == len(told(found)) + len(found.sections)


def test_names_cannot_break_out_of_the_report(simulated: AnnData) -> None:
    adata = simulated.copy()
    evil = "<script>alert(1)</script>\n&"
    adata.obs[evil] = np.where(np.arange(150) % 2, "<b>one</b>", "two\nlines")
    found = fit(adata, batch=evil).summary()
    html = found._repr_html_()
    assert "<script" not in html
    assert "<b>one" not in html
    assert "&lt;script&gt;" in html
    assert len(str(found).splitlines()) == len(told(found)) + len(found.sections) + len(
        found.warnings
    )


def test_a_loaded_model_reports_the_same_but_for_the_time(trained: Fitted, tmp_path: Path) -> None:
    _, model = trained
    model.save(tmp_path / "model.scvae")
    expected, found = model.summary(), scvae.load(tmp_path / "model.scvae").summary()
    assert told(found) == {k: v for k, v in told(expected).items() if k != "time"}
    assert (found.convergence, found.warnings) == (expected.convergence, expected.warnings)


def test_a_model_that_says_little_is_reported(trained: Fitted) -> None:
    model = trained[1]
    bare = scvae.Model(
        model.vae, model.embedding, model.architecture, model.origin, Record()
    ).summary()
    assert told(bare)["verdict"] == "not recorded"
    assert told(bare)["genes"] == "100"
    assert bare.warnings == ()


def test_reporting_changes_nothing(trained: Fitted) -> None:
    model = trained[1]
    before = copy.deepcopy(model.record)
    model.summary()._repr_html_()
    assert model.record == before
