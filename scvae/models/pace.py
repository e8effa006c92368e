"""How long training takes on this machine: a few steps of the usual network, timed."""

from __future__ import annotations

import statistics
import time
from functools import cache

import numpy as np
import torch
from scipy import sparse
from torch import Generator

from scvae.data.hold.cells import Dataset
from scvae.modalities.rna import Rna, Statistics
from scvae.models.budget import RunSize
from scvae.models.network import Architecture, Facts, build_vae
from scvae.train.loop import Step, fastest
from scvae.train.optimizer import optimizer_of

WARM, TIMED = 5, 7  # steps; on CUDA the fourth is captured as a graph
DENSITY = 0.1  # of the simulated counts
EVALUATION = 1 / 3  # of the time of a step on as many cells: there is no gradient
EVALUATIONS = 40


def seconds_of_run(run: RunSize, n_genes: int, device: torch.device) -> float:
    """Return about how long a run of `scvae.fit` without further arguments trains, at most."""
    minibatches = run.steps + EVALUATIONS * EVALUATION * run.n_held_out / run.batch_size
    return minibatches * _seconds_of_step(run.batch_size, n_genes, device)


@cache
@torch.inference_mode(False)
@torch.enable_grad()
def _seconds_of_step(batch_size: int, n_genes: int, device: torch.device) -> float:
    """Return the median time of a training step on simulated counts."""
    rng = np.random.default_rng(0)
    is_counted = rng.random((batch_size, n_genes), dtype=np.float32) < DENSITY
    counts = sparse.csr_matrix(is_counted, dtype=np.float32)
    design, codes = np.zeros((batch_size, 0), np.float32), np.zeros(batch_size, np.int64)
    library = np.full(batch_size, 1 + DENSITY * n_genes)
    dataset = Dataset.build(counts, design, codes, library, device)
    architecture = Architecture({"rna": Rna(n_genes)}, n_latent=30, prior="mixture")
    loc, scale = torch.zeros(1), torch.ones(1)
    of_rna = Statistics(torch.zeros(n_genes), loc, scale)
    unknown = Facts({"rna": of_rna}, {"rna": loc}, {"rna": scale})
    vae = build_vae(architecture, unknown, Generator().manual_seed(0)).to(device)
    step = fastest(Step(vae, optimizer_of(vae), 0.01, Generator(device).manual_seed(0)))
    rows, times = torch.arange(batch_size, device=device), []
    for _ in range(WARM + TIMED):
        start = time.perf_counter()
        step(dataset.cells(rows), 1e-3, 1.0).item()  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM:])
