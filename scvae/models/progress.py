"""How far a fit is: a bar on a terminal or in a notebook, a line a minute in a log.

It is told on standard error, which need not be there, or take what is told: no fit ends over it.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Timer
from typing import Any, TextIO

from scvae.train.history import History

SECONDS_BETWEEN = 60.0  # lines of a log
UNNOTICED = 2.0  # seconds that need no explanation


def progress(steps: int, show: bool) -> AbstractContextManager[Callable[[History], None]]:
    """Return a context of what shows the progress of a run of `steps` steps after an evaluation.

    Nothing is shown unless `show`, where the environment has TQDM_DISABLE, or where standard error
    is not there.
    """
    return _shown(lambda has_bars: (_Bar if has_bars else _Log)(steps), show)


def counted(
    total: int, name: str, unit: str, show: bool = True
) -> AbstractContextManager[Callable[..., None]]:
    """Return a context of what moves a bar on: by how many, and a word on what is done now.

    As `progress`, but a log is told nothing.
    """
    return _shown(lambda has_bars: _Count(total, name, unit) if has_bars else None, show)


@contextmanager
def _shown(make: Callable[[bool], Any], show: bool) -> Iterator[Callable[..., None]]:
    shown = _Guarded(make) if show and not _is_disabled() else None
    try:
        yield (lambda *told: None) if shown is None else shown.update
    finally:
        if shown is not None:
            shown.close()


def _is_disabled() -> bool:
    return os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")


class _Guarded:
    """A bar or a log that is given up at its first error."""

    def __init__(self, make: Callable[[bool], Any]) -> None:
        self.inner: Any = None
        self._attempt(lambda: self._open(make, sys.stderr))

    def _open(self, make: Callable[[bool], Any], stream: TextIO | None) -> None:
        if stream is not None:
            self.inner = make(_is_notebook() or stream.isatty())

    def update(self, *told: Any) -> None:
        self._attempt(lambda: self.inner and self.inner.update(*told))

    def close(self) -> None:
        self._attempt(lambda: self.inner and self.inner.close())

    def _attempt(self, show: Callable[[], Any]) -> None:
        try:
            show()
        except Exception:  # of a closed stream, a full disk, a pipe whose reader has gone
            self.inner = None


def _is_notebook() -> bool:
    """Return whether this runs in a kernel of Jupyter, whose standard error is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _unlocking() -> Any:
    """Return tqdm's bar, which would keep its lock for ever where drawing raises: whatever other
    thread then drew a bar, or let one go, would wait for it without an end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notebooks without ipywidgets get the plain bar
        from tqdm.auto import tqdm

    class Bar(tqdm):
        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
            if nolock:
                return super().refresh(nolock=True)
            with self.get_lock():
                return super().refresh(nolock=True)

    return Bar


class _Count:
    def __init__(self, total: int, name: str, unit: str) -> None:
        self.bar = _unlocking()(total=total, desc=name, unit=unit)

    def update(self, more: int, what: str = "") -> None:
        if what:
            self.bar.set_postfix_str(what, refresh=False)
        self.bar.update(more)

    def close(self) -> None:
        self.bar.close()


class _Bar:
    def __init__(self, steps: int) -> None:
        self.steps = _Count(steps, "scvae.fit", "step")

    def update(self, history: History) -> None:
        told = {
            "elbo": f"{history.validation[-1]:.1f}",
            "best": f"{history.best:.1f}",
            "cells_per_s": f"{history.cells_per_second:,.0f}",
        }
        more = history.step[-1] - self.steps.bar.n
        self.steps.update(more, ", ".join(f"{name}={text}" for name, text in told.items()))

    def close(self) -> None:
        self.steps.close()


class _Log:
    def __init__(self, steps: int) -> None:
        self.steps, self.told = steps, time.monotonic()

    def update(self, history: History) -> None:
        if time.monotonic() - self.told < SECONDS_BETWEEN:
            return
        self.told = time.monotonic()
        tell(
            f"step {history.step[-1]:,} of {self.steps:,}, held-out ELBO "
            f"{history.validation[-1]:,.1f} (best {history.best:,.1f}), "
            f"{history.cells_per_second:,.0f} cells per second"
        )

    def close(self) -> None:
        """Leave what was told."""


def tell(text: str) -> None:
    """Print a line about the fit to standard error, if it takes one."""
    try:
        if sys.stderr is not None:
            print(f"scvae.fit: {text}", file=sys.stderr, flush=True)
    except Exception:  # as in `_Guarded`
        return


@contextmanager
def explained(text: str, show: bool) -> Iterator[None]:
    """Tell `text` while something goes on, if that takes longer than anybody would not notice."""
    timer = Timer(UNNOTICED, tell, [text])
    timer.daemon = True
    if show and not _is_disabled():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
