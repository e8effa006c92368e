"""Simulated cells and fitted models that several files of tests look at and never change."""

from __future__ import annotations

import os

import pytest
import torch
from anndata import AnnData

import scvae

if "PYTEST_XDIST_WORKER" in os.environ:  # beside others: a core is each one's, and its children's
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def simulated() -> AnnData:
    """150 cells of 40 genes in two batches. Copy it before anything is written to it."""
    return scvae.simulate(150, 40, seed=1)


@pytest.fixture(scope="session")
def fitted(simulated: AnnData) -> tuple[AnnData, scvae.Model]:
    """A few steps of training with a batch and a number to correct for: enough for every law that
    holds at any weights."""
    adata = simulated.copy()
    model = scvae.fit(
        adata,
        batch="batch",
        covariates="library_size",
        n_latent=5,
        n_hidden=16,
        max_steps=20,
        progress=False,
    )
    return adata, model


@pytest.fixture(scope="session")
def trained() -> tuple[AnnData, scvae.Model]:
    """Well-separated types under a strong batch effect, trained until the model knows them."""
    adata = scvae.simulate(600, 100, batch_effect=1.0, seed=1)
    model = scvae.fit(
        adata, batch="batch", likelihood="nb", dispersion="gene", max_steps=400, progress=False
    )
    return adata, model
