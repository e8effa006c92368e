"""`python -m scvae` is `scvae`: what `torchrun -m scvae fit ...` starts in every process."""

import sys

from scvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
