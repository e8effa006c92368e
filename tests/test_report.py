"""A report: a whole page that asks for nothing, and whose numbers are those of the functions."""

from __future__ import annotations

import base64
import json
import os
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hashes import digests
from matplotlib.image import imread

import scvae
from scvae import cli
from scvae.analysis import NullBatch, judge
from scvae.analysis.judging import mixing
from scvae.models.budget import split
from scvae.reporting import pictures

Fitted = tuple[AnnData, scvae.Model]
VOID = {"meta", "img"}
MOST_BYTES = 5e6


class Page(HTMLParser):
    """What a page holds: tags that close in order, attributes, and text by its tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.texts.setdefault(tag, [])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]].append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]

    @property
    def shown(self) -> str:
        """All that a reader sees."""
        hidden = {"style", "script", "title"}
        return " ".join(s for tag, texts in self.texts.items() if tag not in hidden for s in texts)

    @property
    def numbers(self) -> dict[str, Any]:
        return json.loads("".join(self.texts["script"]))


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw two columns of every embedding in place of its UMAP, and score at one seed."""

    def lay_out(graph: AnnData, *, seed: int) -> AnnData:
        graph.obsm["X_umap"] = next(iter(graph.obsm.values()))[:, :2]
        return graph

    monkeypatch.setattr("scvae.reporting.measure.lay_out", lay_out)
    monkeypatch.setattr("scvae.analysis.judging.SEEDS", 1)
    monkeypatch.setattr("scvae.reporting.pictures.DPI", 30)


@pytest.fixture(scope="module")
def written(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report, but for the fits of the null-batch test."""
    adata, model = fitted
    out = tmp_path_factory.mktemp("reports") / "report.html"
    before = digests(adata), sorted(os.listdir(out.parent))
    found = NullBatch(0.8125, 0.75, 0.9, 77)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scvae.reporting.measure.null_batch", lambda *a, **how: found)
        patch.setattr("scvae.reporting.measure.FEWEST_CELLS", 50)
        assert scvae.report(model, adata, "cell_type", out) == out
    assert (digests(adata), []) == before
    assert os.listdir(out.parent) == ["report.html"]
    return out


# -- the page ------------------------------------------------------------------------------------


def test_it_is_a_page_with_every_section(written: Path) -> None:
    page = page_of(written)
    assert page.open == []
    assert page.texts["h1"] == ["scvae report"]
    assert [title for title in page.texts["h2"] if title.strip()] == [
        *("Data and model", "Training", "Held-out likelihood", "Predictive check", "Embeddings"),
        *("Biology and mixing", "Null-batch test", "Provenance"),
    ]
    assert "@media print" in "".join(page.texts["style"])
    assert "width=device-width, initial-scale=1" in page.values("meta", "content")


def test_it_asks_for_nothing_and_runs_nothing(written: Path) -> None:
    text, page = written.read_text(encoding="utf-8"), page_of(written)
    assert "://" not in text
    assert not re.search(r"url\(|@import", "".join(page.texts["style"]))
    assert {name for _, name, _ in page.attributes} <= {
        *("alt", "charset", "class", "content", "http-equiv", "id", "lang", "name", "scope"),
        *("src", "style", "type"),
    }
    assert {source[:22] for source in page.values("img", "src")} == {"data:image/png;base64,"}
    assert page.values("script", "type") == ["application/json"]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert policy in page.values("meta", "content")


def test_its_pictures_show_something(written: Path) -> None:
    page = page_of(written)
    sources = page.values("img", "src")
    assert len(sources) == 1 + 3 + 3 * 3  # curve, predictions, three embeddings by three colours
    assert len(set(sources)) == len(sources)
    assert len(set(page.values("img", "alt"))) == len(sources)
    for source in sources:
        pixels = imread(BytesIO(base64.b64decode(source.split(",")[1])))
        assert min(pixels.shape[:2]) >= 480
        assert pixels[..., :3].std() > 0.02


def test_a_report_of_nothing_but_noise_would_be_small_enough() -> None:
    def noise(ax: Any) -> None:
        ax.set_position((0, 0, 1, 1))
        ax.imshow(np.random.default_rng(0).random((900, 900, 3)), aspect="auto")

    square = len(pictures.picture(noise))
    wide = len(pictures.picture(noise, pictures.WIDE))
    assert square > 1e5
    assert (12 * square + wide) * 4 / 3 + 2e5 < MOST_BYTES


def test_the_few_cells_of_a_rare_type_keep_their_colour() -> None:
    rng = np.random.default_rng(0)
    names = pd.Series([f"type {i:02}" for i in range(24)] + ["type 00"] * 4_000)
    points = np.concatenate(
        [np.column_stack([np.arange(3, 27), np.zeros(24)]), rng.random((4_000, 2))]
    )
    pixels = imread(BytesIO(pictures.cells(points, names)))[..., :3]
    drawn = {tuple(p) for p in np.round(255 * pixels.reshape(-1, 3)).astype(int).tolist()}
    for colour, _ in pictures.colours(names):
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in drawn


# -- its numbers ---------------------------------------------------------------------------------


def test_scores_are_those_of_the_embedding_of_the_model(written: Path, fitted: Fitted) -> None:
    adata, model = fitted
    page = page_of(written)
    scores = judge(model.embed(adata), adata.obs["cell_type"], adata.obs["batch"])
    told = page.numbers["scores"]
    assert list(told) == ["scvae", "PCA", "Harmony"]
    for name, value in scores.items():
        told_value = told["scvae"][name]
        assert told_value == (pytest.approx(value) if np.isfinite(value) else None)
        assert (f"{value:.3f}" if np.isfinite(value) else "–") in page.shown
    assert f"PCA {told['PCA']['biology']:.3f}" in page.shown


def test_what_is_said_of_the_fit_is_what_the_model_says(written: Path, fitted: Fitted) -> None:
    adata, model = fitted
    page = page_of(written)
    ended = model.summary().convergence
    assert page.numbers["convergence"] == {
        "verdict": ended.verdict, "text": ended.text, "advice": ended.advice,
    }  # fmt: skip
    assert ended.text in page.shown
    for warning in model.summary().warnings:
        assert warning in page.shown
    assert page.numbers["elbo_held_out"] == model.record.elbo_held_out
    findings = scvae.check(adata, batch="batch", covariates="library_size", label="cell_type")
    kept = [f for f in findings.findings if f.what != "training"]
    assert [f["text"] for f in page.numbers["check"]] == [f.text for f in kept]
    assert all(f.text in page.shown for f in kept)


def test_the_likelihood_is_that_of_the_cells_held_out(written: Path, fitted: Fitted) -> None:
    adata, model = fitted
    page = page_of(written)
    told = page.numbers["log_likelihood"]
    rows = np.sort(split(adata, 0.1, 0)[1].numpy())
    expected = model.mean_log_likelihood(adata[rows])
    assert told["is_held_out"] is True
    assert told["value"] == pytest.approx(expected._asdict())
    assert told["of_training"]["n_cells"] == expected.n_cells == 15
    assert f"{expected.value:,.2f}".replace("-", "−") in page.shown


def test_the_predictive_check_is_that_of_the_cells_held_out(written: Path, fitted: Fitted) -> None:
    adata, model = fitted
    table = model.predictive_check(adata[np.sort(split(adata, 0.1, 0)[1].numpy())])
    table = table[(table["observed_mean"] > 0) & (table["predicted_mean"] > 0)]
    correlation = np.corrcoef(np.log(table["observed_mean"]), np.log(table["predicted_mean"]))[0, 1]
    ratio = (table["predicted_mean"] / table["observed_mean"]).median()
    page = page_of(written)
    told = page.numbers["predictive_check"]["mean"]
    assert told == {
        "correlation": pytest.approx(correlation),
        "median_ratio": pytest.approx(ratio),
    }
    assert f"correlation {correlation:.3f}, median ratio {ratio:.3f}" in page.shown


def test_the_null_batch_is_told(written: Path) -> None:
    page = page_of(written)
    assert page.numbers["null_batch"] == {
        "kept": 0.8125, "by_chance": 0.75, "kept_by_harmony": 0.9, "n_cells": 77,
    }  # fmt: skip
    for text in ("81.2%", "75.0%", "90.0%", "77 cells of one batch"):
        assert text in page.shown


def test_seed_and_versions_are_there(written: Path, fitted: Fitted) -> None:
    shown = page_of(written).shown
    for name, version in (fitted[1].record.versions or {}).items():
        assert f"{name} {version}" in shown
    assert fitted[1].record.digest in shown


# -- what may be missing -------------------------------------------------------------------------


def test_without_labels_or_harmony_it_says_so(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = fitted
    quick(monkeypatch)
    monkeypatch.setitem(__import__("sys").modules, "harmonypy", None)
    page = page_of(scvae.report(model, adata, out=tmp_path / "r.html", null_batch=False))
    assert "harmonypy is not installed" in page.shown
    assert "No labels were given" in page.shown
    assert "null_batch=False" in page.shown
    expected = mixing(
        model.embed(adata).astype(float), np.zeros(150), adata.obs["batch"].to_numpy()
    )
    assert page.numbers["scores"]["scvae"] == {"mixing": pytest.approx(expected)}
    assert list(page.numbers["scores"]) == ["scvae", "PCA"]
    assert len(page.values("img", "src")) == 1 + 3 + 2 * 2


def test_one_batch_has_nothing_to_mix(
    simulated: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    adata = simulated.copy()
    model = scvae.fit(adata, n_latent=3, n_hidden=8, max_steps=5, progress=False)
    page = page_of(scvae.report(model, adata, "cell_type", tmp_path / "r.htm", null_batch=False))
    assert "no batches to correct for" in page.shown
    assert "mixing" not in page.numbers["scores"]["scvae"]
    assert not any("by batch" in about for about in page.values("img", "alt"))


def test_other_cells_are_not_taken_for_those_held_out(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = fitted
    quick(monkeypatch)
    some = adata[np.arange(149, 69, -1)].copy()
    some.obs["one"] = pd.Categorical(["a"] * 40 + [None] * 40)
    out = tmp_path / "r.html"
    page = page_of(scvae.report(model, some, "one", out, null_batch=None, max_cells=60))
    assert page.numbers["log_likelihood"]["is_held_out"] is False
    assert "cannot be told of these data" in page.shown
    assert "fewer than two types" in page.shown
    assert "Maps and scores are of 60 cells" in page.shown
    assert "largest batch has" in page.shown  # too few for the null-batch test
    assert "missing (" in page.shown


def test_labels_that_are_numbers_have_a_colour_each(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = fitted[0][:12].copy(), fitted[1]
    quick(monkeypatch)
    drawn: list[pd.Series] = []
    monkeypatch.setattr(
        "scvae.reporting.pictures.scatter", lambda ax, x, v, legend: drawn.append(v)
    )
    adata.obs["number"] = [0, 1, 2] * 4
    page = page_of(scvae.report(model, adata, "number", tmp_path / "r.html"))
    assert {tuple(v.cat.categories) for v in drawn if v.name == "number"} == {("0", "1", "2")}
    assert "0 (4)" in page.shown


def test_counts_that_were_rounded_for_the_fit_are_rounded_for_the_report(
    simulated: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    adata = simulated.copy()
    off = np.random.default_rng(0).uniform(-0.4, 0.4, adata.X.nnz).astype(np.float32)
    adata.X.data += off  # as what estimates ambient counts leaves them
    options = {"n_latent": 3, "n_hidden": 8, "max_steps": 5, "progress": False}
    model = scvae.fit(adata, counts="rounded", **options)
    page = page_of(scvae.report(model, adata, out=tmp_path / "r.html", null_batch=True))
    assert not [f for f in page.numbers["check"] if f["level"] == "error"]
    assert page.numbers["log_likelihood"]["is_held_out"] is True
    assert page.numbers["null_batch"]["n_cells"] == 150


def test_many_cells_are_not_fitted_again_unasked(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = fitted
    quick(monkeypatch)
    monkeypatch.setattr("scvae.reporting.measure.MOST_OF_NULL", 149)
    page = page_of(scvae.report(model, adata, "cell_type", tmp_path / "r.html"))
    assert "It was not run, as it fits three models and these are 150 cells" in page.shown
    assert page.numbers["null_batch"] is None


def test_names_that_would_be_html_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
    adata = scvae.simulate(60, 20, seed=1)
    adata.obs[evil] = pd.Categorical(np.where(np.arange(60) % 2, evil, "b"))
    adata.obs["kind"] = pd.Categorical(np.where(np.arange(60) % 3, evil, "c" * 5_000))
    adata.var_names = [evil + str(i) for i in range(20)]
    options = {"n_latent": 3, "n_hidden": 8, "max_steps": 5, "progress": False}
    model = scvae.fit(adata, batch=evil, **options)
    model.record.versions["torch"] = evil
    page = page_of(scvae.report(model, adata, "kind", tmp_path / "r.html", null_batch=False))
    assert page.open == []
    assert page.values("script", "type") == ["application/json"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert evil in page.shown
    assert "c" * 200 not in page.shown


# -- what is refused -----------------------------------------------------------------------------


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the work was begun")


REFUSED = {
    "no folder": ({"out": "absent/r.html"}, scvae.FileError, "there is no folder absent"),
    "a folder": ({"out": "."}, scvae.FileError, r"is a folder; .*out='report\.html'"),
    "no HTML": ({"out": "r.h5ad"}, scvae.ConfigError, r"name of an HTML file: out='r\.html'"),
    "no path": ({"out": 3}, scvae.ConfigError, "out=3, but it must be a path"),
    "no column": ({"labels": "cell_typ"}, scvae.DataError, "did you mean labels='cell_type'"),
    "numbers": ({"labels": "n"}, scvae.DataError, "has 250 values of 250 cells"),
    "several columns": ({"labels": ["cell_type"]}, scvae.DataError, "the name of one column"),
    "no switch": ({"null_batch": "yes"}, scvae.ConfigError, "True, False or None"),
    "few": ({"max_cells": 3}, scvae.ConfigError, "max_cells=3, but it must be at least 10"),
    "a seed": ({"seed": -1}, scvae.ConfigError, "seed=-1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused_before_the_work(
    case: str, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, kind, said = REFUSED[case]
    adata = scvae.simulate(250, 40, seed=1)
    adata.obs["n"] = np.arange(250)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scvae.reporting.write.measure", refuse)
    with pytest.raises(kind, match=said):
        scvae.report(fitted[1], adata, **arguments)
    assert os.listdir() == []


def test_what_is_no_model_or_no_cells_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    adata, model = fitted
    out = tmp_path / "r.html"
    with pytest.raises(scvae.ConfigError, match="model=None, but it must be a model"):
        scvae.report(None, adata, out=out)  # type: ignore[arg-type]
    with pytest.raises(scvae.DataError, match="an AnnData is needed"):
        scvae.report(model, "cells.h5ad", out=out)  # type: ignore[arg-type]
    with pytest.raises(scvae.DataError, match="has 9 cells; a report needs at least 10"):
        scvae.report(model, adata[:9], out=out)
    others = adata.copy()
    others.var_names = [f"other_{i}" for i in range(others.n_vars)]
    with pytest.raises(scvae.DataError, match=r"lacks 40 of the 40 genes|genes"):
        scvae.report(model, others, out=out)
    logs = adata.copy()
    logs.X = np.log1p(logs.X)
    with pytest.raises(scvae.DataError, match="non-integer"):
        scvae.report(model, logs, out=out)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_report(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.html"
    out.write_text("old")
    monkeypatch.setattr("scvae.reporting.write.measure", lambda *given: None)
    monkeypatch.setattr("scvae.reporting.write.body", refuse)
    with pytest.raises(AssertionError, match="was begun"):
        scvae.report(fitted[1], fitted[0], out=out)
    assert out.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.html"]


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture
def folder(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with cells and a model."""
    adata, model = fitted
    adata.write_h5ad(tmp_path / "in.h5ad")
    model.save(tmp_path / "model.scvae")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_the_same_report(
    folder: Path, written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    quick(monkeypatch)
    line = "report model.scvae in.h5ad -o r.html --labels cell_type --no-null-batch --seed 0"
    assert cli.main(line.split()) == 0
    told = capsys.readouterr()
    assert re.fullmatch(r"r\.html: 150 cells, 0\.\d MB\n", told.out)
    assert told.err == ""
    own, other = page_of(folder / "r.html").numbers, page_of(written).numbers
    assert own["log_likelihood"]["is_held_out"] is True
    for name in ("log_likelihood", "predictive_check", "n_clusters"):
        assert own[name] == other[name]
    for method, scores in other["scores"].items():
        assert own["scores"][method]["silhouette"] == pytest.approx(scores["silhouette"], abs=1e-5)
    assert own["null_batch"] is None
    assert sorted(os.listdir()) == ["in.h5ad", "model.scvae", "r.html"]
    assert anndata.read_h5ad("in.h5ad").shape == (150, 40)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report model.scvae in.h5ad -o absent/r.html", "there is no folder"),
        ("report model.scvae in.h5ad -o in.h5ad", "in.h5ad is given twice"),
        ("report model.scvae in.h5ad -o r.pdf", "must be the name of an HTML file"),
        ("report model.scvae in.h5ad --labels cell_typ", "did you mean --labels cell_type?"),
        ("report absent.scvae in.h5ad", "absent.scvae is not there."),
    ],
)
def test_failures_of_the_command_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture, line: str, said: str
) -> None:
    assert cli.main(line.split()) == 1
    told = capsys.readouterr()
    assert told.err.startswith("scvae: error: ")
    assert told.err.count("\n") == 1
    assert said in told.err
    assert sorted(os.listdir()) == ["in.h5ad", "model.scvae"]
