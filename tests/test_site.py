"""The documentation site: a page for every public name, links that lead somewhere, one picture."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

import scvae

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs" / "_site"))

import architecture  # noqa: E402
import links  # noqa: E402
import pages  # noqa: E402
import plots  # noqa: E402


def test_every_public_name_has_a_page_that_no_file_system_takes_for_another(tmp_path: Path) -> None:
    pages.write_api(tmp_path)
    written = {path.name for path in tmp_path.glob("*.md")}
    names = [(m, n, t) for m in pages.MODULES for n, t in pages.public(m).items()]
    assert {f"{pages.file_of(*name)}.md" for name in names} <= written
    assert len({name.lower() for name in written}) == len(written)
    below = {
        f"{home.__name__}.{name}"
        for home in map(importlib.import_module, pages.MODULES)
        for name in home.__all__
        if inspect.ismodule(getattr(home, name))
    }
    assert below | {"scvae"} == set(pages.MODULES)


def test_the_page_of_a_class_has_its_methods_and_none_of_torch() -> None:
    shown = pages.members(scvae.Model)
    assert {"embed", "read", "over"} <= shown.keys()
    assert shown["device"] == "property"
    assert pages.members(scvae.core.VAE).keys() >= {"terms", "encode"}
    assert not pages.members(scvae.core.VAE).keys() & {"parameters", "state_dict", "train"}


def test_every_command_has_a_page(tmp_path: Path) -> None:
    pages.write_commands(tmp_path)
    assert {"fit.md", "check.md", "embed.md", "index.md"} <= {p.name for p in tmp_path.iterdir()}
    assert "--likelihood" in (tmp_path / "fit.md").read_text(encoding="utf-8")


def test_a_page_that_nobody_names_is_found(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "index.md").write_text("../there\n")
    for name in ("index", "named", "new", "there"):
        (tmp_path / f"{name}.md").write_text("# x")
    text = pages.with_further(tmp_path / "index.md", "named\n@further@\n")
    assert text == "named\nnew\n"


@pytest.mark.parametrize(
    ("html", "faults"),
    [
        ('<a href="b.html#there">x</a>', 0),
        ('<a href="c.html">x</a>', 1),
        ('<a href="b.html#not">x</a>', 1),
        ('<script src="https://a.example/x.js"></script>', 1),
        ('<link rel="stylesheet" href="//a.example/x.css">', 1),
        ('<a href="https://a.example/">x</a>', 0),
    ],
)
def test_links_that_lead_nowhere_and_what_is_loaded_from_elsewhere(
    html: str, faults: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text('<h1 id="there">x</h1>')
    assert links.main(tmp_path) == bool(faults)
    assert f"2 pages, {faults} faulty links" in capsys.readouterr().out


def test_the_picture_of_the_layers_is_of_these_imports() -> None:
    below = architecture.arrows()
    assert {"core", "train"} <= below["models"]
    assert not below["core"]
    height = architecture.heights(below)  # raises where arrows go in a circle
    assert all(height[a] > height[b] for a in below for b in below[a])
    drawn = (ROOT / "docs" / "_static" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == architecture.picture(), (
        "draw it again: python docs/_site/architecture.py docs/_static/architecture.svg"
    )


def test_arrows_that_a_longer_way_says_are_left_out() -> None:
    below = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.without_shortcuts(below) == {"a": {"b"}, "b": {"c"}, "c": set()}


@pytest.mark.parametrize("name", plots.PLOTS)
def test_what_is_plotted_are_the_numbers_of_the_table_and_all_of_them(name: str) -> None:
    results = ROOT / "benchmarks" / "results"
    text = (results / f"{name}.json").read_text(encoding="utf-8")
    without_commas = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    written = {float(one) for one in re.findall(r"\d*\.?\d+", without_commas)}
    plot, table = plots.PLOTS[name], json.loads(text)
    drawn: dict[str, list[float]] = {row[0]: [] for row in table["rows"]}
    for axes in plots.draw(plot, table).axes:
        titles = [label.get_text() for label in axes.get_yticklabels()]
        for x, y in (point for dots in axes.collections for point in dots.get_offsets()):
            drawn[titles[round(y)]].append(float(x))
    assert {x for found in drawn.values() for x in found} <= written
    for row in table["rows"]:
        cells = [row[i] for i in plot.columns if row[i]]
        assert len(drawn[row[0]]) >= sum(len(one) if isinstance(one, list) else 1 for one in cells)


def test_a_dot_a_number_and_none_where_there_is_none() -> None:
    assert plots.numbers([0.5, 0.25]) == [0.5, 0.25]
    assert plots.numbers("282,927 (280,980 to 284,902)") == [282927, 280980, 284902]
    assert plots.numbers("2,357, 2,391") == [2357, 2391]
    assert plots.numbers("**275.8**") == [275.8]
    assert plots.numbers(".455") == [0.455]
    assert plots.numbers("") == []


def test_a_plot_stands_above_its_table_and_pictures_are_found() -> None:
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    page = plots.with_plots(text)
    assert page.count("](plots/") == len(plots.PLOTS)
    assert re.search(r"results/scib.json -->\n\n!\[[^\]]*\]\(plots/scib.svg\)\n\n\| set", page)
    pictures = re.findall(r"\]\((\.\./benchmarks/\S+)\)", page)
    assert pictures
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)


def test_no_page_names_a_machine() -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        assert not re.search(r"/(work|root|tmp)/", path.read_text(encoding="utf-8")), path


def test_formulas_are_read_as_tex_reads_them() -> None:
    pytest.importorskip("sphinx")
    from mathml import spelt

    assert spelt(r"-\frac12 x") == r"-\frac{1}{2} x"
    assert spelt(r"\frac NB\sum") == r"\frac{N}{B}\sum"
    assert spelt(r"\tfrac1{2n}") == r"\frac{1}{2n}"
    assert spelt(r"\frac{1}{k}\sum_k") == r"\frac{1}{k}\sum_k"
    assert spelt(r"\log p + \log(x)") == r"\log\, p + \log(x)"
