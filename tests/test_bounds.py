"""Bounds and estimates of log p(x) on linear-Gaussian models, where every value is known.

At the exact posterior every importance weight is p(x); elsewhere the ELBO misses log p(x) by the KL
to the exact posterior. Expectations over q are exact where the "samples" are the 2d points
loc +- sqrt(d) L e_i: they have the mean and covariance of q, and log p(x | z) is quadratic in z.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from scvae.core.batch import Batch
from scvae.core.distributions import Bernoulli, FullGaussian, Gaussian, Mixture
from scvae.core.heads import GAUSSIAN, Encoder, Head
from scvae.core.inference import MeanField
from scvae.core.kl import Estimate, kl_divergence
from scvae.core.linear import LinearGaussian, ppca
from scvae.core.networks import MLP
from scvae.core.objectives import (
    elbo,
    importance_weighted_bound,
    log_evidence,
    scale_to_dataset,
    score_function_elbo,
    tail_shape,
    warmup,
)
from scvae.core.priors import StandardNormal
from scvae.core.vae import VAE, Terms
from tests.draws import draw, seeded

F64 = torch.float64
N, G, D = 6, 5, 2
law = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 10_000)


# -- a linear-Gaussian VAE with any posterior ------------------------------------------------------


class SigmaPoints(FullGaussian):
    """A Gaussian whose "samples" are the 2d points that share its mean and covariance."""

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        d = self.loc.shape[-1]
        columns = self.scale_tril.movedim(-1, 0) * math.sqrt(d)
        return self.loc + torch.cat([columns, -columns])


class Posterior(nn.Module):
    """The exact posterior, moved by `shift` and stretched by a lower triangle."""

    def __init__(
        self, model: LinearGaussian, kind: Any, shift: Tensor | float, stretch: Tensor | float
    ) -> None:
        super().__init__()
        self.model, self.kind, self.shift, self.stretch = model, kind, shift, stretch

    def forward(self, batch: Batch) -> Any:
        exact = self.model.posterior(batch.x)
        stretch = self.stretch
        if isinstance(stretch, float):
            stretch = stretch * torch.eye(exact.loc.shape[-1], dtype=F64)
        return self.kind(exact.loc + self.shift, exact.scale_tril @ stretch)


class Likelihood(nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return self.model.likelihood(z)


def model_of(g: int = G, d: int = D, seed: int = 0) -> LinearGaussian:
    noise = draw(g, seed=seed + 2).mul(0.5).exp()
    return LinearGaussian(draw(g, d, seed=seed), draw(g, seed=seed + 1), noise)


def vae_of(
    model: LinearGaussian,
    kind: Any = FullGaussian,
    shift: Tensor | float = 0.0,
    stretch: Tensor | float = 1.0,
) -> VAE:
    prior = StandardNormal(model.loading.shape[1]).double()
    return VAE(prior, Posterior(model, kind, shift, stretch), Likelihood(model))


def batch_of(model: LinearGaussian, n: int = N, seed: int = 5) -> Batch:
    return Batch(model.loc + 2 * draw(n, len(model.loc), seed=seed))


def any_posterior(seed: int, d: int = D) -> tuple[Tensor, Tensor]:
    """Any shift, and any lower triangle with a positive diagonal."""
    stretch = draw(d, d, seed=seed + 7).mul(0.5).tril(-1)
    return draw(d, seed=seed + 6), stretch + draw(d, seed=seed + 8).mul(0.4).exp().diag()


# -- at the exact posterior ------------------------------------------------------------------------


@law
@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 7), seeds)
def test_every_weight_at_the_exact_posterior_is_the_evidence(
    g: int, d: int, k: int, seed: int
) -> None:
    model = model_of(g, d, seed)
    batch = batch_of(model, seed=seed + 3)
    exact = model.log_prob(batch.x)
    terms = vae_of(model).terms(batch, k, seeded(seed))
    weights = terms.log_weight
    torch.testing.assert_close(weights, exact.expand(k, N), rtol=1e-10, atol=1e-8)
    bounds = elbo(terms, sampled_kl=True), importance_weighted_bound(terms)
    for bound in bounds:
        torch.testing.assert_close(bound, exact, rtol=1e-10, atol=1e-8)


@law
@given(seeds)
def test_even_samples_from_elsewhere_weigh_the_evidence(seed: int) -> None:
    model = model_of(seed=seed)
    batch = batch_of(model)
    z = 4 * draw(3, N, D, seed=seed + 9)
    terms = vae_of(model).terms_at(z, model.posterior(batch.x), batch)
    exact = model.log_prob(batch.x).expand(3, N)
    torch.testing.assert_close(terms.log_weight, exact, rtol=1e-10, atol=1e-8)


@law
@given(st.integers(1, 4), seeds)
def test_every_stratum_of_a_split_exact_posterior_weighs_the_evidence(k: int, seed: int) -> None:
    """A mixture of three copies of the exact posterior is the exact posterior."""
    model = model_of()
    batch = batch_of(model)
    copies = model.posterior(batch.x[:, None].expand(N, 3, G))
    vae = vae_of(model)
    vae.posterior = Constant(Mixture(draw(3, seed=seed), copies))
    terms = vae.terms(batch, k, seeded(seed))
    assert terms.z.shape == (3 * k, N, D)
    for bound in (elbo(terms), importance_weighted_bound(terms)):
        torch.testing.assert_close(bound, model.log_prob(batch.x), rtol=1e-10, atol=1e-8)


class Constant(nn.Module):
    def __init__(self, q: Any) -> None:
        super().__init__()
        self.q = q

    def forward(self, batch: Batch) -> Any:
        return self.q


@law
@given(st.lists(st.booleans(), min_size=N * G, max_size=N * G), seeds)
def test_with_entries_missing_it_is_the_evidence_of_the_others(seen: list, seed: int) -> None:
    model = model_of()
    observed = torch.tensor(seen).view(N, G)
    x = torch.where(observed, batch_of(model).x, torch.nan)
    for row, mask in zip(x, observed, strict=True):
        part = LinearGaussian(model.loading[mask], model.loc[mask], model.noise[mask])
        vae = vae_of(model)
        vae.posterior = Constant(part.posterior(row[None, mask]))
        terms = vae.terms(Batch(row[None], observed=mask[None]), 3, seeded(seed))
        exact = part.log_prob(row[None, mask])
        torch.testing.assert_close(terms.log_weight, exact.expand(3, 1), rtol=1e-10, atol=1e-8)


# -- at any other posterior ------------------------------------------------------------------------


@law
@given(seeds)
def test_gap_is_the_kl_to_the_exact_posterior(seed: int) -> None:
    model = model_of(seed=seed)
    batch = batch_of(model)
    terms = vae_of(model, SigmaPoints, *any_posterior(seed)).terms(batch)
    gap = model.log_prob(batch.x) - elbo(terms)
    expected = kl_divergence(terms.q, model.posterior(batch.x))
    torch.testing.assert_close(gap, expected, rtol=1e-8, atol=1e-8)
    assert (gap > 0).all()


def test_mean_log_weight_misses_by_the_kl_to_the_exact_posterior() -> None:
    model, k = model_of(), 20_000
    batch = batch_of(model)
    terms = vae_of(model, FullGaussian, *any_posterior(0)).terms(batch, k, seeded(0))
    gap = model.log_prob(batch.x) - terms.log_weight
    expected = kl_divergence(terms.q, model.posterior(batch.x))
    assert ((gap.mean(0) - expected).abs() < 5 * gap.std(0) / math.sqrt(k)).all()
    torch.testing.assert_close(elbo(terms, sampled_kl=True), terms.log_weight.mean(0))


@law
@given(seeds)
def test_energy_and_entropy_make_the_elbo(seed: int) -> None:
    model = model_of(seed=seed)
    terms = vae_of(model, SigmaPoints, *any_posterior(seed)).terms(batch_of(model))
    torch.testing.assert_close(terms.energy + terms.entropy, elbo(terms), rtol=1e-10, atol=1e-9)


@law
@given(st.integers(1, 5), seeds)
def test_without_closed_forms_energy_and_entropy_make_the_elbo_of_any_samples(
    k: int, seed: int
) -> None:
    model = model_of(seed=seed)
    batch = batch_of(model)
    vae = vae_of(model)
    components = Gaussian(draw(N, 3, D, seed=seed), draw(N, 3, D, seed=seed + 1).exp())
    vae.posterior = Constant(Mixture(draw(N, 3, seed=seed + 2), components))
    terms = vae.terms(batch, k, seeded(seed))
    torch.testing.assert_close(terms.energy + terms.entropy, elbo(terms), rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(elbo(terms), terms.mean(terms.log_weight), rtol=1e-10, atol=1e-9)


def test_energy_and_entropy_make_the_elbo_on_average() -> None:
    model, k = model_of(), 20_000
    batch = batch_of(model)
    terms = vae_of(model, FullGaussian, *any_posterior(0)).terms(batch, k, seeded(0))
    error = (terms.log_prior + terms.log_px).std(0) / math.sqrt(k)
    exact = elbo(vae_of(model, SigmaPoints, *any_posterior(0)).terms(batch))
    assert ((terms.energy + terms.entropy - exact).abs() < 5 * error).all()
    assert (error < 0.2).all()


def test_sampled_kl_is_the_closed_form_on_average() -> None:
    model, k = model_of(), 20_000
    terms = vae_of(model, FullGaussian, *any_posterior(0)).terms(batch_of(model), k, seeded(0))
    log_ratio = terms.log_q - terms.log_prior
    error = log_ratio.std(0) / math.sqrt(k)
    assert ((terms.sampled_kl - terms.kl).abs() < 5 * error).all()
    torch.testing.assert_close(terms.kl, kl_divergence(terms.q, terms.prior))


def test_strata_of_a_mixture_estimate_the_same_bound_as_its_samples() -> None:
    model, k = model_of(), 20_000
    batch = batch_of(model)
    components = Gaussian(draw(N, 3, D), draw(N, 3, D, seed=1).mul(0.3).exp())
    q = Mixture(draw(N, 3, seed=2), components)
    vae = vae_of(model)
    vae.posterior = Constant(q)
    by_strata = vae.terms(batch, k, seeded(0))
    plain = vae.terms_at(q.sample((k,), generator=seeded(1)), q, batch)
    error = plain.log_weight.std(0) / math.sqrt(k)
    assert ((elbo(by_strata) - elbo(plain)).abs() < 7 * error).all()
    evidence = model.log_prob(batch.x)
    assert (elbo(by_strata) < evidence).all()
    assert (importance_weighted_bound(by_strata) - evidence).abs().max() < 0.15


@law
@given(st.floats(0, 5), st.booleans(), seeds)
def test_beta_weighs_the_kl_alone(beta: float, sampled: bool, seed: int) -> None:
    model = model_of(seed=seed)
    terms = vae_of(model, FullGaussian, *any_posterior(seed)).terms(batch_of(model), 3, seeded(0))
    kl = terms.sampled_kl if sampled else terms.kl
    bound = elbo(terms, beta, sampled_kl=sampled)
    torch.testing.assert_close(bound, terms.log_px.mean(0) - beta * kl)
    assert not torch.allclose(terms.kl, terms.sampled_kl)


def test_warm_up_ends_at_the_elbo() -> None:
    model = model_of()
    terms = vae_of(model, FullGaussian, 0.5, 1.3).terms(batch_of(model), 3, seeded(0))
    bounds = torch.stack([elbo(terms, warmup(step, 10)) for step in range(15)])
    torch.testing.assert_close(bounds[9:], elbo(terms).expand(6, N))
    steps = bounds[1:10] - bounds[:9]
    torch.testing.assert_close(steps, (-terms.kl / 10).expand(9, N))
    assert torch.equal(elbo(terms, warmup(0, 0)), elbo(terms))


# -- a trained VAE ---------------------------------------------------------------------------------


class LinearDecoder(nn.Module):
    """p(x | z) = N(Wz + b, s^2 I), all learned."""

    def __init__(self, g: int, d: int) -> None:
        super().__init__()
        self.loading = nn.Parameter(0.3 * draw(g, d, seed=11))
        self.loc = nn.Parameter(torch.zeros(g, dtype=F64))
        self.log_scale = nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return Gaussian(z @ self.loading.T + self.loc, self.log_scale.exp())

    @property
    def model(self) -> LinearGaussian:
        noise = (2 * self.log_scale).exp().expand(len(self.loc))
        return LinearGaussian(self.loading.detach(), self.loc.detach(), noise.detach())


def test_a_trained_linear_vae_reaches_the_maximum_likelihood_of_ppca() -> None:
    made = LinearGaussian(draw(6, 2), draw(6, seed=1), torch.full((6,), 0.5, dtype=F64))
    x = made.likelihood(draw(200, 2, seed=2)).sample(generator=seeded(3))
    best = ppca(x, 2).log_prob(x).mean().item()
    posterior = Encoder(MLP(6, 6, 0), Head(6, 2, GAUSSIAN, seeded(0))).double()
    decoder = LinearDecoder(6, 2)
    vae, batch, generator = VAE(StandardNormal(2).double(), posterior, decoder), Batch(x), seeded(4)
    optimizer = torch.optim.Adam(vae.parameters(), 0.1, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        loss = -elbo(vae.terms(batch, 2, generator)).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    evidence = decoder.model.log_prob(x).mean().item()
    bound = elbo(vae.terms(batch, 2000, generator)).mean().item()
    assert evidence <= best
    assert evidence == pytest.approx(best, rel=1e-4)
    # The axes are free to turn, and do, until the exact posterior is diagonal.
    assert bound == pytest.approx(best, rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(*decoder.loading.detach().T, dim=0)
    assert abs(cosine.item()) < 0.05
    assert score_of_start(x) < best - 1


def score_of_start(x: Tensor) -> float:
    return LinearDecoder(6, 2).model.log_prob(x).mean().item()


# -- importance weighting --------------------------------------------------------------------------


def subset(terms: Terms, chosen: tuple[int, ...]) -> Terms:
    return dataclasses.replace(terms, z=terms.z[list(chosen)], log_px=terms.log_px[list(chosen)])


@law
@given(st.integers(2, 6), seeds)
def test_bound_of_all_is_at_least_the_mean_over_subsets_of_samples(n: int, seed: int) -> None:
    """The step of the proof that the bound rises with k, which holds for any samples."""
    model = model_of(seed=seed)
    terms = vae_of(model, FullGaussian, *any_posterior(seed)).terms(
        batch_of(model), n, seeded(seed)
    )
    means = [
        torch.stack(
            [
                importance_weighted_bound(subset(terms, chosen))
                for chosen in itertools.combinations(range(n), k)
            ]
        ).mean(0)
        for k in range(1, n + 1)
    ]
    torch.testing.assert_close(means[0], elbo(terms, sampled_kl=True))
    for lower, higher in itertools.pairwise(means):
        assert (higher > lower - 1e-10).all()
    assert (means[-1] > means[0]).all()


def test_exponential_of_the_importance_bound_is_unbiased_for_the_evidence() -> None:
    model, repeats = model_of(), 20_000
    batch = Batch(batch_of(model, 1).x.expand(repeats, G))
    exact = model.log_prob(batch.x[:1])
    vae = vae_of(model, FullGaussian, 0.2, 1.4)
    for k in (1, 3, 10):
        bound = importance_weighted_bound(vae.terms(batch, k, seeded(k)))
        ratio = (bound - exact).exp()
        assert (ratio.mean() - 1).abs() < 5 * ratio.std() / math.sqrt(repeats)
        assert bound.mean() < exact


def test_importance_bound_meets_the_evidence() -> None:
    model, samples = model_of(), 100_000
    batch = batch_of(model)
    terms = vae_of(model, FullGaussian, 0.2, 1.3).terms(batch, samples, seeded(0))
    bound, exact = importance_weighted_bound(terms), model.log_prob(batch.x)
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.02)
    assert (exact - elbo(terms) > 0.05).all()


# -- log p(x) --------------------------------------------------------------------------------------


def test_log_evidence_is_exact_at_the_exact_posterior() -> None:
    model = model_of()
    batch = batch_of(model)
    estimate = log_evidence(vae_of(model), batch, 50, seeded(0))
    torch.testing.assert_close(estimate.value, model.log_prob(batch.x), rtol=1e-10, atol=1e-8)
    assert (estimate.standard_error < 1e-6).all()


@pytest.mark.parametrize(("samples", "chunk"), [(400, 100), (400, 130), (400, 1000)])
def test_log_evidence_is_within_its_error_as_often_as_it_says(samples: int, chunk: int) -> None:
    model, n = model_of(), 2500
    batch = batch_of(model, n)
    vae = vae_of(model, FullGaussian, 0.3, 1.3)
    estimate = log_evidence(vae, batch, samples, seeded(0), chunk=chunk)
    z = (estimate.value - model.log_prob(batch.x)) / estimate.standard_error
    for width, share in ((1, 0.6827), (1.96, 0.95), (0.5, 0.3829)):
        assert (z.abs() < width).double().mean().item() == pytest.approx(share, abs=0.03)
    assert abs(z.mean().item()) < 0.15  # biased downwards by half a variance, z on average by less
    assert 0.03 < estimate.standard_error.mean().item() < 0.1


def test_error_of_log_evidence_is_that_of_the_delta_method() -> None:
    model, k = model_of(), 300
    batch = batch_of(model)
    vae = vae_of(model, FullGaussian, *any_posterior(0))
    stream = Stream(vae.encode(batch), vae.encode(batch).sample((k,), generator=seeded(1)))
    vae.posterior = Constant(stream)
    estimate = log_evidence(vae, batch, k)
    weights = vae.terms_at(stream.draws, stream, batch).log_weight.exp().numpy()
    np.testing.assert_allclose(estimate.value.numpy(), np.log(weights.mean(0)), rtol=1e-10)
    error = weights.std(0, ddof=1) / math.sqrt(k) / weights.mean(0)
    np.testing.assert_allclose(estimate.standard_error.numpy(), error, rtol=1e-6)


def test_one_draw_has_no_error_to_state() -> None:
    model = model_of()
    estimate = log_evidence(vae_of(model, FullGaussian, 1.0), batch_of(model), 1, seeded(0))
    assert estimate.value.isfinite().all()
    assert not estimate.standard_error.isfinite().any()


class Stream(FullGaussian):
    """A Gaussian that hands out given draws, in their order."""

    def __init__(self, q: FullGaussian, draws: Tensor) -> None:
        super().__init__(q.loc, q.scale_tril)
        self.draws, self.taken = draws, 0

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        first, self.taken = self.taken, self.taken + sample_shape[0]
        assert self.taken <= len(self.draws)
        return self.draws[first : self.taken]


@law
@given(st.integers(2, 60), st.integers(1, 70), st.booleans())
def test_chunks_do_not_matter(samples: int, chunk: int, naive: bool) -> None:
    model = model_of()
    batch = batch_of(model)
    start = (
        FullGaussian(torch.zeros(N, D, dtype=F64), torch.eye(D, dtype=F64))
        if naive
        else model.posterior(batch.x + 1)
    )
    draws = start.sample((samples,), generator=seeded(samples))

    def estimate(chunk: int) -> Estimate:
        vae = vae_of(model)
        stream = Stream(start, draws)
        if naive:
            vae.prior = Constant(stream)
        else:
            vae.posterior = Constant(stream)
        result = log_evidence(vae, batch, samples, naive=naive, chunk=chunk)
        assert stream.taken == samples
        return result

    whole, parts = estimate(samples), estimate(chunk)
    torch.testing.assert_close(parts.value, whole.value, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(parts.standard_error, whole.standard_error, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("d", [1, 2])
def test_naive_log_evidence_is_right_in_few_dimensions(d: int) -> None:
    model, n = model_of(3, d), 500
    x = model.likelihood(draw(n, d, seed=8)).sample(generator=seeded(9))
    estimate = log_evidence(vae_of(model), Batch(x), 4000, seeded(0), naive=True)
    z = (estimate.value - model.log_prob(x)) / estimate.standard_error
    assert (z.abs() < 1.96).double().mean().item() == pytest.approx(0.95, abs=0.04)
    assert estimate.standard_error.median() < 0.1


def test_naive_log_evidence_is_hopeless_in_eight_dimensions() -> None:
    model = dataclasses.replace(model_of(12, 8), noise=torch.full((12,), 0.1, dtype=F64))
    x = model.likelihood(draw(50, 8, seed=8)).sample(generator=seeded(9))
    vae = vae_of(model, FullGaussian, 0.05, 1.1)
    good, naive = (
        log_evidence(vae, Batch(x), 2000, seeded(0), naive=naive) for naive in (False, True)
    )
    assert naive.standard_error.median() > 10 * good.standard_error.median()
    off = (naive.value - model.log_prob(x)).abs()
    assert off.median() > 10 * (good.value - model.log_prob(x)).abs().median()
    assert (good.value - model.log_prob(x)).abs().max() < 0.2


def test_log_evidence_does_not_ask_what_the_posterior_is() -> None:
    model = model_of()
    batch = batch_of(model)
    shifted = vae_of(model, FullGaussian, 0.4, 1.5)
    mixed = vae_of(model)
    q = model.posterior(batch.x)
    loc = torch.stack([q.loc - 0.3, q.loc + 0.3], dim=1)
    mixed.posterior = Constant(
        Mixture(torch.zeros(2, dtype=F64), FullGaussian(loc, 1.2 * q.scale_tril[:, None]))
    )
    for vae in (shifted, mixed):
        estimate = log_evidence(vae, batch, 20_000, seeded(0), chunk=5000)
        off = (estimate.value - model.log_prob(batch.x)).abs()
        assert (off < 4 * estimate.standard_error).all()
        assert (estimate.standard_error < 0.03).all()


# -- minibatches -----------------------------------------------------------------------------------


@law
@given(st.lists(st.integers(1, 11), max_size=5, unique=True), seeds)
def test_gradients_of_minibatches_average_to_that_of_all(cuts: list, seed: int) -> None:
    """... each counted as often as it would be drawn, a row at a time."""
    model = model_of()
    x = batch_of(model, 12).x[torch.randperm(12, generator=seeded(seed))]
    shift, stretch = (t.requires_grad_() for t in any_posterior(seed))
    vae = vae_of(model, SigmaPoints, shift, stretch)

    def gradients(rows: Tensor) -> list[Tensor]:
        total = scale_to_dataset(elbo(vae.terms(Batch(rows))), 12)
        return [total.detach(), *torch.autograd.grad(total, [shift, stretch])]

    parts = x.tensor_split(sorted(cuts))
    mean = [
        sum(len(part) / 12 * g for part, g in zip(parts, each, strict=True))
        for each in zip(*(gradients(part) for part in parts), strict=True)
    ]
    torch.testing.assert_close(mean, gradients(x), rtol=1e-9, atol=1e-9)


def test_scaled_bound_of_all_cells_is_their_sum() -> None:
    per_cell = draw(7)
    assert torch.equal(scale_to_dataset(per_cell, 7), per_cell.sum())
    torch.testing.assert_close(scale_to_dataset(per_cell, 70), 10 * per_cell.sum())


# -- the score function ----------------------------------------------------------------------------

REPEATS = 20_000


class RowDecoder(nn.Module):
    """A linear-Gaussian likelihood with parameters of every row's own: a draw of the gradient in
    each row."""

    def __init__(self, model: LinearGaussian, n: int, offset: float = 0.0) -> None:
        super().__init__()
        self.loading = nn.Parameter(model.loading.expand(n, *model.loading.shape).clone())
        self.loc = nn.Parameter(model.loc.expand(n, -1).clone())
        self.log_scale = nn.Parameter(model.noise.log().mul(0.5).expand(n, -1).clone())
        self.offset = offset

    def forward(self, z: Tensor, batch: Batch) -> Any:
        loc = torch.einsum("knd,ngd->kng", z, self.loading) + self.loc
        return Raised(loc, self.log_scale.exp(), self.offset)


class Raised(Gaussian):
    """A Gaussian whose log-density is off by a constant."""

    def __init__(self, loc: Tensor, scale: Tensor, offset: float) -> None:
        super().__init__(loc, scale)
        self.offset = offset

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + self.offset


def row_vae(n: int, offset: float = 0.0) -> tuple[VAE, Batch]:
    """A VAE whose prior, posterior and likelihood all learn, with n rows of one and the same x."""
    model = model_of(3)
    wide = torch.zeros(n, D, dtype=F64)
    prior = MeanField(Gaussian(wide + 0.3, torch.tensor([1.2, 0.8], dtype=F64)))
    posterior = MeanField(Gaussian(wide - 0.2, torch.tensor([0.5, 0.7], dtype=F64)))
    batch = Batch((model.loc + torch.tensor([1.0, -0.5, 0.7])).expand(n, 3))
    return VAE(prior, posterior, RowDecoder(model, n, offset)), batch


def gradients(bound: Tensor, vae: VAE) -> dict[str, Tensor]:
    names, parameters = zip(*vae.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(bound.sum(), parameters), strict=True))


def exact_gradients() -> dict[str, Tensor]:
    vae, batch = row_vae(1)
    q = vae.encode(batch)
    points = SigmaPoints.of_diagonal(q)
    return gradients(elbo(vae.terms_at(points.rsample(), q, batch)), vae)


def test_score_function_bound_has_the_value_of_the_sampled_elbo() -> None:
    vae, batch = row_vae(50)
    bound = score_function_elbo(vae, batch, 4, seeded(0))
    sampled = elbo(vae.terms(batch, 4, seeded(0)), sampled_kl=True)
    torch.testing.assert_close(bound, sampled, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 10])
def test_score_function_gradient_is_unbiased_and_varies_more(samples: int) -> None:
    vae, batch = row_vae(REPEATS)
    score = gradients(score_function_elbo(vae, batch, samples, seeded(0)), vae)
    path = gradients(elbo(vae.terms(batch, samples, seeded(1))), vae)
    exact = exact_gradients()
    assert len(exact) == 7
    for name, expected in exact.items():
        for estimate in (score[name], path[name]):
            error = estimate.std(0) / math.sqrt(REPEATS)
            off = (estimate.mean(0) - expected[0]).abs()
            assert (off <= 5 * error + 1e-10).all(), name
            assert (error < 0.1).all()
        if name.startswith("posterior"):
            assert (score[name].var(0) > 2 * path[name].var(0)).all(), name


def test_score_function_bound_wants_samples_for_its_baseline() -> None:
    vae, batch = row_vae(2)
    with pytest.raises(ValueError, match="samples"):
        score_function_elbo(vae, batch, 1)


def test_baseline_takes_out_any_constant() -> None:
    """A likelihood times a constant has the same gradient, draw by draw."""
    (plain, batch), (raised, _) = row_vae(50), row_vae(50, offset=1000.0)
    bounds = [score_function_elbo(vae, batch, 5, seeded(0)) for vae in (plain, raised)]
    torch.testing.assert_close(bounds[1] - bounds[0], torch.full((50,), 1000.0, dtype=F64))
    ours, theirs = (gradients(b, v) for b, v in zip(bounds, (plain, raised), strict=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_score_function_gradient_vanishes_draw_by_draw_at_the_exact_posterior() -> None:
    """All weights are equal there, and a constant signal is its own baseline."""
    model = model_of()
    batch = batch_of(model)
    shift = torch.zeros(D, dtype=F64, requires_grad=True)
    vae = vae_of(model, FullGaussian, shift)
    (gradient,) = torch.autograd.grad(score_function_elbo(vae, batch, 5, seeded(0)).sum(), shift)
    torch.testing.assert_close(gradient, torch.zeros_like(shift), rtol=0, atol=1e-8)
    (path,) = torch.autograd.grad(elbo(vae.terms(batch, 5, seeded(0))).sum(), shift)
    assert path.norm() > 1e-3


class Bits(nn.Module):
    """Bernoulli latent variables, with log-odds of every row's own."""

    def __init__(self, logits: Tensor, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.expand(n, -1).clone())

    def forward(self, batch: Batch) -> Bernoulli:
        return Bernoulli(self.logits)


def test_score_function_gradient_of_discrete_latents_is_unbiased() -> None:
    model = model_of(3)
    x = model.loc + torch.tensor([1.0, -0.5, 0.7])

    def vae_of_bits(n: int) -> VAE:
        prior, posterior = Bits(draw(D, seed=1), n), Bits(draw(D, seed=2), n)
        return VAE(prior, posterior, RowDecoder(model, n))

    vae = vae_of_bits(1)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=D)), dtype=F64)[:, None]
    terms = vae.terms_at(every, vae.encode(Batch(x[None])), Batch(x[None]))
    bound = (terms.log_q.exp() * terms.log_weight).sum(0)
    exact = gradients(bound, vae)
    wide = vae_of_bits(REPEATS)
    estimate = score_function_elbo(wide, Batch(x.expand(REPEATS, 3)), 5, seeded(0))
    error = estimate.std() / math.sqrt(REPEATS)
    assert (estimate.mean() - bound[0]).abs() < 5 * error
    for name, gradient in gradients(estimate, wide).items():
        error = gradient.std(0) / math.sqrt(REPEATS)
        assert ((gradient.mean(0) - exact[name][0]).abs() <= 5 * error + 1e-10).all(), name


# -- the tail of the weights -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_the_shape_of_a_tail_is_found(shape: float) -> None:
    """Of weights that have it throughout: u^-shape is Pareto."""
    u = torch.rand(4000, 500, generator=seeded(0), dtype=torch.float64)
    found = tail_shape(-shape * u.log())
    drawn = 0.5 * 10 / (190 + 10)  # to 0.5, by ten of 190 observations
    assert found.mean().item() == pytest.approx(shape * 190 / 200 + drawn, abs=0.03)
    assert found.std() < 0.15


def test_equal_weights_have_no_tail_and_few_draws_tell_none() -> None:
    assert (tail_shape(torch.zeros(1000, 3)) < 0.1).all()
    assert tail_shape(torch.zeros(10, 3)).isnan().all()


@pytest.mark.parametrize("width", [0.6, 1.0, 1.2])
def test_log_evidence_tells_where_its_error_is_too_small(width: float) -> None:
    """A posterior of `width` times the exact one has weights of shape 1 - width^2 below 1."""
    model = LinearGaussian(draw(6, 2), draw(6, seed=1) * 0, torch.full((6,), 0.5).double())

    class Of(nn.Module):
        def forward(self, batch: Batch) -> FullGaussian:
            p = model.posterior(batch.x)
            return FullGaussian(p.loc + 0.2, width * p.scale_tril)

    x = model.marginal.sample((1,), generator=seeded(2)).expand(500, -1)
    vae = VAE(StandardNormal(2).double(), Of(), Likelihood(model))
    estimate = log_evidence(vae, Batch(x), 1000, seeded(0))
    assert estimate.tail is not None
    assert estimate.tail.shape == (500,)
    off = (estimate.value - model.log_prob(x)).abs() / estimate.standard_error
    covers = (off < 1.96).double().mean() > 0.9
    assert covers == (estimate.tail.mean() < 0.45)
    assert covers == (width >= 1)


@pytest.mark.parametrize("stretch", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("samples", [100, 1000])
def test_intervals_of_the_evidence_hold_it_however_narrow_the_posterior(
    stretch: float, samples: int
) -> None:
    """The standard error alone: 42 to 88 % below the exact width."""
    repeats, d = 400, 2
    model = LinearGaussian(draw(6, d), torch.zeros(6, dtype=F64), torch.full((6,), 0.5, dtype=F64))
    x = model.marginal.sample((1,), seeded(1))

    class Narrow(nn.Module):
        def forward(self, batch: Batch) -> FullGaussian:
            p = model.posterior(batch.x)
            return FullGaussian(p.loc + 0.2 * p.variance.sqrt(), stretch * p.scale_tril)

    class Likelihood(nn.Module):
        def forward(self, z: Tensor, batch: Batch) -> Gaussian:
            return model.likelihood(z)

    vae = VAE(StandardNormal(d).double(), Narrow(), Likelihood())
    estimate = log_evidence(vae, Batch(x.expand(repeats, -1)), samples, seeded(2))
    truth = model.log_prob(x)
    low, high = estimate.interval()
    held = ((low <= truth) & (truth <= high)).double().mean()
    assert held > 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats)
    if stretch == 0.4:
        off = (estimate.value - truth).abs() / estimate.standard_error
        assert (off < 1.96).double().mean() < 0.6
        assert (high == math.inf).double().mean() > 0.8
    if stretch == 1.0 and samples == 1000:
        assert high.isfinite().all()


def test_intervals_without_a_tail_are_of_the_normal_law() -> None:
    low, high = Estimate(torch.zeros(2), torch.ones(2)).interval(0.9)
    torch.testing.assert_close(high, torch.full((2,), 1.6448536))
    assert torch.equal(low, -high)
    with pytest.raises(ValueError, match="level=95, but it must be between 0 and 1"):
        Estimate(torch.zeros(2), torch.ones(2)).interval(95)
