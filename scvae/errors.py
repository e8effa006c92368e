"""Every error that scvae raises on purpose: one root and a few children.

Each child is also the built-in exception a caller would expect, so `except ValueError` keeps
working, and `except ScvaeError` catches them all.
"""


class ScvaeError(Exception):
    """Root of every error that scvae raises on purpose."""


class DataError(ScvaeError, ValueError):
    """The data given cannot be modelled as they are; the message says what to change."""


class ConfigError(ScvaeError, ValueError):
    """An argument has a value that is not allowed, alone or together with another."""


class FileError(ScvaeError, OSError):
    """A file is missing, damaged or not of the kind that was asked for."""


class TrainingError(ScvaeError, RuntimeError):
    """Training could not go on; nothing was written."""
