"""A run goes on from nothing but a state of its own: all else is refused, and by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import fitted_cells
from container import Container
from fuzz_files import FIT, STEPS, checkpoint_bases
from test_training import both, build, data, parts, shuffled

import scvae
from scvae import FileError
from scvae.models.keep.checkpoint import NAME
from scvae.train.loop import train
from scvae.train.run import Run, State, StateError
from scvae.train.schedule import Schedule

SCHEDULE = Schedule(40, evaluations=8, patience=99)


@pytest.fixture(scope="module")
def held() -> State:
    """Return the state of a run half way, as it was evaluated."""
    states: list[State] = []
    train(
        build(),
        shuffled(data()),
        lambda: parts(data(seed=1)),
        SCHEDULE,
        *both(3),
        keep=lambda run: states.append(run.state()) if run.is_due else None,
    )
    return states[len(states) // 2]


def restored(state: State) -> Run:
    run = Run(build(seed=9), shuffled(data()), SCHEDULE, *both())
    run.restore(state)
    return run


def test_a_state_of_its_own_is_taken(held: State) -> None:
    run = restored(held)
    assert run.taken == held.numbers["taken"] == run.history.step[-1]
    for name, value in run.state().tensors.items():
        assert torch.equal(value, held.tensors[name])


def number(name: str, value: Any) -> Callable[[State], Any]:
    return lambda state: state.numbers.update({name: value})


def history(name: str, value: Any) -> Callable[[State], Any]:
    return lambda state: state.numbers["history"].update({name: value})


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], Any]:
    return lambda state: state.tensors.update({name: change(state.tensors[name])})


def nan(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, float("nan"))


MOMENT = "optimizer.0.exp_avg_sq"
WEIGHT = "posterior.log_scale"
NONSENSE: dict[str, tuple[Callable[[State], Any], str]] = {
    "no numbers": (lambda state: state.numbers.clear(), "lacks a counter"),
    "a number too many": (number("extra", 1), "unknown one"),
    "no history": (lambda state: state.numbers.pop("history"), "lacks a counter"),
    "steps as text": (number("taken", "20"), "not whole numbers"),
    "steps as truth": (number("taken", True), "not whole numbers"),
    "steps below zero": (number("taken", -1), "not whole numbers"),
    "steps beyond the fit": (number("taken", 41), "the 40 steps of the fit"),
    "fewer steps than its history": (
        lambda state: state.numbers.update(taken=7, summed=0, averaged=5),
        "steps beyond the 7 taken",
    ),
    "averaged beyond its steps": (number("averaged", 10**9), "contradict"),
    "more summed than taken": (number("summed", 10**9), "contradict"),
    "beyond the epoch": (number("position", 10**18), "an epoch has fewer than"),
    "no share": (number("scale", 0.0), "by no share"),
    "a share of text": (number("scale", "1"), "by no share"),
    "a share that is NaN": (number("scale", float("nan")), "by no share"),
    "history no object": (number("history", [1]), "history that is not an object"),
    "history with more": (history("extra", 1), "history with an unknown 'extra'"),
    "history with less": (
        lambda state: state.numbers["history"].pop("beta"),
        "without beta, finite",
    ),
    "curve of text": (history("train", ["a"]), "without train, finite numbers"),
    "curve of NaN": (history("validation", [float("nan")]), "without validation, finite numbers"),
    "curve no list": (history("beta", 1.0), "without beta, finite numbers"),
    "curve too short": (history("beta", [1.0]), "unequal lengths"),
    "falling steps": (history("step", [10, 5]), "steps that rise"),
    "steps with a fraction": (history("step", [5.0, 10.0]), "steps that rise"),
    "best step never taken": (history("best_step", 3), "without its best step"),
    "interrupted by text": (history("interrupted", "no"), "without interrupted, true or false"),
    "endless": (history("seconds", float("inf")), "without seconds, a finite number"),
    "rollback at no step": (history("rollbacks", [0.5]), "without rollbacks, numbers of steps"),
    "no weights": (lambda state: state.tensors.clear(), "lacks one of bounds"),
    "a weight too few": (lambda state: state.tensors.pop(f"weights.{WEIGHT}"), "other tensors"),
    "a weight too many": (
        lambda state: state.tensors.update({"best.w": torch.ones(1)}),
        "other tensors",
    ),
    "a tensor too many": (lambda state: state.tensors.update(w=torch.ones(1)), "no run has"),
    "another shape": (tensor(f"weights.{WEIGHT}", lambda w: w[None]), "another shape or type"),
    "another type": (tensor(f"best.{WEIGHT}", torch.Tensor.double), "another shape or type"),
    "NaN weights": (tensor(f"best.{WEIGHT}", nan), "not finite"),
    "NaN average": (tensor(f"average.{WEIGHT}", nan), "not finite"),
    "moment too short": (tensor(MOMENT, lambda m: m.flatten()[:1]), "is not that of a parameter"),
    "moment too long": (tensor(MOMENT, lambda m: m.repeat(9, 9)), "is not that of a parameter"),
    "moment of another type": (tensor(MOMENT, torch.Tensor.double), "is not that of a parameter"),
    "moment below zero": (tensor(MOMENT, lambda m: m - 1e9), "impossible values"),
    "NaN moment": (tensor(MOMENT, nan), "impossible values"),
    "no moment": (lambda state: state.tensors.pop(MOMENT), "is not that of a parameter"),
    "moment of no parameter": (
        lambda state: state.tensors.update({"optimizer.99.step": torch.ones(())}),
        "no parameter has the moment",
    ),
    "no random state": (lambda state: state.tensors.pop("random.noise"), "lacks one of"),
    "random state cut": (tensor("random.noise", lambda r: r[:-1]), "random states"),
    "random state of floats": (tensor("random.order", torch.Tensor.float), "random states"),
    "random state of nonsense": (tensor("random.order", lambda r: r * 0 + 255), "random states"),
    "bounds of many": (tensor("bounds", lambda b: b.expand(3)), "another shape or type"),
    "NaN bounds": (tensor("bounds", nan), "not finite"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused(held: State, kind: str) -> None:
    state = copy.deepcopy(held)
    change, reason = NONSENSE[kind]
    change(state)
    with pytest.raises(StateError, match=reason):
        restored(state)


# -- the same through a file -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed() -> bytes:
    """Return the checkpoint of a fit that was killed half way."""
    return checkpoint_bases()[0]


def go_on(folder: Path, file: Container) -> Any:
    (folder / NAME).write_bytes(file.sealed().data())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scvae.fit(fitted_cells(), checkpoint=folder, **FIT)


def test_a_killed_fit_goes_on(killed: bytes, tmp_path: Path) -> None:
    steps = go_on(tmp_path, Container.of(killed)).record.history.step
    assert steps == [*range(1, 2 * STEPS + 1)]


def swap(one: str, other: str) -> Callable[[Container], Any]:
    def change(file: Container) -> None:
        file.table[one], file.table[other] = file.table[other], file.table[one]

    return change


def content(**fields: Any) -> Callable[[Container], Any]:
    def change(file: Container) -> None:
        said = file.description
        said["content"].update(fields)
        file.description = said

    return change


def negative_variance(file: Container) -> None:
    start, stop = file.table["best.posterior.hidden.norms.0.running_var"]["data_offsets"]
    file.body = file.body[:start] + b"\0\0\x80\xbf" * ((stop - start) // 4) + file.body[stop:]


FILES: dict[str, tuple[Callable[[Container], Any], str]] = {
    "numbers of text": (content(numbers="many"), "it has no numbers"),
    "another digest": (content(digest="0"), "checkpoint of another fit"),
    "a list as digest": (content(digest=[1]), "checkpoint of another fit"),
    "counters alone": (content(numbers={"taken": 3}), "lacks a counter"),
    "tensors in each other's place": (swap("bounds", "random.noise"), "another shape or type"),
    "weights in each other's place": (
        swap("weights.likelihood.share.weight", "weights.likelihood.share.bias"),
        r"likelihood.share.* has shape",
    ),
    "a variance below zero": (negative_variance, "running_var has values"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_checkpoint_of_nonsense_is_named_and_left(
    killed: bytes, kind: str, tmp_path: Path
) -> None:
    file = Container.of(killed)
    change, reason = FILES[kind]
    change(file)
    with pytest.raises(FileError, match=reason) as caught:
        go_on(tmp_path, file)
    assert str(tmp_path / NAME) in str(caught.value)
    assert "emove" in str(caught.value)  # what to do
    assert (tmp_path / NAME).read_bytes() == file.data()


def test_a_model_is_no_checkpoint_and_a_checkpoint_no_model(killed: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(killed)
    with pytest.raises(FileError, match="it is a 'checkpoint'"):
        scvae.load(tmp_path / NAME)
    scvae.fit(fitted_cells(), **FIT).save(tmp_path / NAME, overwrite=True)
    with pytest.raises(FileError, match=r"it is a 'model'.*Remove it"):
        scvae.fit(fitted_cells(), checkpoint=tmp_path, **FIT)
