"""The tables of benchmarks/RESULTS.md are what its script makes of the figures that are kept."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="not in a source checkout")


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", BENCHMARKS / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_figures(results: ModuleType) -> None:
    text = results.RESULTS.read_text("utf-8")
    assert results.written(text) == text, "run: python benchmarks/results.py"


def test_every_table_has_its_figures_and_no_figures_lie_idle(results: ModuleType) -> None:
    marked = results.MARKED.findall(results.RESULTS.read_text("utf-8"))
    assert sorted(name for _, name, _ in marked) == sorted(
        path.stem for path in results.TABLES.glob("*.json")
    )
    beside = results.MARKED.sub("", results.RESULTS.read_text("utf-8"))
    assert not [line for line in beside.splitlines() if line.startswith("|")]


def test_the_readme_says_what_the_tables_say(results: ModuleType) -> None:
    readme = (BENCHMARKS.parent / "README.md").read_text("utf-8")
    table = json.loads((results.TABLES / "quality.json").read_text("utf-8"))
    titles = ["scvae", "scvi-tools", "recommended", "PCA", "Harmony"]
    kinds = {"cell types kept": "biology", "batches mixed": "mixing"}
    row = r"^\| ([^,|]+), [^|]* \| ([^|]*) \| ([^|]*) \| `quality.py (\w+)`"
    rows = re.findall(row, readme, re.MULTILINE)
    assert len(rows) == 3
    for what, own, others, name in rows:
        found = next(one for one in table["rows"] if one[0] == f"{name}, {kinds[what]}")
        known = {title: one for title, one in zip(titles, found[1:], strict=True) if one}
        said = dict(re.findall(r"([\w-]+) (\.\d\d)", f"scvae {own}, {others}".replace("*", "")))
        assert len(said) == 3
        for title, value in said.items():
            assert value == results.number(results.median(known[title]), 2)


def test_a_cell_of_seeds_is_their_median_and_half_of_their_range(results: ModuleType) -> None:
    table = {"columns": ["a", "b", "c", "d"], "digits": 2, "best": "lowest"}
    table["rows"] = [["x", [0.3, 0.1, 0.2], [1.5], "as told"]]
    assert results.lines(table) == (
        "| a | b | c | d |\n|---|---|---|---|\n| x | **.20** (.10) | 1.50 | as told |\n"
    )


def test_new_scores_take_the_place_of_the_old_ones_alone(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "WORK", tmp_path)
    scores = {"mixing": {"scvae.0": 0.5, "scvae.1": 0.7, "pca.0": None}}
    (tmp_path / "pbmc.scores.json").write_text(json.dumps(scores))
    table = {"rows": [["pbmc, mixing", [0.1], "", "", [0.2], ""]]}
    found = results.scored(table)["rows"]
    assert found == [["pbmc, mixing", [0.5, 0.7], "", "", [0.2], ""]]


def test_scores_of_mapping_stand_in_the_column_of_their_method(results: ModuleType) -> None:
    half = ", half of the genes"
    own = {"accuracy": {"0": 0.9, "1": 0.8}, "AUROC": {"0": 0.7}}
    kept = {
        "a: b": {"scvae, new": own, "scANVI, surgery": {"accuracy": {"0": 0.6}}},
        "a: b, without B": {"logistic regression" + half: own, "logistic regression": own},
    }
    assert results.mapped(kept, "accuracy") == [
        ["a: b, accuracy", [0.9, 0.8], "", "", "", "", "", [0.6]]
    ]
    without = ["a: b, without B, AUROC", "", "", "", "", [0.7], "", ""]
    assert results.mapped(kept, "AUROC") == [without]
    assert results.mapped(kept, "AUROC", half) == [
        ["a: b, without B, half of the genes, AUROC", *without[1:]]
    ]
    assert results.mapped(kept, "accuracy", half) == []
