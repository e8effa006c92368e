"""Checkpoints: a run written down while it goes on, so that it can go on after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scvae.errors import FileError, warn
from scvae.io import read_file, write_file
from scvae.models.keep.migrations import FORMAT
from scvae.models.keep.weights import check_tensors, weight_shapes
from scvae.models.network import Architecture
from scvae.train.run import WEIGHTS, Run, State, StateError, under

NAME = "checkpoint.safetensors"
SECONDS_BETWEEN = 10.0


def digest(*parts: Any) -> str:
    """Return SHA-256 of arrays (with type and shape) and of anything else as JSON."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype.str}{part.shape}".encode())
            total.update(np.ascontiguousarray(part).data.cast("B") if part.size else b"")
        else:
            total.update(json.dumps(part, sort_keys=True, default=str).encode())
    return total.hexdigest()


def _check_weights(state: State, a: Architecture) -> None:
    """Raise StateError unless the weights of `state` can be those of a network."""
    for prefix in WEIGHTS:
        try:
            check_tensors(under(prefix, state.tensors), weight_shapes(a))
        except ValueError as error:
            raise StateError(str(error)) from error


class Checkpoint:
    """One file in a folder of the user's, for one fit.

    Parameters
    ----------
    folder
        Made if it is not there.
    run_digest
        Of everything that the run depends on; another run's checkpoint is refused.
    writes
        Whether this process writes it, of those that train together.
    """

    def __init__(
        self, folder: str | os.PathLike[str], run_digest: str, *, writes: bool = True
    ) -> None:
        self.path, self.digest, self.writes = Path(folder) / NAME, run_digest, writes
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"checkpoint={os.fspath(folder)!r} cannot be made a folder: {error.strerror}."
            ) from error
        self.written, self.is_ending = time.monotonic(), False

    def read(self, a: Architecture) -> State | None:
        """Return the state to go on from, if there is one, for a network of this architecture.

        Raises
        ------
        FileError
            If the checkpoint is damaged or of another fit.
        """
        if not os.path.lexists(self.path):
            return None
        tensors, content = read_file(self.path, "checkpoint", content_format=FORMAT)
        if content.get("digest") != self.digest:
            raise FileError(
                f"{self.path} is the checkpoint of another fit: other data, arguments, seed, or "
                "versions of scvae or torch. Give another folder, or remove the file."
            )
        with self.naming_itself():
            if not isinstance(numbers := content.get("numbers"), dict):
                raise StateError("it has no numbers")
            state = State(tensors, numbers)
            _check_weights(state, a)
        return state

    @contextlib.contextmanager
    def naming_itself(self) -> Iterator[None]:
        """Turn the error of a state that is none into one that names the file."""
        try:
            yield
        except StateError as error:
            raise FileError(
                f"{self.path} is damaged: {error}. Remove it, and the fit starts from the "
                "beginning."
            ) from error

    def keep(self, run: Run) -> None:
        """Write the run down, if the last time was long enough ago, or this is the last chance.

        Where that fails, the checkpoint before stays, and training goes on. Of several processes
        the one that writes ends first, and the others with it: each needs all for a step.

        Raises
        ------
        SystemExit
            If the process was told to end, with the exit code of that signal.
        """
        if not self.writes:
            return
        if self.is_ending or time.monotonic() - self.written >= SECONDS_BETWEEN:
            self._write(run)
        if self.is_ending:
            warn(f"Told to end (SIGTERM) at step {run.taken}; {self.path} goes on from there.")
            raise SystemExit(128 + signal.SIGTERM)

    @contextlib.contextmanager
    def kept_at_the_end(self) -> Iterator[None]:
        """Let SIGTERM, by which schedulers end a job, first write the run down."""
        before = signal.getsignal(signal.SIGTERM)
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or before in (None, signal.SIG_IGN):
            yield
            return
        signal.signal(signal.SIGTERM, self._end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            if self.is_ending:
                signal.raise_signal(signal.SIGTERM)

    def _end(self, number: int, frame: Any) -> None:
        self.is_ending = True

    def _write(self, run: Run) -> None:
        state = run.state()
        if not all(tensor.isfinite().all() for tensor in state.tensors.values()):
            return  # the run is about to go back to its best weights
        try:
            content = {"digest": self.digest, "numbers": state.numbers}
            write_file(self.path, state.tensors, content, "checkpoint", content_format=FORMAT)
        except FileError as error:
            warn(f"No checkpoint at step {run.taken}: {error} Training goes on.")
        self.written = time.monotonic()
