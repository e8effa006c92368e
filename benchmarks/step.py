"""What one training step is made of, beside the floor of each part: `python benchmarks/step.py`.

The architecture of throughput.py (ZINB, 10 latents, one hidden layer of 128, minibatches of 128).
Parts are timed in the step, one after another; floors are timed alone on the same sizes: a matrix
product in float32 or bfloat16, one pass of the optimiser over the weights, one copy of the counts.
Medians over all steps, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from throughput import simulated
from torch import Generator

from scvae.core.objectives import elbo
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.modalities.rna import Rna, Statistics
from scvae.models.network import Architecture, Facts, build_vae
from scvae.train.loop import Step
from scvae.train.optimizer import optimizer_of


def prepared(n_genes: int) -> tuple[VAE, Dataset]:
    counts = simulated(n_genes).X
    library = np.asarray(counts.sum(1)).ravel()
    n = len(library)
    design, codes = np.zeros((n, 0), np.float32), np.zeros(n, np.int64)
    dataset = Dataset.build(counts, design, codes, library, "cpu")
    rna = Rna(n_genes, likelihood="zinb")
    architecture = Architecture({"rna": rna}, encode_covariates=False)
    statistics_ = Statistics(torch.zeros(n_genes), torch.ones(1), torch.ones(1))
    loc, scale = {"rna": statistics_.library_loc}, {"rna": statistics_.library_scale}
    facts = Facts({"rna": statistics_}, loc, scale)
    return build_vae(architecture, facts, Generator().manual_seed(0)), dataset


def parts(vae: VAE, dataset: Dataset, steps: int) -> dict[str, float]:
    """Return the median milliseconds of every part of a step."""
    times: dict[str, list[float]] = defaultdict(list)
    generator = Generator().manual_seed(0)
    step = Step(vae, optimizer_of(vae), 0.01, generator)
    rows = torch.arange(len(dataset))

    def timed(name: str, part: Callable[[], object]) -> object:
        start = time.perf_counter()
        made = part()
        times[name].append(time.perf_counter() - start)
        return made

    for i in range(steps):
        chosen = rows[torch.randperm(len(rows), generator=generator)[:128]]
        cells = timed("gather", lambda chosen=chosen: dataset.cells(chosen))
        q = timed("encoder", lambda cells=cells: vae.encode(cells))
        z = q.rsample((1,), generator=generator)
        p = timed("decoder", lambda z=z, cells=cells: vae.decode(z, cells))
        timed("likelihood and its gradient", lambda p=p, cells=cells: p.log_prob(cells.x))
        terms = vae.terms(cells, generator=generator)
        bound = elbo(terms).mean()
        timed("backward of all else", (-bound).backward)
        timed("optimiser", lambda: step.optimizer.step(1e-3, 0.01))
        step.optimizer.zero_grad()
        timed("whole step", lambda cells=cells: step(cells, 1e-3, 1.0))
        if i == 10:
            times.clear()
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def floors(n_genes: int) -> dict[str, float]:
    """Return the median milliseconds of what no step can do without."""
    h, w, g = torch.randn(128, 128), torch.randn(n_genes, 128), torch.randn(128, n_genes)
    half = [t.bfloat16() for t in (h, w, g)]
    weights = [torch.nn.Parameter(w.clone()) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(weights, fused=True)
    out = torch.empty(128, n_genes)
    found = {
        "one product of 128 x 128 x genes, float32": lambda: h @ w.t(),
        "the same, bfloat16": lambda: half[0] @ half[1].t(),
        "gradient product, bfloat16": lambda: half[2].t() @ half[0],
        "optimiser over three such matrices": optimizer.step,
        "one exponential of 128 x genes": lambda: torch.exp(g, out=out),
        "one copy of 128 x genes": lambda: out.copy_(g),
    }
    return {name: _median(function) for name, function in found.items()}


def _median(function: Callable[[], object], repeats: int = 50) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    vae, dataset = prepared(given.genes)
    for title, found in {
        "part": parts(vae, dataset, given.steps),
        "floor": floors(given.genes),
    }.items():
        print(f"\n| {title} | ms |\n|---|---|")
        for name, value in found.items():
            print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
