"""An argument by a name that is not there: the right one is said, and nothing is begun."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scvae
from scvae.keywords import FOREIGN, MEANING
from scvae.models.model import Model

VERBS: dict[str, Callable[..., Any]] = {
    "fit": scvae.fit,
    "check": scvae.check,
    "simulate": scvae.simulate,
    "report": scvae.report,
}


@pytest.mark.parametrize(
    ("verb", "given", "said"),
    [
        ("fit", {"batch_key": "donor"}, "no argument 'batch_key'; here it is batch: batch='donor'"),
        ("fit", {"max_epochs": 100}, "max_steps (in minibatches, not in passes"),
        ("fit", {"use_gpu": True}, "device (device='cuda' or device='cpu'"),
        ("fit", {"n_latent_dims": 10}, "n_latent: n_latent=10"),
        ("fit", {"lr": 1e-3}, "learning_rate: learning_rate=0.001"),
        ("fit", {"batchs": "donor"}, "batch: batch='donor'"),
        ("fit", {"likelyhood": "nb"}, "likelihood: likelihood='nb'"),
        ("fit", {"Batch": "donor"}, "batch: batch='donor'"),
        ("fit", {"train_size": 0.9}, "validation (the share of the cells held out"),
        ("fit", {"n_top_genes": 2000}, "genes (a boolean column of adata.var"),
        ("fit", {"dropout_rate": 0.1}, "no argument 'dropout_rate'; it takes adata, batch,"),
        ("check", {"labels_key": "type"}, "'labels_key'; here it is label: label='type'"),
        ("check", {"max_epochs": 3}, "it takes adata, batch, covariates"),
        ("simulate", {"cells": 5}, "n_cells: n_cells=5"),
        ("report", {"label_key": "type"}, "'label_key'; here it is labels: labels='type'"),
    ],
)  # fmt: skip
def test_the_right_name_is_said(verb: str, given: dict[str, Any], said: str) -> None:
    arguments = () if verb == "simulate" else (object(),)
    with pytest.raises(TypeError) as refused:
        VERBS[verb](*arguments, **given)
    assert said in str(refused.value)
    assert isinstance(refused.value, scvae.ConfigError)


def test_a_value_by_its_place_needs_a_name() -> None:
    with pytest.raises(
        TypeError, match=r"'donor' needs its name: scvae\.fit\(adata, batch=\.\.\.\)"
    ):
        scvae.fit(scvae.simulate(n_cells=20, n_genes=5), "donor")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("embed", {"give_std": True}, "no argument 'give_std'; it takes adata, layer,"),
        ("normalized", {"transform_batch": "a"}, "here it is batch: batch='a'"),
        ("log_likelihood", {"n_samples": 9}, "here it is samples: samples=9"),
        ("amount", {"n_samples": 9}, "model.amount has no argument 'n_samples'; here"),
        ("over", {"n_samples": 9}, "model.over has no argument 'n_samples'; here"),
        ("save", {"dir_path": "x"}, "'dir_path'; here it is path: path='x'"),
    ],
)  # fmt: skip
def test_methods_say_the_right_name(method: str, given: dict[str, Any], said: str) -> None:
    model = scvae.load(Path(__file__).parent / "files" / "format_3.scvae")
    with pytest.raises(TypeError) as refused:
        getattr(model, method)(None, **given)
    assert said in str(refused.value)
    with pytest.raises(TypeError, match=r"scvae\.load has no argument 'filename'; here it is path"):
        scvae.load(filename="x")  # type: ignore[call-arg]


@pytest.mark.parametrize("verb", VERBS)
def test_the_documented_signature_has_no_more(verb: str) -> None:
    kinds = {p.kind for p in inspect.signature(VERBS[verb]).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert VERBS[verb].__doc__ is not None


def test_foreign_names_lead_to_names_that_are_there() -> None:
    methods = [thing for _, thing in inspect.getmembers(Model, inspect.isfunction)]
    functions = [*VERBS.values(), scvae.load, *methods, scvae.plot.umap]
    known = {
        name
        for function in functions
        if callable(function)
        for name in inspect.signature(function).parameters
    }
    assert set(FOREIGN.values()) <= known
    assert set(MEANING) <= set(FOREIGN)
    assert not set(FOREIGN) & set(inspect.signature(scvae.fit).parameters)
