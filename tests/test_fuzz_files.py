"""Mutated files load to a model that works or are refused; nothing else, soon, in little memory."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from container import Container
from fuzz_files import KINDS, campaign, checkpoint_bases, model_bases, mutant, run_case

PART = 200  # cases of one test


@pytest.mark.parametrize("first", range(0, 1800, PART))
def test_a_mutated_model_works_or_is_refused(first: int, tmp_path: Path) -> None:
    ends, faults = campaign("model", 0, range(first, first + PART), tmp_path)
    assert faults == []
    assert min(ends["loaded"], ends["refused"]) > PART // 20  # it is neither all noise nor none


def test_a_mutated_checkpoint_is_gone_on_from_or_refused(tmp_path: Path) -> None:
    ends, faults = campaign("checkpoint", 0, range(PART), tmp_path)
    assert faults == []
    assert min(ends["trained"], ends["refused"]) > PART // 20


# -- the campaign itself ---------------------------------------------------------------------------


def test_a_number_and_a_seed_give_the_same_case_again() -> None:
    bases = model_bases()
    cases = [mutant(0, number, bases) for number in range(50)]
    assert cases == [mutant(0, number, bases) for number in range(50)]
    assert len({*cases, *(mutant(1, number, bases) for number in range(50))}) > 90
    assert bases == model_bases()


@pytest.mark.parametrize("make", [model_bases, checkpoint_bases])
def test_taking_apart_and_putting_together_is_sound(make) -> None:
    for data in make():
        file = Container.of(data)
        again = Container.of(file.data())
        assert (again.metadata, again.table, again.body) == (file.metadata, file.table, file.body)


def test_a_fault_is_reported_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scvae.models.keep.files.check_model", lambda *given: None)
    _, faults = campaign("model", 0, range(PART), tmp_path)
    assert faults
    number = int(faults[0].split()[1].rstrip(","))
    assert (tmp_path / f"model.0.{number}").read_bytes() == mutant(0, number, model_bases())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="alarms of POSIX")
def test_a_case_that_does_not_end_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(path: Path) -> str:
        while True:
            pass

    monkeypatch.setattr("fuzz_files.SECONDS", 0.1)
    assert "_Slow" in run_case(b"", tmp_path / "file", wait)


def test_both_kinds_of_files_are_mutated() -> None:
    assert {*KINDS} == {"model", "checkpoint"}
