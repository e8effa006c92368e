"""Checkpoints: a run written down while it goes on, so that it can go on after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from scvae.errors import FileError
from scvae.io import read_file, write_file
from scvae.train.run import Run, State

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


class Checkpoint:
    """One file in a folder of the user's, for one fit.

    Parameters
    ----------
    folder
        Made if it is not there.
    run_digest
        Of everything that the run depends on; another run's checkpoint is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], run_digest: str) -> None:
        self.path, self.digest = Path(folder) / NAME, run_digest
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"checkpoint={os.fspath(folder)!r} cannot be made a folder: {error.strerror}."
            ) from error
        self.written = time.monotonic()

    def read(self) -> State | None:
        """Return the state to go on from, if there is one.

        Raises
        ------
        FileError
            If the checkpoint is damaged or of another fit.
        """
        if not self.path.exists():
            return None
        tensors, header = read_file(self.path)
        if header.get("digest") != self.digest:
            raise FileError(
                f"{self.path} is the checkpoint of another fit: other data, arguments, seed, or "
                "versions of scvae or torch. Give another folder, or remove the file."
            )
        return State(tensors, header["numbers"])

    def keep(self, run: Run) -> None:
        """Write the run down, if the last time was long enough ago.

        Where that fails, the checkpoint before stays, and training goes on."""
        if time.monotonic() - self.written < SECONDS_BETWEEN:
            return
        state = run.state()
        try:
            write_file(self.path, state.tensors, {"digest": self.digest, "numbers": state.numbers})
        except FileError as error:
            warnings.warn(
                f"No checkpoint at step {run.taken}: {error} Training goes on.", stacklevel=2
            )
        self.written = time.monotonic()
