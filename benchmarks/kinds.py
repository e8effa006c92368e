"""Training of several kinds of measurement, cells per second: `python benchmarks/kinds.py`.

Simulated cells, defaults, minibatches of the default size, early stopping off; each fit comes after
a short one, for kernels to be compiled. "lacking" is the share of the cells that every kind but the
first lacks. The ratio to RNA alone is what means something.

    python benchmarks/kinds.py [--cells 6000] [--steps 800] [--device cuda]
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import scvae

SETS: dict[str, dict[str, Any]] = {
    "RNA": {"modalities": ["rna"]},
    "RNA, 20 proteins": {"modalities": ["rna", "protein"], "n_proteins": 20},
    "RNA, 200 proteins": {"modalities": ["rna", "protein"], "n_proteins": 200},
    "chromatin": {"modalities": ["chromatin"], "n_regions": 25_734},
    "RNA, chromatin": {"modalities": ["rna", "chromatin"], "n_regions": 25_734},
}


def rate(data: Any, steps: int, device: str | None) -> float:
    """Return the cells that training took a second, its evaluations included."""
    fit = {"early_stopping": False, "validation": 0.02, "device": device, "progress": False}
    scvae.fit(data, max_steps=20, **fit)
    history = scvae.fit(data, max_steps=steps, **fit).record.history
    return float(history.cells_per_second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=6_000)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--device")
    parser.add_argument("--only", choices=SETS, action="append")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in given.only or SETS:
        for lacking in (0.0, 0.3) if len(SETS[name]["modalities"]) > 1 else (0.0,):
            data = scvae.simulate(given.cells, 2_000, missing=lacking, seed=1, **SETS[name])
            found = rate(data, given.steps, given.device)
            print(f"{name}, lacking {lacking:.0%}: {found:,.0f} cells/s", flush=True)


if __name__ == "__main__":
    main()
