"""Files: written whole or not at all, and read without trusting them."""

from scvae.io.files import FORMAT, KEY, Contents, Migration, read_file, write_file
from scvae.io.places import replacing
from scvae.io.strict import shown

__all__ = [
    "FORMAT",
    "KEY",
    "Contents",
    "Migration",
    "read_file",
    "replacing",
    "shown",
    "write_file",
]
