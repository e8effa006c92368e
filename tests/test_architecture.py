"""The layers, proved from the source: imports only point down, and `import scvae` stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

import scvae

ROOT = Path(scvae.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
# What every layer, and every folder of one, may import of scvae; TOP may import anything.
ALLOWED = {
    "errors": set(),
    "_version": set(),
    "arguments": {"errors"},
    "choices": set(),
    "keywords": {"arguments", "errors"},
    "core": {"core"},
    "io": {"io", "errors", "_version"},
    "datasets": {"errors"},
    "simulation": {"simulation_kinds", "arguments", "keywords", "errors"},
    "simulation_kinds": {"arguments", "errors"},
    "train": {"train", "core", "errors"},
    "data": {"data/hold", "data/read", "data/checkup"},
    "data/hold": {"data/hold", "core"},
    "data/read": {"data/read", "data/hold", "arguments", "choices", "errors"},
    "data/checkup": {"data/checkup", "data/read", "arguments"},
    "modalities": {"modalities", "core", "data", "arguments", "choices", "errors"},
    "models": {
        *("models", "modalities", "core", "train", "data", "io"),
        *("arguments", "choices", "keywords", "errors", "_version"),
    },
    "analysis": {"analysis", "models", "modalities", "core", "data", "arguments", "errors"},
}
TOP = {"cli", "plot", "reporting", "__init__", "__main__"}
# What the lower layers may import of others, besides the standard library.
OUTSIDE = {
    "errors": set(),
    "_version": set(),
    "arguments": {"numpy"},
    "choices": set(),
    "core": {"torch"},
    "core/kernels": {"numba", "llvmlite", "numpy"},
    "core/kernels/run": {"torch"},
    "core/kernels/layouts": {"torch"},
    "core/kernels/cuda": {"torch", "triton"},
    "train": {"torch"},
    "io": {"torch", "safetensors"},
}
HEAVY = ("scanpy", "matplotlib", "sklearn", "zarr", "mudata", "umap", "igraph")


def layer_of(path: Path) -> str:
    """Return the layer of a file, or the folder of one that has arrows of its own."""
    file = path.relative_to(ROOT).with_suffix("")
    places = [PurePosixPath(*file.parts[:depth]).as_posix() for depth in (2, 1)]
    return next((place for place in places if place in ALLOWED), places[-1])


def imports_in(source: str) -> Iterator[str]:
    """Yield the dotted name of everything that `source` imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def lies_in(name: str, places: set[str]) -> bool:
    """Return whether a dotted name in scvae lies in one of the layers or folders."""
    path = PurePosixPath(*name.split(".")[1:])
    return any(path.is_relative_to(place) for place in places)


def violations(layer: str, source: str, file: str = "") -> list[str]:
    """Return the imports of `source` that a module of `layer` may not have."""
    if layer in TOP:
        return []
    wrong = []
    for name in imports_in(source):
        package = name.split(".")[0]
        if package == "scvae":
            allowed = lies_in(name, ALLOWED[layer])
        else:
            places = (file, str(PurePosixPath(file).parent), layer)
            outside = next((OUTSIDE[place] for place in places if place in OUTSIDE), None)
            allowed = outside is None or package in outside | sys.stdlib_module_names
        wrong += [] if allowed else [name]
    return wrong


# -- layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    assert layer in ALLOWED.keys() | TOP, f"{layer} has no place among the layers yet"
    file = path.relative_to(ROOT).with_suffix("").as_posix()
    assert violations(layer, path.read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("core", "import numpy as np"),
        ("core", "def f():\n    import pandas"),
        ("core", "from scvae.errors import DataError"),
        ("core", "from scvae import data"),
        ("core", "import scvae"),
        ("train", "from scvae.data.hold.cells import Cells"),
        ("train", "import numpy"),
        ("data/read", "from scvae.modalities.rna import Decoder"),
        ("modalities", "from scvae.models.network import Architecture"),
        ("models", "from scvae.analysis.neighbours import neighbors"),
        ("data/read", "from scvae.data.checkup.report import Finding"),
        ("data/hold", "from scvae.data.read import source"),
        ("data/hold", "from scvae import data"),
        ("io", "from scvae.models import model"),
        ("io", "import numpy"),
        ("models", "from scvae import plot"),
        ("simulation", "from scvae.core.distributions import Poisson"),
        ("errors", "import torch"),
        ("data/hold", "if True:\n    from scvae.train.loop import train"),
    ],
)
def test_an_arrow_that_points_up_is_seen(layer: str, source: str) -> None:
    assert len(violations(layer, source)) == 1


def test_relative_imports_are_seen() -> None:
    with pytest.raises(AssertionError, match="relative"):
        violations("core", "from ..data import cells")


def test_the_layers_have_no_cycle() -> None:
    order = {layer: below - {layer} for layer, below in ALLOWED.items()}
    assert len(list(TopologicalSorter(order).static_order())) == len(ALLOWED)


def module_name(path: Path) -> str:
    dotted = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def test_the_modules_have_no_cycle() -> None:
    names = {module_name(path) for path in MODULES}
    graph = {}
    for path in MODULES:
        found = set(imports_in(path.read_text(encoding="utf-8")))
        found |= {name.rsplit(".", 1)[0] for name in found if "." in name}
        graph[module_name(path)] = found & names - {module_name(path), "scvae"}
    graph.pop("scvae")
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_pickles_and_nothing_seeds_globally(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(imports_in(ast.unparse(tree)))
    assert not {name.split(".")[0] for name in names} & {"pickle", "joblib", "dill", "shelve"}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    forbidden = {"torch.load", "torch.save", "torch.manual_seed", "np.random.seed", "random.seed"}
    assert not calls & forbidden


# -- a light import --------------------------------------------------------------------------------


def modules_after(program: str) -> set[str]:
    """Return the top-level modules that `program` leaves in a fresh interpreter."""
    report = "import sys; print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    code = f"import sys; before = set(); {program}\n{report}"
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_scvae_imports_nothing_heavy() -> None:
    loaded = modules_after("import scvae; scvae.__version__; dir(scvae); scvae.DataError")
    assert "scvae" in loaded
    assert not loaded & {*HEAVY, "torch", "anndata", "pandas", "scipy"}


@pytest.mark.slow
def test_using_the_public_names_adds_nothing_heavy_to_torch_and_anndata() -> None:
    loaded = modules_after(
        "import torch, anndata; before = set(sys.modules)\n"
        "import scvae\n"
        "scvae.check, scvae.fit, scvae.Model, scvae.load, scvae.simulate, scvae.datasets"
    )
    assert "scvae" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.slow
def test_scvae_fit_needs_neither_scanpy_nor_matplotlib() -> None:
    loaded = modules_after("import scvae; scvae.fit")
    assert "torch" in loaded
    assert not loaded & {"scanpy", "matplotlib"}


@pytest.mark.slow
def test_loading_a_model_does_not_import_what_torch_compiles_with() -> None:
    """A second of import, which arithmetic on the meta device would ask for."""
    folder = Path(__file__).parent / "files"
    paths = [str(max(folder.glob(f"{kind}_*.scvae"))) for kind in ("format", "kinds")]
    code = f"import scvae; [scvae.load(path) for path in {paths}]"
    assert not modules_after(code) & {"sympy", "mpmath"}


def test_importing_the_home_of_simulate_does_not_hide_it() -> None:
    # A submodule becomes an attribute of its package: under the name of a function it replaces it.
    home = scvae.simulate.__module__
    modules_after(f"import scvae, {home}; assert callable(scvae.simulate), scvae.simulate")


def test_every_public_name_is_there() -> None:
    for name in scvae.__all__:
        assert getattr(scvae, name) is not None
    assert set(dir(scvae)) == set(scvae.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        scvae.fitt  # noqa: B018
