"""What a command tells on the terminal: a line each, on standard output or standard error.

Neither need be there, or take every character; what cannot be told ends no command.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

from scvae.errors import ScvaeWarning


def say(text: str) -> None:
    """Print one line to stderr, whatever line breaks `text` has."""
    put("scvae: " + printable(" ".join(text.split())), sys.stderr)


def tell(quiet: bool, text: str) -> None:
    if not quiet:
        put(text, sys.stdout)


def put(text: str, stream: TextIO | None) -> None:
    """Print to a stream that may be gone, with escapes for what it cannot encode."""
    if stream is None or stream.closed:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError:  # whoever read it has gone; then nothing may be left to flush at the end
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """Return `text` with escapes for characters that a terminal would obey: names are of files."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def warnings_as_lines(debug: bool, worded: Callable[[str], str] = str) -> Iterator[None]:
    """Show the warnings of scvae as lines, and those of other packages only to debug."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if debug or issubclass(category, ScvaeWarning):
            say(f"warning: {worded(str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
