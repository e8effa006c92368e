"""The model of RNA counts: library sizes, shares, dispersions, and what the encoder sees."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from cells import architecture_of_rna, facts_of_rna
from scipy import stats
from torch import Generator, Tensor
from torch.distributions import LogNormal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import scvae
from scvae.core.objectives import elbo
from scvae.core.rows import log_means
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells
from scvae.modalities.modality import amount_in_batches
from scvae.modalities.rna import Rna, Statistics
from scvae.models.network import build_vae

N, G, B, D = 30, 12, 3, 2


def statistics(outside: bool = False) -> Statistics:
    draw = Generator().manual_seed(1)
    return Statistics(
        torch.log_softmax(torch.randn(G + outside, generator=draw), dim=0),
        torch.tensor([5.0, 6.0, 7.5]),
        torch.tensor([0.2, 0.5, 1.0]),
    )


def build(seed: int = 0, **arguments: Any) -> VAE:
    """Return an untrained model that treats every cell by itself, as after training."""
    a = architecture_of_rna(
        **{
            "n_genes": G,
            "n_batches": B,
            "n_covariates": B + 1,
            "n_latent": D,
            "n_hidden": 8,
            "likelihood": "nb",
            **arguments,
        }
    )
    facts = facts_of_rna(statistics(a.rna.outside))
    return build_vae(a, facts, Generator().manual_seed(seed)).eval()


@pytest.fixture
def cells() -> Cells:
    """Counts, a one-hot batch and one number, and library sizes of 30 cells."""
    draw = Generator().manual_seed(2)
    x = torch.poisson(20 * torch.rand(N, G, generator=draw), generator=draw) + 1
    batch = torch.arange(N) % B
    number = torch.randn(N, 1, generator=draw)
    s = torch.cat([torch.eye(B)[batch], number], dim=1)
    return Cells(x, s, batch=batch, log_library=x.sum(1, keepdim=True).log())


def latents(samples: int = 4, latent_library: bool = False) -> Tensor:
    z = torch.randn(samples, N, D + latent_library, generator=Generator().manual_seed(3))
    if latent_library:
        z[..., -1] += 6
    return z


def deeper(cells: Cells, factor: float = 3.0) -> Cells:
    """Return the same cells sequenced `factor` times as deeply."""
    return dataclasses.replace(
        cells, x=cells.x * factor, log_library=cells.log_library + np.log(factor)
    )


# -- library sizes ---------------------------------------------------------------------------------


def log_normal_kl(q_loc: Tensor, q_scale: Tensor, p_loc: Tensor, p_scale: Tensor) -> Tensor:
    """KL of two log-normals: log(s/t) + (t^2 + (m - n)^2) / 2s^2 - 1/2, q has m, t and p n, s."""
    squares = q_scale.square() + (q_loc - p_loc).square()
    return (p_scale / q_scale).log() + squares / (2 * p_scale.square()) - 0.5


@torch.no_grad()
def test_kl_of_the_latent_library_is_that_of_log_normals(cells: Cells) -> None:
    vae = build(latent_library=True)
    terms = vae.terms(cells, generator=Generator().manual_seed(0))
    q = terms.q
    stated = statistics()
    p_loc, p_scale = stated.library_loc[cells.batch], stated.library_scale[cells.batch]
    of_library = log_normal_kl(q.loc[:, -1], q.scale[:, -1], p_loc, p_scale)
    torchs = kl_divergence(LogNormal(q.loc[:, -1], q.scale[:, -1]), LogNormal(p_loc, p_scale))
    torch.testing.assert_close(of_library, torchs)
    m, t = q.loc[:, :-1], q.scale[:, :-1]
    of_z = (0.5 * (t.square() + m.square() - 1) - t.log()).sum(-1)
    torch.testing.assert_close(terms.kl, of_z + of_library)
    assert (of_library > 0).all()


@torch.no_grad()
def test_the_latent_library_is_the_one_that_is_decoded(cells: Cells) -> None:
    """The mean follows the latent, not the counted library size; the shares follow neither."""
    vae = build(latent_library=True)
    z = latents(latent_library=True)
    more = z.clone()
    more[..., -1] += np.log(2)
    mean = vae.decode(z, cells).mean
    torch.testing.assert_close(vae.decode(more, cells).mean, 2 * mean)
    torch.testing.assert_close(vae.decode(z, deeper(cells)).mean, mean)
    torch.testing.assert_close(mean.sum(-1), z[..., -1].exp())


@torch.no_grad()
def test_the_observed_library_is_the_one_that_is_decoded(cells: Cells) -> None:
    vae = build()
    mean = vae.decode(latents(), cells).mean
    torch.testing.assert_close(mean.sum(-1), cells.log_library.exp().T.expand(4, N))
    torch.testing.assert_close(vae.decode(latents(), deeper(cells)).mean, 3 * mean)


@torch.no_grad()
def test_posterior_of_the_latent_library_starts_at_what_was_counted(cells: Cells) -> None:
    vae = build(latent_library=True)
    q, moved = vae.encode(cells), vae.encode(deeper(cells))
    torch.testing.assert_close(moved.loc[:, -1], q.loc[:, -1] + np.log(3))
    torch.testing.assert_close(moved.loc[:, :-1], q.loc[:, :-1])
    assert (q.loc[:, -1] - cells.log_library[:, 0]).abs().max() < 2


def log_shares(vae: VAE, h: Tensor) -> Tensor:
    """Return the log share of every fitted gene, from the decoder's last hidden layer."""
    return log_means(vae.likelihood.logits(h), torch.zeros(len(h), 1), G)


@torch.no_grad()
def test_shares_sum_to_one_or_with_counts_outside_below_it() -> None:
    h = torch.randn(N, 8, generator=Generator().manual_seed(0))
    within = log_shares(build(), h).exp()
    torch.testing.assert_close(within.sum(-1), torch.ones(N))
    beside = log_shares(build(outside=True), h).exp()
    assert beside.shape == (N, G)
    assert (beside.sum(-1) < 1).all()
    assert (beside > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("outside", [False, True])
def test_the_untrained_shares_are_those_of_the_data(outside: bool) -> None:
    vae = build(outside=outside)
    vae.likelihood.share.weight.zero_()
    shares = log_shares(vae, torch.randn(5, 8))
    expected = statistics(outside).log_share[:G]
    torch.testing.assert_close(shares, expected.expand(5, G), rtol=1e-5, atol=1e-6)


# -- likelihoods and dispersions -------------------------------------------------------------------


def assert_in_proportion(found: Tensor, expected: Tensor) -> None:
    """Compare up to one positive factor: a parameter may be stored in units of its own."""
    factor = found.sum() / expected.sum()
    assert factor > 0
    torch.testing.assert_close(found, factor * expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dispersion_per_gene_and_batch_is_that_of_the_cells_batch(cells: Cells) -> None:
    vae = build(dispersion="gene-batch")
    rows = torch.arange(B * G, dtype=torch.float32).view(B, G) / 100
    vae.likelihood.log_inverse_dispersion.copy_(rows)
    p = vae.decode(latents(), cells)
    r = p.inverse_dispersion.expand(4, N, G)
    assert_in_proportion(r.log(), rows[cells.batch].expand(4, N, G))
    r, mean = r.double(), p.mean.double()
    reference = stats.nbinom(r.numpy(), (r / (r + mean)).numpy())
    expected = reference.logpmf(cells.x.numpy()).sum(-1)
    np.testing.assert_allclose(p.log_prob(cells.x).numpy(), expected, rtol=1e-4)


@torch.no_grad()
def test_dispersion_per_gene_is_one_for_all_cells(cells: Cells) -> None:
    vae = build(dispersion="gene")
    row = torch.linspace(-0.1, 0.3, G)
    vae.likelihood.log_inverse_dispersion.copy_(row[None])
    found = vae.decode(latents(), cells).inverse_dispersion.expand(4, N, G)
    assert_in_proportion(found.log(), row.expand(4, N, G))


@torch.no_grad()
def test_dispersion_per_gene_and_cell_follows_the_latents(cells: Cells) -> None:
    vae = build(dispersion="gene-cell")
    found = vae.decode(latents(), cells).inverse_dispersion
    assert found.shape == (4, N, G)
    assert (found.std(dim=(0, 1)) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_zero_inflation_keeps_a_share_of_the_mean(cells: Cells, dispersion: str) -> None:
    vae = build(likelihood="zinb", dispersion=dispersion)
    p = vae.decode(latents(), cells)
    torch.testing.assert_close(p.mean, torch.sigmoid(-p.logits) * p.base.mean)
    assert (p.mean.sum(-1) < cells.log_library.exp()[:, 0]).all()
    zeros = dataclasses.replace(cells, x=torch.zeros(N, G))
    assert (p.log_prob(zeros.x) > p.base.log_prob(zeros.x)).all()


def test_poisson_has_no_dispersion_to_learn(cells: Cells) -> None:
    for dispersion in ("gene", "gene-batch", "gene-cell"):
        vae = build(likelihood="poisson", dispersion=dispersion)
        assert not [name for name in vae.state_dict() if "dispersion" in name]
        expected = stats.poisson(vae.decode(latents(), cells).mean.detach().numpy())
        found = vae.decode(latents(), cells).log_prob(cells.x).detach().numpy()
        np.testing.assert_allclose(found, expected.logpmf(cells.x.numpy()).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("latent_library", [False, True])
def test_every_weight_is_trained(
    cells: Cells, likelihood: str, dispersion: str, latent_library: bool
) -> None:
    """No parameter of any variant is left out of the bound."""
    vae = build(likelihood=likelihood, dispersion=dispersion, latent_library=latent_library)
    vae.train()
    elbo(vae.terms(cells, generator=Generator().manual_seed(0))).sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


# -- what the networks see -------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("factor", [3.0, 0.25])
def test_the_encoder_does_not_see_how_deeply_a_cell_was_sequenced(
    cells: Cells, factor: float
) -> None:
    vae = build()
    q, other = vae.encode(cells), vae.encode(deeper(cells, factor))
    torch.testing.assert_close(other.loc, q.loc, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.scale, q.scale, rtol=1e-4, atol=1e-5)
    flat = dataclasses.replace(cells, x=cells.x * factor)
    assert (vae.encode(flat).loc - q.loc).abs().max() > 1e-3  # else the law says nothing


@torch.no_grad()
@pytest.mark.parametrize("encode_covariates", [False, True])
def test_the_encoder_sees_covariates_only_where_asked(
    cells: Cells, encode_covariates: bool
) -> None:
    vae = build(encode_covariates=encode_covariates)
    moved = dataclasses.replace(cells, s=cells.s.roll(1, dims=0), batch=cells.batch.roll(1))
    change = (vae.encode(moved).loc - vae.encode(cells).loc).abs().max()
    assert (change > 1e-4) == encode_covariates


@torch.no_grad()
def test_the_decoder_sees_every_covariate(cells: Cells) -> None:
    vae = build()
    usual = vae.decode(latents(), cells).mean
    for column in range(B + 1):
        s = cells.s.clone()
        s[:, column] += 1
        moved = dataclasses.replace(cells, s=s)
        assert (vae.decode(latents(), moved).mean / usual - 1).abs().max() > 1e-3


@torch.no_grad()
def test_expression_over_batches_is_the_mean_and_keeps_other_covariates(cells: Cells) -> None:
    rna, decoder, z = Rna(G), build().likelihood, latents()[0]
    each = [amount_in_batches(rna, decoder, z, cells.s, [batch], B) for batch in range(B)]
    mean = amount_in_batches(rna, decoder, z, cells.s, range(B), B)
    torch.testing.assert_close(mean, sum(each) / B)
    for batch in range(B):
        own = cells.batch == batch
        torch.testing.assert_close(each[batch][own], rna.amount(decoder, z, cells.s)[own])
    other = cells.s.clone()
    other[:, B] += 1
    assert (amount_in_batches(rna, decoder, z, other, range(B), B) - mean).abs().max() > 1e-4


@torch.no_grad()
def test_expression_does_not_depend_on_the_library(cells: Cells) -> None:
    decoder, z = build(latent_library=True).likelihood, latents(latent_library=True)[0]
    more = z.clone()
    more[:, -1] += 1
    torch.testing.assert_close(decoder.expression(more, cells.s), decoder.expression(z, cells.s))
    torch.testing.assert_close(decoder.expression(z, cells.s).sum(-1), torch.ones(N))


class Largest(TorchDispatchMode):
    """Remembers the number of values of the largest tensor that an operation returned."""

    values = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.values = max(self.values, out.numel())
        return out


@torch.no_grad()
def test_the_memory_of_an_average_does_not_grow_with_the_batches() -> None:
    """Bounds on the values decoded at once are per batch: no tensor may hold all batches."""
    largest = []
    for n_batches in (2, 40):
        stated = Statistics(torch.zeros(200), torch.zeros(n_batches), torch.ones(n_batches))
        a = architecture_of_rna(
            200, n_batches=n_batches, n_covariates=n_batches, n_latent=D, n_hidden=8
        )
        decoder = build_vae(a, facts_of_rna(stated), Generator().manual_seed(0)).eval().likelihood
        with Largest() as mode:
            z, s = torch.zeros(N, D), torch.zeros(N, n_batches)
            amount_in_batches(a.rna, decoder, z, s, range(n_batches), n_batches)
        largest.append(mode.values)
    assert largest[1] <= 2 * largest[0]


def test_the_generator_is_the_one_source_of_weights() -> None:
    before = torch.get_rng_state()
    one, same, other = (build(seed, likelihood="zinb").state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


# -- known parameters ------------------------------------------------------------------------------


@torch.no_grad()
def learned_inverse_dispersions(model: scvae.Model) -> np.ndarray:
    """Return the inverse dispersion of every gene, which must not depend on the cell."""
    a = model.architecture
    nowhere = torch.zeros(1, a.n_latent)
    cell = Cells(
        torch.zeros(1, a.n_genes),
        torch.zeros(1, a.n_covariates),
        batch=torch.zeros(1, dtype=torch.long),
        log_library=torch.zeros(1, 1),
    )
    return model.vae.decode(nowhere, cell).inverse_dispersion.expand(1, a.n_genes)[0].numpy()


def test_learned_inverse_dispersions_follow_the_true_ones(
    trained: tuple[AnnData, scvae.Model],
) -> None:
    adata, model = trained
    learned, truth = learned_inverse_dispersions(model), adata.var["inverse_dispersion"]
    assert stats.spearmanr(learned, truth).statistic > 0.6


def test_a_fit_of_few_cells_finds_that_they_are_almost_poisson() -> None:
    """An optimiser's steps are bounded, and few cells get few steps: they have to reach."""
    adata = scvae.simulate(300, 60, n_types=1, inverse_dispersion=30.0, seed=3)
    model = scvae.fit(adata, likelihood="nb", dispersion="gene", progress=False)
    clear = np.asarray(adata.X.mean(axis=0)).ravel() > 10
    assert np.median(adata.var["inverse_dispersion"][clear]) > 20
    assert np.median(learned_inverse_dispersions(model)[clear]) > 3.5


@pytest.mark.parametrize("batch", [None, "batch"])
def test_the_prior_of_the_library_is_that_of_the_training_cells(batch: str | None) -> None:
    adata = scvae.simulate(120, 20, library_spread=0.8, seed=4)
    adata.obs["held_out"] = np.arange(120) % 4 == 0
    model = scvae.fit(
        adata,
        batch=batch,
        library_size="latent",
        validation="held_out",
        max_steps=2,
        progress=False,
    )
    log_library = np.log(np.asarray(adata.X.sum(axis=1)).ravel())
    used = ~adata.obs["held_out"].to_numpy()
    groups = [used & (adata.obs[batch] == name) for name in model.batches] if batch else [used]
    prior = model.vae.prior
    for code, group in enumerate(groups):
        assert float(prior.library_loc[code]) == pytest.approx(log_library[group].mean(), abs=1e-4)
        assert float(prior.library_scale[code]) == pytest.approx(log_library[group].std(), rel=1e-3)


# -- priors ----------------------------------------------------------------------------------------


def test_a_mixture_prior_keeps_the_library_apart(cells: Cells) -> None:
    """p(z, log l) = p(z) p(log l), whatever p(z) is: the mixture of the joint is their product."""
    vae = build(prior="mixture", latent_library=True)
    p = vae.prior(cells)
    z = p.sample((5,), generator=Generator().manual_seed(0))
    of_z = vae.prior.of_z(cells).log_prob(z[..., :-1])
    loc, scale = vae.prior.library_loc[cells.batch], vae.prior.library_scale[cells.batch]
    of_library = torch.distributions.Normal(loc, scale).log_prob(z[..., -1])
    torch.testing.assert_close(p.log_prob(z), of_z + of_library)
