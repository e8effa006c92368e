"""Two processes that train together are one process; where one ends, all end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from ranks import OPTIONS, cells

import scvae
from scvae.core.networks import BatchNorm, counting
from scvae.data.hold.residence import free_memory
from scvae.errors import ConfigError
from scvae.io import read_file
from scvae.models.agreed import check_size
from scvae.models.device import pick_device
from scvae.models.keep.checkpoint import NAME
from scvae.models.keep.migrations import FORMAT
from scvae.train.ranks import Ranks
from tests.warm import Python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="gloo and signals of Linux"),
    pytest.mark.filterwarnings("ignore:Interrupted at step"),
]
PROGRAM = f"""
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_path({str(Path(__file__).parent / "ranks.py")!r}, run_name="__main__")
"""


def started(what: str, folder: Path) -> list[Python]:
    return [Python(PROGRAM, what, str(folder), str(rank)) for rank in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ended(started("laws", folder := tmp_path_factory.mktemp("ranks")), folder)


def ended(processes: list[Python], folder: Path) -> list[dict[str, Any]]:
    """Return what the processes found."""
    for process in processes:
        error = process.communicate(timeout=500)[1]
        assert process.returncode == 0, error
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(2)]


def test_the_gradient_of_two_is_that_of_one(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["bound"][1] == pytest.approx(one["bound"][0], rel=1e-6)
        assert one["grads"] < 1e-5
        assert one["moments"] < 1e-6


def test_a_fit_of_two_is_that_of_one(found: list[dict[str, Any]]) -> None:
    alone, together = found[0]["alone"], found[0]["together"]
    assert together["step"] == alone["step"]
    assert together["cells"] == pytest.approx(
        alone["cells"], rel=0.05
    )  # halves of 33 differ by one
    np.testing.assert_allclose(together["validation"], alone["validation"], rtol=2e-3)
    np.testing.assert_allclose(together["train"], alone["train"], rtol=2e-3)
    assert found[0]["apart"] < 0.01 * abs(alone["validation"][-1])


def test_a_fit_of_two_from_disk_is_that_of_one_with_the_memory_of_both(
    found: list[dict[str, Any]],
) -> None:
    alone, together = found[0]["alone from disk"], found[0]["disk"]
    np.testing.assert_allclose(together["validation"], alone["validation"], rtol=2e-3)
    np.testing.assert_allclose(together["train"], alone["train"], rtol=2e-3)


@pytest.mark.parametrize("what", ["together", "disk", "interrupted"])
def test_all_ranks_end_with_the_same_weights_and_history(
    found: list[dict[str, Any]], what: str
) -> None:
    first, second = ({**one[what], "cells": None} for one in found)  # halves differ by a cell
    assert first == second


def test_every_rank_writes_the_embedding_of_one_process(found: list[dict[str, Any]]) -> None:
    assert all(one["embedded"] for one in found)


def test_ctrl_c_in_one_rank_ends_all_at_the_same_step(found: list[dict[str, Any]]) -> None:
    told = found[0]["interrupted"]
    assert told["interrupted"]
    assert 0 < told["step"][-1] < OPTIONS["max_steps"]


def test_ranks_with_different_arguments_are_refused(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert "Process 1 of 2 was given other data or arguments" in one["different"]
        assert "batch_size=3, but 2 processes share every minibatch" in one["few"]
        assert "Process 0 of 2 holds the counts in memory, and process 1 leaves" in one["elsewhere"]


# -- inference -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ended(started("answers", folder := tmp_path_factory.mktemp("answers")), folder)


QUESTIONS = ["embed", "spread", "normalized", "half", "disk", "one cell", "array"]


@pytest.mark.parametrize("what", [*QUESTIONS, ".h5ad", ".zarr", ".zarr names", "file to file"])
def test_two_processes_answer_as_one_to_the_bit(answered: list[dict[str, Any]], what: str) -> None:
    assert [one[what] for one in answered] == [True, True]


@pytest.mark.parametrize("what", QUESTIONS)
def test_each_process_answers_for_its_part_of_the_cells(
    answered: list[dict[str, Any]], what: str
) -> None:
    first, second = (one["cells"][what] for one in answered)
    n = {"one cell": 1, "spread": 80}.get(what, 300)
    assert first + second == n
    assert what == "one cell" or max(first, second) <= 0.7 * n


def test_where_one_process_cannot_write_all_end(answered: list[dict[str, Any]]) -> None:
    first, second = (one["disk is full"] for one in answered)
    assert first.startswith("FileError: ")
    assert "f.h5ad cannot be written: No space left on device. Nothing of it is left." in first
    assert second.startswith("TrainingError: Process 0 of 2 has failed, and its error says why")
    assert answered[0]["left"] == answered[1]["left"] == []


def test_what_cannot_be_answered_together_is_refused(answered: list[dict[str, Any]]) -> None:
    for one in answered:
        assert one["other genes"] == "same"  # in another order, the same cells
        assert one["there"].startswith("FileError")
        assert "is there already" in one["there"]
        for what in ("other cells", "other question"):
            assert "Process 1 of 2 was given other data or arguments" in one[what]


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "n_train", "remedy"),
    [
        (10, 200, "batch_size=16, or fewer processes"),
        (9, 9, "fewer processes, 4 at most for 9 cells to train on"),
    ],
)
def test_fewer_cells_than_processes_are_refused(batch_size: int, n_train: int, remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_size(Ranks(0, 8), batch_size, n_train)
    assert str(error.value).endswith(f"each needs two cells of it: {remedy}")
    check_size(Ranks(0, 8), 16, n_train)
    check_size(None, batch_size, n_train)


def test_each_process_of_a_machine_loads_onto_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "6")
    for device in (None, "cuda"):
        assert str(pick_device(device)) == "cuda:2"
    assert [str(pick_device(device)) for device in ("cuda:1", "cpu")] == ["cuda:1", "cpu"]
    monkeypatch.delenv("LOCAL_RANK")
    assert str(pick_device(None)) == "cuda"


def test_processes_of_one_machine_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert 0.8 < 4 * free_memory() / alone < 1.2


def test_where_one_rank_is_killed_the_other_ends_and_the_checkpoint_goes_on(
    tmp_path: Path,
) -> None:
    processes = started("endless", tmp_path)
    checkpoint = tmp_path / "kept" / NAME
    while not checkpoint.exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    time.sleep(random.random() * 0.3)
    victim, other = processes[::-1]
    victim.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    error = other.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 60
    assert other.returncode == 1
    assert "Another process of this job has ended" in error
    options = {**OPTIONS, "max_steps": 400, "early_stopping": False}
    with pytest.MonkeyPatch.context() as patch:
        # A process alone goes on from there, to its next evaluation.
        steps = read_file(checkpoint, "checkpoint", content_format=FORMAT)[1]["numbers"]["taken"]
        over = property(lambda run: run.taken > steps and bool(run.history.step))
        patch.setattr("scvae.train.run.Run.is_over", over)
        model = scvae.fit(cells(), checkpoint=tmp_path / "kept", **options)
    assert 0 < steps < 400
    assert model.record.history is not None
    assert model.record.history.step


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_that_are_told_to_end_leave_a_checkpoint(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    processes = started("told_to_end", tmp_path)
    while not all((tmp_path / f"going{rank}").exists() for rank in range(2)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    assert not (tmp_path / "kept" / NAME).exists()
    for rank in order:
        processes[rank].send_signal(signal.SIGTERM)
        time.sleep(0.1)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes][order[0]] == -signal.SIGTERM, errors
    content = read_file(tmp_path / "kept" / NAME, "checkpoint", content_format=FORMAT)[1]
    assert content["numbers"]["taken"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_of_two_writers_is_killed_nothing_is_half_written(
    tmp_path: Path, victim: int
) -> None:
    model = scvae.fit(adata := cells(), **{**OPTIONS, "max_steps": 3})
    model.save(tmp_path / "model")
    processes, out = started("writing", tmp_path), tmp_path / "out.zarr"
    while not all((tmp_path / f"going{rank}").exists() for rank in range(2)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    time.sleep(random.random())
    processes[victim].send_signal(signal.SIGKILL)
    processes[victim].wait()
    error = processes[1 - victim].communicate(timeout=60)[1]
    assert processes[1 - victim].returncode == 1
    assert "Another process of this job has ended" in error or "RuntimeError" in error  # a barrier
    assert victim == 0 or not list(tmp_path.glob(".*.part"))  # the first writes and clears away
    expected = model.normalized(adata).to_numpy()
    if out.exists():  # nothing was killed while it was removed by the test
        shutil.rmtree(out)
    model.normalized(adata, out=out)
    np.testing.assert_array_equal(anndata.read_zarr(out).X, expected)
    assert not list(tmp_path.glob(".*.part"))


def torchrun(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start two processes of the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(scvae.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


FIT = ["-m", "scvae", "fit", "in.h5ad", "-o", "out.h5ad", "--batch", "batch", "--n-latent", "4"]
FIT += ["--device", "cpu", "--max-steps"]


@pytest.mark.slow
def test_torchrun_writes_what_one_process_writes(tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "in.h5ad")
    job = torchrun(tmp_path, *FIT, "20", "--model", "model")
    said, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert said.count("300 cells, 4 latents") == 1
    embedding = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_scvae"]
    assert embedding.shape == (300, 4)
    command = ["-m", "scvae", "embed", "model", "in.h5ad", "-o", "again.h5ad", "--device", "cpu"]
    job = torchrun(tmp_path, *command)
    said, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert said.count("300 cells, 4 latents") == 1
    again = anndata.read_h5ad(tmp_path / "again.h5ad").obsm["X_scvae"]
    np.testing.assert_array_equal(again, embedding)
    names = ["again.h5ad", "in.h5ad", "model", "out.h5ad"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_starts_again_what_was_killed_at_any_moment(tmp_path: Path, victim: int) -> None:
    cells().write_h5ad(tmp_path / "in.h5ad")
    job = torchrun(tmp_path, "--max-restarts=1", *FIT, "600", "--checkpoint", "kept")
    children: list[str] = []
    while len(children) < 2:
        time.sleep(0.1)
        assert job.poll() is None
        command = ["ps", "-o", "pid=", "--ppid", str(job.pid)]
        children = subprocess.run(command, capture_output=True, text=True).stdout.split()
    time.sleep(random.random() * 8)
    with contextlib.suppress(ProcessLookupError):  # it may have ended
        os.kill(int(children[victim]), signal.SIGKILL)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_scvae"].shape == (300, 4)


@pytest.mark.parametrize("counted", [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]])
def test_rows_that_do_not_count_do_not_for_ranks_either(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minibatch of all ranks may lack a kind in every cell, where nothing has moments."""
    monkeypatch.setattr(Ranks, "sum", lambda self, values: None)  # of one rank, its own
    rows = torch.tensor(counted, dtype=torch.bool)
    found = []
    for forward in (BatchNorm.forward, Ranks(0, 1)._normalised):
        norm = BatchNorm(3)
        h = torch.arange(12.0).reshape(4, 3).sin().requires_grad_()
        with counting(norm, rows):
            y = forward(norm, h)
        y.square().sum().backward()
        found.append([y.detach(), h.grad, *(value.clone() for value in norm.buffers())])
    for alone, of_ranks in zip(*found, strict=True):
        torch.testing.assert_close(of_ranks, alone)
