"""Flows: densities against the Jacobian, what they start as, and the gap that they close."""

from __future__ import annotations

import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributions as reference

from scvae.core import (
    MLP,
    VAE,
    Batch,
    Encoder,
    Flow,
    Gaussian,
    LinearGaussian,
    MeanField,
    StandardNormal,
    elbo,
    kl_divergence,
    log_evidence,
    monte_carlo_kl,
    refine,
)
from tests.draws import draw, seeded

F64 = torch.float64
N, G = 6, 5
law = settings(deadline=None, derandomize=True, max_examples=25)
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def scattered(module: nn.Module, seed: int = 50) -> Any:
    """Move every parameter away from where it starts."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += 0.2 * draw(*parameter.shape, seed=seed + i).to(parameter)
    return module


def told(n_context: int) -> Encoder:
    return Encoder(MLP(G, n_context, normalise=False, generator=seeded(3)), nn.Identity())


def flow_of(d: int, *, n_context: int = 0, n_layers: int = 3, seed: int = 0) -> Flow:
    context = told(n_context) if n_context else None
    flow = Flow(
        StandardNormal(d),
        d,
        n_layers=n_layers,
        n_hidden=6,
        context=context,
        n_context=n_context,
        generator=seeded(seed),
    )
    return scattered(flow.double())


def batch_of(n: int = N) -> Batch:
    return Batch(draw(n, G, seed=1))


# -- densities -------------------------------------------------------------------------------------


@law
@given(st.integers(2, 5), st.integers(0, 5), st.integers(0, 2), st.integers(0, 10_000))
def test_density_is_that_of_the_base_over_the_jacobian(
    d: int, n_layers: int, n_context: int, seed: int
) -> None:
    flow = flow_of(d, n_context=n_context, n_layers=n_layers, seed=seed)
    q = flow(batch_of())
    u = draw(N, d, seed=seed)
    z = q._pushed(u)
    expected = q.base.log_prob(u)
    for n in range(N):
        push = flow(Batch(batch_of().x[n : n + 1]))._pushed
        jacobian = torch.autograd.functional.jacobian(push, u[n : n + 1])[0, :, 0]
        close(q.log_prob(z)[n], expected[n] - torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("n_context", [0, 2])
def test_density_integrates_to_one(n_context: int) -> None:
    axis = torch.linspace(-25, 25, 801, dtype=F64)
    z = torch.cartesian_prod(axis, axis)[:, None]
    with torch.no_grad():
        mass = flow_of(2, n_context=n_context)(batch_of(2)).log_prob(z).exp().sum(0)
    close(mass * (axis[1] - axis[0]) ** 2, torch.ones(2, dtype=F64), rtol=1e-3, atol=1e-3)


def test_samples_follow_the_density() -> None:
    q = flow_of(2)(Batch(torch.zeros(1, G, dtype=F64)))
    axis = torch.linspace(-25, 25, 801, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weights = torch.softmax(q.log_prob(grid[:, None])[:, 0], 0)
        z = q.sample((20_000,), generator=seeded(0))[:, 0]
    for power in (1, 2):
        expected = weights @ grid**power
        error = (z**power).std(0) / math.sqrt(len(z))
        assert ((z**power).mean(0) - expected).abs().lt(4 * error + 1e-3).all()


@pytest.mark.parametrize("d", [2, 3])
def test_a_flow_starts_as_its_base(d: int) -> None:
    base = MeanField(Gaussian(draw(N, d), draw(N, d, seed=1).exp()))
    q = Flow(base, d, generator=seeded(0)).double()(batch_of())
    z = draw(4, N, d, seed=2)
    close(q.log_prob(z), base(batch_of()).log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shapes_types_generators_and_gradients(dtype: torch.dtype) -> None:
    flow = flow_of(3, n_context=2).to(dtype)
    for n in (0, 1, N):
        q = flow(Batch(draw(n, G).to(dtype)))
        first, again, other = (q.rsample((4,), generator=seeded(s)) for s in (0, 0, 1))
        assert first.shape == (4, n, 3)
        assert first.dtype == q.log_prob(first).dtype == dtype
        assert torch.equal(first, again)
        assert n == 0 or not torch.equal(first, other)
        assert q.expand((2, n)).log_prob(draw(4, 2, n, 3).to(dtype)).shape == (4, 2, n)
        assert not q.sample((4,)).requires_grad
    gradients = torch.autograd.grad(q.log_prob(first).sum(), list(flow.couplings.parameters()))
    assert all(bool(g.any()) and bool(g.isfinite().all()) for g in gradients)
    again = pickle.loads(pickle.dumps(flow))
    z = draw(4, N, 3).to(dtype)
    assert torch.equal(again(Batch(draw(N, G).to(dtype))).log_prob(z), q.log_prob(z))


def test_single_precision_inverts_what_it_mapped() -> None:
    q = flow_of(4, n_layers=6).float()(Batch(torch.zeros(200, G)))
    u = 3 * torch.randn(200, 4, generator=seeded(0))
    z = q._pushed(u)
    found = z
    for coupling in reversed(q.couplings):
        found, _ = coupling.inverse(found)
    assert z.abs().max() > 10
    torch.testing.assert_close(found, u, rtol=1e-3, atol=1e-3)


def test_nan_stays_in_its_row() -> None:
    q = flow_of(3, n_context=2)
    x = draw(N, G)
    x[2] = math.nan
    assert q(Batch(x)).log_prob(draw(N, 3)).isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_latent": 1}, "n_latent=1"),
        ({"n_latent": 2, "n_context": 3}, "n_context=3, but context=None"),
        ({"n_latent": 2, "context": nn.Identity()}, "n_context=0, but context=Identity"),
    ],
)
def test_what_makes_no_flow_is_refused(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Flow(StandardNormal(2), **arguments)


@pytest.mark.parametrize("n_latent", [2, 4, 5])
def test_a_base_of_another_width_is_named(n_latent: int) -> None:
    flow = Flow(StandardNormal(3), n_latent)
    with pytest.raises(ValueError, match=rf"n_latent={n_latent}, but the base is over \(3,\)"):
        flow(Batch(torch.zeros(N, G)))


def test_a_context_of_another_width_is_named() -> None:
    flow = Flow(StandardNormal(3), 3, context=told(4), n_context=2)
    with pytest.raises(ValueError, match="n_context=2, but the context has 4 numbers"):
        flow(Batch(torch.zeros(N, G)))


def test_a_flow_has_no_moments_to_refine_from_but_may_be_given_some() -> None:
    model, x = correlated()
    flow = flow_of(2)
    vae = VAE(StandardNormal(2).double(), flow, Likelihood(model))
    with pytest.raises(TypeError, match=r"Pushforward has no mean .*refine\(vae, batch, start="):
        refine(vae, Batch(x), steps=1)
    exact = model.posterior(x)
    start = Gaussian(exact.mean, exact.variance.sqrt())
    assert torch.equal(refine(vae, Batch(x), start=start, steps=0).loc, exact.mean)
    assert "Pushforward" in repr(flow(Batch(x)))


# -- the gap ---------------------------------------------------------------------------------------


def correlated() -> tuple[LinearGaussian, Tensor]:
    """A model whose exact posterior is correlated, and rows of data."""
    loading = torch.tensor([[1.0, 0.9], [0.9, 1.0], [1.0, 1.0], [0.2, 0.1], [0.1, 0.3]], dtype=F64)
    model = LinearGaussian(loading, draw(G, seed=1), torch.full((G,), 0.5, dtype=F64))
    return model, model.marginal.sample((N,), generator=seeded(5))


class Likelihood(nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return self.model.likelihood(z)


def test_a_flow_closes_the_gap_that_a_diagonal_gaussian_leaves() -> None:
    model, x = correlated()
    exact, batch = model.posterior(x), Batch(x)
    precision = torch.linalg.inv(exact.covariance)
    best = Gaussian(exact.mean, precision.diagonal(dim1=-2, dim2=-1).rsqrt())
    gap = kl_divergence(best, exact).mean().item()
    flow = Flow(MeanField(best), 2, n_layers=2, n_hidden=4, generator=seeded(0)).double()
    vae = VAE(StandardNormal(2).double(), flow, Likelihood(model))
    optimizer = torch.optim.Adam(flow.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    g = seeded(0)
    for _ in range(300):
        optimizer.zero_grad()
        (-elbo(vae.terms(batch, 16, g)).mean()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        left = monte_carlo_kl(flow(batch), exact, 4000, g)
        bound = elbo(vae.terms(batch, 4000, g)).mean().item()
    assert gap > 0.5
    assert left.value.mean() < 0.05 * gap
    assert bound == pytest.approx(model.log_prob(x).mean().item(), abs=0.05 * gap + 0.02)


def test_a_flow_may_be_the_prior() -> None:
    model, x = correlated()
    prior = flow_of(2)
    vae = VAE(prior, Fixed(model.posterior(x)), Likelihood(model))
    terms = vae.terms(Batch(x), 3, seeded(0))
    close(terms.log_prior, prior(Batch(x)).log_prob(terms.z))
    z, rows = vae.sample(7, generator=seeded(0))
    assert z.shape == (7, 2)
    assert rows.shape == (7, G)


class Fixed(nn.Module):
    def __init__(self, p: Any) -> None:
        super().__init__()
        self.p = p

    def forward(self, batch: Batch) -> Any:
        return self.p


# -- torch's own -----------------------------------------------------------------------------------


def test_a_transformed_distribution_of_torch_is_a_posterior() -> None:
    model, x = correlated()
    standard = reference.Independent(reference.Normal(torch.zeros(N, 2, dtype=F64), 1.0), 1)
    maps = [
        reference.AffineTransform(0.0, model.posterior(x).variance[0].sqrt(), event_dim=1),
        reference.AffineTransform(model.posterior(x).mean, 1.0, event_dim=1),
    ]
    q = reference.TransformedDistribution(standard, maps)
    same = Gaussian(model.posterior(x).mean, model.posterior(x).variance.sqrt())
    vae = VAE(StandardNormal(2).double(), Fixed(q), Likelihood(model))
    terms = vae.terms(Batch(x), 5)
    close(terms.log_q, same.log_prob(terms.z))
    close(elbo(terms), elbo(terms, sampled_kl=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = log_evidence(vae, Batch(x), 20_000)
    assert ((found.value - model.log_prob(x)).abs() < 6 * found.standard_error + 0.01).all()
