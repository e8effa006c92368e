"""`python -m scvae.cli` is `scvae`."""

import sys

from scvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
