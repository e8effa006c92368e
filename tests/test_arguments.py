"""Every argument of every public function: what is wrong is refused by name, and nothing raw."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hashes import digests
from matplotlib.figure import Figure

import scvae
from scvae import ConfigError, DataError, FileError, ScvaeError
from scvae.analysis.compare import Comparison
from scvae.analysis.doublets import Doublets
from scvae.analysis.mapping import MappingCheck
from scvae.models.tune import Tuning
from scvae.train.run import Run

METHODS = (
    "embed",
    "elbo",
    "log_likelihood",
    "mean_log_likelihood",
    "normalized",
    "sample",
    "predictive_check",
    "read",
    "amount",
    "save",
    "summary",
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(scvae, name) for name in ("fit", "check", "load", "simulate")},
    **{f"plot.{name}": getattr(scvae.plot, name) for name in scvae.plot.__all__},
    **{f"datasets.{name}": getattr(scvae.datasets, name) for name in scvae.datasets.__all__},
    **{f"model.{name}": getattr(scvae.Model, name) for name in METHODS},
}
QUICK: dict[str, Any] = {"max_steps": 2, "n_latent": 3, "n_hidden": 8, "progress": False}
PARAMETERS = [
    (name, parameter)
    for name, function in FUNCTIONS.items()
    for parameter in inspect.signature(function).parameters
    if parameter != "self"
]


class Odd:
    """Equal to everything, of every length, and of no use."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __len__(self) -> int:
        return 3

    def __repr__(self) -> str:
        return "odd\n" * 100


# Of every kind that a mistake may hand over; some are right for some parameters.
VALUES: dict[str, Callable[[], Any]] = {
    repr(value): (lambda value=value: value)
    for value in (
        *(None, True, False, "", "nope", "batch", "cell_type", "a\0b", "\ud800", b"x", ..., int),
        *(0, 1, 3, -1, 2**31, 2**70, 10**400, 0.5, 2.5, -0.5, math.nan, math.inf, 1e-300, 1e300),
        *(1j, Decimal(2), Fraction(1, 2), [], [1], ["batch"], [["batch"]], (), {}, {"a": 1}),
        *(Path("here"), slice(3), frozenset({"batch"}), {"batch"}),
        *(np.int64(3), np.float32(0.5), np.bool_(True), np.str_("batch"), np.float64(math.nan)),
    )
} | {
    "object": object,
    "odd": Odd,
    "function": lambda: len,
    "iterator": lambda: iter("ab"),
    "array of numbers": lambda: np.arange(6.0).reshape(3, 2),
    "array of strings": lambda: np.array(["batch", "cell_type"]),
    "array without dimensions": lambda: np.array("batch"),
    "array of one": lambda: np.array([2]),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "tensor of one": lambda: torch.tensor(2),
    "series": lambda: pd.Series(["batch", "library_size"]),
    "frame": lambda: pd.DataFrame({"batch": [1.0]}),
    "NA": lambda: pd.NA,
    "NaT": lambda: pd.NaT,
    "device": lambda: torch.device("cpu"),
    "class": lambda: AnnData,
}


@pytest.fixture(scope="module")
def cells() -> AnnData:
    adata = scvae.simulate(n_cells=150, n_genes=12, seed=1)
    adata.obsm["X_umap"] = adata.obsm["z"][:, :2]
    return adata


@pytest.fixture(scope="module")
def model(cells: AnnData) -> scvae.Model:
    return scvae.fit(cells.copy(), batch="batch", **QUICK)


def compared() -> Comparison:
    """Return one gene of one group."""
    effect = {"lfc": [0.5], "lfc_low": [0.1], "lfc_high": [0.9], "p": [0.01], "fdr": [0.02]}
    table = pd.DataFrame({"group": ["all"], "gene": ["a"], **effect})
    return Comparison(table, pd.DataFrame(), [])


def searched() -> Tuning:
    """Return the defaults and one candidate, of a round."""
    told = {"candidate": [0, 1], "round": [1, 1], "steps": [9, 9], "n_latent": [30, 10]}
    measured = {"log_likelihood": [-9.0, -8.0], "gain": [0.0, 1.0], "error": [0.0, 0.1]}
    return Tuning(pd.DataFrame({**told, **measured, "seconds": [1.0, 1.0]}), {})


def mapped() -> MappingCheck:
    """Return one sample of a query, which is as near as the reference's own."""
    row = {"sample": "query", "neighbourhood": "all", "n_cells": 50, "n_samples": 4}
    tested = {"ratio": 1.1, "limit": 1.5, "p": 0.3, "is_far": False, "far": 0.06}
    own = {"neighbourhood": ["all", "all"], "beside": ["query", "query"], "ratio": [0.9, 1.1]}
    return MappingCheck(pd.DataFrame([row | tested]), pd.DataFrame(own), 0.05)


def scored() -> pd.DataFrame:
    return pd.DataFrame({"score": [0.1, 0.9], "is_doublet": [False, True]})


def usual(name: str, model: scvae.Model, adata: AnnData) -> dict[str, Any]:
    """Return arguments with which the function succeeds, soon; a figure only where one is asked."""
    given: dict[str, Callable[[], dict[str, Any]]] = {
        "fit": lambda: {"adata": adata, **QUICK},
        "check": lambda: {"adata": adata},
        "load": lambda: {"path": "model"},
        "simulate": lambda: {"n_cells": 12, "n_genes": 5},
        "plot.umap": lambda: {"adata": adata, "key": "z"},
        "plot.scatter": lambda: {"ax": Figure().subplots(), "points": np.zeros((150, 2))},
        "plot.history": lambda: {"model": model},
        "plot.fit_check": lambda: {"model": model, "adata": adata},
        "plot.neighbors": lambda: {"adata": adata, "key": "z"},
        "plot.axis_loadings": lambda: {
            "weights": pd.DataFrame({"1": [0.5, -0.1]}, index=["a", "b"])
        },
        "plot.tune": lambda: {"found": searched()},
        "plot.volcano": lambda: {"compared": compared()},
        "plot.mapping_check": lambda: {"found": mapped()},
        "plot.doublet_scores": lambda: {
            "found": Doublets(scored(), np.ones(2) / 2, 0.1, 0.5, 0.01, 0.5)
        },
        "model.log_likelihood": lambda: {"adata": adata, "samples": 2},
        "model.mean_log_likelihood": lambda: {"adata": adata, "samples": 2},
        "model.amount": lambda: {"data": adata},
        "model.sample": lambda: {"n": 3},
        "model.save": lambda: {"path": "saved"},
        "model.summary": lambda: {},
    }
    own = {"self": model} if name.startswith("model.") else {}
    usual_ones = {} if name.startswith("datasets.") else {"adata": adata}
    return own | (given[name]() if name in given else usual_ones)


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
@pytest.mark.filterwarnings("ignore")
def test_any_value_of_any_parameter_is_taken_or_refused_in_words(
    name: str,
    parameter: str,
    model: scvae.Model,
    cells: AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if parameter == "max_steps":  # a number of steps that is taken need not be gone to its end
        for ends in ("is_due", "is_over"):
            monkeypatch.setattr(Run, ends, property(lambda run: run.taken >= 2))
    model.save("model")
    names = {"numpy": np, "matplotlib": matplotlib, "scvae": scvae}
    raw, before, remedies = [], digests(cells), set()
    adata = cells.copy()
    for label, make in VALUES.items():
        arguments = usual(name, model, adata) | {parameter: make()}
        try:
            FUNCTIONS[name](**arguments)
        except ScvaeError as error:
            if digests(adata) != before:
                raw.append(f"{label}: refused, and written to adata")
            if "\n" in str(error) or len(str(error)) > 700:
                raw.append(f"{label}: {error}")
            if parameter not in str(error):
                raw.append(f"{label}: does not name {parameter}: {error}")
            remedies |= set(re.findall(rf"must be .*: {parameter}=(.+)$", str(error)))
        except Exception as error:
            raw.append(f"{label}: {type(error).__name__}: {error}")
        else:
            adata = cells.copy()
    assert not raw, "\n".join(raw)
    for remedy in remedies:
        mended = usual(name, model, adata) | {parameter: eval(remedy, names | {"adata": adata})}
        with contextlib.suppress(DataError, FileError):  # of names that are not there
            FUNCTIONS[name](**mended)


def test_every_function_succeeds_with_the_usual_arguments(
    model: scvae.Model, cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the law above would hold of a function that refuses everything."""
    monkeypatch.chdir(tmp_path)
    model.save("model")
    for name, function in FUNCTIONS.items():
        if not name.startswith("datasets."):
            function(**usual(name, model, cells.copy()))


REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(("fit", {name: value}) for name, value in (
        ("validation", None), ("validation", True), ("validation", "0.1"),
        ("learning_rate", "a"), ("learning_rate", None), ("learning_rate", math.inf),
        ("learning_rate", True), ("max_steps", "3"), ("max_steps", True), ("batch_size", True),
        ("batch_size", "128"), ("batch_size", 1), ("encode_covariates", "no"),
        ("early_stopping", "yes"), ("early_stopping", None), ("deterministic", 1.5),
        ("progress", None), ("progress", 1), ("layer", 3), ("library_size", 7), ("stream", "yes"),
        ("checkpoint", 3), ("seed", "x"), ("seed", True), ("seed", None), ("device", 0),
        ("n_latent", 2**31), ("align", "yes"), ("covariates", 3), ("genes", [True, False]),
        ("key_added", ""), ("likelihood", ["nb"]), ("prior", None),
    )),
    *(("simulate", {name: value}) for name, value in (
        ("n_cells", 2.5), ("n_cells", "3"), ("n_genes", True), ("library_size", None),
        ("library_size", 1e300),  ("library_spread", math.inf),
        ("dropout", "a"), ("seed", 0.5),
    )),
    *((f"model.{name}", {"samples": value})
      for name in ("elbo", "log_likelihood", "mean_log_likelihood", "predictive_check")
      for value in (2.5, True, "3", None, 2**40)),
    *((f"model.{name}", {"seed": value})
      for name in ("elbo", "log_likelihood", "mean_log_likelihood", "predictive_check", "sample")
      for value in ("x", -1, 2**32, 0.5, None)),
    ("model.sample", {"n": 2.0}), ("model.sample", {"n": True}), ("model.embed", {"layer": 3}),
    ("model.embed", {"return_std": 1}), ("model.log_likelihood", {"return_error": "yes"}),
    ("model.normalized", {"library_size": 0}), ("model.normalized", {"library_size": "1e4"}),
    ("model.normalized", {"genes": 3}), ("model.normalized", {"out": "file"}),
    ("model.normalized", {"out": np.zeros((150, 12), int)}),
    ("model.normalized", {"out": np.broadcast_to(np.float32(0), (150, 12))}),
    ("model.predictive_check", {"max_cells": 2.5}), ("model.save", {"path": 3}),
    ("load", {"path": None}), ("load", {"device": 0}),
    ("plot.umap", {"legend": "off"}), ("plot.umap", {"recompute": "no"}), ("plot.umap", {"key": 3}),
    ("plot.umap", {"color": 3}), ("plot.umap", {"path": 3}), ("plot.neighbors", {"seed": "x"}),
    ("plot.scatter", {"ax": None}), ("plot.scatter", {"points": np.zeros((150, 3))}),
    ("plot.scatter", {"values": ["a"]}), ("plot.scatter", {"title": None}),
    ("plot.history", {"model": None}), ("plot.history", {"ax": "left"}),
    ("plot.fit_check", {"axes": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wrong"), REFUSED, ids=str)
def test_a_wrong_type_or_value_is_refused(
    name: str, wrong: dict[str, Any], model: scvae.Model, cells: AnnData
) -> None:
    adata, (parameter,) = cells.copy(), wrong
    with pytest.raises(ScvaeError, match=parameter) as caught:
        FUNCTIONS[name](**(usual(name, model, adata) | wrong))
    assert isinstance(caught.value, ConfigError | DataError)
    assert digests(adata) == digests(cells)


@pytest.mark.parametrize(
    "wrong", [{"layer": 3}, {"library_size": 7}, {"genes": 3}, {"covariates": 3}]
)
def test_a_check_reports_what_a_fit_refuses(wrong: dict[str, Any], cells: AnnData) -> None:
    with pytest.raises(ScvaeError) as caught:
        scvae.fit(cells.copy(), **QUICK, **wrong)
    assert str(caught.value) in [error.text for error in scvae.check(cells, **wrong).errors]


def test_numbers_of_numpy_serve_as_those_of_python(model: scvae.Model, cells: AnnData) -> None:
    given = {"samples": np.int64(3), "seed": np.uint8(2)}
    np.testing.assert_array_equal(model.elbo(cells, **given), model.elbo(cells, samples=3, seed=2))
    found = scvae.simulate(np.int32(9), n_genes=np.int64(5), library_size=np.float32(50))
    np.testing.assert_array_equal(
        found.X.toarray(), scvae.simulate(9, n_genes=5, library_size=50).X.toarray()
    )
    fitted = scvae.fit(
        cells.copy(),
        validation=np.float64(0.2),
        align=np.bool_(True),
        stream=np.bool_(False),
        **QUICK,
    )
    assert fitted.record.n_held_out == 30


@pytest.mark.parametrize("name", ["batch_key", "max_epochs", "use_gpu", "n_epochs", "lr"])
def test_arguments_of_other_packages_are_both_kinds_of_errors(cells: AnnData, name: str) -> None:
    with pytest.raises(TypeError, match=name) as caught:  # as Python's own would be
        scvae.fit(cells.copy(), **{name: 1})
    assert isinstance(caught.value, ScvaeError)
