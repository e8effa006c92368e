"""What a release is made of says the same everywhere: versions, dependencies, targets."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import scvae

ROOT = Path(scvae.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {need.name: need for need in map(Requirement, PROJECT["dependencies"])}
yaml = pytest.importorskip("yaml")  # comes with what notebooks need


def pins(name: str) -> dict[str, Version]:
    """Return the versions that a file of constraints names, by the names in small letters."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {of.lower().replace("_", "-"): Version(version) for of, version in found}


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == scvae.__version__
    assert f'{{% set version = "{scvae.__version__}" %}}' in (ROOT / "conda/meta.yaml").read_text()
    assert f"## {scvae.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_python_m_scvae_tells_it() -> None:
    command = [sys.executable, "-m", "scvae", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert said.stdout == f"scvae {scvae.__version__}\n"


def test_constraints_hold_what_is_needed_and_allowed() -> None:
    newest, lowest = pins("constraints.txt"), pins("constraints-lowest.txt")
    for name, need in NEEDED.items():
        assert newest[name] in need.specifier, name
        assert name == "torch" or lowest[name] in need.specifier, name
        assert name == "torch" or lowest[name] <= newest[name], name


def test_the_conda_recipe_needs_what_the_wheel_needs() -> None:
    text = (ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8")
    run = text.split("  run:\n")[1].split("\n\n")[0]
    others = {"torch": "pytorch", "igraph": "python-igraph"}
    for name, need in NEEDED.items():
        assert f"    - {others.get(name, name)} {need.specifier}\n" in f"{run}\n", name
    assert len(run.splitlines()) == len(NEEDED) + 1  # and Python


def test_workflows_ask_make_for_what_there_is() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    asked: set[str] = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        jobs = yaml.safe_load(text)["jobs"]
        assert all(job["steps"] for job in jobs.values())
        asked |= {word for line in re.findall(r"run: make (.*)", text) for word in line.split()}
        asked |= {
            word for found in re.findall(r"target: \[(.*)\]", text) for word in found.split(", ")
        }
    asked = {word for word in asked if re.fullmatch(r"[a-z-]+", word)}
    assert {"test", "docs", "test-wheel", "test-lowest", "test-newest"} <= asked <= targets


def test_what_the_owner_must_fill_in_is_listed_in_one_place() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w./]+)` \|", guide.split("only the owner")[1], re.MULTILINE))
    places = ("*.md", "*.toml", "*.cff", "conda/*", "docs/*.md", "docs/*/*.md", ".github/*/*.yml")
    paths = {path for place in places for path in ROOT.glob(place)}
    marked = {path for path in paths if "FILL_IN" in path.read_text(encoding="utf-8")}
    assert {path.relative_to(ROOT).as_posix() for path in marked} == listed | {"CONTRIBUTING.md"}


def test_issue_templates_are_forms() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert "body" in form or "blank_issues_enabled" in form


def test_a_shell_completes_every_command_and_option(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("shtab")
    from scvae.cli import main

    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert {"fit", "tune", "embed"} <= set(re.findall(r"'([a-z]+)'", script))
    assert "--n-latent" in script


def test_completion_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from scvae.cli import main

    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'scvae-torch[completion]'" in capsys.readouterr().err
