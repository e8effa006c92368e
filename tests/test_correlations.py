"""Correlations: those of counts as they are, of draws not inflated as those of means are."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.analysis import correlations


def test_genes_that_are_independent_stay_so_in_draws_and_not_in_means() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2, np.full((500, 30), 2.0)))
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = [f"g{i}" for i in range(30)]
    model = scvae.fit(adata, n_latent=5, n_hidden=32, max_steps=150, progress=False)
    found = correlations(model, adata, list(adata.var_names), samples=2)
    spread = found[["predictive", "raw", "denoised"]].std()
    assert abs(found["predictive"].mean()) < 0.03
    assert spread["predictive"] < 0.08
    assert spread["denoised"] > 3 * spread["raw"]


def test_correlations_of_counts_are_those_of_numpy(fitted: tuple[AnnData, scvae.Model]) -> None:
    adata, model = fitted
    genes = ["gene_3", "gene_1", "gene_20"]
    found = correlations(model, adata, genes)
    counts = adata.X.toarray().astype(float)
    logs = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))[:, [3, 1, 20]]
    expected = np.corrcoef(logs, rowvar=False)[np.triu_indices(3, 1)]
    assert found["raw"].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert list(zip(found["gene"], found["other"], strict=True))[1] == ("gene_3", "gene_20")
    means = np.log1p(1e4 * model.amount(adata, batch="own"))[:, [3, 1, 20]]
    expected = np.corrcoef(means, rowvar=False)[np.triu_indices(3, 1)]
    assert found["denoised"].to_numpy() == pytest.approx(expected, abs=1e-4)


def test_genes_that_go_together_do_so_in_draws(trained: tuple[AnnData, scvae.Model]) -> None:
    adata, model = trained
    found = correlations(model, adata, list(adata.var_names[:30]), samples=2)
    assert np.corrcoef(found["predictive"], found["raw"])[0, 1] > 0.8


@pytest.mark.parametrize("genes", [["gene_0"], ["gene_0", "gene_0"], ["gene_0", "none"]])
def test_two_genes_of_the_model_are_needed(
    fitted: tuple[AnnData, scvae.Model], genes: list[str]
) -> None:
    with pytest.raises(scvae.ConfigError, match=r"two different|not fitted on"):
        correlations(fitted[1], fitted[0], genes)
