"""Inference of every cell's own, against the exact posterior of linear-Gaussian models.

With columns of W orthogonal in the metric of the noise, W' Psi^-1 W is diagonal and so is the exact
posterior: the best diagonal Gaussian is it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.distributions import Independent, Normal

from scvae.core.batch import Batch
from scvae.core.distributions import Bernoulli, FullGaussian, Gaussian, LogNormal
from scvae.core.heads import GAUSSIAN, Decoder, Encoder, Head
from scvae.core.inference import MeanField, refine, variational_em
from scvae.core.kl import kl_divergence
from scvae.core.linear import LinearGaussian, ppca
from scvae.core.networks import MLP, evaluating
from scvae.core.objectives import elbo, scale_to_dataset
from scvae.core.priors import StandardNormal, VampPrior
from scvae.core.vae import VAE
from tests.draws import draw, seeded

F64 = torch.float64
N, G, D = 6, 5, 2
law = settings(deadline=None, derandomize=True, max_examples=15)
long: Any = {"steps": 600, "samples": 32, "learning_rate": 0.1}
shifts = st.lists(st.floats(-3, 3), min_size=D, max_size=D)


# -- a linear-Gaussian VAE -------------------------------------------------------------------------


class Linear(nn.Module):
    """p(x | z) = N(Wz + b, diag s^2), all of which may be learned."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.loading = nn.Parameter(model.loading.clone())
        self.loc = nn.Parameter(model.loc.clone())
        self.log_scale = nn.Parameter(model.noise.log() / 2)

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return Gaussian(z @ self.loading.T + self.loc, self.log_scale.exp())

    @property
    def model(self) -> LinearGaussian:
        noise = (2 * self.log_scale.detach()).exp()
        return LinearGaussian(self.loading.detach(), self.loc.detach(), noise.expand(G))


class BadEncoder(nn.Module):
    """A posterior with parameters that says the same of every cell."""

    def __init__(self, shift: Tensor | float = 3.0, stretch: float = 2.0) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D, dtype=F64) + shift)
        self.log_scale = nn.Parameter(torch.full((D,), math.log(stretch), dtype=F64))

    def forward(self, batch: Batch) -> Gaussian:
        return Gaussian(self.loc, self.log_scale.exp()).expand((len(batch),))


class SigmaPoints(Gaussian):
    """A Gaussian whose "samples" are the 2d points that share its mean and covariance."""

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        d = self.loc.shape[-1]
        signs = torch.cat([torch.eye(d), -torch.eye(d)]).to(self.loc).mul(math.sqrt(d))
        return self.loc + self.scale * signs[:, None]


def orthogonal(d: int = D, g: int = G) -> LinearGaussian:
    noise = draw(g, seed=2).mul(0.5).exp()
    columns = torch.linalg.qr(draw(g, d)).Q * torch.tensor([2.0, 0.8], dtype=F64)[:d]
    return LinearGaussian(noise.sqrt()[:, None] * columns, draw(g, seed=1), noise)


def exact_posterior(model: LinearGaussian, x: Tensor) -> Gaussian:
    q = model.posterior(x)
    off = q.covariance - torch.diag_embed(q.variance)
    assert off.abs().max() < 1e-12
    return Gaussian(q.mean, q.variance.sqrt())


def vae_of(model: LinearGaussian, posterior: nn.Module | None = None) -> VAE:
    prior = StandardNormal(model.loading.shape[1]).double()
    return VAE(prior, posterior or BadEncoder(), Linear(model))


def rows_of(model: LinearGaussian, n: int = N, seed: int = 5) -> Tensor:
    return model.loc + 2 * draw(n, len(model.loc), seed=seed)


def exact_elbo(vae: VAE, q: Gaussian, batch: Batch) -> Tensor:
    with torch.no_grad():
        points = SigmaPoints(q.loc, q.scale).rsample()
        return elbo(vae.terms_at(points, q, batch))


def assert_near(q: Gaussian, exact: Gaussian, tolerance: float = 0.05) -> None:
    """Means within a share of a standard deviation, scales within a share of themselves."""
    assert ((q.loc - exact.loc).abs() < tolerance * exact.scale).all()
    assert ((q.scale / exact.scale).log().abs() < tolerance).all()


# -- refine ----------------------------------------------------------------------------------------


def test_refined_posterior_is_the_exact_one() -> None:
    model = orthogonal()
    batch, vae = Batch(rows_of(model)), vae_of(model)
    exact = exact_posterior(model, batch.x)
    q = refine(vae, batch, **long, generator=seeded(0))
    assert isinstance(q, Gaussian)
    assert_near(q, exact)
    gap = model.log_prob(batch.x) - exact_elbo(vae, q, batch)
    assert (gap.abs() < 1e-8).all()  # the gradient has no noise left at the exact posterior
    assert (kl_divergence(vae.encode(batch), exact) > 5).all()


@pytest.mark.parametrize("wide", [1.0, 3.0])
def test_refined_posterior_does_not_ask_where_it_starts(wide: float) -> None:
    """... though from a far start the first gradients are thousands of times the last."""
    model, n = orthogonal(), 200
    batch, vae = Batch(rows_of(model, n)), vae_of(model)
    start = Gaussian(2 * draw(n, D, seed=3), wide * draw(n, D, seed=4).exp())
    kept = start.loc.clone(), start.scale.clone()
    q = refine(vae, batch, start=start, **long, generator=seeded(0))
    assert_near(q, exact_posterior(model, batch.x), 0.03)
    assert (model.log_prob(batch.x) - exact_elbo(vae, q, batch) < 1e-3).all()
    assert torch.equal(start.loc, kept[0])
    assert torch.equal(start.scale, kept[1])


def test_best_diagonal_of_a_correlated_posterior_has_its_precisions() -> None:
    """Mean-field theory: the means are right, the variances those given the other variables."""
    noise = draw(G, seed=2).mul(0.5).exp()
    model = LinearGaussian(draw(G, D) + 1, draw(G, seed=1), noise)
    batch = Batch(rows_of(model))
    exact = model.posterior(batch.x)
    precision = torch.linalg.inv(exact.covariance)
    assert (precision[0, 0, 1] / precision[0].diagonal().prod().sqrt()).abs() > 0.2
    best = Gaussian(exact.mean, precision.diagonal(dim1=-2, dim2=-1).rsqrt())
    q = refine(vae_of(model), batch, **long, generator=seeded(0))
    assert_near(q, best, 0.07)


@law
@given(shifts, st.floats(0.2, 4), st.integers(0, 100))
def test_refined_bound_is_no_lower(shift: list, stretch: float, seed: int) -> None:
    model = orthogonal()
    batch = Batch(rows_of(model, seed=seed))
    vae = vae_of(model, BadEncoder(torch.tensor(shift, dtype=F64), stretch))
    before = exact_elbo(vae, vae.encode(batch), batch)
    q = refine(vae, batch, steps=60, generator=seeded(seed))
    after = exact_elbo(vae, q, batch)
    assert (after > before - 0.02).all()
    assert (after < model.log_prob(batch.x) + 1e-9).all()


def test_refining_the_exact_posterior_leaves_it_there() -> None:
    model = orthogonal()
    batch = Batch(rows_of(model))
    exact = exact_posterior(model, batch.x)
    q = refine(vae_of(model), batch, start=exact, generator=seeded(0))
    assert_near(q, exact, 0.01)


def test_no_steps_are_the_start() -> None:
    model = orthogonal()
    batch, vae = Batch(rows_of(model)), vae_of(model)
    q = refine(vae, batch, steps=0)
    torch.testing.assert_close(q.loc, vae.encode(batch).loc)
    torch.testing.assert_close(q.scale, vae.encode(batch).scale)


def network_vae() -> VAE:
    """Networks that answer by their mode: batch normalisation, and dropout in the decoder."""
    posterior = Encoder(MLP(G, 8, generator=seeded(0)), Head(8, D, GAUSSIAN, seeded(1)))
    head = nn.Sequential(nn.Dropout(0.5), Head(8, G, GAUSSIAN, seeded(3)))
    likelihood = Decoder(MLP(D, 8, generator=seeded(2)), head)
    return VAE(StandardNormal(D), posterior, likelihood).double()


@pytest.mark.parametrize("training", [True, False])
def test_refine_leaves_the_model_and_the_global_state_alone(training: bool) -> None:
    vae, batch = network_vae().train(training), Batch(rows_of(orthogonal()))
    first = next(vae.parameters())
    first.grad = torch.ones_like(first)
    kept = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    q = refine(vae, batch, steps=5, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, kept[name]) for name, value in vae.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in vae.parameters() if p is not first)
    assert all(p.requires_grad for p in vae.parameters())
    assert all(module.training is training for module in vae.modules())
    assert not q.loc.requires_grad
    assert not q.scale.requires_grad


def test_refine_answers_in_evaluation_mode_under_any_mode_of_gradients() -> None:
    batch = Batch(rows_of(orthogonal()))
    q = refine(network_vae().eval(), batch, steps=5, generator=seeded(0))
    again = refine(network_vae().train(), batch, steps=5, generator=seeded(0))
    assert torch.equal(q.loc, again.loc)
    with torch.no_grad():
        again = refine(network_vae(), batch, steps=5, generator=seeded(0))
    assert torch.equal(q.loc, again.loc)
    assert not torch.equal(q.loc, refine(network_vae(), batch, steps=5, generator=seeded(1)).loc)


def test_evaluating_restores_the_mode_of_every_module() -> None:
    vae = network_vae().train()
    vae.likelihood.eval()  # frozen, as batch normalisation often is
    kept = [module.training for module in vae.modules()]
    with evaluating(vae):
        assert not any(module.training for module in vae.modules())
    assert [module.training for module in vae.modules()] == kept


def test_evaluating_restores_the_mode_after_an_error() -> None:
    vae = network_vae().train()
    with pytest.raises(KeyError), evaluating(vae):
        raise KeyError
    assert all(module.training for module in vae.modules())


@pytest.mark.parametrize("kind", [Bernoulli, lambda numbers: LogNormal(numbers, numbers.exp())])
def test_a_gaussian_is_no_refinement_of_latents_that_are_not_real(kind: Any) -> None:
    class Other(nn.Module):
        def forward(self, batch: Batch) -> Any:
            return kind(torch.zeros(len(batch), D, dtype=F64))

    vae = VAE(Other(), Other(), Linear(orthogonal()))
    with pytest.raises(TypeError, match=r"Bernoulli|LogNormal"):
        refine(vae, Batch(rows_of(orthogonal())), steps=2)


# -- refine, with entries missing ------------------------------------------------------------------


def seen_of(n: int = N) -> Tensor:
    observed = torch.rand(n, G, generator=seeded(8)) < 0.6
    observed[0] = True
    observed[1] = False
    return observed


@pytest.mark.parametrize("filler", [0.0, 1e6, math.nan, math.inf])
def test_what_stands_at_missing_entries_does_not_matter(filler: float) -> None:
    model, observed = orthogonal(), seen_of()
    x, vae = rows_of(model), vae_of(model)
    batches = [Batch(torch.where(observed, x, f), observed=observed) for f in (3.0, filler)]
    results = [refine(vae, batch, steps=20, generator=seeded(0)) for batch in batches]
    assert torch.equal(results[0].loc, results[1].loc)
    assert torch.equal(results[0].scale, results[1].scale)


def test_observed_entries_alone_make_the_posterior() -> None:
    model, observed = orthogonal(1), seen_of()
    x = torch.where(observed, rows_of(model), torch.nan)
    start = Gaussian(torch.full((N, 1), 2.0, dtype=F64), torch.full((N, 1), 0.3, dtype=F64))
    batch = Batch(x, observed=observed)
    q = refine(vae_of(model), batch, start=start, **long, generator=seeded(0))
    for n in range(N):
        mask = observed[n]
        part = LinearGaussian(model.loading[mask], model.loc[mask], model.noise[mask])
        exact = exact_posterior(part, x[n : n + 1, mask])
        assert_near(Gaussian(q.loc[n : n + 1], q.scale[n : n + 1]), exact)
    # Nothing seen: the prior.
    assert_near(Gaussian(q.loc[1], q.scale[1]), Gaussian(torch.zeros(1), torch.ones(1)))


# -- mean field ------------------------------------------------------------------------------------


@law
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=12))
def test_rows_are_looked_up_in_any_order(rows: list) -> None:
    start = Gaussian(draw(N, D), draw(N, D, seed=1).exp())
    field = MeanField(start)
    q = field(Batch(torch.zeros(len(rows), G), rows=torch.tensor(rows)))
    torch.testing.assert_close(q.loc, start.loc[rows])
    torch.testing.assert_close(q.scale, start.scale[rows])
    # A row counts as often as it comes.
    gradient = torch.autograd.grad(q.loc.sum(), field.loc)[0]
    count = torch.bincount(torch.tensor(rows), minlength=N)
    torch.testing.assert_close(gradient, count[:, None].expand(N, D).double())


def test_without_rows_mean_field_is_of_all_cells() -> None:
    start = Gaussian(draw(N, D), draw(N, D, seed=1).exp())
    q = MeanField(start)(Batch(torch.zeros(N, G)))
    torch.testing.assert_close(q.loc, start.loc)
    torch.testing.assert_close(q.scale, start.scale)


@law
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=12))
def test_covariances_of_every_row_are_looked_up(rows: list) -> None:
    root = 0.5 * draw(N, D, D, seed=1) + 2 * torch.eye(D, dtype=F64)
    start = FullGaussian.of_covariance(draw(N, D), root @ root.mT)
    field = MeanField(start)
    q = field(Batch(torch.zeros(len(rows), G), rows=torch.tensor(rows)))
    assert isinstance(q, FullGaussian)
    torch.testing.assert_close(q.loc, start.loc[rows])
    torch.testing.assert_close(q.covariance, start.covariance[rows])
    with torch.no_grad():
        field.below.add_(1)  # what stands on and above the diagonal is none of L
    assert torch.equal(field(Batch(torch.zeros(N, G))).scale_tril.triu(1), torch.zeros(N, D, D))


def test_full_gaussians_of_every_row_find_correlated_posteriors() -> None:
    noise = draw(G, seed=2).mul(0.5).exp()
    model = LinearGaussian(draw(G, D) + 1, draw(G, seed=1), noise)
    x, start = rows_of(model), torch.zeros(N, D, dtype=F64)
    field = MeanField(FullGaussian(start, torch.eye(D, dtype=F64)))
    vae, generator = vae_of(model, field), seeded(0)
    optimizer = torch.optim.Adam(field.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        (-elbo(vae.terms(Batch(x), 32, generator)).mean()).backward()
        optimizer.step()
        schedule.step()
    assert (kl_divergence(field(Batch(x)), model.posterior(x)) < 0.02).all()


def test_mean_field_shares_nothing_with_its_start() -> None:
    wide = Gaussian(torch.zeros(D, dtype=F64), torch.ones(D, dtype=F64)).expand((N,))
    field = MeanField(wide)
    with torch.no_grad():
        field.loc[0] += 1
        field.log_scale[0] += 1
    assert field.loc.sum() == field.log_scale.sum() == D
    assert torch.equal(wide.loc, torch.zeros(N, D, dtype=F64))


def test_stochastic_variational_inference_finds_the_exact_posteriors() -> None:
    model, n, size = orthogonal(), 60, 20
    x = rows_of(model, n)
    start = Gaussian(torch.zeros(n, D, dtype=F64), torch.ones(n, D, dtype=F64))
    vae, generator, epochs = vae_of(model, MeanField(start)), seeded(0), 200
    optimizer = torch.optim.Adam(vae.posterior.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * epochs)
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=generator).split(size):
            optimizer.zero_grad()
            terms = vae.terms(Batch(x[rows], rows=rows), 32, generator)
            (-scale_to_dataset(elbo(terms), n)).backward()
            optimizer.step()
            schedule.step()
    q = vae.encode(Batch(x))
    assert_near(q, exact_posterior(model, x), 0.1)
    gap = model.log_prob(x) - exact_elbo(vae, q, Batch(x))
    assert (gap < 5e-3).all()


# -- variational EM --------------------------------------------------------------------------------


class ExactSteps(nn.Module):
    """A posterior whose samples make every expectation exact, so that nothing is random."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Batch) -> SigmaPoints:
        q = self.inner(batch)
        return SigmaPoints(q.loc, q.scale)


def posterior_of(kind: str, n: int) -> nn.Module:
    if kind == "encoder":
        return Encoder(MLP(G, G, 0), Head(G, D, GAUSSIAN, seeded(0))).double()
    wide = torch.zeros(n, D, dtype=F64)
    return MeanField(Gaussian(wide + 0.1 * draw(n, D), wide + 1))


class Shared(Linear):
    """A linear decoder with one noise for all entries, at no particular place."""

    def __init__(self) -> None:
        noise = torch.ones(1, dtype=F64)
        super().__init__(LinearGaussian(0.3 * draw(G, D, seed=11), draw(G, seed=12), noise))


def em_data(n: int) -> Tensor:
    made = LinearGaussian(draw(G, D), draw(G, seed=1), torch.full((G,), 0.5, dtype=F64))
    return made.likelihood(draw(n, D, seed=2)).sample(generator=seeded(3))


@pytest.mark.parametrize("kind", ["encoder", "mean field"])
def test_variational_em_climbs_to_the_maximum_likelihood_of_ppca(kind: str) -> None:
    x = em_data(60)
    best = ppca(x, D).log_prob(x).mean().item()
    vae = vae_of(orthogonal(), ExactSteps(posterior_of(kind, 60)))
    vae.likelihood = Shared()
    history = variational_em(vae, Batch(x), rounds=50, learning_rate=0.04)
    assert len(history) == 50
    rises = torch.tensor(history).diff()
    assert (rises > -1e-3).all()
    assert history[-1] - history[0] > 1
    evidence = vae.likelihood.model.log_prob(x).mean().item()
    assert history[-1] < best + 1e-9
    assert evidence <= best
    assert evidence == pytest.approx(best, rel=1e-3)
    assert history[-1] == pytest.approx(best, rel=2e-3)


def test_variational_em_climbs_on_samples() -> None:
    x = em_data(60)
    best = ppca(x, D).log_prob(x).mean().item()
    vae = vae_of(orthogonal(), posterior_of("encoder", 60))
    vae.likelihood = Shared()
    history = variational_em(
        vae, Batch(x), rounds=40, samples=16, learning_rate=0.02, generator=seeded(0)
    )
    smooth = torch.tensor(history).view(4, 10).mean(1)
    assert (smooth.diff() > -0.05).all()
    assert vae.likelihood.model.log_prob(x).mean().item() == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize("half", ["e", "m"])
def test_each_half_leaves_the_parameters_of_the_other_alone(half: str) -> None:
    vae, x = network_vae(), em_data(20)
    vae.prior = MeanField(Gaussian(torch.zeros(20, D, dtype=F64), torch.ones(D, dtype=F64)))
    kept = {name: p.detach().clone() for name, p in vae.named_parameters()}
    steps = {"e_steps": 3, "m_steps": 0} if half == "e" else {"e_steps": 0, "m_steps": 3}
    variational_em(vae, Batch(x), rounds=2, generator=seeded(0), **steps)
    for name, p in vae.named_parameters():
        moved = not torch.equal(p.detach(), kept[name])
        assert moved == (name.startswith("posterior") == (half == "e")), name


def test_a_posterior_inside_the_prior_belongs_to_the_e_step() -> None:
    vae, x = network_vae(), em_data(20)
    vae.prior = VampPrior(vae.posterior, x[:3])
    kept = [p.detach().clone() for p in vae.posterior.parameters()]
    variational_em(vae, Batch(x), rounds=2, e_steps=0, m_steps=3, generator=seeded(0))
    for p, before in zip(vae.posterior.parameters(), kept, strict=True):
        assert torch.equal(p.detach(), before)
    assert not torch.equal(vae.prior.pseudo_inputs, x[:3])


@pytest.mark.parametrize(
    ("frozen", "steps", "said"),
    [
        ("", {"e_steps": 0, "m_steps": 0}, "take e_steps=0, . of the rest m_steps=0"),
        ("posterior", {"m_steps": 0}, "0 parameters of the posterior take e_steps=10"),
        ("likelihood", {"e_steps": 0}, "0 of the rest m_steps=10"),
    ],
)
def test_nothing_to_train_is_said(frozen: str, steps: dict[str, int], said: str) -> None:
    vae = vae_of(orthogonal(), posterior_of("encoder", 20))
    vae.likelihood = Shared()
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    with pytest.raises(ValueError, match=f"Nothing is trained: .*{said}"):
        variational_em(vae, Batch(em_data(20)), rounds=1, **steps)


@pytest.mark.parametrize("frozen", ["posterior", "likelihood"])
def test_a_half_with_nothing_to_train_is_left_out(frozen: str) -> None:
    vae = vae_of(orthogonal(), posterior_of("encoder", 20))
    vae.likelihood = Shared()
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    history = variational_em(vae, Batch(em_data(20)), rounds=20, samples=8, generator=seeded(0))
    assert history[-1] > history[0]


def test_history_is_the_bound_of_the_last_step() -> None:
    model = orthogonal()
    batch, vae = Batch(rows_of(model)), vae_of(model, ExactSteps(BadEncoder()))
    before = exact_elbo(vae, vae.encode(batch), batch).mean().item()
    (first,) = variational_em(vae, batch, rounds=1, e_steps=0, m_steps=1)
    assert first == pytest.approx(before, rel=1e-10)
    assert variational_em(vae, batch, rounds=0) == []
    (second,) = variational_em(vae, batch, rounds=1, e_steps=1, m_steps=0)
    assert second > first


def test_steps_of_the_e_half_alone_find_the_exact_posterior() -> None:
    model = orthogonal()
    batch, vae = Batch(rows_of(model)), vae_of(model, posterior_of("mean field", N))
    for rate in (0.05, 0.01, 0.002):
        variational_em(
            vae,
            batch,
            rounds=20,
            m_steps=0,
            samples=64,
            learning_rate=rate,
            generator=seeded(0),
        )
    assert_near(vae.encode(batch), exact_posterior(model, batch.x), 0.1)


@pytest.mark.parametrize("frozen", ["likelihood.loading", "posterior.inner.loc"])
def test_frozen_parameters_stay_out_of_variational_em(frozen: str) -> None:
    model = orthogonal()
    batch, vae = Batch(rows_of(model)), vae_of(model, ExactSteps(BadEncoder()))
    vae.get_parameter(frozen).requires_grad_(False)
    kept = {name: p.detach().clone() for name, p in vae.named_parameters()}
    history = variational_em(vae, batch, rounds=3, learning_rate=0.05)
    assert history[-1] > history[0]
    for name, p in vae.named_parameters():
        assert torch.equal(p.detach(), kept[name]) == (name == frozen), name


def test_variational_em_follows_the_generator_and_spares_the_global_state() -> None:
    x = em_data(20)
    histories, state = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        vae = vae_of(orthogonal(), posterior_of("encoder", 20))
        histories.append(variational_em(vae, Batch(x), rounds=3, generator=seeded(seed)))
    assert histories[0] == histories[1] != histories[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_variational_em_takes_a_full_gaussian() -> None:
    model = orthogonal()
    batch = Batch(rows_of(model))
    exact = model.posterior(batch.x)

    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros_like(exact.loc))
            self.tril = exact.scale_tril

        def forward(self, batch: Batch) -> FullGaussian:
            return FullGaussian(self.loc, self.tril)

    vae = vae_of(model, Full())
    for rate in (0.1, 0.01):
        variational_em(
            vae, batch, rounds=30, m_steps=0, samples=32, learning_rate=rate, generator=seeded(0)
        )
    torch.testing.assert_close(vae.posterior.loc.detach(), exact.loc, rtol=0, atol=0.05)


def test_a_normal_of_torch_is_refined_as_ours_is() -> None:
    class OfTorch(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, batch: Batch) -> Independent:
            q = self.inner(batch)
            return Independent(Normal(q.loc, q.scale), 1)

    model = orthogonal()
    batch, vae = Batch(rows_of(model)), vae_of(model, BadEncoder())
    ours = refine(vae, batch, steps=20, generator=seeded(0))
    vae.posterior = OfTorch(vae.posterior)
    found = refine(vae, batch, steps=20, generator=seeded(0))
    torch.testing.assert_close(found.loc, ours.loc)
    torch.testing.assert_close(found.scale, ours.scale)
