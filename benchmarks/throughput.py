"""Training cells per second, side by side with scvi-tools, at the same architecture.

    python benchmarks/throughput.py [--genes 2000] [--peer-python PYTHON] [--repeats 3]

Both train ZINB with 10 latents, one hidden layer of 128, minibatches of 128, the library observed
and the N(0, I) prior, on the same simulated counts at 10 % density. Processes alternate; each warms
up before it is timed, and only cells trained on are counted. scvae's 40 evaluations are part of its
time; on so short a run they are made on 2 % of the cells, or they would cost more than the
training. The ratio is what means something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import anndata
import numpy as np
from scipy import sparse

N_CELLS, DENSITY = 6_000, 0.10


def simulated(n_genes: int) -> anndata.AnnData:
    """Return counts of one part of ten that are not zero, geometric with mean 2.5 where not."""
    rng = np.random.default_rng(0)
    x = sparse.random(
        N_CELLS,
        n_genes,
        DENSITY,
        format="csr",
        random_state=0,
        data_rvs=lambda k: rng.geometric(0.4, k),
    )
    return anndata.AnnData(x.astype(np.float32))


def ours(adata: anndata.AnnData, steps: int) -> float:
    """Return cells per second of the whole of training, its evaluations included."""
    import scvae

    model = scvae.fit(
        adata,
        likelihood="zinb",
        prior="normal",
        n_latent=10,
        encode_covariates=False,
        batch_size=128,
        validation=0.02,  # the peer holds out a tenth by default and never looks at it
        max_steps=steps,
        early_stopping=False,
        progress=False,
    )
    return float(model.record.history.cells_per_second)


def theirs(adata: anndata.AnnData, steps: int) -> float:
    """Return cells per second of `SCVI.train`, without validation, which is its default."""
    import scvi

    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    n_train = round(0.9 * adata.n_obs)
    epochs = max(1, round(steps * 128 / n_train))
    start = time.perf_counter()
    model.train(max_epochs=epochs, accelerator="auto", enable_progress_bar=False)
    return epochs * n_train / (time.perf_counter() - start)


def measure(who: str, n_genes: int, steps: int) -> float:
    adata = simulated(n_genes)
    run = {"scvae": ours, "scvi": theirs}[who]
    run(adata.copy(), 30)
    return run(adata.copy(), steps)


def in_process(python: str, who: str, n_genes: int, steps: int) -> float:
    command = [python, __file__, "--only", who, "--genes", str(n_genes), "--steps", str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", choices=("scvae", "scvi"), help="measure one, in this process")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.genes, given.steps)))
        return
    ratios = []
    for _ in range(given.repeats):
        peer = in_process(given.peer_python, "scvi", given.genes, given.steps)
        own = in_process(sys.executable, "scvae", given.genes, given.steps)
        ratios.append(own / peer)
        print(f"scvae {own:,.0f} cells/s, scvi-tools {peer:,.0f} cells/s: {own / peer:.2f}")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{given.genes} genes: {statistics.median(ratios):.2f} times ({spread})")


if __name__ == "__main__":
    main()
