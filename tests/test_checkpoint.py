"""A killed fit goes on to the same bits; a checkpoint that cannot be written stops nobody."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.errors import ConfigError, FileError
from scvae.io import read_file
from scvae.models import plan
from scvae.models.keep import checkpoint as module
from scvae.models.keep.checkpoint import NAME, digest
from scvae.models.keep.migrations import FORMAT
from scvae.train.run import Run
from tests.test_progress import Stream
from tests.warm import Python

KILLS = int(os.environ.get("SCVAE_KILLS", "2"))
OPTIONS: dict[str, Any] = {"max_steps": 150, "n_latent": 4, "n_hidden": 16, "progress": False}


def simulated() -> AnnData:
    return scvae.simulate(n_cells=400, n_genes=60, seed=3)


def fit(checkpoint: Path | None = None, **options: Any) -> tuple[AnnData, scvae.Model]:
    adata = simulated()
    return adata, scvae.fit(adata, batch="batch", checkpoint=checkpoint, **{**OPTIONS, **options})


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint at every evaluation."""
    kept = module.Checkpoint.keep

    def keep(checkpoint: module.Checkpoint, run: Run) -> None:
        if run.is_due:
            kept(checkpoint, run)

    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(module.Checkpoint, "keep", keep)


PROGRAM = f"""
import sys, numpy as np, torch, scvae
from pathlib import Path
from scvae.models.keep import checkpoint
torch.set_num_threads(1)
checkpoint.SECONDS_BETWEEN = 0.05
adata = scvae.simulate(n_cells=400, n_genes=60, seed=3)
print("begins", flush=True)
model = scvae.fit(adata, batch="batch", checkpoint=sys.argv[1], **{OPTIONS!r})
model.save(sys.argv[1] + "/model")
np.save(sys.argv[1] + "/embedding.npy", adata.obsm["X_scvae"])
"""


def started(folder: Path) -> Python:
    process = Python(PROGRAM, str(folder))
    process.wait_for("begins")
    return process


def is_resumable(folder: Path) -> bool:
    """Return whether a killed fit left a checkpoint, of a run that had not ended."""
    if not (folder / NAME).exists() or (folder / "model").exists():
        return False
    _, content = read_file(folder / NAME, "checkpoint", content_format=FORMAT)
    return 0 < content["numbers"]["taken"] < OPTIONS["max_steps"]


def results(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model").read_bytes(), (folder / "embedding.npy").read_bytes()


@pytest.mark.slow
def test_a_fit_killed_at_any_moment_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = started(tmp_path / "whole")
    begun = time.perf_counter()
    assert whole.wait(120) == 0
    lasts = time.perf_counter() - begun
    moments, resumed = random.Random(0), 0
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        for _ in range(2):
            process = started(folder)
            time.sleep(moments.random() * lasts * 0.4)  # two of them fall within one fit
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL  # it was running
        resumed += is_resumable(folder)
        assert started(folder).wait(120) == 0
        assert results(folder) == results(tmp_path / "whole")
    # Wherever the moments fell, one fit goes on from a checkpoint in the middle of training.
    folder = tmp_path / "middle"
    process = started(folder)
    while not (folder / NAME).exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed += is_resumable(folder)
    assert started(folder).wait(120) == 0
    assert results(folder) == results(tmp_path / "whole")
    assert resumed >= 1


@pytest.mark.usefixtures("eager")
def test_the_same_call_ends_where_it_ended(tmp_path: Path) -> None:
    first, one = fit(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    second, two = fit(tmp_path)
    np.testing.assert_array_equal(first.obsm["X_scvae"], second.obsm["X_scvae"])
    assert one.record.history.step == two.record.history.step
    assert (tmp_path / NAME).read_bytes() == before  # nothing was left to do


@pytest.mark.usefixtures("eager")
def test_a_checkpoint_changes_nothing(tmp_path: Path) -> None:
    kept, bare = fit(tmp_path)[0], fit()[0]
    np.testing.assert_array_equal(kept.obsm["X_scvae"], bare.obsm["X_scvae"])


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"n_hidden": 17}, {"max_steps": 151}, {"batch": None}]
)
def test_the_checkpoint_of_another_fit_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    fit(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    adata = simulated()
    with pytest.raises(FileError, match="checkpoint of another fit"):
        scvae.fit(adata, checkpoint=tmp_path, **{"batch": "batch", **OPTIONS, **options})
    assert "X_scvae" not in adata.obsm
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.usefixtures("eager")
def test_other_counts_are_another_fit(tmp_path: Path) -> None:
    fit(tmp_path)
    adata = simulated()
    adata.X[0, 0] += 1
    with pytest.raises(FileError, match="other data"):
        scvae.fit(adata, batch="batch", checkpoint=tmp_path, **OPTIONS)


@pytest.mark.usefixtures("eager")
def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    fit(tmp_path)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-100])
    with pytest.raises(FileError, match=NAME):
        fit(tmp_path)


@pytest.mark.usefixtures("eager")
def test_a_full_disk_leaves_the_last_checkpoint_and_the_fit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    kept = Path.write_bytes

    def filling(path: Path, data: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes > 2:
            kept(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return kept(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.warns(UserWarning, match=r"No checkpoint at step \d+: .*No space left"):
        adata, _ = fit(tmp_path)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], fit()[0].obsm["X_scvae"])
    _, header = read_file(tmp_path / NAME, "checkpoint", content_format=FORMAT)
    assert header["numbers"]["taken"] == 8  # of the second write
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_checkpoint_is_as_old_as_it_says_where_evaluations_are_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, now, ages = 0, 0.0, []
    kept = scvae.data.hold.cells.Dataset._described

    def slow(dataset: Any, rows: Any, x: Any) -> Any:
        """Take a second for a minibatch."""
        nonlocal now, steps
        now, steps = now + 1.0, steps + 1
        if (tmp_path / NAME).exists():
            content = read_file(tmp_path / NAME, "checkpoint", content_format=FORMAT)[1]
            ages.append(steps - content["numbers"]["taken"])
        return kept(dataset, rows, x)

    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr("scvae.train.schedule.Schedule.every", 60)
    monkeypatch.setattr(scvae.data.hold.cells.Dataset, "_described", slow)
    fit(tmp_path, max_steps=59)
    assert len(ages) >= 40
    assert max(ages) <= module.SECONDS_BETWEEN + 3  # and the cells that are evaluated


@pytest.mark.filterwarnings("ignore:Told to end")
def test_sigterm_is_obeyed_once_the_run_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, told = 0, []
    kept = scvae.data.hold.cells.Dataset._described

    def ended(dataset: Any, rows: Any, x: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 60:
            os.kill(os.getpid(), signal.SIGTERM)
        return kept(dataset, rows, x)

    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        monkeypatch.setattr(scvae.data.hold.cells.Dataset, "_described", ended)
        with pytest.raises(SystemExit) as stop:
            fit(tmp_path)
        assert stop.value.code == 143
        assert told == [signal.SIGTERM]  # whoever waited for it is told, too
        fit()
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(told) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert is_resumable(tmp_path)
    np.testing.assert_array_equal(fit(tmp_path)[0].obsm["X_scvae"], fit()[0].obsm["X_scvae"])


@pytest.mark.filterwarnings("ignore:Told to end")
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("breaks", [True, False])
def test_sigterm_while_progress_is_drawn_leaves_a_run_to_go_on_with(
    terminal: bool, breaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(Stream):
        """A stream that ends the process as it is written to, and breaks then or not."""

        sent = False

        def write(self, text: str) -> int:
            if "elbo" in text.lower() and not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGTERM)
                if breaks:
                    raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

    stream, told = Ending(terminal=terminal), []
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("scvae.models.progress.SECONDS_BETWEEN", 0.0)
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with pytest.raises(SystemExit) as stop:
            fit(tmp_path, progress=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (stop.value.code, told, stream.sent) == (143, [signal.SIGTERM], True)
    assert is_resumable(tmp_path)
    np.testing.assert_array_equal(fit(tmp_path)[0].obsm["X_scvae"], fit()[0].obsm["X_scvae"])


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.slow
def test_a_process_told_to_end_ends_by_that_signal(tmp_path: Path) -> None:
    process = started(tmp_path)
    while not (tmp_path / NAME).exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert is_resumable(tmp_path)


def test_a_folder_that_cannot_be_made_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be made a folder"):
        fit(tmp_path / "file" / "folder")


@pytest.fixture
def heeding() -> Iterator[None]:
    """Let Ctrl-C be heard where the shell that runs the tests in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding")
def test_ctrl_c_gives_a_model_and_an_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    kept = scvae.data.hold.cells.Dataset._described

    def interrupted(dataset: Any, rows: Any, x: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 60:
            os.kill(os.getpid(), signal.SIGINT)
        return kept(dataset, rows, x)

    monkeypatch.setattr(scvae.data.hold.cells.Dataset, "_described", interrupted)
    with pytest.warns(UserWarning, match="Interrupted at step"):
        adata, model = fit()
    assert model.record.history.interrupted
    assert np.isfinite(adata.obsm["X_scvae"]).all()


# -- a GPU without room, as its errors would arrive ------------------------------------------------


def short_of_memory(monkeypatch: pytest.MonkeyPatch, times: int) -> list[bool | None]:
    """Let the first executions of a plan fail; return how each was told to hold the counts."""
    streams: list[bool | None] = []
    kept = plan._execute

    def execute(plan_: Any, device: Any, stream: bool | None, *given: Any) -> Any:
        streams.append(stream)
        trained = kept(plan_, device, stream, *given)
        if len(streams) <= times:  # an attempt may leave traces
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return trained

    monkeypatch.setattr(plan, "_execute", execute)
    return streams


def test_a_full_gpu_starts_again_with_streamed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit()[0].obsm["X_scvae"]
    streams = short_of_memory(monkeypatch, 1)
    with pytest.warns(UserWarning, match="ran out of memory"):
        adata, _ = fit()
    assert streams == [None, True]
    np.testing.assert_array_equal(adata.obsm["X_scvae"], expected)


def test_a_gpu_too_small_for_a_minibatch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 2)
    adata = simulated()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match=r"128 cells x 60 features.*batch_size=64"):
            scvae.fit(adata, **OPTIONS)
    assert "X_scvae" not in adata.obsm


# -- digests ---------------------------------------------------------------------------------------


def test_a_digest_tells_types_shapes_order_and_values_apart() -> None:
    a = np.arange(6)
    parts: list[tuple[Any, ...]] = [
        (a,),
        (a.astype(np.int32),),
        (a.reshape(2, 3),),
        (a[::-1],),
        (a, a),
        (["a", "b"],),
        (["b", "a"],),
        ({"x": 1},),
        (np.zeros(0), a),
    ]
    assert len({digest(*part) for part in parts}) == len(parts)
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    assert digest(a[::2]) == digest(a[::2].copy())


def test_the_digest_is_that_of_the_run() -> None:
    one, other = fit()[1], fit(seed=1)[1]
    assert one.record.digest == fit()[1].record.digest != other.record.digest


def in_columns(adata: AnnData) -> None:
    adata.X = sparse.csc_matrix(adata.X)


def as_integers(adata: AnnData) -> None:
    adata.X = adata.X.toarray().astype(np.int64)


def one_more(adata: AnnData) -> None:
    adata.X = adata.X.toarray()
    adata.X[7, 3] += 1


def one_moved(adata: AnnData) -> None:
    one_more(adata)
    adata.X[np.flatnonzero(adata.X[:, 3] > 1)[-1], 3] -= 1


def two_cells_swapped(adata: AnnData) -> None:
    adata.X = adata.X[[1, 0, *range(2, adata.n_obs)]]


def test_the_digest_is_that_of_the_counts_whatever_holds_them() -> None:
    def digest_of(change: Callable[[AnnData], None]) -> str:
        adata = simulated()
        change(adata)
        told: str = scvae.fit(adata, **{**OPTIONS, "max_steps": 1}).record.digest
        return told

    same = digest_of(lambda adata: None)
    assert {digest_of(in_columns), digest_of(as_integers)} == {same}
    others = {digest_of(change) for change in (one_more, one_moved, two_cells_swapped)}
    assert len({same, *others}) == 4
