"""What a command tells on the terminal: a line each, on standard output or standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO


def say(text: str) -> None:
    """Print one line to stderr, whatever line breaks `text` has."""
    print("scvae:", printable(" ".join(text.split())), file=sys.stderr)


def printable(text: str) -> str:
    """Return `text` with escapes for characters that a terminal would obey: names are of files."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def tell(quiet: bool, text: str) -> None:
    if not quiet:
        print(text)


def is_watched(quiet: bool) -> bool:
    """Return whether a progress bar is wanted: it would only litter a log file."""
    return not quiet and sys.stderr.isatty()


@contextlib.contextmanager
def warnings_as_lines(debug: bool) -> Iterator[None]:
    """Show the warnings of scvae as lines, and those of other packages only to debug."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if debug or (issubclass(category, UserWarning) and filename.startswith(own)):
            say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
