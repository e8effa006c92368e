"""scvae.tune: a search by held-out likelihood, which can be cut anywhere and is the same again."""

from __future__ import annotations

import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hashes import SLOTS, digest

import scvae
from scvae.models import tune as module
from scvae.models.budget import split

SHORT: dict[str, Any] = {"max_steps": 12, "progress": False}
SPACE = {"n_latent": [2, 3, 4], "n_hidden": [8, 16], "n_layers": [1, 2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def found(simulated: AnnData, folder: Path) -> scvae.Tuning:
    adata = simulated.copy()
    before = [digest(getattr(adata, slot)) for slot in SLOTS]
    found = scvae.tune(adata, space=SPACE, n_candidates=6, folder=folder, **SHORT)
    assert [digest(getattr(adata, slot)) for slot in SLOTS] == before
    return found


def test_each_round_keeps_the_better_half_and_the_defaults(found: scvae.Tuning) -> None:
    rounds = [rows.set_index("candidate") for _, rows in found.table.groupby("round")]
    assert len(rounds[0]) == 6
    for before, after in pairwise(rounds):
        best = before["log_likelihood"].nlargest(max(2, len(before) // 2)).index
        assert set(after.index) == {0, *best}
    assert [rows["steps"].unique().tolist() for rows in rounds] == [[3], [6], [12]]
    assert found.table["candidate"].iloc[0] == rounds[2]["log_likelihood"].idxmax()


def test_the_defaults_are_those_of_fit_and_gain_nothing(found: scvae.Tuning) -> None:
    parameters = inspect.signature(scvae.fit).parameters
    usual = module.DEFAULTS | module.FURTHER
    assert {name: parameters[name].default for name in usual} == usual
    assert parameters["learning_rate"].default == module.LEARNING_RATE
    first = found.table[found.table["candidate"] == 0]
    assert (first["gain"] == 0).all()
    assert first[list(module.DEFAULTS)].iloc[0].tolist() == list(module.DEFAULTS.values())


def test_a_trial_is_a_fit_and_its_value_the_evidence_of_cells_held_out(
    simulated: AnnData, found: scvae.Tuning
) -> None:
    adata = simulated.copy()
    model = scvae.fit(adata, max_steps=12, progress=False)
    _, held_out = split(adata, 0.1, 0)
    exact = model.mean_log_likelihood(adata[held_out.numpy()].copy(), samples=1_000)
    told = found.table[(found.table["candidate"] == 0) & (found.table["round"] == 2)].iloc[0]
    assert abs(told["log_likelihood"] - exact.value) < 0.02 * abs(exact.value)
    assert told["log_likelihood"] > model.record.elbo_held_out - 1.0


def test_the_same_call_does_nothing_twice_and_what_is_lacking_to_the_same_bits(
    simulated: AnnData, found: scvae.Tuning, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> scvae.Tuning:
        adata = simulated.copy()
        adata.obs["cell_type"] = "one"  # a label changes nothing
        return scvae.tune(adata, space=SPACE, n_candidates=6, folder=folder, **SHORT)

    trials = sorted(folder.glob("*/trial.json"))
    assert len(trials) == len(found.table)
    held = trials[0].read_text()
    trials[0].unlink()
    assert again().table.drop(columns="seconds").equals(found.table.drop(columns="seconds"))
    assert json.loads(trials[0].read_text())["values"] == json.loads(held)["values"]
    monkeypatch.setattr(module, "train_plan", lambda *_, **__: pytest.fail("trained"))
    assert again().best == found.best
    trials[0].write_text(held[: len(held) // 2])
    with pytest.raises(scvae.FileError, match=r"trial\.json is damaged.*Remove it"):
        again()
    trials[0].write_text('{"seconds": 1, "values": [1.0]}')
    with pytest.raises(scvae.FileError, match="lacks cells"):
        again()
    trials[0].write_text(held)


def test_counts_that_vary_more_than_poisson_want_a_negative_binomial() -> None:
    adata = scvae.simulate(200, 40, inverse_dispersion=0.3, seed=2)
    laws = {"likelihood": ["poisson", "nb"]}
    found = scvae.tune(adata, space=laws, n_candidates=2, max_steps=60, progress=False)
    assert found.best["likelihood"] == "nb"
    poisson = found.table[found.table["likelihood"] == "poisson"]
    assert (poisson["gain"] < -2 * poisson["error"]).all()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"space": {}}, "space={}, but it must be a dict"),
        ({"space": {"n_latents": [1]}}, "space has 'n_latents'.*n_latent, n_hidden"),
        ({"space": {"n_latent": 3}}, r"space\['n_latent'\]=3, but it must be a list: \[3\]"),
        ({"space": {"n_latent": [0]}}, "n_latent=0, but it must be at least 1"),
        ({"space": {"likelihood": ["normal"]}}, "likelihood='normal' is not known"),
        ({"n_candidates": 1}, "n_candidates=1, but it must be at least 2"),
        ({"folder": 3}, "folder=3, but it must be a path"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    simulated: AnnData, argument: dict[str, Any], words: str
) -> None:
    with pytest.raises(scvae.ConfigError, match=words):
        scvae.tune(simulated, **argument)


def test_the_winner_must_be_clearly_better() -> None:
    rows = {"candidate": [3, 0], "gain": [1.0, 0.0], "error": [0.4, 0.0]}
    assert module._winner(pd.DataFrame(rows)) == 3
    assert module._winner(pd.DataFrame(rows | {"error": [0.6, 0.0]})) == 0
    assert module._winner(pd.DataFrame(rows | {"error": [np.nan, 0.0]})) == 0


def test_the_picture_shows_every_gain(found: scvae.Tuning) -> None:
    ax = scvae.plot.tune(found)
    drawn = {tuple(line.get_ydata()) for line in ax.lines if len(line.get_ydata()) == 3}
    others = found.table[(found.table["candidate"] != 0)].sort_values("round")
    for _, rows in others.groupby("candidate"):
        if len(rows) == 3:
            assert tuple(rows["gain"]) in drawn
    with pytest.raises(scvae.ConfigError, match=r"what scvae\.tune returned"):
        scvae.plot.tune(found.table)  # type: ignore[arg-type]


def test_the_command_writes_the_table_and_says_how_to_fit(
    simulated: AnnData, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from scvae.cli import main

    cells, table = tmp_path / "in.h5ad", tmp_path / "tuning.csv"
    simulated.write_h5ad(cells)
    options = ["--batch", "batch", "--n-candidates", "2", "--max-steps", "4", "--quiet"]
    assert main(["tune", str(cells), *options, "--table", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 7
    said = capsys.readouterr()
    assert f"scvae fit {cells} -o out.h5ad --n-latent" in said.out + said.err
