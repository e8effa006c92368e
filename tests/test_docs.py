"""What the documentation shows runs: docstring examples, and code on the engine's page."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

import scvae
from scvae import core
from scvae.analysis.glm import adjust, adjust_by_permutations, size_factors
from scvae.analysis.labels import transfer
from scvae.data.checkup.association import cramers_v
from scvae.data.checkup.report import Finding, Kind, Report
from scvae.models.fitted import Fitted

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs" / "_site"))

import pages  # noqa: E402

NAMES = {name: getattr(core, name) for name in core.__all__}
# The modules among the public names are tested by themselves.
PUBLIC = {name: getattr(scvae, name) for name in scvae.__all__}
PUBLIC = {name: thing for name, thing in PUBLIC.items() if not inspect.ismodule(thing)}
FURTHER = {"Report": Report, "Finding": Finding, "Kind": Kind, "cramers_v": cramers_v}
FURTHER |= {"Fitted": Fitted, "size_factors": size_factors, "adjust": adjust}
FURTHER |= {"adjust_by_permutations": adjust_by_permutations, "transfer": transfer}
# Functions of the public modules, and methods of public classes, which no other name shows.
WITHIN = {
    f"{module}.{name}": getattr(getattr(scvae, module), name)
    for module in ("analysis", "plot", "datasets")
    for name in getattr(scvae, module).__all__
}
METHODS = {
    f"{name}.{own}": thing
    for name, owner in (NAMES | PUBLIC | FURTHER).items()
    if inspect.isclass(owner)
    for own, thing in vars(owner).items()
    if inspect.isfunction(thing)
}
EXAMPLES = {
    name: thing
    for name, thing in (NAMES | PUBLIC | FURTHER | WITHIN | METHODS).items()
    if hasattr(thing, "__name__") and ">>>" in (inspect.getdoc(thing) or "")
}
# What the engine's page names that is torch's, or of every distribution.
TERMS_OF_OTHERS = {"TransformedDistribution", "log_prob", "marginal_log_prob"}
PAGE = (ROOT / "docs" / "core.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_examples_give_what_they_show(name: str) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with torch.random.fork_rng():
        for example in finder.find(EXAMPLES[name], name, globs=NAMES | FURTHER | {"torch": torch}):
            runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0


def examples_written() -> set[str]:
    """Return where the source has docstrings with examples: module and name."""
    found = set()
    for path in Path(scvae.__file__).parent.rglob("*.py"):
        module = ".".join(("scvae", *path.relative_to(Path(scvae.__file__).parent).parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                name = getattr(node, "name", "")
                if ">>>" in (ast.get_docstring(node) or ""):
                    found.add(f"{module.removesuffix('.py')}.{name}")
    return found


def test_every_example_that_is_written_is_run() -> None:
    run = {f"{thing.__module__}.{thing.__name__}" for thing in EXAMPLES.values()}
    assert {"scvae.models.answering.embed", "scvae.plot.cells.umap"} <= run
    assert examples_written() == run


def code_of(doc: str | None) -> str:
    """Return the code of the examples of a docstring."""
    return "\n".join(example.source for example in doctest.DocTestParser().get_examples(doc or ""))


def used(doc: str | None) -> set[str]:
    """Return what the examples of a docstring name or ask things for."""
    nodes = list(ast.walk(ast.parse(code_of(doc))))
    asked = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return asked | {node.id for node in nodes if isinstance(node, ast.Name)}


def without_example(module: str) -> list[str]:
    """Return the public names of a module, and the members of its classes, that no example shows.

    A function or class has one of its own. A member may be shown by its class, by another of its
    members, or by a class that it has it from; a call of a module is its `forward`."""
    values = {name for thing in EXAMPLES.values() for name in used(inspect.getdoc(thing))}
    missing = []
    for name, thing in pages.public(module).items():
        if not getattr(thing, "__module__", "").startswith("scvae") or not callable(thing):
            missing += [name] * (name not in values)  # a value, or a function of torch's
            continue
        missing += [name] * (not code_of(inspect.getdoc(thing)))
        if inspect.isclass(thing):
            owners = [owner for owner in thing.__mro__ if owner.__module__.startswith("scvae")]
            docs = [one.__doc__ for owner in owners for one in (owner, *vars(owner).values())]
            shown = set().union(*(used(doc) for doc in docs if isinstance(doc, str)), {"forward"})
            missing += [f"{name}.{own}" for own in pages.members(thing) if own not in shown]
    return missing


@pytest.mark.parametrize("module", pages.MODULES)
def test_every_public_name_has_an_example(module: str) -> None:
    assert without_example(module) == []


def test_a_name_without_an_example_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scvae.simulate, "__doc__", "Draw counts.")
    monkeypatch.setattr(scvae.Model.extend, "__doc__", "Learn batches.")
    assert without_example("scvae") == ["Model.extend", "simulate"]


def test_code_on_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # or it depends on what ran before
            exec(compile(block, "docs/core.md", "exec"), {})
        said = re.findall(r"print\(.*\)  # (.*)", block)
        assert capsys.readouterr().out.splitlines() == said


def lines_besides_imports(code: str) -> int:
    """Return how many lines a program has: imports, a name a line, and empty lines aside."""
    imports = [n for n in ast.parse(code).body if isinstance(n, ast.Import | ast.ImportFrom)]
    aside = {line for n in imports for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    lines = enumerate(code.splitlines(), start=1)
    return sum(bool(line.strip()) and number not in aside for number, line in lines)


def test_models_on_the_page_take_twenty_lines() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 5
    assert max(map(lines_besides_imports, blocks)) <= 20
    assert lines_besides_imports("from b import (\n    c,\n)\n\nx = 1\nprint(\n    x\n)\n") == 4


def test_the_theory_names_what_there_is() -> None:
    table = PAGE.split("## The theory, section by section")[1]
    named = set(re.findall(r"`([A-Za-z_]+(?:\.[a-z_]+)?)[`(]", table)) - TERMS_OF_OTHERS
    for name in named:
        owner, _, own = name.partition(".")
        thing = NAMES[owner]
        fields = getattr(thing, "__dataclass_fields__", {})
        assert not own or hasattr(thing, own) or own in fields, name
    assert {"elbo", "Terms.energy", "ppca", "MeanField", "Bayesian.terms", "log_evidence"} <= named


@pytest.mark.parametrize("name", sorted(core.__all__))
def test_every_public_name_is_documented(name: str) -> None:
    thing = NAMES[name]
    if not isinstance(thing, core.Family):
        assert inspect.getdoc(thing)
    assert re.search(rf"`{name}\b", PAGE)
