"""Linear-Gaussian models against scipy, scikit-learn, and the algebra of the joint Gaussian."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA, FactorAnalysis
from torch import Generator, Tensor

from scvae.core.distributions import Gaussian
from scvae.core.linear import LinearGaussian, factor_analysis, ppca
from tests.draws import draw, seeded

F64 = torch.float64
G = 6
Fit = Callable[[Tensor, int], LinearGaussian]
law = settings(deadline=None, derandomize=True, max_examples=30)
fewer = settings(deadline=None, derandomize=True, max_examples=12)
seeds = st.integers(0, 10_000)
both = pytest.mark.parametrize("fit", [ppca, factor_analysis])


def model_of(g: int, d: int, seed: int, s: float = 0.7) -> LinearGaussian:
    """A model with noise of every entry's own, around variance s^2."""
    noise = s**2 * draw(g, seed=seed + 2).mul(0.4).exp()
    return LinearGaussian(draw(g, d, seed=seed), draw(g, seed=seed + 1), noise)


def data_of(model: LinearGaussian, n: int, seed: int) -> Tensor:
    z = draw(n, model.loading.shape[1], seed=seed + 3)
    return (
        z @ model.loading.T
        + model.loc
        + draw(n, len(model.loc), seed=seed + 4) * (model.noise.sqrt())
    )


def sample_of(n: int, d: int, seed: int, g: int = G, s: float = 0.7) -> Tensor:
    return data_of(model_of(g, d, seed, s), n, seed)


def factors_of(n: int, seed: int) -> Tensor:
    """Two factors in eight entries, each with noise about as large: a maximum well inside."""
    return sample_of(n, 2, seed, g=8, s=1.0)


def score(model: LinearGaussian, x: Tensor) -> float:
    return model.log_prob(x).mean().item()


# -- a model with known parameters -----------------------------------------------------------------


@law
@given(st.integers(1, 7), st.integers(0, 4), st.floats(0.05, 5), st.floats(0.1, 30), seeds)
def test_log_prob_is_that_of_scipy(g: int, d: int, s: float, far: float, seed: int) -> None:
    model, x = model_of(g, d, seed, s), far * draw(5, g, seed=seed + 9)
    w, loc, noise = (t.numpy() for t in (model.loading, model.loc, model.noise))
    expected = multivariate_normal(loc, w @ w.T + np.diag(noise)).logpdf(x.numpy())
    np.testing.assert_allclose(model.log_prob(x).numpy(), np.atleast_1d(expected), rtol=1e-10)
    np.testing.assert_allclose(model.marginal.mean.numpy(), loc)
    np.testing.assert_allclose(model.marginal.covariance.numpy(), w @ w.T + np.diag(noise))


@law
@given(st.integers(1, 7), st.integers(1, 4), st.floats(0.1, 5), seeds)
def test_posterior_conditions_the_joint_gaussian(g: int, d: int, s: float, seed: int) -> None:
    model, x = model_of(g, d, seed, s), 3 * draw(5, g, seed=seed + 9)
    w, loc, noise = (t.numpy() for t in (model.loading, model.loc, model.noise))
    gain = np.linalg.solve(w @ w.T + np.diag(noise), w).T  # Cov(z, x) Cov(x)^-1
    posterior = model.posterior(x)
    assert posterior.mean.shape == (5, d)
    np.testing.assert_allclose(posterior.mean.numpy(), (x.numpy() - loc) @ gain.T, atol=1e-9)
    covariance = np.broadcast_to(np.eye(d) - gain @ w, (5, d, d))
    np.testing.assert_allclose(posterior.covariance.numpy(), covariance, atol=1e-9)


@law
@given(st.integers(1, 7), st.integers(1, 4), st.floats(0.1, 5), st.floats(0, 5), seeds)
def test_likelihood_times_prior_is_evidence_times_posterior(
    g: int, d: int, s: float, far: float, seed: int
) -> None:
    model, x = model_of(g, d, seed, s), 2 * draw(5, g, seed=seed + 9)
    z = far * draw(3, 5, d, seed=seed + 10)
    prior = Gaussian(torch.zeros(d, dtype=F64), torch.ones(d, dtype=F64))
    joint = model.likelihood(z).log_prob(x) + prior.log_prob(z)
    other = model.log_prob(x) + model.posterior(x).log_prob(z)
    assert joint.shape == (3, 5)
    torch.testing.assert_close(joint, other, rtol=1e-10, atol=1e-8)


def test_ancestral_samples_have_the_marginal() -> None:
    model, n = model_of(4, 2, 0), 100_000
    x = model.likelihood(draw(n, 2, seed=20)).sample(generator=seeded(21))
    torch.testing.assert_close(x.mean(0), model.loc, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), model.marginal.covariance, rtol=0.02, atol=0.05)


def test_posteriors_of_samples_average_to_the_prior() -> None:
    model = model_of(4, 2, 0)
    posterior = model.posterior(data_of(model, 100_000, 5))
    second = posterior.covariance[0] + posterior.mean.T.cov()
    torch.testing.assert_close(posterior.mean.mean(0), torch.zeros(2, dtype=F64), rtol=0, atol=0.01)
    torch.testing.assert_close(second, torch.eye(2, dtype=F64), rtol=0, atol=0.02)


# -- against scikit-learn --------------------------------------------------------------------------


@law
@given(st.integers(1, 5), st.integers(20, 200), seeds)
def test_ppca_is_that_of_scikit_learn(d: int, n: int, seed: int) -> None:
    x = sample_of(n, 2, seed)
    ours = ppca(x, d)
    # scikit-learn divides by n - 1; these rows have so divided the covariance that x has by n.
    rows = x.mean(0) + (x - x.mean(0)) * ((n - 1) / n) ** 0.5
    theirs = PCA(d, svd_solver="full").fit(rows.numpy())
    np.testing.assert_allclose(ours.marginal.covariance.numpy(), theirs.get_covariance(), rtol=1e-8)
    np.testing.assert_allclose(ours.noise.numpy(), np.full(G, theirs.noise_variance_), rtol=1e-8)
    assert score(ours, x) == pytest.approx(theirs.score(x.numpy()), rel=1e-10)


@fewer
@given(st.integers(300, 600), seeds)
def test_factor_analysis_is_that_of_scikit_learn(n: int, seed: int) -> None:
    x = factors_of(n, seed)
    ours = factor_analysis(x, 2, tolerance=1e-12)
    theirs = FactorAnalysis(2, svd_method="lapack", tol=1e-9, max_iter=20_000).fit(x.numpy())
    np.testing.assert_allclose(ours.noise.numpy(), theirs.noise_variance_, rtol=1e-3)
    np.testing.assert_allclose(ours.marginal.covariance.numpy(), theirs.get_covariance(), atol=1e-3)
    np.testing.assert_allclose(ours.loc.numpy(), theirs.mean_)
    assert score(ours, x) == pytest.approx(theirs.score(x.numpy()), abs=1e-8)
    # The two embeddings agree up to a rotation.
    embedding, mean = theirs.transform(x.numpy()), ours.posterior(x).mean.numpy()
    rotation = np.linalg.lstsq(embedding, mean, rcond=None)[0]
    np.testing.assert_allclose(embedding @ rotation, mean, atol=1e-3)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(2), atol=1e-3)


# -- maximum likelihood ----------------------------------------------------------------------------


def gradients(model: LinearGaussian, x: Tensor) -> list[Tensor]:
    """Derivatives of the mean log-likelihood in loading, mean, and logarithm of the noise."""
    parts = [t.detach().clone() for t in (model.loading, model.loc, model.noise.log())]
    for part in parts:
        part.requires_grad_()
    moved = LinearGaussian(parts[0], parts[1], parts[2].exp())
    return list(torch.autograd.grad(moved.log_prob(x).mean(), parts))


@law
@given(st.integers(1, 4), seeds)
def test_likelihood_is_flat_at_ppca(d: int, seed: int) -> None:
    x = sample_of(100, 2, seed)
    loading, loc, noise = gradients(ppca(x, d), x)
    torch.testing.assert_close(loading, torch.zeros_like(loading), rtol=0, atol=1e-10)
    torch.testing.assert_close(loc, torch.zeros_like(loc), rtol=0, atol=1e-10)
    assert abs(noise.sum().item()) < 1e-10  # one noise for all


@fewer
@given(seeds)
def test_likelihood_is_flat_at_factor_analysis(seed: int) -> None:
    x = factors_of(300, seed)
    for gradient in gradients(factor_analysis(x, 2), x):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=2e-4)


def test_tolerance_decides_how_flat() -> None:
    x = factors_of(300, 0)
    steepest = [
        max(g.abs().max().item() for g in gradients(factor_analysis(x, 2, tolerance=t), x))
        for t in (1e-4, 1e-8, 1e-13)
    ]
    assert steepest[0] > 10 * steepest[1] > 100 * steepest[2]
    assert steepest[2] < 1e-6


@law
@given(st.integers(1, 3), st.floats(1e-3, 1), seeds)
def test_no_other_parameters_are_likelier_than_ppca(d: int, size: float, seed: int) -> None:
    x = sample_of(100, 2, seed)
    best = ppca(x, d)
    factor = torch.exp(size * draw(1, seed=seed + 7))
    moved = LinearGaussian(
        best.loading + size * draw(G, d, seed=seed + 5),
        best.loc + size * draw(G, seed=seed + 6),
        best.noise * factor,
    )
    assert score(moved, x) < score(best, x)
    assert score(LinearGaussian(best.loading, best.loc, best.noise * factor), x) < score(best, x)


@fewer
@given(st.floats(0.01, 1), seeds)
def test_no_other_parameters_are_likelier_than_factor_analysis(size: float, seed: int) -> None:
    x = factors_of(300, seed)
    best = factor_analysis(x, 2)
    moved = LinearGaussian(
        best.loading + size * draw(8, 2, seed=seed + 5),
        best.loc + size * draw(8, seed=seed + 6),
        best.noise * torch.exp(size * draw(8, seed=seed + 7)),
    )
    assert score(moved, x) < score(best, x)


@fewer
@given(st.integers(1, 4), seeds)
def test_ppca_takes_the_likeliest_directions(d: int, seed: int) -> None:
    """Any d eigenvectors of the covariance are a stationary point; the first d are the maximum."""
    x = sample_of(100, 2, seed)
    values, vectors = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    best = score(ppca(x, d), x)
    for chosen in torch.combinations(torch.arange(G), d):
        rest = torch.tensor([i for i in range(G) if i not in chosen])
        noise = values[rest].mean()
        loading = vectors[:, chosen] * (values[chosen] - noise).clamp(min=0).sqrt()
        assert score(LinearGaussian(loading, x.mean(0), noise.expand(G)), x) < best + 1e-10


@fewer
@given(seeds)
def test_likelihood_rises_with_the_latent_dimensions(seed: int) -> None:
    x = factors_of(200, seed)
    principal = [score(ppca(x, d), x) for d in range(1, 8)]
    factors = [score(factor_analysis(x, d), x) for d in (1, 2)]
    assert (np.diff(principal) > 0).all()
    assert (np.diff(factors) > 0).all()
    assert all(f > p for f, p in zip(factors, principal[:2], strict=True))
    full = multivariate_normal(x.mean(0).numpy(), np.cov(x.T.numpy(), bias=True))
    assert principal[-1] == pytest.approx(full.logpdf(x.numpy()).mean(), rel=1e-9)


@both
def test_posteriors_of_the_training_data_average_to_the_prior(fit: Fit) -> None:
    x = factors_of(300, 0)
    posterior = fit(x, 2).posterior(x)
    second = posterior.covariance[0] + posterior.mean.T.cov(correction=0)
    torch.testing.assert_close(posterior.mean.mean(0), torch.zeros(2, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(second, torch.eye(2, dtype=F64), rtol=0, atol=1e-3)


# -- recovery --------------------------------------------------------------------------------------


def test_ppca_recovers_what_made_the_data() -> None:
    made = LinearGaussian(draw(G, 2), draw(G, seed=1), torch.full((G,), 0.5, dtype=F64))
    found = ppca(data_of(made, 50_000, 0), 2)
    assert np.degrees(subspace_angles(found.loading.numpy(), made.loading.numpy())).max() < 1
    torch.testing.assert_close(found.noise, made.noise, rtol=0.02, atol=0)
    torch.testing.assert_close(found.loc, made.loc, rtol=0, atol=0.03)
    torch.testing.assert_close(
        found.loading @ found.loading.T, made.loading @ made.loading.T, rtol=0, atol=0.1
    )


def test_factor_analysis_recovers_what_made_the_data() -> None:
    made = LinearGaussian(
        draw(G, 2), draw(G, seed=1), torch.tensor([0.1, 3.0, 0.5, 1.0, 0.2, 2.0], dtype=F64)
    )
    x = data_of(made, 50_000, 0)
    found = factor_analysis(x, 2)
    assert np.degrees(subspace_angles(found.loading.numpy(), made.loading.numpy())).max() < 1.5
    torch.testing.assert_close(found.noise, made.noise, rtol=0.1, atol=0.02)
    # ... where principal components take noise for signal.
    angles = subspace_angles(ppca(x, 2).loading.numpy(), made.loading.numpy())
    assert np.degrees(angles).max() > 10


# -- symmetries ------------------------------------------------------------------------------------


@both
def test_order_of_rows_does_not_matter(fit: Fit) -> None:
    x = factors_of(100, 0)
    order = torch.randperm(len(x), generator=seeded(1))
    one, other = fit(x, 2), fit(x[order], 2)
    torch.testing.assert_close(one.marginal.covariance, other.marginal.covariance)
    torch.testing.assert_close(one.log_prob(x)[order], other.log_prob(x[order]))


@both
def test_order_of_columns_carries_over(fit: Fit) -> None:
    x = factors_of(100, 0)
    order = torch.randperm(8, generator=seeded(1))
    one, other = fit(x, 2), fit(x[:, order], 2)
    torch.testing.assert_close(one.noise[order], other.noise)
    torch.testing.assert_close(one.log_prob(x), other.log_prob(x[:, order]))


@both
def test_shift_of_the_data_shifts_the_mean_alone(fit: Fit) -> None:
    x, shift = factors_of(100, 0), 5 * draw(8, seed=1)
    one, other = fit(x, 2), fit(x + shift, 2)
    torch.testing.assert_close(one.loc + shift, other.loc)
    torch.testing.assert_close(one.marginal.covariance, other.marginal.covariance)
    torch.testing.assert_close(one.noise, other.noise)


@fewer
@given(st.integers(1, 3), seeds)
def test_rotation_of_the_data_rotates_ppca(d: int, seed: int) -> None:
    x = sample_of(80, 2, seed)
    rotation = torch.linalg.qr(draw(G, G, seed=seed + 8)).Q
    one, other = ppca(x, d), ppca(x @ rotation.T, d)
    turned = rotation @ one.loading
    torch.testing.assert_close(other.loading @ other.loading.T, turned @ turned.T)
    torch.testing.assert_close(other.noise, one.noise)
    torch.testing.assert_close(other.log_prob(x @ rotation.T), one.log_prob(x))


@fewer
@given(seeds)
def test_units_of_the_data_rescale_factor_analysis(seed: int) -> None:
    x = factors_of(200, seed)
    sign = torch.tensor([1, -1, 1, 1, -1, 1, 1, 1], dtype=F64)
    scale = draw(8, seed=seed + 8).exp() * sign
    one, other = factor_analysis(x, 2), factor_analysis(x * scale, 2)
    log_jacobian = scale.abs().log().sum()
    torch.testing.assert_close(other.noise, one.noise * scale.square())
    torch.testing.assert_close(other.log_prob(x * scale), one.log_prob(x) - log_jacobian)


@law
@given(st.floats(0.01, 100), seeds)
def test_one_unit_for_all_rescales_ppca(scale: float, seed: int) -> None:
    x = sample_of(50, 2, seed)
    one, other = ppca(x, 2), ppca(x * scale, 2)
    torch.testing.assert_close(other.noise, one.noise * scale**2)
    torch.testing.assert_close(other.log_prob(x * scale), one.log_prob(x) - G * np.log(scale))


# -- types and limits ------------------------------------------------------------------------------


@both
def test_single_precision_is_the_same_in_fewer_digits(fit: Fit) -> None:
    x = factors_of(200, 0)
    one, other = fit(x, 2), fit(x.float(), 2)
    rows = other.log_prob(x.float())
    assert other.loading.dtype == other.noise.dtype == rows.dtype == torch.float32
    torch.testing.assert_close(other.noise.double(), one.noise, rtol=1e-2, atol=0)
    torch.testing.assert_close(rows.double(), one.log_prob(x), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("fit", "d"),
    [(ppca, G), (ppca, G + 1), (factor_analysis, G + 1), (ppca, -1), (factor_analysis, -1)],
)
def test_latent_dimensions_without_a_maximum_are_refused(fit: Fit, d: int) -> None:
    with pytest.raises(ValueError, match="n_latent"):
        fit(sample_of(50, 2, 0), d)


# -- data that a covariance matrix does not suffice for --------------------------------------------


def few(n: int, g: int, seed: int = 0) -> Tensor:
    noise = torch.randn(n, g, generator=Generator().manual_seed(seed + 1), dtype=torch.float64)
    loading = torch.randn(3, g, generator=Generator().manual_seed(seed + 2), dtype=torch.float64)
    z = torch.randn(n, 3, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return z @ loading + 0.5 * noise


@pytest.mark.parametrize("n", [15, 20, 50, 51])
def test_factor_analysis_of_few_rows_is_scikit_learns(n: int) -> None:
    x = few(n, 50)
    theirs = FactorAnalysis(3, tol=1e-10, max_iter=20_000, svd_method="lapack")
    expected = theirs.fit(x.numpy()).score(x.numpy())
    assert factor_analysis(x, 3).log_prob(x).mean().item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_of_which_no_density_can_be_learned_are_named(dtype: torch.dtype) -> None:
    x = few(500, 10).to(dtype)
    with pytest.raises(ValueError, match=r"\[2, 10\] of x determine each other"):
        factor_analysis(torch.cat([x, 3 * x[:, 2:3]], 1), 3)
    with pytest.raises(ValueError, match=r"\[10\] of x are constant"):
        factor_analysis(torch.cat([x, torch.full_like(x[:, :1], 0.1)], 1), 3)
    with pytest.raises(ValueError, match=r"n_latent=19 .* these 20 rows"):
        ppca(few(20, 50).to(dtype), 19)
    assert ppca(few(20, 50).to(dtype), 18).log_prob(few(20, 50).to(dtype)).isfinite().all()


# -- no noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 4])
def test_without_noise_probabilistic_pca_is_pca(d: int) -> None:
    """As sigma^2 falls, E[z | x] becomes PCA's projection, its spread and the error falling too."""
    x, fitted = sample_of(200, 2, 0), ppca(sample_of(200, 2, 0), d)
    theirs = PCA(d).fit(x.numpy())
    projected = torch.from_numpy(theirs.inverse_transform(theirs.transform(x.numpy())))
    errors = []
    for noise in (1e-2, 1e-4, 1e-6):
        model = LinearGaussian(fitted.loading, fitted.loc, torch.full((G,), noise, dtype=F64))
        q = model.posterior(x)
        assert (q.variance < noise / fitted.loading.square().sum(0).min() * 1.001).all()
        errors.append((model.likelihood(q.mean).mean - projected).abs().max().item())
        # What is lost is the share that the prior draws back, sigma^2 (W'W + sigma^2)^-1.
        share = noise / (fitted.loading.square().sum(0).min() + noise)
        assert errors[-1] <= share * (projected - fitted.loc).norm(dim=1).max()
    assert errors[0] > 50 * errors[1] > 2000 * errors[2] > 0
    assert errors[2] < 1e-4
