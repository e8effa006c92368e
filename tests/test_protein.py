"""Proteins: background and foreground of known parameters are found, and what the encoder sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import Generator, Tensor

from scvae.core.objectives import elbo
from scvae.core.priors import StandardNormal
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells
from scvae.modalities.background import levels, levels_in_batches, of_empty_droplets
from scvae.modalities.modality import Shape, amount_in_batches
from scvae.modalities.protein import Decoder, Protein, Statistics

LOC = np.log([[3.0, 10.0, 4.0, 6.0, 2.0], [9.0, 5.0, 12.0, 6.0, 4.0]])
FOLD = np.log([8.0, 10.0, 20.0, 12.0, 15.0])
N, G, D = 800, 5, 2


def counts(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts, batches and which are foreground: those of the cell's type."""
    rng = np.random.default_rng(seed)
    batch, kind = np.arange(n) % 2, rng.integers(2, size=n)
    foreground = kind[:, None] == np.arange(G) % 2
    mean = np.exp(rng.normal(LOC[batch], 0.2) + FOLD * foreground)
    return rng.poisson(rng.gamma(20, mean / 20)).astype(np.float32), batch, foreground


def cells_of(y: np.ndarray, batch: np.ndarray) -> Cells:
    x, codes = torch.from_numpy(y), torch.from_numpy(batch)
    log_size = x.nansum(1, keepdim=True).clamp(min=1).log()
    return Cells(x, torch.eye(2)[codes], batch=codes, log_library=log_size)


def build(y: np.ndarray, batch: np.ndarray, **arguments: int | bool) -> VAE:
    protein = Protein(y.shape[1])
    sizes = {"n_hidden": 16, "n_layers": 1, "n_batches": 2, "n_covariates": 2, **arguments}
    shape = Shape(n_latent=D, encode_covariates=True, **sizes)  # type: ignore[arg-type]
    facts, generator = Statistics.of(y, batch, shape.n_batches), Generator().manual_seed(0)
    encoder = protein.encoder(shape, facts, generator)
    return VAE(StandardNormal(D), encoder, protein.decoder(shape, facts, generator))


def train(vae: VAE, cells: Cells, steps: int) -> list[float]:
    """Return the mean bounds of the cells along the way."""
    optimizer = torch.optim.Adam(vae.parameters(), 0.02)
    generator, found = Generator().manual_seed(1), []
    for _ in range(steps):
        loss = -elbo(vae.terms(cells, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(-loss.item())
    return found


def decoder_of(vae: VAE) -> Decoder:
    assert isinstance(vae.likelihood, Decoder)
    return vae.likelihood


@pytest.fixture(scope="module")
def trained() -> tuple[VAE, Cells, np.ndarray, list[float]]:
    y, batch, foreground = counts()
    vae, cells = build(y, batch), cells_of(y, batch)
    bounds = train(vae, cells, 150)
    return vae.eval(), cells, foreground, bounds


# -- before training ------------------------------------------------------------------------------


def test_background_and_foreground_are_learned_per_batch() -> None:
    y, batch, _ = counts(4000)
    found = levels_in_batches(y, batch, 2)
    np.testing.assert_allclose(found.loc, LOC, atol=0.2)
    np.testing.assert_allclose(found.log_fold, np.tile(FOLD, (2, 1)), atol=0.35)
    np.testing.assert_allclose(found.share, 0.5, atol=0.05)


def test_a_batch_of_few_cells_has_the_background_of_all() -> None:
    y, *_ = counts()
    few = np.where(np.arange(len(y)) < 5, 1, 0)
    found, whole = levels_in_batches(y, few, 2), levels(y)
    np.testing.assert_array_equal(found.loc[1], whole.loc)
    assert not np.array_equal(found.loc[0], whole.loc)


def test_background_is_that_of_empty_droplets() -> None:
    rng = np.random.default_rng(0)
    empty = rng.poisson(np.exp(rng.normal(LOC[0], 0.4, size=(20_000, G))))
    loc, scale = of_empty_droplets(empty)
    np.testing.assert_allclose(loc, LOC[0], atol=0.05)
    np.testing.assert_allclose(scale, 0.4, atol=0.05)
    y, batch, _ = counts()
    facts = Statistics.of(y, batch, 2, empty)
    np.testing.assert_allclose(facts.background_loc[1], loc, rtol=1e-6)


@pytest.mark.parametrize("g", [1, 5, 300])
def test_no_protein_spoils_the_start(g: int) -> None:
    # Proteins without counts, of one count alone, and not measured in a batch or anywhere.
    y = np.random.default_rng(0).poisson(5.0, size=(100, g)).astype(np.float32)
    y[:, 0] = 0
    y[:, 1:2], y[:50, 2:3], y[:, 3:4] = 7, np.nan, np.nan
    y[0, 4:5] = 100_000
    facts = Statistics.of(y, np.arange(100) // 50, 2)
    assert all(getattr(facts, f.name).isfinite().all() for f in dataclasses.fields(facts))
    vae, cells = build(y, np.arange(100) // 50), cells_of(y, np.arange(100) // 50)
    cells = dataclasses.replace(cells, observed=~cells.x.isnan())
    assert np.isfinite(train(vae, cells, 3)).all()
    assert all(p.isfinite().all() for p in vae.parameters())


# -- the law --------------------------------------------------------------------------------------


def test_the_mean_amount_is_that_of_the_counts_decoded(trained: tuple) -> None:
    vae, cells, *_ = trained
    z = torch.randn(3, len(cells), D, generator=Generator().manual_seed(0))
    protein, decoder = Protein(G), decoder_of(vae)
    with torch.no_grad():
        whole = protein.amount(decoder, z, cells.s, background=True)
        torch.testing.assert_close(whole, decoder(z, cells).mean, rtol=1e-4, atol=1e-4)
        alone = protein.amount(decoder, z, cells.s)
    assert (alone <= whole).all()
    assert (alone < 0.5 * whole).any()


def test_cells_whose_background_alone_differs_have_the_same_profile(trained: tuple) -> None:
    vae, cells, *_ = trained
    z = torch.randn(len(cells), D, generator=Generator().manual_seed(0))
    protein, decoder = Protein(G), decoder_of(vae)
    with torch.no_grad():
        profile = protein.profile(decoder, z, cells.s, None)
        before = decoder.level.weight.clone(), decoder.level.bias.clone()
        torch.testing.assert_close(
            protein.profile(decoder, z, cells.s, torch.tensor([2])), profile[:, 2:3]
        )
        decoder.level.weight.add_(1.0)
        torch.testing.assert_close(protein.profile(decoder, z, cells.s, None), profile)
        decoder.level.weight.zero_()
        decoder.level.bias.zero_()
        whole = protein.amount(decoder, z, cells.s, background=True)
        torch.testing.assert_close(profile, torch.log1p(whole))
        decoder.level.weight.copy_(before[0])
        decoder.level.bias.copy_(before[1])


def test_background_is_summed_out_as_by_a_fine_grid() -> None:
    y, batch, _ = counts(20)
    vae, cells = build(y, batch).eval().double(), cells_of(y, batch)
    cells = dataclasses.replace(cells, x=cells.x.double(), s=cells.s.double())
    decoder, z = decoder_of(vae), torch.zeros(1, 20, D, dtype=torch.float64)
    with torch.no_grad():
        decoder.log_background_scale.fill_(np.log(0.3))
        p = decoder(z, cells)
        loc, scale = decoder._background(cells.s)
        level, log_fold, odds = decoder._of_cells(z, cells.s)
        grid = torch.linspace(-8, 8, 801, dtype=torch.float64)[:, None, None]
        weight = torch.softmax(-0.5 * grid.square(), 0)
        r = (10 * decoder.log_inverse_dispersion).exp()
        mass: Tensor | float = 0.0
        for fold, share in ((0.0, torch.sigmoid(-odds[0])), (log_fold[0], torch.sigmoid(odds[0]))):
            mean = torch.exp(loc + level[0] + scale * grid + fold)
            law = torch.distributions.NegativeBinomial(r.expand_as(mean), probs=mean / (mean + r))
            mass = mass + share * (weight * law.log_prob(cells.x).exp()).sum(0)
    assert isinstance(mass, Tensor)
    near = mass > 1e-6  # five nodes do not reach far tails
    torch.testing.assert_close(
        p.entry_log_prob(cells.x)[0][near], mass.log()[near], atol=0.05, rtol=0
    )


def test_gradients_of_the_bound_are_numerical_ones() -> None:
    y, batch, _ = counts(6)
    vae, cells = build(y, batch, n_hidden=4).eval().double(), cells_of(y, batch)
    cells = dataclasses.replace(cells, x=cells.x.double(), s=cells.s.double())
    decoder, z = decoder_of(vae), torch.randn(1, 6, D, dtype=torch.float64)
    own = [decoder.level.bias, decoder.log_background_scale, decoder.fold.bias]
    own += [decoder.log_inverse_dispersion, decoder.odds.bias]
    assert torch.autograd.gradcheck(lambda *_: decoder(z, cells).log_prob(cells.x), own)


# -- after training -------------------------------------------------------------------------------


def test_training_raises_the_bound(trained: tuple) -> None:
    bounds = trained[-1]
    assert np.mean(bounds[-10:]) > np.mean(bounds[:10]) + 0.5


def test_counts_of_foreground_are_told_from_background(trained: tuple) -> None:
    vae, cells, truth, _ = trained
    with torch.no_grad():
        found = Protein(G).foreground(vae.likelihood, vae.encode(cells).mean[None], cells)[0]
    assert ((found > 0.5).numpy() == truth).mean() > 0.98
    assert np.abs(found.numpy() - truth).mean() < 0.05


def test_spread_of_background_and_mean_counts_are_found(trained: tuple) -> None:
    vae, cells, *_ = trained
    decoder = decoder_of(vae)
    np.testing.assert_allclose(decoder.log_background_scale.detach().exp(), 0.2, atol=0.15)
    with torch.no_grad():
        mean = Protein(G).amount(decoder, vae.encode(cells).mean, cells.s, background=True).mean(0)
    torch.testing.assert_close(mean, cells.x.mean(0), rtol=0.1, atol=0)


def test_foreground_of_other_batches_has_their_background(trained: tuple) -> None:
    vae, cells, truth, _ = trained
    with torch.no_grad():
        z = vae.encode(cells).mean
        each = [amount_in_batches(Protein(G), vae.likelihood, z, cells.s, [b], 2) for b in (0, 1)]
    ratio = (each[1] / each[0]).log().numpy()
    expected = np.broadcast_to(LOC[1] - LOC[0], ratio.shape)
    assert np.abs(np.median((ratio - expected)[truth])) < 0.2


# -- what the encoder sees ------------------------------------------------------------------------


def test_what_was_not_measured_is_not_seen() -> None:
    y, batch, _ = counts(50)
    vae, cells = build(y, batch).eval(), cells_of(y, batch)
    observed = torch.rand(50, G, generator=Generator().manual_seed(0)) < 0.5
    observed[0] = False
    found = []
    for garbage in (0.0, torch.nan, 1e9):
        x = torch.where(observed, cells.x, garbage)
        some = dataclasses.replace(cells, x=x, observed=observed)
        found.append(elbo(vae.terms(some, generator=Generator().manual_seed(0))))
        found[-1].sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_one_batch_needs_no_covariates() -> None:
    y, batch, _ = counts(50)
    vae = build(y, 0 * batch, n_batches=1, n_covariates=0)
    cells = dataclasses.replace(cells_of(y, 0 * batch), s=torch.zeros(50, 0))
    assert elbo(vae.terms(cells)).isfinite().all()


def test_cells_without_any_protein_are_read() -> None:
    y, *_ = counts(20)
    y[3] = 0
    adata = AnnData(y)
    part = Protein(2).read(adata, ["4", "0"], None, "observed", call="scvae.fit(adata")
    np.testing.assert_array_equal(part.counts.toarray(), y[:, [4, 0]])
    assert part.size[3] == 1


def test_a_protein_that_no_cell_has_stays_background() -> None:
    # Cells differ in their background as a whole; the last protein is nothing but that.
    y, batch, _ = counts(400)
    rng = np.random.default_rng(1)
    level = np.exp(rng.normal(0, 0.4, size=400))
    y = rng.poisson(y * level[:, None]).astype(np.float32)
    y[:, 4] = rng.poisson(20 * level)
    vae, cells = build(y, batch), cells_of(y, batch)
    train(vae, cells, 150)
    vae.eval()
    with torch.no_grad():
        found = Protein(G).foreground(vae.likelihood, vae.encode(cells).mean, cells)
    assert found[:, 4].mean() < 0.4


def test_one_hump_of_counts_is_background() -> None:
    rng = np.random.default_rng(0)
    found = levels(rng.poisson(np.exp(rng.normal(np.log(20), 0.3, size=(3000, 1)))))
    np.testing.assert_allclose(found.loc, np.log(20), atol=0.05)
    np.testing.assert_allclose(found.scale, 0.3, atol=0.05)
    assert found.share < 0.1
