"""How far a fit is: told where it can be told, and never what ends a fit."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tqdm import tqdm

import scvae
from scvae.errors import ScvaeWarning, warn
from scvae.models import progress as module
from scvae.models.progress import counted, explained, progress
from scvae.train.history import History
from tests.warm import Python


def history(step: int) -> History:
    return History(step=[step], validation=[-300.0], seconds=2.0)


class Stream(io.StringIO):
    """Standard error that is a terminal or not, and may raise."""

    def __init__(self, error: Exception | None = None, *, terminal: bool = True) -> None:
        super().__init__()
        self.error, self.terminal, self.is_broken = error, terminal, False

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        if self.is_broken and self.error is not None:
            raise self.error
        return super().write(text)


def shown_on(stream: Any, monkeypatch: pytest.MonkeyPatch, *, broken: bool = False) -> int:
    """Return how many evaluations a run got through that tells its progress to `stream`."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0.0)
    done = 0
    if broken:
        stream.is_broken = True
    with progress(100, True) as report:
        for step in (10, 50, 100):
            if step == 50 and isinstance(stream, Stream):
                stream.is_broken = True
            report(history(step))
            done += 1
    return done


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("broken", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        BrokenPipeError(32, "Broken pipe"),
        ValueError("I/O operation on closed file"),
        UnicodeEncodeError("cp1252", "x", 0, 1, "cannot encode"),
        AttributeError("no stream"),
    ],
)
def test_no_stream_ends_a_run(
    error: Exception, broken: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(error, terminal=terminal)
    assert shown_on(stream, monkeypatch, broken=broken) == 3
    assert ("scvae.fit" in stream.getvalue()) is not broken


def test_no_stream_at_all_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_on(None, monkeypatch) == 3
    closed = Stream()
    closed.close()
    assert shown_on(closed, monkeypatch) == 3


@pytest.fixture(autouse=True)
def unlocked() -> Iterator[None]:
    """Other threads may draw bars, and let them go, after whatever went wrong."""
    yield
    taken: list[bool] = []

    def take() -> None:
        for lock in tqdm.get_lock().locks:
            taken.append(lock.acquire(timeout=5))
            if taken[-1]:
                lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert all(taken)


def counted_on(stream: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stderr", stream)
    done = 0
    with counted(3, "out.zarr", "cell") as tell:
        for _ in range(3):
            tell(1, "a word")
            done += 1
    return done


def test_what_is_counted_is_shown_where_there_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, log, notebook = Stream(), Stream(terminal=False), Stream(terminal=False)
    assert counted_on(terminal, monkeypatch) == counted_on(log, monkeypatch) == 3
    assert "out.zarr: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert "a word" in terminal.getvalue()
    assert log.getvalue() == ""
    monkeypatch.setattr(module, "_is_notebook", lambda: True)
    counted_on(notebook, monkeypatch)
    assert "3/3" in notebook.getvalue()


def test_no_stream_ends_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Stream()
    closed.close()
    broken = Stream(OSError(28, "No space left on device"))
    broken.is_broken = True
    assert [counted_on(stream, monkeypatch) for stream in (None, closed, broken)] == [3, 3, 3]


def test_results_are_written_and_reported_without_a_stream(
    fitted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    adata, model = fitted
    monkeypatch.setattr(sys, "stderr", None)
    model.embed(adata, out=tmp_path / "embedded.zarr")
    scvae.report(model, adata, "cell_type", tmp_path / "report.html")
    assert (tmp_path / "embedded.zarr").is_dir()
    assert (tmp_path / "report.html").is_file()


def test_a_log_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = Stream(terminal=False), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(1_000, True) as report:
        for step, now[0] in ((100, 30.0), (200, 60.0), (300, 90.0), (400, 125.0)):
            report(history(step))
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "scvae.fit: step 200 of 1",
        "scvae.fit: step 400 of 1",
    ]
    assert "held-out ELBO -300.0 (best -300.0)" in lines[0]
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"), [("1", False), ("true", False), ("0", True), ("", True)]
)
def test_the_environment_silences_it(
    value: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream()
    monkeypatch.setenv("TQDM_DISABLE", value)
    shown_on(stream, monkeypatch)
    assert ("scvae.fit" in stream.getvalue()) is shown


@pytest.mark.parametrize(("lasts", "told"), [(0.0, ""), (0.2, "scvae.fit: be patient\n")])
def test_what_takes_long_is_explained(
    lasts: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "UNNOTICED", 0.02)
    with explained("be patient", True):
        time.sleep(lasts)
    assert stream.getvalue() == told


def test_a_warning_on_a_closed_stream_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Stream()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = warnings_shown_plainly
        warn("something")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ScvaeWarning, match="something"):
            warn("something")


def warnings_shown_plainly(message: Any, *where: Any, **more: Any) -> None:
    """Do what Python does without pytest: print to standard error."""
    sys.stderr.write(str(message))


PROGRAM = """
import os, sys
import scvae
adata = scvae.simulate(n_cells=60, n_genes=12)
{}
model = scvae.fit(adata, max_steps=5, n_latent=3)
os.write(1, str(adata.obsm["X_scvae"].shape).encode())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    [
        "sys.stderr = None",
        "sys.stderr.close()",
        "os.close(2)",
        "sys.stderr = sys.__stderr__ = None",
    ],
)
def test_a_fit_goes_on_without_standard_error(before: str) -> None:
    done = Python(PROGRAM.format(before))
    output, errors = done.communicate()
    assert (done.returncode, output) == (0, "(60, 3)"), errors


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_fit_goes_on_where_nobody_reads_its_standard_error() -> None:
    nobody = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 2)"
    done = Python(PROGRAM.format(nobody))
    output, errors = done.communicate()
    assert (done.returncode, output) == (0, "(60, 3)"), errors
