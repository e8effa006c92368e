"""Priors against quadrature, their own samples, and the aggregated posterior they stand in for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributions as reference

from scvae.core import (
    GAUSSIAN,
    MLP,
    VAE,
    Batch,
    Encoder,
    Gaussian,
    Head,
    LinearGaussian,
    MixtureOfGaussians,
    StandardNormal,
    VampPrior,
    aggregated_posterior,
    elbo,
    importance_weighted_bound,
    log_evidence,
)
from tests.draws import draw, seeded

F64 = torch.float64
N, G, C = 5, 4, 6
law = settings(deadline=None, derandomize=True, max_examples=25)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def encoder(d: int, *, n_covariates: int = 0, normalise: bool = False) -> Encoder:
    network = MLP(G, 8, n_covariates=n_covariates, normalise=normalise, generator=seeded(1))
    return Encoder(network, Head(8, d, GAUSSIAN, seeded(2))).double()


def scatter(module: nn.Module, seed: int = 50) -> None:
    """Move every parameter away from where it starts."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += 0.4 * draw(*parameter.shape, seed=seed + i).to(parameter)


def standard(d: int, posterior: nn.Module) -> nn.Module:
    return StandardNormal(d).double()


def gaussians(d: int, posterior: nn.Module) -> nn.Module:
    prior = MixtureOfGaussians(d, C, generator=seeded(3)).double()
    scatter(prior)
    return prior


def vamp(d: int, posterior: nn.Module) -> nn.Module:
    prior = VampPrior(posterior, 2 * draw(C, G, seed=4))
    with torch.no_grad():
        prior.logits += draw(C, seed=5)
    return prior


PRIORS: dict[str, Callable[[int, nn.Module], nn.Module]] = {
    "standard": standard,
    "gaussians": gaussians,
    "vamp": vamp,
}
each_prior = pytest.mark.parametrize("name", PRIORS)
MIXTURES = ["gaussians", "vamp"]


class Linear(nn.Module):
    """x | z ~ N(Wz + b, Psi), with W to be learned."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.loading = nn.Parameter(draw(G, d, seed=7))
        self.loc, self.noise = draw(G, seed=8), draw(G, seed=9).mul(0.3).exp()

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return LinearGaussian(self.loading, self.loc, self.noise).likelihood(z)


def vae_of(name: str, d: int) -> VAE:
    posterior = encoder(d)
    return VAE(PRIORS[name](d, posterior), posterior, Linear(d))


def batch_of(n: int = N) -> Batch:
    return Batch(2 * draw(n, G, seed=11))


# -- what holds of every prior ---------------------------------------------------------------------


@each_prior
@law
@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 3))
def test_a_prior_has_one_row_per_cell_all_alike(name: str, n: int, k: int, d: int) -> None:
    prior = PRIORS[name](d, encoder(d))
    p, z = prior(batch_of(n)), draw(k, 1, d)
    assert p.batch_shape == (n,)
    assert p.event_shape == (d,)
    assert p.sample((k,)).shape == (k, n, d)
    log_prob = p.log_prob(z.expand(k, n, d))
    assert log_prob.shape == (k, n)
    close(log_prob, prior(batch_of(1)).log_prob(z).expand(k, n))


@each_prior
@pytest.mark.parametrize("d", [1, 2])
def test_a_prior_is_normalised(name: str, d: int) -> None:
    p = PRIORS[name](d, encoder(d))(batch_of(1))
    axis = torch.linspace(-12, 12, 801, dtype=F64)
    points = torch.cartesian_prod(*[axis] * d).view(-1, 1, d)
    mass = p.log_prob(points).exp().sum() * (axis[1] - axis[0]) ** d
    assert mass.item() == pytest.approx(1, abs=1e-8)


@each_prior
def test_samples_have_the_mean_and_the_variance(name: str) -> None:
    draws = 40_000
    p = PRIORS[name](3, encoder(3))(batch_of(1))
    z = p.sample((draws,), generator=seeded(0))[:, 0]
    error = z.std(0) / math.sqrt(draws)
    assert ((z.mean(0) - p.mean[0]).abs() < 5 * error).all()
    squares = (z - p.mean[0]).square()
    error = squares.std(0) / math.sqrt(draws)
    assert ((squares.mean(0) - p.variance[0]).abs() < 5 * error).all()


@each_prior
def test_samples_lie_where_the_density_says(name: str) -> None:
    draws = 20_000
    p = PRIORS[name](1, encoder(1))(batch_of(1))
    z = p.sample((draws,), generator=seeded(0)).flatten()
    axis = torch.linspace(-12, 12, 4001, dtype=F64)
    density = p.log_prob(axis[:, None, None]).exp().flatten()
    below = torch.cumulative_trapezoid(density, axis)
    for cut in (500, 1000, 1700, 2000, 2300, 3000, 3500):
        share, expected = (z <= axis[cut + 1]).double().mean().item(), below[cut].item()
        error = math.sqrt(max(expected * (1 - expected), 1e-4) / draws)
        assert abs(share - expected) < 5 * error


@each_prior
def test_samples_follow_the_generator_and_spare_the_global_state(name: str) -> None:
    p, before = PRIORS[name](2, encoder(2))(batch_of()), torch.get_rng_state()
    first, again, other = (p.sample((7,), generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(torch.get_rng_state(), before)


@each_prior
def test_a_prior_survives_its_state(name: str) -> None:
    prior, other = (PRIORS[name](2, encoder(2)) for _ in range(2))
    scatter(prior)
    batch, z = batch_of(), draw(3, N, 2)
    wanted = prior(batch).log_prob(z)
    changed = not torch.equal(other(batch).log_prob(z), wanted)
    assert changed == (name != "standard")
    state = {key: tensor.clone() for key, tensor in prior.state_dict().items()}
    missing, unexpected = other.load_state_dict(state)
    assert not missing
    assert not unexpected
    assert torch.equal(other(batch).log_prob(z), wanted)


# -- in a model ------------------------------------------------------------------------------------


@each_prior
@pytest.mark.parametrize("d", [1, 3])
def test_a_prior_serves_every_bound(name: str, d: int) -> None:
    vae, batch = vae_of(name, d), batch_of()
    terms = vae.terms(batch, 4, seeded(0))
    assert terms.log_prior.shape == (4, N)
    for bound in (elbo(terms), importance_weighted_bound(terms), elbo(terms, sampled_kl=True)):
        assert bound.shape == (N,)
        assert bound.isfinite().all()
        learned = list(vae.parameters())
        gradients = torch.autograd.grad(bound.sum(), learned, retain_graph=True)
        assert bool(list(vae.prior.parameters())) == (name != "standard")
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    for naive in (False, True):
        estimate = log_evidence(vae, batch, 50, seeded(1), naive=naive)
        assert estimate.value.shape == estimate.standard_error.shape == (N,)
        assert estimate.value.isfinite().all()
    z, x = vae.sample(7, generator=seeded(2))
    assert z.shape == (7, d)
    assert x.shape == (7, G)
    assert torch.equal(z, vae.sample(7, generator=seeded(2))[0])
    assert not x.requires_grad
    assert x.isfinite().all()


@each_prior
def test_samples_of_the_model_start_in_the_prior(name: str) -> None:
    vae, draws = vae_of(name, 2), 20_000
    z, x = vae.sample(draws, generator=seeded(0))
    p = vae.prior(batch_of(1))
    assert ((z.mean(0) - p.mean[0]).abs() < 5 * z.std(0) / math.sqrt(draws)).all()
    mean = vae.decode(p.mean[:, None], batch_of(1)).mean.flatten()  # the decoder is linear
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / math.sqrt(draws)).all()


def test_a_model_without_parameters_can_be_sampled() -> None:
    model = LinearGaussian(draw(G, 2), draw(G, seed=1), torch.ones(G, dtype=F64))

    class Exact(nn.Module):
        def forward(self, z: Tensor, batch: Batch) -> Gaussian:
            return model.likelihood(z)

    z, x = VAE(StandardNormal(2).double(), nn.Identity(), Exact()).sample(4000, None, seeded(0))
    assert z.shape == (4000, 2)
    assert ((x.mean(0) - model.loc).abs() < 5 * x.std(0) / math.sqrt(4000)).all()


AXIS = torch.linspace(-12, 12, 6001, dtype=F64)[:, None, None]


def log_joint(vae: VAE, batch: Batch) -> Tensor:
    z = AXIS.expand(-1, len(batch), 1)
    return vae.prior(batch).log_prob(z) + vae.log_likelihood(z, batch)


@each_prior
@torch.no_grad()
def test_log_evidence_is_the_integral_over_the_prior(name: str) -> None:
    vae, batch = vae_of(name, 1), Batch(draw(N, G, seed=11))
    integral = torch.trapezoid(log_joint(vae, batch).exp(), AXIS[:, 0], dim=0).log()
    for naive in (False, True):
        estimate = log_evidence(vae, batch, 20_000, seeded(0), naive=naive, chunk=10_000)
        assert ((estimate.value - integral).abs() < 5 * estimate.standard_error).all()
        assert (estimate.standard_error < 0.2).all()


@each_prior
@torch.no_grad()
def test_naive_log_evidence_draws_from_the_prior(name: str) -> None:
    vae, batch, k = vae_of(name, 2), batch_of(), 30
    z = vae.prior(batch).sample((k,), generator=seeded(0))
    expected = vae.log_likelihood(z, batch).logsumexp(0) - math.log(k)
    close(log_evidence(vae, batch, k, seeded(0), naive=True).value, expected)


@each_prior
@torch.no_grad()
def test_the_elbo_is_that_of_quadrature(name: str) -> None:
    vae, batch, k = vae_of(name, 1), batch_of(), 20_000
    q = vae.encode(batch)
    log_q = q.log_prob(AXIS.expand(-1, N, 1))
    values = log_q.exp() * (log_joint(vae, batch) - log_q)
    exact = torch.trapezoid(values, AXIS[:, 0], dim=0)
    terms = vae.terms(batch, k, seeded(0))
    for sampled_kl in (True, False):
        log_weight = terms.log_weight if sampled_kl or name != "standard" else terms.log_px
        error = log_weight.std(0) / math.sqrt(k)
        off = (elbo(terms, sampled_kl=sampled_kl) - exact).abs()
        assert (off < 5 * error).all()
        assert (error < 0.02 * exact.abs()).all()
    evidence = torch.trapezoid(log_joint(vae, batch).exp(), AXIS[:, 0], dim=0).log()
    assert (exact < evidence).all()


# -- the standard normal, and mixtures of Gaussians ------------------------------------------------


def test_the_standard_normal_is_that_of_torch() -> None:
    z = draw(7, N, 3)
    expected = reference.Normal(0.0, 1.0).log_prob(z).sum(-1)
    close(StandardNormal(3).double()(batch_of()).log_prob(z), expected)


@pytest.mark.parametrize("width", [0.3, 0.7, 1.0])
def test_a_mixture_starts_as_about_the_standard_normal(width: float) -> None:
    d, components, seeds = 4, 5, 300
    means, seconds = [], []
    for seed in range(seeds):
        prior = MixtureOfGaussians(d, components, width=width, generator=seeded(seed))
        p = prior(batch_of(1))
        close(p.components.scale, torch.full((1, components, d), width), rtol=1e-6, atol=0)
        close(p.log_weights.exp(), torch.full((1, components), 1 / components), rtol=1e-6, atol=0)
        means.append(p.mean[0])
        seconds.append((p.variance + p.mean.square())[0])
    mean, second = torch.cat(means), torch.cat(seconds)
    error = [t.std().item() / math.sqrt(len(t)) + 1e-6 for t in (mean, second)]
    assert abs(mean.mean().item()) < 5 * error[0]
    assert abs(second.mean().item() - 1) < 5 * error[1]
    # The mean of c independent N(0, 1 - width^2).
    assert mean.var().item() == pytest.approx((1 - width**2) / components, rel=0.15, abs=1e-12)


@pytest.fixture
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def start(seed: int) -> dict[str, Tensor]:
    return MixtureOfGaussians(3, C, generator=seeded(seed)).state_dict()


def test_a_start_depends_on_its_generator_alone() -> None:
    before = torch.get_rng_state()
    first, other = start(0), start(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # moves the global state
    assert all(torch.equal(first[key], tensor) for key, tensor in start(0).items())
    assert not torch.equal(first["loc"], other["loc"])


@pytest.mark.usefixtures("double_by_default")
def test_a_start_does_not_depend_on_the_default_type() -> None:
    loc = torch.empty(C, 3, dtype=torch.float32).normal_(generator=seeded(0))
    found = start(0)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    close(found["loc"], loc * math.sqrt(1 - 0.7**2), rtol=1e-6, atol=1e-7)
    assert StandardNormal(3)(batch_of()).mean.dtype == torch.float32


def test_the_density_of_a_mixture_is_the_weighted_sum() -> None:
    prior = gaussians(2, nn.Identity())
    assert isinstance(prior, MixtureOfGaussians)
    z = draw(7, N, 2, seed=6)
    normals = reference.Independent(reference.Normal(prior.loc, prior.log_scale.exp()), 1)
    weights = prior.logits.exp() / prior.logits.exp().sum()
    expected = (weights * normals.log_prob(z[..., None, :]).exp()).sum(-1).log()
    close(prior(batch_of()).log_prob(z), expected)


def test_a_mixture_learns_two_clusters_that_the_normal_cannot() -> None:
    truth = reference.MixtureSameFamily(
        reference.Categorical(torch.tensor([0.7, 0.3], dtype=F64)),
        reference.Independent(
            reference.Normal(torch.tensor([[-2.0, 2.0], [2.0, -1.0]], dtype=F64), 0.4), 1
        ),
    )

    def clusters(n: int, seed: int) -> Tensor:
        label = torch.rand(n, 1, generator=seeded(seed)) < 0.7
        components = truth.component_distribution.mean
        return torch.where(label, *components) + 0.4 * draw(n, 2, seed=seed + 1)

    z, test = clusters(1000, 0), clusters(4000, 10)
    prior = MixtureOfGaussians(2, 4, generator=seeded(0)).double()
    optimizer = torch.optim.Adam(prior.parameters(), 0.05)
    for _ in range(250):
        optimizer.zero_grad()
        (-prior(Batch(z)).log_prob(z).mean()).backward()
        optimizer.step()
    learned, normal, best = (
        p.log_prob(test).mean().item()
        for p in (prior(Batch(test)), StandardNormal(2).double()(Batch(test)), truth)
    )
    assert learned > normal + 2
    assert best - 0.05 < learned < best + 0.05
    assert prior(Batch(z[:1])).mean.flatten().tolist() == pytest.approx(z.mean(0).tolist(), abs=0.1)


# -- the VampPrior ---------------------------------------------------------------------------------


def test_vamp_is_the_weighted_posterior_at_its_pseudo_inputs() -> None:
    posterior, z = encoder(2), draw(7, N, 2, seed=6)
    prior = vamp(2, posterior)
    assert isinstance(prior, VampPrior)
    total = torch.zeros(7, N, dtype=F64)
    weights = prior.logits.exp() / prior.logits.exp().sum()
    for c in range(C):
        q = posterior(Batch(prior.pseudo_inputs[c : c + 1]))
        normal = reference.Independent(reference.Normal(q.loc, q.scale), 1)
        total = total + weights[c] * normal.log_prob(z).exp()
    close(prior(batch_of()).log_prob(z), total.log())


def test_vamp_starts_with_equal_weights() -> None:
    posterior, u, z = encoder(2), draw(C, G), draw(7, N, 2)
    of_each = posterior(Batch(u)).log_prob(z[..., None, :])
    close(VampPrior(posterior, u)(batch_of()).log_prob(z), of_each.exp().mean(-1).log())


def test_vamp_at_the_data_is_the_aggregated_posterior() -> None:
    batch, z = batch_of(20), draw(9, 20, 2)
    posterior = encoder(2)
    vae = VAE(VampPrior(posterior, batch.x), posterior, Linear(2))
    aggregate = aggregated_posterior(vae, batch)
    assert aggregate.batch_shape == ()
    close(vae.prior(batch).log_prob(z), aggregate.log_prob(z))
    close(vae.prior(batch).mean, aggregate.mean.expand(20, 2))
    close(vae.prior(batch).variance, aggregate.variance.expand(20, 2))


def test_the_aggregated_posterior_is_the_best_prior() -> None:
    batch = batch_of(20)
    posterior = encoder(2)
    own = VampPrior(posterior, batch.x)
    others = [StandardNormal(2).double(), vamp(2, posterior), gaussians(2, posterior)]
    best, *rest = (
        elbo(VAE(prior, posterior, Linear(2)).terms(batch, 500, seeded(0)), sampled_kl=True)
        for prior in (own, *others)
    )
    assert all(best.mean() > other.mean() for other in rest)


def test_pseudo_inputs_learn_and_the_data_they_came_from_stay() -> None:
    vae, data = vae_of("vamp", 2), draw(C, G, seed=4)
    kept = data.clone()
    vae.prior = prior = VampPrior(vae.posterior, data)
    optimizer = torch.optim.SGD(prior.parameters(), 0.1)
    (-elbo(vae.terms(batch_of(), 3, seeded(0))).sum()).backward()
    gradient = prior.pseudo_inputs.grad
    assert gradient is not None
    assert gradient.any(1).all()
    assert all(parameter.grad is not None for parameter in vae.posterior.parameters())
    optimizer.step()
    assert not torch.equal(prior.pseudo_inputs, kept)
    assert torch.equal(data, kept)


class LogOfCounts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(G, 4).double()

    def forward(self, batch: Batch) -> Gaussian:
        loc, log_scale = self.linear(torch.log1p(batch.x)).chunk(2, -1)
        return Gaussian(loc, log_scale.exp())


def test_pseudo_inputs_of_counts_stay_counts_and_come_back() -> None:
    prior = VampPrior(LogOfCounts(), torch.zeros(C, G, dtype=F64))
    at_start = prior(batch_of()).mean
    with torch.no_grad():
        prior.pseudo_inputs -= 5
    close(prior(batch_of()).mean, at_start)
    prior(batch_of()).log_prob(draw(N, 2)).sum().backward()
    assert prior.pseudo_inputs.grad is not None
    assert prior.pseudo_inputs.grad.isfinite().all()
    assert prior.pseudo_inputs.grad.any(1).all()
    with torch.no_grad():
        prior.pseudo_inputs += 8
    expected = VampPrior(prior.posterior, torch.full((C, G), 3.0, dtype=F64))
    close(prior(batch_of()).mean, expected(batch_of()).mean)


def test_pseudo_inputs_have_the_bound_that_was_asked_for() -> None:
    posterior, u = encoder(2), draw(C, G, seed=4)
    bounded = VampPrior(posterior, u, lowest=-0.5)(batch_of()).mean
    close(bounded, VampPrior(posterior, u.clamp(min=-0.5))(batch_of()).mean)
    assert not torch.allclose(bounded, VampPrior(posterior, u)(batch_of()).mean)


def test_vamp_shares_the_weights_of_the_posterior() -> None:
    vae, z = vae_of("vamp", 2), draw(3, N, 2)
    before = vae.prior(batch_of()).log_prob(z)
    names = {id(p) for p in vae.posterior.parameters()}
    assert names < {id(p) for p in vae.prior.parameters()}
    assert len(list(vae.parameters())) == len({id(p) for p in vae.parameters()})
    scatter(vae.posterior)
    assert not torch.allclose(vae.prior(batch_of()).log_prob(z), before)


def test_pseudo_inputs_have_covariates_that_are_not_learned() -> None:
    posterior, u, s = encoder(2, n_covariates=2), draw(C, G), draw(C, 2, seed=1)
    prior, z = VampPrior(posterior, u, s), draw(7, N, 2)
    of_each = posterior(Batch(u, s)).log_prob(z[..., None, :])
    found = prior(Batch(draw(N, G), draw(N, 2, seed=3))).log_prob(z)
    close(found, of_each.exp().mean(-1).log())
    assert not torch.allclose(found, VampPrior(posterior, u, s + 1)(batch_of()).log_prob(z))
    assert all(parameter.shape != s.shape for parameter in prior.parameters())
    assert torch.equal(prior.state_dict()["s"], s)


@pytest.mark.parametrize("components", [1, C])
def test_asking_the_prior_leaves_no_trace_in_the_posterior(components: int) -> None:
    posterior = encoder(2, normalise=True)
    prior = VampPrior(posterior, 100 * draw(components, G))
    assert posterior.training
    before = {key: tensor.clone() for key, tensor in posterior.state_dict().items()}
    assert prior(batch_of()).batch_shape == (N,)
    for key, tensor in posterior.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(module.training for module in posterior.modules())
    prior.eval()(batch_of())
    assert not any(module.training for module in posterior.modules())


def test_one_pseudo_input_says_the_same_among_others() -> None:
    posterior, u = encoder(2, normalise=True), draw(C, G)
    whole = VampPrior(posterior, u)(batch_of()).components.loc[0]
    alone = VampPrior(posterior, u[:3])(batch_of()).components.loc[0]
    close(whole[:3], alone)
