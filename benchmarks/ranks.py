"""Two processes that train one model beside one process of as many threads.

    python benchmarks/ranks.py [--genes 2000] [--batch-size 128] [--steps 1000] [--repeats 3]
        [--processes 2] [--cells 20000]

One process has a thread for every process of the others, which have one each; they take turns.
Data, split, initial weights, order of the cells and minibatches are the same; the latent noise is
not. Cells per second are those of the steps with their evaluations, which every process makes in
full. The share of the sums is that of the time of a step in which a process waits for the others or
for the network: the gradients with all that goes with them in one buffer, and the moments of batch
normalisation, both ways. What the buffer takes alone is timed after training, all processes at
once. It means something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy import sparse

ALONE = 200  # times that the buffer is summed for itself


def simulated(n_cells: int, n_genes: int) -> Any:
    """Return cells of eight types in four batches, counts of a tenth of the genes."""
    import anndata

    rng = np.random.default_rng(0)
    kind, batch = rng.integers(0, 8, n_cells), rng.integers(0, 4, n_cells)
    shares = rng.gamma(0.1, 1.0, (8, n_genes)) + 1e-3
    effects = rng.lognormal(0, 0.3, (4, n_genes))
    blocks = []
    for rows in np.array_split(np.arange(n_cells), max(1, n_cells // 2_000)):
        mean = shares[kind[rows]] * effects[batch[rows]]
        mean *= 1_000 / mean.sum(1, keepdims=True)
        blocks.append(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))
    adata = anndata.AnnData(sparse.vstack(blocks, format="csr"))
    adata.obs["batch"] = [f"batch_{code}" for code in batch]
    return adata


def run(a: argparse.Namespace) -> dict[str, float]:
    """Train in this process, alone or with the others; return what was measured."""
    import scvae
    from scvae.train.ranks import Ranks

    adata, waited, kept = simulated(a.cells, a.genes), [0.0], Ranks.sum

    def timed(self: Ranks, values: torch.Tensor) -> None:
        begun = time.perf_counter()
        kept(self, values)
        waited[0] += time.perf_counter() - begun

    options = {"batch": "batch", "batch_size": a.batch_size, "early_stopping": False}
    scvae.fit(adata.copy(), max_steps=20, progress=False, **options)  # compiles and warms up
    Ranks.sum = timed  # type: ignore[method-assign]
    model = scvae.fit(adata, max_steps=a.steps, progress=False, **options)
    Ranks.sum = kept  # type: ignore[method-assign]
    history = model.record.history
    assert history is not None
    n = sum(parameter.numel() for parameter in model.vae.parameters()) + 3
    found = {
        "cells_per_second": history.cells_per_second,
        "elbo": model.record.elbo_held_out,
        "waited": waited[0] / history.seconds,
        "buffer_mb": 4 * n / 1e6,
    }
    ranks = Ranks.here()
    if ranks is not None:
        buffer = torch.zeros(n)
        dist.barrier()
        begun = time.perf_counter()
        for _ in range(ALONE):
            ranks.sum(buffer)
        found["buffer_ms"] = 1e3 * (time.perf_counter() - begun) / ALONE
    return found


def measured(a: argparse.Namespace, processes: int) -> dict[str, float]:
    """Return what so many processes measure, on as many cores as the others have."""
    own = [__file__, "--child", "--genes", a.genes, "--batch-size", a.batch_size]
    own += ["--steps", a.steps, "--cells", a.cells]
    if processes > 1:
        own = ["-m", "torch.distributed.run", "--nproc-per-node", processes, *own]
    threads = str(max(1, a.processes // processes))
    done = subprocess.run(
        [sys.executable, *map(str, own)],
        env={**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        found = run(a)
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(found))
        return
    ratios = []
    for _ in range(a.repeats):
        one, several = measured(a, 1), measured(a, a.processes)
        ratios.append(several["cells_per_second"] / one["cells_per_second"])
        print("one process", json.dumps(one))
        print(a.processes, "processes", json.dumps(several), flush=True)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{a.processes} processes: {statistics.median(ratios):.2f} times one ({spread})")


if __name__ == "__main__":
    main()
