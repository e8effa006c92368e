"""Every error that scvae raises on purpose: one root and a few children; and how it warns.

Each child is also the built-in exception a caller would expect, so `except ValueError` keeps
working, and `except ScvaeError` catches them all.
"""

import contextlib
import sys
import warnings


class ScvaeError(Exception):
    """Root of every error that scvae raises on purpose.

    Examples
    --------
    >>> import scvae
    >>> try:
    ...     scvae.fit("not-there.h5ad")
    ... except scvae.ScvaeError as error:
    ...     print(type(error).__name__)
    FileError
    """


class DataError(ScvaeError, ValueError):
    """The data given cannot be modelled as they are; the message says what to change.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=50, n_genes=20)
    >>> adata.X = adata.X.log1p()
    >>> try:
    ...     scvae.fit(adata)
    ... except scvae.DataError as error:
    ...     print(str(error)[:33])
    adata.X has non-integer values (f
    """


class ConfigError(ScvaeError, ValueError):
    """An argument has a value that is not allowed, alone or together with another.

    Examples
    --------
    >>> import scvae
    >>> try:
    ...     scvae.fit(scvae.simulate(n_cells=50, n_genes=20), n_latent=0)
    ... except scvae.ConfigError as error:
    ...     print(str(error)[:10])
    n_latent=0
    """


class ArgumentError(ConfigError, TypeError):
    """A function has no argument of this name, or takes fewer by their place."""


class FileError(ScvaeError, OSError):
    """A file is missing, damaged or not of the kind that was asked for.

    Examples
    --------
    >>> import scvae
    >>> try:
    ...     scvae.load("not-there.scvae")
    ... except scvae.FileError as error:
    ...     print("not-there.scvae" in str(error))
    True
    """


class TrainingError(ScvaeError, RuntimeError):
    """Training could not go on; nothing was written.

    Examples
    --------
    >>> import scvae
    >>> try:
    ...     scvae.fit(scvae.simulate(200, 50), learning_rate=1e8, max_steps=50, progress=False)
    ... except scvae.TrainingError as error:
    ...     print("learning_rate=" in str(error))
    True
    """


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
