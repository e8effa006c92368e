"""Hierarchies of latents against the joint Gaussian that linear ones are."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from scvae.core import (
    BERNOULLI,
    GAUSSIAN,
    MLP,
    VAE,
    Batch,
    Decoder,
    Encoder,
    FullGaussian,
    Gaussian,
    Head,
    Hierarchical,
    MixtureOfGaussians,
    StandardNormal,
    elbo,
    importance_weighted_bound,
    kl_divergence,
    log_evidence,
    monte_carlo_kl,
)
from tests.draws import draw, seeded

F64 = torch.float64
N, G = 5, 4
law = settings(deadline=None, derandomize=True, max_examples=25)
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


class Below(nn.Module):
    """p(z_1 | z_2) = N(A z_2 + b, diag s^2)."""

    def __init__(self, d1: int, d2: int, seed: int = 0) -> None:
        super().__init__()
        self.a = nn.Parameter(draw(d1, d2, seed=seed))
        self.b = nn.Parameter(draw(d1, seed=seed + 1))
        self.log_scale = nn.Parameter(0.3 * draw(d1, seed=seed + 2))

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return Gaussian(z @ self.a.T + self.b, self.log_scale.exp())


def joint(below: Below) -> FullGaussian:
    """The law of (z_1, z_2) with z_2 ~ N(0, I), by the algebra of Gaussians."""
    a, noise = below.a.detach(), (2 * below.log_scale.detach()).exp().diag()
    one = torch.eye(a.shape[1], dtype=F64)
    covariance = torch.cat([torch.cat([a @ a.T + noise, a], 1), torch.cat([a.T, one], 1)])
    return FullGaussian.of_covariance(torch.cat([below.b.detach(), 0 * a[0]]), covariance)


def prior_of(d1: int = 3, d2: int = 2, seed: int = 0) -> Hierarchical:
    return Hierarchical(StandardNormal(d2).double(), Below(d1, d2, seed), d1)


@law
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000))
def test_density_is_that_of_the_joint_gaussian(d1: int, d2: int, seed: int) -> None:
    prior = prior_of(d1, d2, seed)
    p, z = prior(Batch(draw(N, G))), draw(3, N, d1 + d2, seed=seed)
    assert p.batch_shape == (N,)
    assert p.event_shape == (d1 + d2,)
    assert "Chain" in repr(p)
    close(p.log_prob(z), joint(prior.below).log_prob(z))
    close(p.log_prob(z[0, 0]), joint(prior.below).log_prob(z[0, 0]).expand(N))
    close(p.expand((2, N)).log_prob(z[:, None]), p.log_prob(z)[:, None].expand(3, 2, N))


@pytest.mark.parametrize("kind", ["sample", "rsample"])
def test_samples_have_the_moments_of_the_joint_gaussian(kind: str) -> None:
    prior = prior_of()
    z = getattr(prior(Batch(draw(1, G))), kind)((40_000,), generator=seeded(0))[:, 0]
    exact = joint(prior.below)
    assert (z.mean(0) - exact.mean).abs().lt(4 * exact.variance.sqrt() / 200).all()
    scale = exact.variance.sqrt()
    off = (torch.cov(z.T) - exact.covariance) / scale / scale[:, None]
    assert off.abs().max() < 0.04
    assert z.requires_grad == (kind == "rsample")


def test_kl_of_two_hierarchies_is_that_of_the_joint_gaussians() -> None:
    q, p = prior_of(seed=0), prior_of(seed=7)
    batch = Batch(draw(1, G))
    found = monte_carlo_kl(q(batch), p(batch), 20_000, seeded(0))
    exact = kl_divergence(joint(q.below), joint(p.below))
    assert (found.value - exact).abs() < 4 * found.standard_error
    assert found.standard_error < 0.1 * exact


class First(nn.Module):
    """p(x | z_1) = N(W z_1, 1)."""

    def __init__(self, d1: int) -> None:
        super().__init__()
        self.w = nn.Parameter(draw(G, d1, seed=4))

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return Gaussian(z[..., : self.w.shape[1]] @ self.w.T, torch.ones(G, dtype=F64))


def evidence_of(prior: Hierarchical, likelihood: First, x: Tensor) -> tuple[Tensor, FullGaussian]:
    """Return the exact log p(x) and p(z | x) of a linear hierarchy."""
    p = joint(prior.below)
    w = torch.zeros(G, len(p.loc), dtype=F64)
    w[:, : prior.n_below] = likelihood.w.detach()
    of_x = w @ p.covariance @ w.T + torch.eye(G, dtype=F64)
    gain = p.covariance @ w.T @ torch.linalg.inv(of_x)
    loc = p.loc + (x - w @ p.loc) @ gain.T
    covariance = p.covariance - gain @ w @ p.covariance
    posterior = FullGaussian.of_covariance(loc, (covariance + covariance.T) / 2)
    return FullGaussian.of_covariance(w @ p.loc, of_x).log_prob(x), posterior


class Fixed(nn.Module):
    def __init__(self, p: Any) -> None:
        super().__init__()
        self.p = p

    def forward(self, batch: Batch) -> Any:
        return self.p


def test_bounds_under_a_hierarchical_prior_meet_the_exact_evidence() -> None:
    prior, likelihood, x = prior_of(), First(3), 2 * draw(N, G, seed=6)
    evidence, posterior = evidence_of(prior, likelihood, x)
    terms = VAE(prior, Fixed(posterior), likelihood).terms(Batch(x), 4, seeded(0))
    close(terms.log_weight, evidence.expand(4, N))
    close(elbo(terms), evidence)
    close(importance_weighted_bound(terms), evidence)
    wide = FullGaussian(posterior.loc, 1.2 * posterior.scale_tril)
    vae = VAE(prior, Fixed(wide), likelihood)
    found = log_evidence(vae, Batch(x), 5000, seeded(0))
    assert ((found.value - evidence).abs() < 4 * found.standard_error + 1e-3).all()
    terms = vae.terms(Batch(x), 5000, seeded(0))
    gap = kl_divergence(wide, posterior)
    torch.testing.assert_close(elbo(terms), evidence - gap, rtol=0, atol=0.05)


def test_a_hierarchy_of_networks_trains_as_prior_and_posterior() -> None:
    g = seeded(0)
    x = torch.where(torch.rand(200, 1, generator=g) < 0.5, -2.0, 2.0)
    x = x + 0.3 * torch.randn(200, G, generator=g)
    mlp = partial(MLP, normalise=False, generator=g)
    prior = Hierarchical(StandardNormal(1), Decoder(mlp(1, 16), Head(16, 2, GAUSSIAN, g)), 2)
    top = Encoder(mlp(G, 16), Head(16, 1, GAUSSIAN, g))
    posterior = Hierarchical(top, WithRow(g), 2)
    likelihood = Decoder(Narrow(mlp(2, 16)), Head(16, G, GAUSSIAN, g))
    vae = VAE(prior, posterior, likelihood)
    optimizer = torch.optim.Adam(vae.parameters(), 0.01)
    bounds = []
    for _ in range(150):
        bound = elbo(vae.terms(Batch(x), 1, g)).mean()
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
        bounds.append(bound.item())
    assert all(p.grad is not None and bool(p.grad.any()) for p in vae.parameters())
    single = FullGaussian.of_covariance(x.mean(0), torch.cov(x.T)).log_prob(x).mean()
    assert bounds[-1] > bounds[0] + 3
    assert log_evidence(vae, Batch(x), 200, g).value.mean() > single - 1
    z, rows = vae.sample(6, generator=g)
    assert z.shape == (6, 3)
    assert rows.shape == (6, G)


class WithRow(nn.Module):
    """q(z_1 | z_2, x)."""

    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.head = Head(G + 1, 2, GAUSSIAN, g)

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return self.head(torch.cat([z, batch.x.expand(*z.shape[:-1], G)], -1))


class Narrow(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        return self.inner(z[..., :2], s)


def test_a_hierarchy_may_be_the_top_of_another() -> None:
    prior = Hierarchical(prior_of(2, 1), Below(3, 3, seed=9), 3)
    p, z = prior(Batch(draw(N, G))), draw(N, 6)
    middle = joint(prior.top.below).log_prob(z[:, 3:])
    close(p.log_prob(z), middle + prior.below(z[:, 3:], Batch(z)).log_prob(z[:, :3]))
    assert p.sample((2,)).shape == (2, N, 6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [0, 1, N])
def test_types_and_numbers_of_rows(dtype: torch.dtype, n: int) -> None:
    prior = Hierarchical(MixtureOfGaussians(2, 3), Below(3, 2), 3).to(dtype)
    p = prior(Batch(torch.zeros(n, G, dtype=dtype)))
    first, again = (p.sample((4,), generator=seeded(0)) for _ in range(2))
    assert first.shape == (4, n, 5)
    assert first.dtype == p.log_prob(first).dtype == dtype
    assert torch.equal(first, again)
    assert not p.has_rsample
    assert torch.equal(pickle.loads(pickle.dumps(p)).log_prob(first), p.log_prob(first))


def test_samples_below_without_gradient_are_said_to_be_so() -> None:
    prior = Hierarchical(StandardNormal(2), Decoder(MLP(2, 4), Head(4, 3, BERNOULLI)), 3)
    p = prior(Batch(torch.zeros(N, G)))
    assert p.sample((2,)).shape == (2, N, 5)
    with pytest.raises(TypeError, match="Bernoulli"):
        p.rsample((2,))


def test_a_wrong_width_is_named() -> None:
    prior = Hierarchical(StandardNormal(2), Below(3, 2).float(), 4)
    with pytest.raises(ValueError, match=r"n_below=4, but .*3"):
        prior(Batch(torch.zeros(N, G))).log_prob(torch.zeros(N, 6))
    with pytest.raises(ValueError, match=r"n_below=4, but .*3"):
        prior(Batch(torch.zeros(N, G))).sample()
