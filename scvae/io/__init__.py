"""Files: written whole or not at all, and read without trusting them."""

from scvae.io.files import FORMAT, KEY, Contents, Migration, in_the_way, read_file, write_file
from scvae.io.places import check_writable, is_stream, replacing
from scvae.io.strict import shown

__all__ = [
    "FORMAT",
    "KEY",
    "Contents",
    "Migration",
    "check_writable",
    "in_the_way",
    "is_stream",
    "read_file",
    "replacing",
    "shown",
    "write_file",
]
