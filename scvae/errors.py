"""Every error that scvae raises on purpose: one root and a few children; and how it warns.

Each child is also the built-in exception a caller would expect, so `except ValueError` keeps
working, and `except ScvaeError` catches them all.
"""

import contextlib
import sys
import warnings


class ScvaeError(Exception):
    """Root of every error that scvae raises on purpose."""


class DataError(ScvaeError, ValueError):
    """The data given cannot be modelled as they are; the message says what to change."""


class ConfigError(ScvaeError, ValueError):
    """An argument has a value that is not allowed, alone or together with another."""


class ArgumentError(ConfigError, TypeError):
    """A function has no argument of this name, or takes fewer by their place."""


class FileError(ScvaeError, OSError):
    """A file is missing, damaged or not of the kind that was asked for."""


class TrainingError(ScvaeError, RuntimeError):
    """Training could not go on; nothing was written."""


class ScvaeWarning(UserWarning):
    """What went on otherwise than asked for, or is worth a look."""


def warn(text: str) -> None:
    """Warn at the line of the user's that called scvae, however deep in it this is called.

    Standard error that is closed ends nothing."""
    frame, level, depth = sys._getframe(1), 1, 1
    while frame.f_back is not None:  # decorators of others may lie between
        level = depth + 1 if frame.f_globals.get("__name__", "").startswith("scvae.") else level
        frame, depth = frame.f_back, depth + 1
    with contextlib.suppress(OSError, ValueError):  # a warning made an error is neither
        warnings.warn(text, ScvaeWarning, stacklevel=level + 1)
