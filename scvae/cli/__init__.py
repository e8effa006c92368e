"""The command line: `scvae fit`, `scvae embed` and `scvae info`, a file for each.

Nothing heavy is imported before a command needs it, so that help and usage errors come at once.
"""

from scvae.cli.program import main

__all__ = ["main"]
