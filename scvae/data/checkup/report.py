"""What a check-up found: findings of three levels, and the table that shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from typing import Literal

from scvae.arguments import encodable

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
WIDTH = 100  # characters of a line of the table
SHOWN = 5  # names of many


class Kind(StrEnum):
    """What a finding is about; the value is how a table shows it."""

    CELLS_AND_GENES = "cells and genes"
    ORIENTATION = "rows and columns"
    GENES = "genes"
    COVARIATES = "covariates"
    LABEL = "label"
    COUNTS = "counts"
    ESTIMATES = "estimates of counts"
    VALUES = "values"
    NORMALISATION = "normalisation"
    EMPTY_CELLS = "empty cells"
    LIBRARY_SIZE = "library size"
    CONTROLS = "control features"
    ABSENT_GENES = "absent genes"
    SILENT_GENES = "silent genes"
    HELD_OUT = "held-out groups"
    MULTIPLES = "multiples"
    IDENTICAL_GENES = "identical genes"
    LONE_COUNTS = "lone counts"
    TOTAL_COUNTS = "total counts"
    BATCHES = "batches"
    CONFOUNDING = "confounding"
    MEMORY = "memory"
    TRAINING = "training"


@dataclass(frozen=True)
class Finding:
    """One thing that a check-up found.

    Attributes
    ----------
    level
        "error": `scvae.fit` refuses the data; "warning": it takes them, but look first; "info".
    what
        What it is about: one of a few kinds.
    text
        The finding, with names, values, and the call that mends it.
    """

    level: Level
    what: Kind
    text: str


@dataclass(frozen=True, repr=False)
class Report:
    """The findings of `scvae.check`; it prints as a table, errors first.

    Attributes
    ----------
    findings
        All findings.
    nbytes
        Memory that the counts take while `scvae.fit` trains on them.
    steps
        Training steps at most of `scvae.fit` without further arguments.
    seconds
        Time that these steps take on this machine, by a few that were timed.

    Examples
    --------
    >>> report = Report((Finding("warning", Kind.GENES, "2 genes have no counts."),))
    >>> report
    scvae.check: 0 errors, 1 warning
    warning  genes  2 genes have no counts.
    >>> report.ok
    True
    """

    findings: tuple[Finding, ...]
    nbytes: int | None = None
    steps: int | None = None
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether `scvae.fit` takes the data."""
        return not self.errors

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "warning"]

    def __repr__(self) -> str:
        rows = self._rows()
        levels, whats = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
        lines = [self._headline()]
        for level, what, text in rows:
            start = f"{level:{levels}}  {what:{whats}}  "
            lines += _wrapped(text, start)
        return encodable("\n".join(lines))

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        rows = "".join(map(html_row, self._rows()))
        return f"<table><caption>{escape(self._headline())}</caption>{rows}</table>"

    def _headline(self) -> str:
        errors, warnings = len(self.errors), len(self.warnings)
        return f"scvae.check: {_number(errors, 'error')}, {_number(warnings, 'warning')}"

    def _rows(self) -> list[tuple[str, str, str]]:
        ordered = sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))
        return [(str(finding.level), str(finding.what), finding.text) for finding in ordered]


def html_row(cells: Sequence[str]) -> str:
    """Return a row of a table in a notebook, whose columns have room between them."""
    style = "text-align: left; vertical-align: top; padding: .2em .8em .2em 0"
    told = "".join(f'<td style="{style}">{escape(cell)}</td>' for cell in cells)
    return f"<tr>{told}</tr>"


def warning_texts(findings: Iterable[Finding]) -> list[str]:
    """Return the texts of the warnings, as `scvae.fit` keeps them in ``uns["scvae"]``."""
    return [finding.text for finding in findings if finding.level == "warning"]


def listed(names: Sequence[object]) -> str:
    """Return the first names as a list in Python's own notation, and that there are more."""
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"[{shown}]" if len(names) <= SHOWN else f"[{shown}, ...]"


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _wrapped(text: str, start: str) -> list[str]:
    """Return `text` after `start`, its further lines below its first one.

    Only blanks are broken at, so that names and calls stay whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [start]
