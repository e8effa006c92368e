"""Questions to linear-Gaussian models: conditioning a joint Gaussian gives the exact answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch import Generator, Tensor, nn

from scvae.core import queries
from scvae.core.batch import Batch
from scvae.core.distributions import Bernoulli, FullGaussian, Gaussian, Mixture
from scvae.core.heads import GAUSSIAN, Decoder, Encoder, Head
from scvae.core.inference import MeanField
from scvae.core.linear import LinearGaussian
from scvae.core.networks import MLP
from scvae.core.objectives import elbo, log_evidence
from scvae.core.priors import MixtureOfGaussians, StandardNormal
from scvae.core.queries import (
    aggregated_posterior,
    atypicality,
    impute,
    interpolate,
    likelihood_regret,
    reconstruct,
    surprise,
)
from scvae.core.vae import VAE
from tests.draws import draw, seeded

F64 = torch.float64
N, G, D = 6, 5, 2
law = settings(deadline=None, derandomize=True, max_examples=60)
fewer = settings(deadline=None, derandomize=True, max_examples=10)
seeds = st.integers(0, 10_000)


# -- a linear-Gaussian VAE -------------------------------------------------------------------------


class Likelihood(nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return self.model.likelihood(z)


class Exact(nn.Module):
    """The exact posterior of a complete row, diagonal where `kind` is `Gaussian`."""

    def __init__(self, model: LinearGaussian, kind: Any) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, batch: Batch) -> Any:
        q = self.model.posterior(batch.x)
        return q if self.kind is FullGaussian else Gaussian(q.mean, q.variance.sqrt())


class Constant(nn.Module):
    def __init__(self, q: Any) -> None:
        super().__init__()
        self.q = q

    def forward(self, batch: Batch) -> Any:
        return self.q


def model_of(seed: int = 0, g: int = G, d: int = D) -> LinearGaussian:
    noise = draw(g, seed=seed + 2).mul(0.5).exp()
    return LinearGaussian(draw(g, d, seed=seed), draw(g, seed=seed + 1), noise)


def orthogonal(seed: int = 0) -> LinearGaussian:
    """A model whose exact posterior is diagonal."""
    model = model_of(seed)
    columns = torch.linalg.qr(draw(G, D, seed=seed)).Q * torch.tensor([2.0, 0.8], dtype=F64)
    return LinearGaussian(model.noise.sqrt()[:, None] * columns, model.loc, model.noise)


def vae_of(model: LinearGaussian, posterior: nn.Module | None = None) -> VAE:
    prior = StandardNormal(model.loading.shape[1]).double()
    return VAE(prior, posterior or Exact(model, FullGaussian), Likelihood(model))


def rows_of(model: LinearGaussian, n: int = N, seed: int = 5) -> Tensor:
    z = draw(n, model.loading.shape[1], seed=seed)
    return model.likelihood(z).sample(generator=seeded(seed + 1))


def normal(n: int, loc: float = 0.0, scale: float = 1.0, d: int = D) -> Gaussian:
    wide = torch.zeros(n, d, dtype=F64)
    return Gaussian(wide + loc, wide + scale)


def network_vae() -> VAE:
    """Networks that answer by their mode: batch normalisation, and dropout in the decoder."""
    posterior = Encoder(MLP(G, 8, generator=seeded(0)), Head(8, D, GAUSSIAN, seeded(1)))
    head = nn.Sequential(nn.Dropout(0.5), Head(8, G, GAUSSIAN, seeded(3)))
    likelihood = Decoder(MLP(D, 8, generator=seeded(2)), head)
    return VAE(StandardNormal(D), posterior, likelihood).double()


# -- every query -----------------------------------------------------------------------------------

QUERIES: dict[str, Callable[[VAE, Batch, Generator], Any]] = {
    "reconstruct": lambda vae, batch, g: reconstruct(vae, batch, 3, g),
    "impute": lambda vae, batch, g: impute(vae, batch, 5, steps=3, generator=g),
    "aggregated_posterior": lambda vae, batch, g: aggregated_posterior(vae, batch).mean,
    "surprise": lambda vae, batch, g: surprise(vae, batch, 5, g),
    "likelihood_regret": lambda vae, batch, g: likelihood_regret(
        vae, batch, 5, steps=3, generator=g
    ),
    "log_evidence": lambda vae, batch, g: log_evidence(vae, batch, 5, g).value,
    "sample": lambda vae, batch, g: torch.cat(vae.sample(4, generator=g), dim=1),
}
each = pytest.mark.parametrize("query", QUERIES)


def some_batch() -> Batch:
    observed = torch.rand(N, G, generator=seeded(8)) < 0.7
    return Batch(rows_of(model_of()), observed=observed)


@each
@pytest.mark.parametrize("training", [True, False])
def test_queries_leave_the_model_and_the_global_state_alone(query: str, training: bool) -> None:
    vae, batch = network_vae().train(training), some_batch()
    kept = {name: value.clone() for name, value in vae.state_dict().items()}
    x, state = batch.x.clone(), torch.get_rng_state()
    answer = QUERIES[query](vae, batch, seeded(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, kept[name]) for name, value in vae.state_dict().items())
    assert all(module.training is training for module in vae.modules())
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert torch.equal(batch.x, x)
    assert not answer.requires_grad


@each
def test_queries_answer_in_evaluation_mode_and_by_the_generator(query: str) -> None:
    batch, ask = some_batch(), QUERIES[query]
    quiet, loud = network_vae().eval(), network_vae().train()
    answer = ask(quiet, batch, seeded(0))
    assert torch.equal(answer, ask(loud, batch, seeded(0)))
    if query != "aggregated_posterior":
        assert not torch.equal(answer, ask(quiet, batch, seeded(1)))


# -- reconstruct -----------------------------------------------------------------------------------


def test_reconstruction_is_the_decoded_posterior_mean_where_decoding_is_linear() -> None:
    model, k = model_of(), 40_000
    x = rows_of(model)
    q = model.posterior(x)
    mean = model.likelihood(q.mean).mean
    spread = model.loading @ q.covariance @ model.loading.T  # of the decoded mean, over z
    error = spread.diagonal(dim1=-2, dim2=-1).sqrt() / math.sqrt(k)
    answer = reconstruct(vae_of(model), Batch(x), k, seeded(0))
    assert ((answer - mean).abs() < 5 * error).all()


def test_reconstruction_of_one_point_is_the_decoded_point() -> None:
    model, loc = model_of(), draw(N, D, seed=3)
    point = Constant(Gaussian(loc, torch.full((D,), 1e-12, dtype=F64)))
    answer = reconstruct(vae_of(model, point), Batch(rows_of(model)), 2, seeded(0))
    torch.testing.assert_close(answer, model.likelihood(loc).mean, rtol=0, atol=1e-9)


def test_reconstruction_averages_means_and_does_not_decode_the_average() -> None:
    """Through an exponential, E[exp z] = exp(mu + s^2 / 2)."""

    class Exponential(nn.Module):
        def forward(self, z: Tensor, batch: Batch) -> Gaussian:
            return Gaussian(z.exp(), torch.ones(D, dtype=F64))

    q = normal(N, 0.3, 0.5)
    vae = VAE(StandardNormal(D).double(), Constant(q), Exponential())
    answer = reconstruct(vae, Batch(torch.zeros(N, D, dtype=F64)), 100_000, seeded(0))
    expected = torch.full((N, D), math.exp(0.3 + 0.125), dtype=F64)
    torch.testing.assert_close(answer, expected, rtol=0.02, atol=0)


# -- impute ----------------------------------------------------------------------------------------


def conditional_mean(model: LinearGaussian, x: Tensor, observed: Tensor) -> Tensor:
    """E[x_mis | x_obs] of every row, from the joint Gaussian of x."""
    covariance, result = model.marginal.covariance, x.clone()
    for n, seen in enumerate(observed):
        within = covariance[seen][:, seen]
        gain = torch.linalg.solve(within, covariance[seen][:, ~seen]).T
        result[n, ~seen] = model.loc[~seen] + gain @ (x[n, seen] - model.loc[seen])
    return result


def holes(n: int, seed: int = 8) -> Tensor:
    observed = torch.rand(n, G, generator=seeded(seed)) < 0.6
    observed[0], observed[1] = True, False
    return observed


@pytest.mark.parametrize("model", [orthogonal(), model_of(), model_of(3)])
def test_imputation_is_the_conditional_mean(model: LinearGaussian) -> None:
    n, k = 8, 20_000
    x, observed = rows_of(model, n), holes(8)
    vae = vae_of(model, Constant(normal(n, 3.0, 0.3)))  # so far off that no weights could mend it
    answer = impute(vae, Batch(x, observed=observed), k, steps=400, generator=seeded(0))
    expected = conditional_mean(model, x, observed)
    error = (model.loading.square().sum(1) / k).sqrt()  # at most: z has the prior's spread
    assert ((answer - expected).abs() < 8 * error).all()
    torch.testing.assert_close(answer[1], model.loc, rtol=0, atol=0.1)
    assert ((x - expected)[~observed].abs() > 0.1).any()


def test_imputation_is_right_even_where_the_fit_is_not() -> None:
    """No steps at all: the importance weights do the whole work."""
    model, n = model_of(), 8
    x, observed = rows_of(model, n), holes(8)
    vae = vae_of(model, Constant(normal(n, 0.2, 1.2)))
    batch = Batch(x, observed=observed)
    answer = impute(vae, batch, 100_000, steps=0, generator=seeded(0))
    expected = conditional_mean(model, x, observed)
    torch.testing.assert_close(answer, expected, rtol=0, atol=0.06)


@fewer
@given(seeds, st.sampled_from([0.0, -1e5, math.nan, math.inf]))
def test_imputation_keeps_what_was_seen_and_ignores_the_rest(seed: int, filler: float) -> None:
    model, observed = model_of(), holes(N, seed)
    x = rows_of(model, seed=seed)
    vae = vae_of(model, Constant(normal(N)))
    answers = [
        impute(vae, Batch(row, observed=observed), 50, steps=3, generator=seeded(0))
        for row in (x, torch.where(observed, x, filler))
    ]
    assert torch.equal(answers[0][observed], x[observed])
    assert torch.equal(answers[0], answers[1])
    assert answers[0].isfinite().all()


def test_imputation_wants_to_know_what_is_missing() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="observed"):
        impute(vae_of(model), Batch(rows_of(model)))


# -- aggregated posterior --------------------------------------------------------------------------


def test_aggregated_posterior_is_the_mean_over_rows() -> None:
    model, x = model_of(), rows_of(model_of())
    z = 2 * draw(7, D, seed=9)
    for kind in (Gaussian, FullGaussian):
        vae = vae_of(model, Exact(model, kind))
        together = aggregated_posterior(vae, Batch(x))
        each_row = vae.encode(Batch(x)).log_prob(z[:, None]).numpy()
        expected = logsumexp(each_row, axis=1) - math.log(N)
        assert together.batch_shape == torch.Size([])
        np.testing.assert_allclose(together.log_prob(z).numpy(), expected, rtol=1e-10)
        q = vae.encode(Batch(x))
        torch.testing.assert_close(together.mean, q.mean.mean(0))
        total = q.variance.mean(0) + q.mean.var(0, correction=0)
        torch.testing.assert_close(together.variance, total)


def test_aggregated_posterior_of_much_data_is_the_prior() -> None:
    model = model_of()
    p = aggregated_posterior(vae_of(model), Batch(rows_of(model, 50_000)))
    torch.testing.assert_close(p.mean, torch.zeros(D, dtype=F64), rtol=0, atol=0.02)
    torch.testing.assert_close(p.variance, torch.ones(D, dtype=F64), rtol=0.03, atol=0)
    z = draw(5, D, seed=1)
    log_prior = normal(5).log_prob(z)
    torch.testing.assert_close(p.log_prob(z), log_prior, rtol=0, atol=0.05)


def test_aggregated_posterior_of_mixtures_is_a_mixture() -> None:
    components = Gaussian(draw(N, 3, D), draw(N, 3, D, seed=1).exp())
    q, model = Mixture(draw(N, 3, seed=2), components), model_of()
    p = aggregated_posterior(vae_of(model, Constant(q)), Batch(rows_of(model)))
    z = draw(4, D, seed=3)
    expected = logsumexp(q.log_prob(z[:, None]).numpy(), axis=1) - math.log(N)
    np.testing.assert_allclose(p.log_prob(z).numpy(), expected, rtol=1e-10)
    draws = p.sample((40_000,), generator=seeded(0))
    torch.testing.assert_close(draws.mean(0), q.mean.mean(0), rtol=0, atol=0.1)


# -- interpolate -----------------------------------------------------------------------------------

points = st.lists(st.floats(-10, 10), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=F64)
)
paths = st.sampled_from(["linear", "spherical"])


@law
@given(points, points, st.integers(2, 9), paths)
def test_paths_end_where_they_should(a: Tensor, b: Tensor, steps: int, path: Any) -> None:
    line = interpolate(a, b, steps, path)
    assert line.shape == (steps, 3)
    assert line.dtype == F64
    torch.testing.assert_close(line[0], a, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(line[-1], b, rtol=1e-12, atol=1e-12)
    back = interpolate(b, a, steps, path).flip(0)
    torch.testing.assert_close(line, back, rtol=1e-7, atol=1e-7)


@law
@given(points, points, st.integers(2, 9))
def test_straight_path_has_even_steps(a: Tensor, b: Tensor, steps: int) -> None:
    expected = np.linspace(a.numpy(), b.numpy(), steps)
    line = interpolate(a, b, steps).numpy()
    np.testing.assert_allclose(line, expected, rtol=1e-12, atol=1e-12)


@law
@given(points, points, st.integers(2, 9))
def test_spherical_path_keeps_the_norm_and_has_even_angles(
    a: Tensor, b: Tensor, steps: int
) -> None:
    if min(a.norm(), b.norm()) < 0.1:
        return
    a, b = 3 * a / a.norm(), 3 * b / b.norm()
    cosine = (a @ b / 9).item()
    if abs(cosine) > 1 - 1e-4:
        return
    line = interpolate(a, b, steps, "spherical")
    torch.testing.assert_close(
        line.norm(dim=1), torch.full((steps,), 3.0, dtype=F64), rtol=1e-7, atol=0
    )
    between = (line[1:] * line[:-1]).sum(1) / 9
    expected = math.cos(math.acos(cosine) / (steps - 1))
    torch.testing.assert_close(between, torch.full_like(between, expected), rtol=0, atol=1e-6)


@law
@given(points, points)
def test_midpoint_is_halfway(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(interpolate(a, b, 3)[1], (a + b) / 2)
    middle = interpolate(a, b, 3, "spherical")[1]
    if a.norm() > 0.1 and b.norm() > 0.1 and (a @ b / a.norm() / b.norm()).abs() < 0.99:
        between = a / a.norm() + b / b.norm()
        expected = between / between.norm() * (a.norm() + b.norm()) / 2
        torch.testing.assert_close(middle, expected, rtol=1e-6, atol=1e-6)


@law
@given(points, points, st.integers(2, 9))
def test_no_point_of_a_path_is_longer_than_its_ends(a: Tensor, b: Tensor, steps: int) -> None:
    t = torch.linspace(0, 1, steps, dtype=F64)
    length = interpolate(a, b, steps, "spherical").norm(dim=1)
    assert (length <= max(a.norm(), b.norm()) + 1e-9).all()
    apart = (a / a.norm() - b / b.norm()).norm() if a.norm() and b.norm() else torch.tensor(2.0)
    if 1e-3 < apart < 2 - 1e-6:
        torch.testing.assert_close(length, (1 - t) * a.norm() + t * b.norm())


def test_a_path_to_a_nearly_opposite_longer_end_stays_short() -> None:
    line = interpolate(torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 0.003]), 5, "spherical")
    torch.testing.assert_close(line.norm(dim=1), torch.tensor([1, 1.5, 2, 2.5, 3]))


@law
@given(points, st.floats(-4, 4), st.floats(0, 1e-3), st.booleans())
def test_spherical_path_is_finite_between_any_points(
    a: Tensor, factor: float, off: float, single: bool
) -> None:
    dtype = torch.float32 if single else F64
    start, end = a.to(dtype), (factor * a + off * draw(3)).to(dtype)
    line = interpolate(start, end, 7, "spherical")
    assert line.isfinite().all()
    torch.testing.assert_close(line[0], start, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(line[-1], end, rtol=1e-5, atol=1e-5)
    if factor > 0.01:  # parallel: on the segment, as no arc is left
        straight = interpolate(start, end, 7)
        torch.testing.assert_close(line, straight, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("off", [1e-1, 1e-2, 1e-3, 3e-4])
def test_spherical_path_keeps_the_norm_in_single_precision_too(off: float) -> None:
    """Between nearly opposite points, whose cosine says next to nothing of the angle."""
    basis = torch.linalg.qr(draw(50, 10, 2)).Q.mT * 3
    a, b = basis[:, 0], -math.cos(off) * basis[:, 0] + math.sin(off) * basis[:, 1]
    norm = interpolate(a.float(), b.float(), 3, "spherical")[1].norm(dim=-1)
    torch.testing.assert_close(norm, torch.full((50,), 3.0), rtol=2e-3, atol=0)


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_paths_of_many_rows_are_those_of_each(path: Any) -> None:
    a, b = draw(2, 4, D), draw(2, 4, D, seed=1)
    b[0, 0] = -a[0, 0]
    b[0, 1] = a[0, 1]
    b[0, 2] = 0
    lines = interpolate(a, b, 5, path)
    assert lines.shape == (5, 2, 4, D)
    for i, j in itertools.product(range(2), range(4)):
        torch.testing.assert_close(lines[:, i, j], interpolate(a[i, j], b[i, j], 5, path))


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_paths_from_one_point_to_many_are_those_to_each(path: Any) -> None:
    a, b = draw(D), draw(5, D, seed=1)
    lines = interpolate(a, b, 5, path)
    assert lines.shape == (5, 5, D)
    for i in range(5):
        torch.testing.assert_close(lines[:, i], interpolate(a, b[i], 5, path))


# -- what does not fit -----------------------------------------------------------------------------


def test_surprise_is_minus_the_log_evidence() -> None:
    model = model_of()
    x = rows_of(model)
    off = surprise(vae_of(model), Batch(x), 10, seeded(0)) + model.log_prob(x)
    assert off.abs().max() < 1e-8
    q = model.posterior(x)
    wide = Constant(FullGaussian(q.loc + 0.2, 1.3 * q.scale_tril))
    off = surprise(vae_of(model, wide), Batch(x), 20_000, seeded(0)) + model.log_prob(x)
    assert off.abs().max() < 0.03


def test_surprise_ranks_by_distance_from_the_data() -> None:
    model = model_of()
    x = model.loc + torch.arange(6, dtype=F64)[:, None] * draw(G, seed=3)
    assert (surprise(vae_of(model), Batch(x), 10, seeded(0)).diff() > 0).all()


@law
@given(st.floats(-50, 50), st.floats(0.1, 30), seeds)
def test_atypicality_knows_no_unit_and_no_sign(shift: float, scale: float, seed: int) -> None:
    log_px, training = draw(N, seed=seed), draw(40, seed=seed + 1)
    value = atypicality(log_px, training)
    moved = atypicality(shift + scale * log_px, shift + scale * training)
    torch.testing.assert_close(moved, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(atypicality(-log_px, -training), value)
    order = torch.randperm(40, generator=seeded(seed))
    torch.testing.assert_close(atypicality(log_px, training[order]), value)


def test_atypicality_counts_deviations_from_the_training_mean() -> None:
    training = draw(1000)
    mean, deviation = training.numpy().mean(), training.numpy().std(ddof=1)
    at = torch.tensor([mean, mean + 2 * deviation, mean - 3 * deviation], dtype=F64)
    expected = torch.tensor([0, 2, 3], dtype=F64)
    torch.testing.assert_close(atypicality(at, training), expected, rtol=1e-9, atol=1e-9)


def test_regret_of_an_exact_encoder_is_nothing() -> None:
    model = orthogonal()
    batch = Batch(rows_of(model, 20))
    vae = vae_of(model, Exact(model, Gaussian))
    regret = likelihood_regret(vae, batch, 5000, generator=seeded(0))
    assert regret.abs().max() < 0.15
    assert abs(regret.mean().item()) < 0.03


def test_regret_of_a_bad_encoder_is_its_gap() -> None:
    model = orthogonal()
    x = rows_of(model, 20)
    exact = model.posterior(x)
    bad = Gaussian(exact.mean + draw(20, D, seed=9), 1.5 * exact.variance.sqrt())
    vae = vae_of(model, Constant(bad))
    regret = likelihood_regret(vae, Batch(x), 5000, generator=seeded(0))
    terms = vae.terms(Batch(x), 20_000, seeded(1))
    gap = model.log_prob(x) - elbo(terms)
    torch.testing.assert_close(regret, gap, rtol=0.05, atol=0.4)
    assert (regret > 0.2).all()
    assert gap.max() > 4


@fewer
@given(seeds)
def test_regret_is_never_below_nothing(seed: int) -> None:
    model = orthogonal(seed)
    x = rows_of(model, seed=seed)
    exact = model.posterior(x)
    near = Gaussian(exact.mean + 0.1 * draw(N, D, seed=seed), exact.variance.sqrt())
    vae = vae_of(model, Constant(near))
    regret = likelihood_regret(vae, Batch(x), 4000, steps=60, generator=seeded(seed))
    assert (regret > -0.15).all()


def test_regret_of_an_exact_full_encoder_is_nothing_if_latents_correlate() -> None:
    columns = draw(G, 1) + 0.3 * draw(G, D, seed=1)
    model = LinearGaussian(columns, draw(G, seed=2), torch.full((G,), 0.2, dtype=F64))
    covariance = model.posterior(model.loc).covariance
    assert covariance[0, 1].abs() > 0.9 * covariance.diagonal().prod().sqrt()
    batch = Batch(rows_of(model, 20))
    regret = likelihood_regret(vae_of(model), batch, 5000, generator=seeded(0))
    assert regret.min() > -0.15


# -- ancestral sampling ----------------------------------------------------------------------------


class Loaded(Likelihood):
    """A likelihood with parameters, as trained ones have."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__(model)
        self.loading = nn.Parameter(model.loading)


@pytest.mark.parametrize("likelihood", [Loaded, Likelihood])
def test_samples_have_the_moments_of_the_marginal(likelihood: type[Likelihood]) -> None:
    model, n = model_of(), 100_000
    vae = vae_of(model)
    vae.likelihood = likelihood(model)
    z, x = vae.sample(n, generator=seeded(0))
    assert z.shape == (n, D)
    assert x.shape == (n, G)
    assert x.dtype == F64
    error = (model.marginal.variance / n).sqrt()
    assert ((x.mean(0) - model.loc).abs() < 5 * error).all()
    torch.testing.assert_close(x.T.cov(), model.marginal.covariance, rtol=0.02, atol=0.06)
    torch.testing.assert_close(z.T.cov(), torch.eye(D, dtype=F64), rtol=0, atol=0.02)
    cross = (x - model.loc).T @ z / n
    torch.testing.assert_close(cross, model.loading, rtol=0, atol=0.05)


def test_samples_follow_a_learned_prior() -> None:
    model, n = model_of(), 50_000
    prior = MixtureOfGaussians(D, 3, width=0.3, generator=seeded(4)).double()
    vae = VAE(prior, Exact(model, FullGaussian), Loaded(model))
    z, x = vae.sample(n, generator=seeded(0))
    p = prior(Batch(torch.zeros(1, 0)))
    torch.testing.assert_close(z.mean(0), p.mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(0), p.variance[0], rtol=0.03, atol=0)
    torch.testing.assert_close(x.mean(0), model.likelihood(p.mean[0]).mean, rtol=0, atol=0.08)


def test_samples_follow_their_covariates() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.tensor([[1.0, 2.0]], dtype=F64))

        def forward(self, z: Tensor, batch: Batch) -> Gaussian:
            assert batch.s is not None
            return Gaussian(z + batch.s @ self.by, torch.ones(2, dtype=F64))

    s = torch.tensor([[0.0], [10.0]], dtype=F64).repeat(20_000, 1)
    vae = VAE(StandardNormal(2).double(), Constant(normal(1)), Shifted())
    _, x = vae.sample(40_000, s, generator=seeded(0))
    torch.testing.assert_close(x[::2].mean(0), torch.zeros(2, dtype=F64), rtol=0, atol=0.05)
    expected = torch.tensor([10.0, 20.0], dtype=F64)
    torch.testing.assert_close(x[1::2].mean(0), expected, rtol=0, atol=0.05)


def test_samples_of_bits_are_bits() -> None:
    class Bits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(draw(G))

        def forward(self, z: Tensor, batch: Batch) -> Bernoulli:
            return Bernoulli(self.logits.expand(*z.shape[:-1], G))

    vae = VAE(MeanField(normal(4000)), Constant(normal(1)), Bits())
    z, x = vae.sample(4000, generator=seeded(0))
    assert z.shape == (4000, D)
    assert ((x == 0) | (x == 1)).all()
    torch.testing.assert_close(x.mean(0), draw(G).sigmoid(), rtol=0, atol=0.04)


def test_imputation_by_chunks_is_that_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    x = rows_of(model)
    batch = Batch(x, observed=torch.rand(x.shape, generator=seeded(3)) < 0.6)
    found = []
    for chunk in (7, 100, 1000):
        monkeypatch.setattr(queries, "CHUNK", chunk)
        filled = impute(vae_of(model), batch, 250, steps=3, generator=seeded(0))
        found.append(filled)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)
