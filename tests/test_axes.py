"""The axes of the embedding: where expression is linear in z, distances are those of expression."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import scvae
from scvae.data.cells import Cells, Dataset
from scvae.models import axes as axes_module
from scvae.models.axes import expression_axes, linear_axes

N, D, G = 80, 4, 25
law = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 10_000)


def linear(seed: int, n: int = N, d: int = D, g: int = G) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, loadings of different strengths, and expression a + z W."""
    draw = Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=draw)
    strengths = torch.logspace(0, -1, d)[torch.randperm(d, generator=draw), None]
    loadings = torch.randn(d, g, generator=draw) * strengths
    return z, loadings, torch.randn(g, generator=draw) + z @ loadings


def rotation(seed: int, d: int = D) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=Generator().manual_seed(seed)))[0]


def per_gene_distances(expression: Tensor) -> Tensor:
    return torch.pdist(expression) / expression.shape[1] ** 0.5


def assert_close(found: Tensor, expected: Tensor, within: float = 1e-4) -> None:
    """Compare up to a share of the largest value that is expected."""
    atol = within * float(expected.abs().max())
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=atol)


@law
@given(seed=seeds)
def test_distances_are_those_of_expression(seed: int) -> None:
    z, _, phi = linear(seed)
    assert_close(torch.pdist(z @ linear_axes(z, phi)), per_gene_distances(phi))


@law
@given(seed=seeds)
def test_columns_are_principal_axes_sorted_by_what_they_move(seed: int) -> None:
    """Each axis moves expression as much as a singular value of W says, the largest first."""
    z, loadings, phi = linear(seed)
    axes = linear_axes(z, phi)
    assert axes.shape == (D, D)
    moved = axes.norm(dim=0)
    assert (moved[1:] <= moved[:-1] * (1 + 1e-5)).all()
    assert_close(moved, torch.linalg.svdvals(loadings) / G**0.5)
    crossed = axes.T @ axes
    assert_close(crossed, crossed.diag().diag())  # the axes are orthogonal


def test_variances_of_the_embedding_fall() -> None:
    z, _, phi = linear(3, n=20_000)
    variances = (z @ linear_axes(z, phi)).var(0)
    assert (variances[1:] < variances[:-1]).all()


@law
@given(seed=seeds, unused=st.integers(0, D - 1))
def test_an_unused_latent_leaves_a_zero_axis(seed: int, unused: int) -> None:
    z, loadings, _ = linear(seed)
    loadings[unused] = 0
    axes = linear_axes(z, z @ loadings)
    tiny = 1e-3 * float(axes.abs().max())
    assert axes[:, -1].abs().max() < tiny
    assert axes[unused].abs().max() < tiny
    assert axes[:, -2].abs().max() > 10 * tiny


@law
@given(seed=seeds)
def test_rotating_the_latents_changes_no_distance(seed: int) -> None:
    z, _, phi = linear(seed)
    turned = z @ rotation(seed + 1)
    found = torch.pdist(turned @ linear_axes(turned, phi))
    assert_close(found, torch.pdist(z @ linear_axes(z, phi)))


@law
@given(seed=seeds, scale=st.sampled_from([0.01, 0.3, 7.0, 100.0]))
def test_scaling_or_moving_the_latents_changes_no_distance(seed: int, scale: float) -> None:
    z, _, phi = linear(seed)
    other = z * scale + 5 * scale
    found = torch.pdist(other @ linear_axes(other, phi))
    assert_close(found, torch.pdist(z @ linear_axes(z, phi)), within=5e-4)


def test_one_latent_may_have_another_scale_than_the_rest() -> None:
    z, _, phi = linear(5)
    other = z * torch.tensor([1.0, 20.0, 0.05, 3.0])
    assert_close(torch.pdist(other @ linear_axes(other, phi)), per_gene_distances(phi), 5e-4)


@law
@given(seed=seeds)
def test_the_largest_entry_of_every_axis_is_positive(seed: int) -> None:
    z, _, phi = linear(seed)
    axes = linear_axes(z, phi)
    assert (axes.gather(0, axes.abs().argmax(0)[None]) > 0).all()
    assert_close(linear_axes(-z, phi), axes)  # the sign is that of the entries, not of the data


@law
@given(seed=seeds)
def test_what_the_latents_do_not_explain_moves_no_axis_much(seed: int) -> None:
    z, _, phi = linear(seed, n=4000)
    noise = torch.randn(phi.shape, generator=Generator().manual_seed(seed + 1))
    assert_close(linear_axes(z, phi + noise).abs(), linear_axes(z, phi).abs(), within=0.15)


@law
@given(seed=seeds)
def test_nothing_is_lost(seed: int) -> None:
    z, _, phi = linear(seed)
    axes = linear_axes(z, phi)
    back = torch.linalg.solve(axes.T, (z @ axes).T).T
    assert_close(back, z, within=1e-3)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_fewer_cells_than_latents_still_keep_their_distances(n: int) -> None:
    z, _, phi = linear(1, n=n, d=12)
    axes = linear_axes(z, phi)
    assert axes.isfinite().all()
    assert_close(torch.pdist(z @ axes), per_gene_distances(phi), within=1e-3)


def test_a_latent_without_variance_gets_no_weight() -> None:
    z, _, phi = linear(2)
    still = torch.cat([z, torch.full((N, 1), 3.0)], dim=1)
    axes = linear_axes(still, phi)
    assert axes.isfinite().all()
    assert axes[-1].abs().max() < 1e-3 * axes.abs().max()
    assert_close(torch.pdist(still @ axes), per_gene_distances(phi))


def test_the_arguments_are_left_as_they_were() -> None:
    z, _, phi = linear(0)
    before = z.clone(), phi.clone()
    linear_axes(z, phi)
    assert torch.equal(z, before[0])
    assert torch.equal(phi, before[1])


def test_the_same_numbers_give_the_same_bits_wherever_they_lie_in_memory() -> None:
    z, _, phi = linear(4, n=97, d=9, g=33)
    first = linear_axes(z, phi)
    for shift in range(1, 16):
        room = torch.empty(z.numel() + phi.numel() + 64)
        moved_z = room[shift : shift + z.numel()].view(z.shape).copy_(z)
        start = shift + z.numel() + 3
        moved_phi = room[start : start + phi.numel()].view(phi.shape).copy_(phi)
        assert torch.equal(linear_axes(moved_z, moved_phi), first)


# -- of a trained model ----------------------------------------------------------------------------


def decoded(adata: AnnData, model: scvae.Model) -> Tensor:
    """Return the decoded expression of every cell, each gene in units of its own deviation."""
    counts = adata.X.toarray()
    measured = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    phi = np.log1p(model.normalized(adata, library_size=1e4).to_numpy())
    return torch.from_numpy((phi / measured.std(axis=0)).astype(np.float32))


def test_embedded_distances_follow_decoded_expression(
    trained: tuple[AnnData, scvae.Model],
) -> None:
    adata, model = trained
    some = adata[:200].copy()
    found = torch.pdist(torch.from_numpy(model.embed(some)))
    expected = per_gene_distances(decoded(some, model))
    assert np.corrcoef(found, expected)[0, 1] > 0.95
    assert float(found.mean() / expected.mean()) == pytest.approx(1, abs=0.25)


def test_embedded_variances_fall_from_column_to_column(
    trained: tuple[AnnData, scvae.Model],
) -> None:
    adata, model = trained
    moved = model.axes.norm(dim=0)
    assert (moved[1:] <= moved[:-1] * (1 + 1e-5)).all()
    variances = adata.obsm["X_scvae"].var(axis=0)
    assert variances[0] > 10 * variances[-1]


@pytest.mark.parametrize("order", ["as drawn", "sorted by batch"])
def test_axes_are_learned_from_cells_of_every_batch(
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
    usual = Dataset.cells

    def cells(self: Dataset, rows: Tensor) -> Cells:
        seen.append(rows)
        return usual(self, rows)

    monkeypatch.setattr(Dataset, "cells", cells)
    monkeypatch.setattr(axes_module, "MOST_VALUES", 40 * adata.n_vars)
    rows = torch.from_numpy(np.flatnonzero(~adata.obs["held_out"]))
    covariates, library = model.origin.covariates, np.asarray(adata.X.sum(axis=1)).ravel()
    design, codes = covariates.design(adata.obs), covariates.codes(adata.obs)
    dataset = Dataset.build(adata.X, design, codes, library, "cpu")
    expression_axes(model.vae, dataset, rows, Generator().manual_seed(0))
    used = adata.obs["batch"].iloc[torch.cat(seen).numpy()]
    assert len(used) < len(rows)
    assert pd.Series(used).value_counts(normalize=True).min() > 0.2
