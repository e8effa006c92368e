"""What a training step takes without each piece of speed plumbing: `python benchmarks/without.py`.

The default model (negative binomial, mixture prior) on the counts of throughput.py, at 2,000 and
20,000 genes. Every piece in turn is replaced by torch's plain operations; rounds of steps with and
without alternate in one process, and ratios are taken round by round. A piece that is worth less
than a tenth of a step is not worth its lines: a kernel for the mixture prior (1.05 and 1.00 times
the step without it) and freed memory kept by glibc (no difference, in processes apart) went so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import torch
from sets import WORK
from throughput import simulated
from torch import Generator

from scvae.core.batch import Minibatch
from scvae.data.hold.cells import Dataset
from scvae.modalities.rna import Statistics
from scvae.models.network import Architecture, build_vae
from scvae.train.loop import Step
from scvae.train.optimizer import optimizer_of

WITHOUT = {
    "nothing": (),
    "counts in one pass": (("scvae.core.rows._is_served", lambda *_: False),),
    "sparse first layer": (("scvae.core.products.SPARSE", -1.0),),
    "bfloat16 products": (("scvae.core.products._multiplies_bfloat16", lambda: False),),
}


def without(piece: str) -> ExitStack:
    """Return the context in which one piece is not there."""
    stack = ExitStack()
    for name, plain in WITHOUT[piece]:
        stack.enter_context(patch(name, plain))
    return stack


def prepared(n_genes: int) -> tuple[Step, list[Minibatch]]:
    counts = simulated(n_genes).X[:3000]
    library = np.asarray(counts.sum(1)).ravel()
    n = len(library)
    design, codes = np.zeros((n, 0), np.float32), np.zeros(n, np.int64)
    dataset = Dataset.build(counts, design, codes, library, "cpu")
    statistics_ = Statistics(torch.zeros(n_genes), torch.ones(1), torch.ones(1))
    seeded = Generator().manual_seed(0)
    vae = build_vae(Architecture(n_genes, prior="mixture"), statistics_, seeded).train()
    rows = torch.randperm(n, generator=seeded)
    minibatches = [dataset.cells(rows[i : i + 128]) for i in range(0, n - 128, 128)]
    return Step(vae, optimizer_of(vae), 0.01, seeded), minibatches


def milliseconds(step: Step, minibatches: list[Minibatch]) -> float:
    """Return what a step takes, the median over all minibatches."""
    times = []
    for minibatch in minibatches:
        start = time.perf_counter()
        step(minibatch, 1e-3, 1.0)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measured(n_genes: int, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of a step in every round, without each piece."""
    step, minibatches = prepared(n_genes)
    found: dict[str, list[float]] = {piece: [] for piece in WITHOUT}
    for _ in range(rounds + 1):
        for piece, times in found.items():
            with without(piece):
                times.append(milliseconds(step, minibatches))
    return {piece: times[1:] for piece, times in found.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    found = {n_genes: measured(n_genes, given.rounds) for n_genes in given.genes}
    WORK.mkdir(exist_ok=True)
    (WORK / "without.json").write_text(json.dumps(found))
    for n_genes, times in found.items():
        print(f"\n| {n_genes:,} genes, without | ms | times (spread) |\n|---|---|---|")
        for piece, all_ms in times.items():
            ratios = [ms / whole for ms, whole in zip(all_ms, times["nothing"], strict=True)]
            print(
                f"| {piece} | {statistics.median(all_ms):.2f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )


if __name__ == "__main__":
    main()
