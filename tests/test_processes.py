"""Many fits in one process, one after another and side by side, leave each other alone."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import scvae


def embedding(seed: int, n_cells: int = 300) -> np.ndarray:
    adata = scvae.simulate(n_cells=n_cells, n_genes=80, seed=seed)
    scvae.fit(adata, batch="batch", seed=seed, max_steps=60, n_latent=4, progress=False)
    return adata.obsm["X_scvae"]


@pytest.mark.slow
def test_fits_in_two_threads_are_the_fits_one_after_another() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the bits depend on it, and a new thread starts from the default
    try:
        alone = [embedding(seed) for seed in (0, 1, 2, 3)]
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            together = list(threads.map(embedding, (0, 1, 2, 3)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def resident() -> int:
    """Return the memory that this process holds, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_returns_to_its_level() -> None:
    for _ in range(3):
        embedding(0, n_cells=2000)
    level = resident()
    for _ in range(10):
        embedding(0, n_cells=2000)
    # One fit that stayed would leave its weights, moments and counts ten times: 20 MB and more.
    assert resident() - level < 15e6


FITTED = """
import hashlib, scvae, torch
torch.set_num_threads(2)
adata = scvae.simulate(n_cells=300, n_genes=300, seed=1)
scvae.fit(adata, likelihood="zinb", max_steps=30, progress=False, device="cpu")
print(hashlib.sha256(adata.obsm["X_scvae"].tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_process_that_compiles_gives_the_bits_of_those_that_do_not(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FITTED]
    found = [
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        for _ in range(2)
    ]
    assert list(tmp_path.rglob("*.nbc"))
    assert found[0] == found[1]
