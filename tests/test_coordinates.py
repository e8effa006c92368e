"""The coordinates of the embedding: principal components of what is decoded, and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import scvae
from scvae.data.hold.cells import Cells, Dataset
from scvae.models import coordinates as module
from scvae.models.coordinates import Coordinates, fit_coordinates, principal_components
from tests.draws import seeded

N, G, D = 90, 40, 4
law = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 10_000)


def centred(seed: int, n: int = N, g: int = G, rank: int = D) -> Tensor:
    """Return values of so many dimensions, of different strengths, and mean 0."""
    draw = seeded(seed)
    strengths = torch.logspace(0, -1, rank)
    x = torch.randn(n, rank, generator=draw) * strengths @ torch.randn(rank, g, generator=draw)
    return x - x.mean(0)


# -- principal components --------------------------------------------------------------------------


@law
@given(seed=seeds)
def test_they_are_the_singular_vectors(seed: int) -> None:
    x = centred(seed) + 0.01 * centred(seed + 1, rank=30)
    found = principal_components(x, D, seeded(0))
    expected = np.linalg.svd(x.double().numpy(), full_matrices=False)[2][:D].T
    agreement = np.abs((found.numpy() * expected).sum(0))
    np.testing.assert_allclose(agreement, 1, atol=1e-4)
    np.testing.assert_allclose((found.T @ found).numpy(), np.eye(D), atol=1e-5)


@law
@given(seed=seeds)
def test_they_keep_the_distances_of_values_of_so_many_dimensions(seed: int) -> None:
    x = centred(seed)
    found = torch.pdist(x @ principal_components(x, D, seeded(0)))
    torch.testing.assert_close(found, torch.pdist(x), rtol=1e-4, atol=1e-4)


@law
@given(seed=seeds)
def test_variances_fall_and_the_largest_entries_are_positive(seed: int) -> None:
    x = centred(seed)
    found = principal_components(x, D, seeded(0))
    variance = (x @ found).var(0)
    assert (variance[1:] <= variance[:-1] * (1 + 1e-5)).all()
    assert (found.gather(0, found.abs().argmax(0)[None]) > 0).all()
    torch.testing.assert_close(principal_components(-x, D, seeded(0)), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("n", "g", "rank"), [(N, G, 2), (3, G, 3), (N, 2, 2), (N, G, 0)])
def test_components_that_are_not_there_are_zeros(n: int, g: int, rank: int) -> None:
    x = centred(1, n, g, rank) if rank else torch.zeros(n, g)
    found = principal_components(x, D, seeded(0))
    assert found.shape == (g, D)
    assert found.isfinite().all()
    there = min(rank, n - 1)
    np.testing.assert_allclose(
        found.norm(dim=0).numpy(), [1] * there + [0] * (D - there), atol=1e-4
    )
    torch.testing.assert_close(torch.pdist(x @ found), torch.pdist(x), rtol=1e-4, atol=1e-4)


def test_the_same_numbers_give_the_same_bits_wherever_they_lie_in_memory() -> None:
    x = centred(4, n=97, g=33)
    first = principal_components(x, D, seeded(0))
    for shift in range(1, 16):
        room = torch.empty(x.numel() + 64)
        moved = room[shift : shift + x.numel()].view(x.shape).copy_(x)
        assert torch.equal(principal_components(moved.clone(), D, seeded(0)), first)


# -- of a trained model ----------------------------------------------------------------------------


def decoded(adata: AnnData, model: scvae.Model, batch: str = "own") -> tuple[Tensor, Tensor]:
    """Return roots of decoded shares of every cell, each gene in units of its own deviation; and
    these profiles with half of their length, all so that their mean variance is the share of the
    genes' variance that is explained."""
    counts = adata.X.toarray()
    measured = np.sqrt(counts / counts.sum(axis=1, keepdims=True)).std(axis=0)
    x = np.sqrt(model.normalized(adata, batch=batch, library_size=1).to_numpy()) / measured
    phi = x / np.sqrt(np.linalg.norm(x, axis=1, keepdims=True))
    phi *= np.sqrt(np.minimum(1, x.var(axis=0)).mean() / phi.var(axis=0).mean())
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(phi.astype(np.float32))


def most_common(model: scvae.Model, adata: AnnData) -> str:
    covariates = model.embedding.coordinates.covariates[: len(model.batches)]
    return model.batches[int(covariates.argmax())]


def test_distances_are_those_of_expression_decoded_in_one_batch() -> None:
    adata = scvae.simulate(300, 60, batch_effect=1.0, seed=1)
    model = scvae.fit(adata, batch="batch", align=False, max_steps=200, progress=False)
    _, phi = decoded(adata, model, most_common(model, adata))
    found = torch.pdist(torch.from_numpy(adata.obsm["X_scvae"]))
    expected = torch.pdist(phi) / 60**0.5
    assert np.corrcoef(found, expected)[0, 1] > 0.999
    assert float(found.mean() / expected.mean()) == pytest.approx(1, abs=0.1)


def test_genes_that_the_model_explains_best_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = scvae.simulate(300, 60, seed=1)
    monkeypatch.setattr(module, "MOST_GENES", 40)
    model = scvae.fit(adata, align=False, max_steps=200, progress=False)
    found = model.embedding.coordinates
    assert isinstance(found, Coordinates)
    part = decoded(adata, model)[0].std(0)
    chosen = torch.zeros(60, dtype=torch.bool).index_fill(0, found.genes, True)
    assert int(chosen.sum()) == len(found.genes) == 40
    # They were chosen by the training cells alone, of which ours are one part in nine more.
    assert part[chosen].min() > 0.9 * part[~chosen].max()
    assert part[chosen].mean() > 1.2 * part[~chosen].mean()
    shares = model.normalized(adata, library_size=1).to_numpy()[:, found.genes]
    x = np.sqrt(shares / shares.sum(axis=1, keepdims=True)) / found.unit.numpy()
    phi = x / np.sqrt(np.linalg.norm(x, axis=1, keepdims=True))
    expected = (phi - phi.mean(axis=0)) @ found.loadings.numpy()
    ours = adata.obsm["X_scvae"]
    np.testing.assert_allclose(ours - ours.mean(axis=0), expected, rtol=1e-3, atol=1e-4)


def test_variances_fall_and_the_mean_is_near_zero(trained: tuple[AnnData, scvae.Model]) -> None:
    x = trained[0].obsm["X_scvae"]
    variances = x.var(axis=0)
    assert variances[0] > 10 * variances[-1]
    assert (np.sort(variances)[::-1][:5] == variances[:5]).all()
    assert np.abs(x.mean(axis=0)).max() < 0.2 * x.std(axis=0)[0]


def test_covariates_of_the_cells_do_not_enter_but_by_their_latent_vectors(
    fitted: tuple[AnnData, scvae.Model],
) -> None:
    _, model = fitted
    found = model.embedding.coordinates
    assert isinstance(found, Coordinates)
    assert found.covariates.tolist()[:-1] in ([1.0, 0.0], [0.0, 1.0])
    assert found.covariates[-1] == 0  # the mean of a standardised number
    z = torch.randn(7, 5, generator=seeded(0))
    both = [model.embedding.coordinates(model.views, z) for _ in range(2)]
    assert torch.equal(*both)


def test_most_common_categories_are_chosen() -> None:
    adata = scvae.simulate(120, 20, seed=0)
    adata.obs["site"] = pd.Categorical(["b"] * 50 + ["c"] * 60 + ["a"] * 10)
    adata.obs["batch"] = ["one"] * 40 + ["two"] * 80
    model = scvae.fit(
        adata, batch="batch", covariates=["site", "library_size"], max_steps=2, progress=False
    )
    assert model.embedding.coordinates.covariates.tolist() == [0, 1, 0, 0, 1, 0]


def test_more_columns_than_genes_are_zeros() -> None:
    adata = scvae.simulate(60, 5, seed=0)
    scvae.fit(adata, n_latent=8, max_steps=5, progress=False)
    x = adata.obsm["X_scvae"]
    assert x.shape == (60, 8)
    assert np.isfinite(x).all()
    assert (x[:, 5:] == 0).all()


def test_a_gene_that_hardly_varies_does_not_weigh_the_most() -> None:
    adata = scvae.simulate(100, 20, seed=0)
    counts = adata.X.toarray()
    counts[:, 0] = 0
    counts[0, 0] = 1
    adata.X = counts
    model = scvae.fit(adata, max_steps=20, progress=False)
    loadings = model.embedding.coordinates.loadings
    assert loadings.isfinite().all()
    assert loadings[0].abs().max() < 100 * loadings[1:].abs().max()


@pytest.mark.parametrize("order", ["as drawn", "sorted by batch"])
def test_they_are_learned_from_cells_of_every_batch(
    simulated: AnnData, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """With more cells than fit in memory, the first ones in the file do not stand for all."""
    adata = simulated.copy()
    if order == "sorted by batch":
        adata = adata[np.argsort(adata.obs["batch"].cat.codes, kind="stable")].copy()
    adata.obs["held_out"] = np.arange(adata.n_obs) % 10 == 0
    model = scvae.fit(
        adata, batch="batch", validation="held_out", n_latent=3, max_steps=3, progress=False
    )
    seen: list[Tensor] = []
    usual = Dataset._described

    def described(self: Dataset, rows: Tensor, x: Tensor) -> Cells:
        seen.append(rows)
        return usual(self, rows, x)

    monkeypatch.setattr(Dataset, "_described", described)
    monkeypatch.setattr(module, "MOST_VALUES", 40 * adata.n_vars)
    monkeypatch.setattr(module, "FEWEST_CELLS", 40)
    rows = torch.from_numpy(np.flatnonzero(~adata.obs["held_out"]))
    covariates, library = model.origin.covariates, np.asarray(adata.X.sum(axis=1)).ravel()
    encoded = covariates.read(adata.obs)
    design, codes = encoded.design, encoded.codes
    dataset = Dataset.build(adata.X, design, codes, library, "cpu")
    typical = torch.from_numpy(covariates.typical(design.mean(0)))
    fit_coordinates(model.vae, model.views, dataset, rows, typical, 3, seeded(0))
    used = torch.cat(seen).numpy()
    assert len(used) == 40
    assert adata.obs["batch"].iloc[used].value_counts(normalize=True).min() > 0.2


def test_cells_are_embedded_alone_as_among_others(trained: tuple[AnnData, scvae.Model]) -> None:
    adata, model = trained
    some = adata[[5, 3, 400]].copy()
    np.testing.assert_allclose(
        model.embed(some), adata.obsm["X_scvae"][[5, 3, 400]], rtol=1e-4, atol=1e-4
    )


# -- the argument ----------------------------------------------------------------------------------


def test_align_changes_the_embedding_alone(simulated: AnnData) -> None:
    options = {"batch": "batch", "max_steps": 20, "progress": False}
    plain, aligned = simulated.copy(), simulated.copy()
    without = scvae.fit(plain, align=False, **options)
    with_it = scvae.fit(aligned, **options)
    pd.testing.assert_frame_equal(without.normalized(plain), with_it.normalized(plain))
    assert not np.array_equal(plain.obsm["X_scvae"], aligned.obsm["X_scvae"])
    half = scvae.fit(simulated.copy(), align=0.5, **options)
    between = (plain.obsm["X_scvae"] + aligned.obsm["X_scvae"]) / 2
    np.testing.assert_allclose(half.embed(simulated), between, atol=1e-4)


@pytest.mark.parametrize("align", ["yes", None, -0.1, 1.5, float("nan"), [1], 2])
def test_another_strength_is_refused(simulated: AnnData, align: object) -> None:
    with pytest.raises(scvae.ConfigError, match=r"align=.*between 0 and 1: align=True"):
        scvae.fit(simulated.copy(), batch="batch", align=align, max_steps=1)  # type: ignore[arg-type]


def test_the_summary_says_how_far_cells_were_moved(simulated: AnnData) -> None:
    model = scvae.fit(simulated.copy(), batch="batch", max_steps=20, progress=False)
    text = str(model.summary())
    assert "cells moved by" in text
    for name, share in zip(model.batches, model.record.moved, strict=True):
        assert f"{name!r} {share:.2g}" in text
    plain = scvae.fit(simulated.copy(), batch="batch", align=False, max_steps=2, progress=False)
    assert "cells moved by" not in str(plain.summary())


def test_every_kind_weighs_what_is_explained_of_its_variance() -> None:
    mdata = scvae.simulate(300, 40, modalities=("rna", "chromatin"), n_regions=60, seed=3)
    model = scvae.fit(mdata, max_steps=80, align=False, progress=False)
    dataset, shares = model.read(mdata), []
    for m, view in enumerate(model.views):
        both = [
            model.over(dataset, lambda cells, v=view, m=m: v.modality.measured(cells.parts[m])),
            model.over(
                dataset, lambda cells, v=view: v.profile(model.vae.encode(cells).mean, cells.s)
            ),
        ]
        measured, decoded = (values.astype(np.float64).std(0, ddof=1) for values in both)
        least = module.SMALLEST_DEVIATION * np.sqrt(np.mean(measured**2))
        share = (decoded / np.maximum(measured, least)) ** 2
        shares.append(np.mean(np.minimum(share, 1)))
    total = np.asarray(mdata.obsm["X_scvae"], dtype=np.float64).var(0, ddof=1).sum()
    np.testing.assert_allclose(total, sum(shares), rtol=0.03)
    assert min(shares) > 0.01
