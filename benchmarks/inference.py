"""Inference side by side with scvi-tools: embedding and denoised expression, cells per second.

    python benchmarks/inference.py [--peer-python PYTHON] [--repeats 3]

Each fits the counts of throughput.py for a few steps (not timed), then is asked for its embedding
and for the denoised expression of all genes. Processes alternate; the first answer is not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from throughput import simulated


def ours(n_genes: int) -> dict[str, Callable[[], object]]:
    import scvae

    adata = simulated(n_genes)
    model = scvae.fit(adata, likelihood="zinb", max_steps=20, progress=False)
    return {"embed": lambda: model.embed(adata), "normalized": lambda: model.normalized(adata)}


def theirs(n_genes: int) -> dict[str, Callable[[], object]]:
    import scvi

    adata = simulated(n_genes)
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    return {
        "embed": model.get_latent_representation,
        "normalized": model.get_normalized_expression,
    }


def rates(questions: dict[str, Callable[[], object]], n: int = 6_000) -> dict[str, float]:
    """Return cells per second of every question's second answer."""
    found = {}
    for name, ask in questions.items():
        ask()
        start = time.perf_counter()
        ask()
        found[name] = n / (time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", choices=("scvae", "scvi"), help="measure one, in this process")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(rates({"scvae": ours, "scvi": theirs}[given.only](given.genes))))
        return
    ratios: dict[str, list[float]] = {"embed": [], "normalized": []}
    for _ in range(given.repeats):
        found = {}
        for python, who in ((given.peer_python, "scvi"), (sys.executable, "scvae")):
            command = [python, __file__, "--only", who, "--genes", str(given.genes)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[who] = json.loads(done.stdout.splitlines()[-1])
        for name, kept in ratios.items():
            kept.append(found["scvae"][name] / found["scvi"][name])
            print(f"{name}: {found['scvae'][name]:,.0f} / {found['scvi'][name]:,.0f} cells/s")
    for name, kept in ratios.items():
        print(f"{name}: {statistics.median(kept):.1f} times ({min(kept):.1f} to {max(kept):.1f})")


if __name__ == "__main__":
    main()
