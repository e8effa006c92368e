"""Variational Bayes against the exact posterior and evidence of linear regression, and quadrature.

At the exact posterior of theta, log p(y, theta) - log q(theta) is the evidence at every draw.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils import parameters_to_vector

from scvae.core import (
    GAUSSIAN,
    MLP,
    VAE,
    Batch,
    Bayesian,
    Bernoulli,
    Decoder,
    Flow,
    FullGaussian,
    Gaussian,
    Head,
    LinearGaussian,
    MeanField,
    Mixture,
    StandardNormal,
    elbo,
    importance_weighted_bound,
    kl_divergence,
)
from tests.draws import draw, seeded

F64 = torch.float64
N, D, NOISE = 12, 3, 0.7
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


class Fixed(nn.Module):
    """A distribution, where a module that returns one is asked for."""

    def __init__(self, p: Any) -> None:
        super().__init__()
        self.p = p

    def forward(self, batch: Batch) -> Any:
        return self.p


# -- linear regression -----------------------------------------------------------------------------

X = draw(N, D, seed=1) + draw(N, 1, seed=3)  # correlated columns make correlated weights
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=F64) + NOISE * draw(N, 1, seed=2)
# Bayesian linear regression is a linear-Gaussian model of one row, whose entries are y_1..y_N and
# whose latents are the weights.
EXACT = LinearGaussian(X, torch.zeros(N, dtype=F64), torch.full((N,), NOISE**2, dtype=F64))


def line() -> nn.Module:
    return nn.Linear(D, 1, bias=False, dtype=F64)


def density(x: Tensor = X, y: Tensor = Y) -> Callable[[Any], Tensor]:
    scale = torch.full((1,), NOISE, dtype=F64)
    return lambda f: Gaussian(f(x), scale).log_prob(y)


def regression(q: Any) -> Bayesian:
    posterior = q if isinstance(q, nn.Module) else Fixed(q)
    return Bayesian(line(), StandardNormal(D).double(), posterior)


def exact_posterior() -> FullGaussian:
    return EXACT.posterior(Y.T)


def test_at_the_exact_posterior_every_draw_gives_the_evidence() -> None:
    terms = regression(exact_posterior()).terms(density(), N, 5, seeded(0))
    evidence = EXACT.log_prob(Y.T)
    close(terms.log_weight, evidence.expand(5, 1))
    close(elbo(terms, sampled_kl=True), evidence)
    close(importance_weighted_bound(terms), evidence)
    assert terms.kl.item() == kl_divergence(exact_posterior(), terms.prior).item()


@pytest.mark.parametrize("size", [1, 4, 12])
def test_minibatches_are_unbiased_and_count_the_kl_once(size: int) -> None:
    bayes, bounds = regression(exact_posterior()), []
    whole = elbo(bayes.terms(density(), N, 3, seeded(0)))
    for rows in torch.arange(N).split(size):
        terms = bayes.terms(density(X[rows], Y[rows]), N, 3, seeded(0))
        close(terms.kl, bayes.terms(density(), N).kl)
        bounds.append(elbo(terms))
    close(torch.stack(bounds).mean(0), whole)


def best_diagonal() -> Gaussian:
    """Mean-field theory: the exact means, and the variances given all other weights."""
    exact = exact_posterior()
    precision = torch.linalg.inv(exact.covariance)
    return Gaussian(exact.mean, precision.diagonal(dim1=-2, dim2=-1).rsqrt())


def climb(bayes: Bayesian, of_rows: Callable[[Tensor], Any], n: int, size: int) -> Any:
    """Return q(theta) after some steps, of minibatches of `size` rows of n, up the bound."""
    g, steps = seeded(0), 300
    optimizer = torch.optim.Adam(bayes.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randperm(n, generator=g)[:size]
        loss = -elbo(bayes.terms(of_rows(rows), n, 4, g))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return bayes.q


def fitted(start: Any, size: int = N) -> Any:
    bayes = regression(MeanField(start))
    return climb(bayes, lambda rows: density(X[rows], Y[rows]), N, size)


def wide() -> Gaussian:
    return Gaussian(torch.zeros(1, D, dtype=F64), torch.ones(D, dtype=F64))


@pytest.mark.parametrize("size", [N, 4])
def test_a_full_gaussian_finds_the_exact_posterior_and_evidence(size: int) -> None:
    q = fitted(FullGaussian.of_diagonal(wide()), size)
    assert isinstance(q, FullGaussian)
    gap = kl_divergence(q, exact_posterior())
    assert gap < (0.02 if size == N else 0.1)
    # ... and with it the bound that was climbed is the evidence less this gap.
    terms = regression(q).terms(density(), N, 1000, seeded(1))
    assert elbo(terms).item() == pytest.approx((EXACT.log_prob(Y.T) - gap).item(), abs=0.2)


def test_a_diagonal_gaussian_finds_the_best_of_its_kind() -> None:
    q, best = fitted(wide()), best_diagonal()
    assert kl_divergence(q, best) < 0.02
    lost = kl_divergence(best, exact_posterior())
    assert lost > 0.1  # or correlations would not matter here
    assert kl_divergence(q, exact_posterior()) > lost - 1e-9


def test_the_bound_is_the_evidence_less_the_kl_to_the_exact_posterior() -> None:
    q = best_diagonal()
    log_weight = regression(q).terms(density(), N, 4000, seeded(0)).log_weight
    error = (log_weight.std() / math.sqrt(len(log_weight))).item()
    expected = EXACT.log_prob(Y.T) - kl_divergence(q, exact_posterior())
    assert log_weight.mean().item() == pytest.approx(expected.item(), abs=4 * error)
    assert error < 0.03


def test_posteriors_of_all_kinds_will_do() -> None:
    evidence = EXACT.log_prob(Y.T).item()
    flow = Flow(MeanField(best_diagonal()), D, generator=seeded(0)).double()
    loc = best_diagonal().loc[:, None] + 0.2 * draw(1, 2, D)
    mixture = Mixture(torch.zeros(1, 2, dtype=F64), Gaussian(loc, torch.full((D,), 0.4)))
    for q in (flow, mixture):
        with torch.no_grad():
            terms = regression(q).terms(density(), N, 2000, seeded(0))
        assert importance_weighted_bound(terms).item() == pytest.approx(evidence, abs=0.1)
        assert elbo(terms).item() < evidence


def test_predictions_by_many_draws_have_the_exact_mean_and_spread() -> None:
    bayes, new = regression(exact_posterior()), draw(4, D, seed=8)
    draws = bayes.q.sample((20_000,), generator=seeded(0))[:, 0]
    lines = torch.vmap(lambda theta: bayes.at(theta)(new))(draws)[..., 0]
    exact = bayes.q
    mean = new @ exact.mean[0]
    spread = (new @ exact.covariance[0] @ new.T).diagonal().sqrt()
    assert ((lines.mean(0) - mean).abs() < 4 * spread / math.sqrt(len(draws))).all()
    torch.testing.assert_close(lines.std(0), spread, rtol=0.03, atol=0)


# -- logistic regression ---------------------------------------------------------------------------


def test_logistic_regression_against_quadrature() -> None:
    x = draw(20, 2, seed=3)
    y = (torch.rand(20, 1, generator=seeded(4)) < torch.sigmoid(x @ draw(2, 1, seed=5))).double()
    axis = torch.linspace(-7, 7, 281, dtype=F64)
    theta = torch.cartesian_prod(axis, axis)
    logits = theta @ x.T
    joint = (logsigmoid(torch.where(y[:, 0] > 0, logits, -logits))).sum(-1)
    joint = joint - theta.square().sum(-1) / 2 - math.log(2 * math.pi)
    evidence = joint.logsumexp(0).item() + 2 * math.log(axis[1] - axis[0])
    weights = torch.softmax(joint, 0)
    mean = weights @ theta
    deviation = (weights @ (theta - mean).square()).sqrt()

    start = FullGaussian(torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64))
    network = nn.Linear(2, 1, bias=False, dtype=F64)
    bayes = Bayesian(network, StandardNormal(2).double(), MeanField(start))

    def of_rows(rows: Tensor) -> Callable[[Any], Tensor]:
        return lambda f: Bernoulli(f(x[rows])).log_prob(y[rows])

    climb(bayes, of_rows, 20, 20)
    assert ((bayes.q.mean - mean).abs() < 0.2 * deviation).all()
    assert ((bayes.q.variance.sqrt() / deviation).log().abs() < 0.2).all()
    with torch.no_grad():
        terms = bayes.terms(of_rows(torch.arange(20)), 20, 1000, seeded(1))
    assert importance_weighted_bound(terms).item() == pytest.approx(evidence, abs=0.03)
    assert evidence - 0.2 < elbo(terms).item() < evidence + 0.02


# -- global and local latents ----------------------------------------------------------------------


class Loading(nn.Module):
    """p(x | z) = N(z w, noise), with w to be random."""

    def __init__(self, g: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(g, dtype=F64))

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return Gaussian(z * self.w, torch.full((1,), NOISE, dtype=F64))


class ExactLocal(nn.Module):
    """The exact p(z | x, w) for a given w."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        noise = torch.full_like(w, NOISE**2)
        self.model = LinearGaussian(w[:, None], torch.zeros_like(w), noise)

    def forward(self, batch: Batch) -> FullGaussian:
        return self.model.posterior(batch.x)


def test_global_and_local_latents_together_meet_the_evidence_by_quadrature() -> None:
    """p(x) of a factor model with random loadings: z integrated exactly, w on a grid."""
    g, prior = 2, StandardNormal(1).double()
    x = draw(8, 1, seed=6) @ torch.tensor([[1.0, -0.7]], dtype=F64) + NOISE * draw(8, g, seed=7)
    noise = torch.full((g,), NOISE**2, dtype=F64)
    axis = torch.linspace(-4, 4, 81, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    of_data = [LinearGaussian(w[:, None], torch.zeros(g), noise).log_prob(x).sum() for w in grid]
    prior_w = Gaussian(torch.zeros(g, dtype=F64), torch.ones(g, dtype=F64))
    joint = torch.stack(of_data) + prior_w.log_prob(grid)
    evidence = joint.logsumexp(0).item() + 2 * math.log(axis[1] - axis[0])

    at = (grid * (torch.softmax(joint, 0) * (grid[:, 0] > 0))[:, None]).sum(0) * 2
    start = Gaussian(at[None], torch.full((g,), 0.4, dtype=F64))
    bayes = Bayesian(Loading(g), StandardNormal(g).double(), MeanField(start))

    def bound(batch: Batch) -> Callable[[Any], Tensor]:
        def of_rows(decoder: Any) -> Tensor:
            w = decoder(torch.ones(1, 1, dtype=F64), batch).loc[0]
            vae = VAE(prior, ExactLocal(w), decoder)
            return elbo(vae.terms(batch, 1, seeded(1)), sampled_kl=True)

        return of_rows

    with torch.no_grad():
        terms = bayes.terms(bound(Batch(x)), len(x), 1500, seeded(0))
        whole = bayes.terms(bound(Batch(x)), len(x), 5, seeded(0)).log_px
        halves = [bayes.terms(bound(Batch(p)), len(x), 5, seeded(0)).log_px for p in x.split(4)]
    # Both signs of w explain x alike, of which q has one: it misses log 2 and no more.
    found = importance_weighted_bound(terms).item()
    assert found == pytest.approx(evidence - math.log(2), abs=0.05)
    assert evidence - 3 < elbo(terms).item() < evidence
    close((halves[0] + halves[1]) / 2, whole)


def test_a_bayesian_decoder_trains_beside_its_encoder() -> None:
    g = seeded(0)
    x = torch.randn(60, 1, generator=g) @ torch.randn(1, 5, generator=g)
    x = x + 0.3 * torch.randn(60, 5, generator=g)
    decoder = Decoder(MLP(2, 8, normalise=False, generator=g), Head(8, 5, GAUSSIAN, g))
    theta = parameters_to_vector(decoder.parameters())[None]
    start = MeanField(Gaussian(theta, torch.full_like(theta, 0.1)))
    bayes = Bayesian(decoder, StandardNormal(theta.numel()), start)
    encoder = nn.Sequential(Rows(), Head(5, 2, GAUSSIAN, g))
    prior = StandardNormal(2)
    parameters = [*bayes.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.02)

    def terms(rows: Tensor, samples: int = 1) -> Any:
        batch = Batch(x[rows])
        return bayes.terms(
            lambda likelihood: elbo(VAE(prior, encoder, likelihood).terms(batch, 1, g)),
            len(x),
            samples,
            g,
        )

    before = elbo(terms(torch.arange(60), 20)).item()
    for _ in range(200):
        loss = -elbo(terms(torch.randperm(60, generator=g)[:20]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)
    assert elbo(terms(torch.arange(60), 20)).item() > before + 100
    # Few rows leave most of the parameters where the prior has them.
    assert (start.log_scale.exp() > 0.1).float().mean() > 0.5


class Rows(nn.Module):
    def forward(self, batch: Batch) -> Tensor:
        return batch.x


# -- what it does to a module ----------------------------------------------------------------------


def bayes_of(module: nn.Module, scale: float = 0.1) -> Bayesian:
    theta = parameters_to_vector(p for p in module.parameters() if p.requires_grad)[None]
    posterior = MeanField(Gaussian(theta, torch.full_like(theta, scale)))
    return Bayesian(module, StandardNormal(theta.numel()), posterior)


def test_theta_is_the_parameters_in_their_order() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    bayes, x = bayes_of(network), torch.randn(5, 3, generator=seeded(0))
    torch.testing.assert_close(bayes.at(bayes.q.mean)(x), network(x))
    theta = torch.randn(26, generator=seeded(1))
    nn.utils.vector_to_parameters(theta, network.parameters())
    torch.testing.assert_close(bayes.at(theta)(x), network(x))


def test_the_module_given_is_left_alone_and_its_copy_trains_no_further() -> None:
    network = nn.Linear(3, 2)
    kept = deepcopy(network.state_dict())
    bayes = bayes_of(network)
    assert {name for name, _ in bayes.named_parameters()} == {
        "posterior.loc",
        "posterior.log_scale",
    }
    assert set(bayes.state_dict()) == {"posterior.loc", "posterior.log_scale"}
    x = torch.ones(1, 3)
    elbo(bayes.terms(lambda f: f(x).sum(-1), 1)).backward()
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_parameters_without_gradient_stay_what_they_are() -> None:
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    bayes = bayes_of(network)
    assert bayes.q.event_shape == (6,)
    x = torch.zeros(4, 3)
    assert torch.equal(bayes.at(bayes.q.sample())(x), network.bias.expand(4, 2))


def test_shared_parameters_are_one() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    bayes, x = bayes_of(network), torch.randn(4, 3, generator=seeded(0))
    assert bayes.q.event_shape == (15,)
    theta = torch.randn(15, generator=seeded(1))
    nn.utils.vector_to_parameters(theta, network.parameters())
    torch.testing.assert_close(bayes.at(theta)(x), network(x))


def test_draws_follow_the_generator_and_spare_the_global_state() -> None:
    bayes, x = bayes_of(nn.Linear(3, 2)), torch.ones(2, 3)
    state = torch.get_rng_state()
    first, again, other = (
        bayes.terms(lambda f: f(x).sum(-1), 2, 3, seeded(s)).log_px for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_survives_pickling_and_copying() -> None:
    bayes, x = bayes_of(nn.Linear(3, 2)), torch.ones(2, 3)
    for other in (pickle.loads(pickle.dumps(bayes)), deepcopy(bayes)):
        assert torch.equal(other.at(other.q.mean)(x), bayes.at(bayes.q.mean)(x))


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        Bayesian(nn.ReLU(), StandardNormal(1), StandardNormal(1))


@pytest.mark.parametrize("width", [1, 5, 7])
def test_a_prior_or_posterior_of_another_width_is_refused(width: int) -> None:
    six, other = StandardNormal(6), StandardNormal(width)
    for name, pair in {"prior": (other, six), "posterior": (six, other)}.items():
        with pytest.raises(ValueError, match=rf"The {name} is over \({width},\), .* 6 param"):
            Bayesian(nn.Linear(2, 2), *pair)


@pytest.mark.parametrize("n_cells", [0, -3])
def test_a_data_set_without_rows_is_refused(n_cells: int) -> None:
    with pytest.raises(ValueError, match=f"n_cells={n_cells}"):
        bayes_of(nn.Linear(2, 2)).terms(lambda f: torch.zeros(3), n_cells)


@pytest.mark.parametrize("width", [5, 7, 12])
def test_a_draw_of_another_width_is_refused(width: int) -> None:
    bayes = bayes_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=f"holds {width} numbers, but the module has 6"):
        bayes.at(torch.zeros(width))


@pytest.mark.parametrize("shape", [(), (4, 2), (0,)])
def test_a_bound_that_is_not_one_number_a_row_is_refused(shape: tuple[int, ...]) -> None:
    bayes = bayes_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one number for every row"):
        bayes.terms(lambda f: torch.zeros(shape), 10)


def test_nan_in_a_row_is_seen() -> None:
    bayes = regression(exact_posterior())
    y = Y.clone()
    y[3] = math.nan
    assert elbo(bayes.terms(density(X, y), N)).isnan().all()
