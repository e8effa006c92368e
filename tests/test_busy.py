"""A fit whose threads wait for processors says so, once, with what helps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from scvae.errors import ScvaeWarning
from scvae.models.busy import SECONDS, Watch, watched

CPU = torch.device("cpu")


def report(history: Any) -> None:
    reported.append(history)


reported: list[Any] = []


def watch(threads: int, processors: float, seconds: float) -> Watch:
    """Return a watch whose clocks go on by some seconds at every look."""
    times: Iterator[int] = iter(range(100))
    at = 0.0

    def clock() -> float:
        nonlocal at
        at = next(times) * seconds
        return at

    return Watch(report, threads, clock, lambda: at * processors)


def test_threads_that_wait_are_told_of_once() -> None:
    busy = watch(threads=4, processors=1.2, seconds=SECONDS / 2)
    with pytest.warns(ScvaeWarning, match=r"4 threads .* 1\.2 processors") as caught:
        _ = [busy(step) for step in range(9)]
    assert len(caught) == 1
    assert "torch.set_num_threads(1)" in str(caught[0].message)
    assert reported[-9:] == list(range(9))


@pytest.mark.parametrize(("threads", "processors", "looks"), [(4, 3.6, 9), (4, 1.0, 2)])
def test_threads_that_run_or_have_just_begun_are_not(
    threads: int, processors: float, looks: int
) -> None:
    quiet = watch(threads, processors, SECONDS / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(looks):
            quiet(step)


def test_nothing_is_told_where_it_cannot_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(watched(report, CPU, False), Watch)
    assert watched(report, CPU, True) is report
    assert watched(report, torch.device("cuda"), False) is report
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert watched(report, CPU, False) is report
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert watched(report, CPU, False) is report
