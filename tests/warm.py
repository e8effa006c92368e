"""Processes of Python that begin where torch, anndata and scvae are imported.

They are forked from one that has done so, and start in a hundredth of a second instead of five:
what is killed at a random moment is killed in its work, then, and not while it imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver") if os.name == "posix" else None
IMPORTED = ["torch.distributed", "anndata", "numba", "scvae.models.fit", "scvae.models.load"]


class Python:
    """A process that runs a program, with the methods of `subprocess.Popen`.

    Parameters
    ----------
    program
        Source of the program.
    argv
        Its arguments.
    """

    def __init__(self, program: str, *argv: str) -> None:
        assert CONTEXT is not None
        CONTEXT.set_forkserver_preload(IMPORTED)
        self.folder = Path(tempfile.mkdtemp(prefix="warm"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        arguments = (program, argv, self.folder, os.environ.copy())
        self.process: BaseProcess = CONTEXT.Process(target=_run, args=arguments)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            os.kill(self.process.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Return how the process ended; raise TimeoutExpired if it did not."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            assert timeout is not None
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired("python", timeout, *self.said())
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what was said on standard output and standard error."""
        self.wait(timeout)
        return self.said()

    def said(self) -> tuple[str, str]:
        """Return what was said so far, on standard output and standard error."""
        output, errors = (self.folder / name for name in ("output", "errors"))
        return tuple(p.read_text() if p.exists() else "" for p in (output, errors))  # type: ignore[return-value]

    def wait_for(self, text: str) -> None:
        """Wait until that was said on standard output."""
        while text not in self.said()[0]:
            assert self.poll() is None, self.said()[1]
            time.sleep(0.001)


def _run(program: str, argv: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "output"), (2, "errors")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["-c", *argv]
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
