"""One suite of laws that every distribution passes: shapes, densities, moments, samples, gradients.

Densities are held against scipy in float64, against sums and integrals, and against themselves in
float32; samples against moments in closed form, within five standard errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Generator, Size, Tensor
from torch import distributions as reference
from torch.distributions import Distribution

from scvae.core.distributions import (
    Bernoulli,
    Categorical,
    Detected,
    EntryMixture,
    Factorised,
    FullGaussian,
    Gaussian,
    LogNormal,
    Mixture,
    NegativeBinomial,
    NegativeBinomialShares,
    Poisson,
    Shares,
    ZeroInflated,
    strata,
)
from scvae.core.shapes import broadcast_shape
from tests.draws import seeded

N, G, C = 4, 3, 2
DRAWS = 40_000
F64 = torch.float64
INF = math.inf
Draw = Callable[..., Tensor]
Shape = tuple[int, ...]
law = settings(deadline=None, derandomize=True, max_examples=40)


class Build(Protocol):
    """A distribution of batch shape `n` and g entries, of random numbers drawn by `draw`."""

    __name__: str

    def __call__(self, draw: Draw, n: Shape = (N,), g: int = G) -> Distribution: ...


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


def single(*shape: int, seed: int = 0) -> Tensor:
    return double(*shape, seed=seed).float()


def learned(*shape: int, seed: int = 0) -> Tensor:
    return double(*shape, seed=seed).requires_grad_()


def positive(draws: Tensor) -> Tensor:
    """Return scales of about 1, from about 0.4 to about 2.5."""
    return draws.mul(0.3).exp()


# -- the distributions under test ------------------------------------------------------------------


def gaussian(draw: Draw, n: Shape = (N,), g: int = G) -> Gaussian:
    return Gaussian(draw(*n, g), positive(draw(*n, g, seed=1)))


def gaussian_of_one_scale(draw: Draw, n: Shape = (N,), g: int = G) -> Gaussian:
    return Gaussian(draw(*n, g), positive(draw(g, seed=1)))


def gaussian_of_one_loc(draw: Draw, n: Shape = (N,), g: int = G) -> Gaussian:
    return Gaussian(draw(g), positive(draw(*n, 1, seed=1)))


def factor(diagonal: Tensor, below: Tensor) -> Tensor:
    return torch.diag_embed(positive(diagonal)) + below.mul(0.5).tril(-1)


def full_gaussian(draw: Draw, n: Shape = (N,), g: int = G) -> FullGaussian:
    return FullGaussian(draw(*n, g), factor(draw(*n, g, seed=1), draw(*n, g, g, seed=2)))


def full_gaussian_of_one_factor(draw: Draw, n: Shape = (N,), g: int = G) -> FullGaussian:
    return FullGaussian(draw(*n, g), factor(draw(g, seed=1), draw(g, g, seed=2)))


def full_gaussian_of_one_loc(draw: Draw, n: Shape = (N,), g: int = G) -> FullGaussian:
    return FullGaussian(draw(g), factor(draw(*n, g, seed=1), draw(*n, g, g, seed=2)))


def log_normal(draw: Draw, n: Shape = (N,), g: int = G) -> LogNormal:
    return LogNormal(draw(*n, g) / 2, positive(draw(*n, g, seed=1)) / 2)


def log_normal_of_one_scale(draw: Draw, n: Shape = (N,), g: int = G) -> LogNormal:
    return LogNormal(draw(*n, g) / 2, positive(draw(g, seed=1)) / 2)


def bernoulli(draw: Draw, n: Shape = (N,), g: int = G) -> Bernoulli:
    return Bernoulli(draw(*n, g))


def categorical(draw: Draw, n: Shape = (N,), g: int = G) -> Categorical:
    return Categorical(draw(*n, g))


def poisson(draw: Draw, n: Shape = (N,), g: int = G) -> Poisson:
    return Poisson(draw(*n, g) + 1)


def poisson_of_shares(draw: Draw, n: Shape = (N,), g: int = G) -> Poisson:
    return Poisson(Shares(draw(*n, g), draw(*n, 1, seed=5) + 3))


def poisson_of_some_shares(draw: Draw, n: Shape = (N,), g: int = G) -> Poisson:
    """One total for all cells, and two columns that are not counted."""
    logits = draw(*n, g + 2)
    return Poisson(Shares(logits, draw(1, seed=5) + 3, logits.shape[-1] - 2))


def detected(draw: Draw, n: Shape = (N,), g: int = G) -> Detected:
    return Detected(draw(*n, g))


def detected_of_some_shares(draw: Draw, n: Shape = (N,), g: int = G) -> Detected:
    logits = draw(*n, g + 2)
    return Detected(Shares(logits, draw(*n, 1, seed=5) + 1, logits.shape[-1] - 2))


def entry_mixture_of_nbs(draw: Draw, n: Shape = (N,), g: int = G) -> EntryMixture:
    return EntryMixture(draw(*n, C, g, seed=3), nb(draw, (*n, C), g))


def entry_mixture_of_one_weighting(draw: Draw, n: Shape = (N,), g: int = G) -> EntryMixture:
    return EntryMixture(draw(C, 1, seed=3), nb_per_gene(draw, (*n, C), g))


def entry_mixture_of_shared_poissons(draw: Draw, n: Shape = (N,), g: int = G) -> EntryMixture:
    return EntryMixture(draw(*n, C, g, seed=3), poisson(draw, (C,), g))


def nb(draw: Draw, n: Shape = (N,), g: int = G) -> NegativeBinomial:
    return NegativeBinomial(draw(*n, g) + 1, draw(*n, g, seed=1) + 1)


def nb_per_gene(draw: Draw, n: Shape = (N,), g: int = G) -> NegativeBinomial:
    return NegativeBinomial(draw(*n, g) + 1, draw(g, seed=1) + 1)


def nb_of_one_mean(draw: Draw, n: Shape = (N,), g: int = G) -> NegativeBinomial:
    return NegativeBinomial(draw(g) + 1, draw(*n, 1, seed=1) + 1)


def nb_of_shares(draw: Draw, n: Shape = (N,), g: int = G) -> NegativeBinomial:
    return NegativeBinomial(Shares(draw(*n, g), draw(*n, 1, seed=5) + 3), draw(g, seed=1) + 1)


def nb_of_some_shares(draw: Draw, n: Shape = (N,), g: int = G) -> NegativeBinomial:
    """One total for all cells, and two columns that are not counted."""
    logits = draw(*n, g + 2)
    shares = Shares(logits, draw(1, seed=5) + 3, logits.shape[-1] - 2)
    return NegativeBinomial(shares, draw(*n, g, seed=1) + 1)


def nb_of_shares_of_one_dispersion(draw: Draw, n: Shape = (N,), g: int = G) -> NegativeBinomial:
    return NegativeBinomial(Shares(draw(g), draw(*n, 1, seed=5) + 3), draw(seed=1) + 1)


def zero_inflated_nb_of_shares(draw: Draw, n: Shape = (N,), g: int = G) -> ZeroInflated:
    return ZeroInflated(nb_of_shares(draw, n, g), draw(*n, g, seed=2))


def zero_inflated_poisson(draw: Draw, n: Shape = (N,), g: int = G) -> ZeroInflated:
    return ZeroInflated(poisson(draw, n, g), draw(*n, g, seed=2))


def zero_inflated_nb(draw: Draw, n: Shape = (N,), g: int = G) -> ZeroInflated:
    return ZeroInflated(nb_per_gene(draw, n, g), draw(*n, g, seed=2))


def zero_inflated_per_gene(draw: Draw, n: Shape = (N,), g: int = G) -> ZeroInflated:
    return ZeroInflated(nb(draw, n, g), draw(g, seed=2))


def zero_inflated_of_one_base(draw: Draw, n: Shape = (N,), g: int = G) -> ZeroInflated:
    return ZeroInflated(Poisson(draw(g) + 1), draw(*n, g, seed=2))


def zero_inflated_per_cell(draw: Draw, n: Shape = (N,), g: int = G) -> ZeroInflated:
    return ZeroInflated(nb(draw, n, g), draw(*n, 1, seed=2))


def mixture_of_gaussians(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), gaussian(draw, (*n, C), g))


def mixture_of_shared_gaussians(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), gaussian(draw, (C,), g))


def mixture_of_one_weighting(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(C, seed=3), gaussian(draw, (*n, C), g))


def mixture_of_full_gaussians(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), full_gaussian(draw, (*n, C), g))


def mixture_of_log_normals(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), log_normal(draw, (*n, C), g))


def mixture_of_bernoullis(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), bernoulli(draw, (*n, C), g))


def mixture_of_categoricals(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), categorical(draw, (*n, C), g))


def mixture_of_nbs(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), nb(draw, (*n, C), g))


def mixture_of_inflated_nbs(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=3), zero_inflated_nb(draw, (*n, C), g))


def mixture_of_mixtures(draw: Draw, n: Shape = (N,), g: int = G) -> Mixture:
    return Mixture(draw(*n, C, seed=4), mixture_of_gaussians(draw, (*n, C), g))


SMOOTH: tuple[Build, ...] = (  # samples can be differentiated, if need be by strata
    gaussian,
    gaussian_of_one_scale,
    gaussian_of_one_loc,
    full_gaussian,
    full_gaussian_of_one_factor,
    full_gaussian_of_one_loc,
    log_normal,
    log_normal_of_one_scale,
    mixture_of_gaussians,
    mixture_of_shared_gaussians,
    mixture_of_one_weighting,
    mixture_of_full_gaussians,
    mixture_of_log_normals,
)
CONTINUOUS: tuple[Build, ...] = (*SMOOTH, mixture_of_mixtures)
BINARY: tuple[Build, ...] = (
    bernoulli,
    detected,
    detected_of_some_shares,
    mixture_of_bernoullis,
)
ONE_HOT: tuple[Build, ...] = (categorical, mixture_of_categoricals)
COUNTS: tuple[Build, ...] = (
    poisson,
    poisson_of_shares,
    poisson_of_some_shares,
    entry_mixture_of_nbs,
    entry_mixture_of_one_weighting,
    entry_mixture_of_shared_poissons,
    nb,
    nb_per_gene,
    nb_of_one_mean,
    nb_of_shares,
    nb_of_some_shares,
    nb_of_shares_of_one_dispersion,
    zero_inflated_nb_of_shares,
    zero_inflated_poisson,
    zero_inflated_nb,
    zero_inflated_per_gene,
    zero_inflated_of_one_base,
    zero_inflated_per_cell,
    mixture_of_nbs,
    mixture_of_inflated_nbs,
)
ALL: tuple[Build, ...] = (*CONTINUOUS, *BINARY, *ONE_HOT, *COUNTS)
WITH_MARGINALS: tuple[Build, ...] = ALL
WITH_ENTROPY: tuple[Build, ...] = (*SMOOTH[:8], bernoulli, categorical)
NBS: tuple[Build, ...] = (
    nb,
    nb_per_gene,
    nb_of_one_mean,
    nb_of_shares,
    nb_of_some_shares,
    nb_of_shares_of_one_dispersion,
)
POSITIVE = ("log_normal", "log_normal_of_one_scale", "mixture_of_log_normals")


def name(build: Build) -> str:
    return build.__name__


def every(builds: tuple[Build, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("build", builds, ids=name)


@pytest.fixture(params=ALL, ids=name)
def build(request: pytest.FixtureRequest) -> Build:
    return request.param


@pytest.fixture
def p(build: Build) -> Distribution:
    return build(double)


def sample_of(p: Distribution, *shape: int, seed: int = 0) -> Tensor:
    return p.sample(Size(shape), generator=seeded(seed))  # type: ignore[call-arg]


def far_from(build: Build, value: Tensor) -> Tensor:
    """Return values of the same support, a few times as far out."""
    if build in COUNTS:
        return 7 * value
    if build.__name__ in POSITIVE:
        return value**3
    return 5 * value if build in CONTINUOUS else value


def leaves_of(build: Build, **shape: int | Shape) -> list[Tensor]:
    """Return the random numbers that `build` draws, to be differentiated."""
    found = []

    def draw(*shape: int, seed: int = 0) -> Tensor:
        found.append(learned(*shape, seed=seed))
        return found[-1]

    build(draw, **shape)  # type: ignore[arg-type]
    return found


def built_of(build: Build, leaves: tuple[Tensor, ...] | list[Tensor]) -> Distribution:
    given_ones = iter(leaves)
    return build(lambda *_, **__: next(given_ones))


def close_in_errors(found: Tensor, expected: Tensor) -> None:
    """Assert that the mean of `found` over its first axis is `expected`, in standard errors."""
    error = found.std(0) / math.sqrt(len(found))
    assert error.isfinite().all()
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


def assert_numerical(function: Callable[..., Tensor], leaves: Tensor | list[Tensor]) -> None:
    """Assert that gradients are central differences, to seven digits."""
    assert torch.autograd.gradcheck(function, leaves, rtol=1e-7, atol=1e-7)


# -- the same in scipy -----------------------------------------------------------------------------


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def entries_in_scipy(p: Distribution, x: np.ndarray) -> np.ndarray:
    """Return log p(x_d) of every entry."""
    match p:
        case Gaussian():
            return stats.norm.logpdf(x, numbers(p.loc), numbers(p.scale))
        case LogNormal():
            return stats.lognorm.logpdf(x, numbers(p.scale), scale=np.exp(numbers(p.loc)))
        case Bernoulli():
            return stats.bernoulli.logpmf(x, special.expit(numbers(p.logits)))
        case Detected():
            return stats.bernoulli.logpmf(x, -np.expm1(-np.exp(numbers(p.log_mean))))
        case EntryMixture():
            of_each = entries_in_scipy(p.components, x[..., None, :])
            weights = special.log_softmax(
                np.broadcast_to(numbers(p.logits), of_each.shape), axis=-2
            )
            return special.logsumexp(weights + of_each, axis=-2)
        case Poisson():
            return stats.poisson.logpmf(x, np.exp(numbers(p.log_mean)))
        case NegativeBinomial():
            mean, r = np.exp(numbers(p.log_mean)), np.exp(numbers(p.log_inverse_dispersion))
            return stats.nbinom.logpmf(x, r, r / (r + mean))
        case ZeroInflated():
            logits = numbers(p.logits)
            counted = special.log_expit(-logits) + entries_in_scipy(p.base, x)
            return np.where(x == 0, np.logaddexp(special.log_expit(logits), counted), counted)
    raise TypeError(type(p))


def in_scipy(p: Distribution, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return log p of the entries of every row that are `seen`."""
    match p:
        case Mixture():
            of_each = in_scipy(p.components, x[..., None, :], seen[..., None, :])
            log_weights = special.log_softmax(numbers(p.logits), axis=-1)
            return special.logsumexp(log_weights + of_each, axis=-1)
        case FullGaussian():
            shape = np.broadcast_shapes(x.shape, seen.shape, p.loc.shape)
            x, seen, loc = (np.broadcast_to(v, shape) for v in (x, seen, numbers(p.loc)))
            covariance = numbers(p.scale_tril) @ numbers(p.scale_tril).swapaxes(-1, -2)
            covariance = np.broadcast_to(covariance, (*shape, shape[-1]))
            found = np.zeros(shape[:-1])
            for i in np.ndindex(found.shape):
                if (on := seen[i]).any():
                    law_of_row = stats.multivariate_normal(loc[i][on], covariance[i][on][:, on])
                    found[i] = law_of_row.logpdf(x[i][on])
            return found
        case Categorical():
            # Of all one-hot rows, those that look the same where it was seen.
            rows = np.eye(x.shape[-1])
            of_each = stats.multinomial.logpmf(
                rows, 1, special.softmax(numbers(p.logits), axis=-1)[..., None, :]
            )
            same = ((rows == x[..., None, :]) | ~seen[..., None, :]).all(-1)
            return special.logsumexp(np.where(same, of_each, -np.inf), axis=-1)
    return np.where(seen, entries_in_scipy(p, x), 0.0).sum(-1)


def entropy_in_scipy(p: Distribution) -> np.ndarray:
    match p:
        case Gaussian():
            return stats.norm.entropy(numbers(p.loc), numbers(p.scale)).sum(-1)
        case LogNormal():
            scale = np.exp(numbers(p.loc))
            return stats.lognorm.entropy(numbers(p.scale), scale=scale).sum(-1)
        case FullGaussian():
            rows = numbers(p.scale_tril @ p.scale_tril.mT)
            return np.array([stats.multivariate_normal(cov=row).entropy() for row in rows])
        case Bernoulli():
            return stats.bernoulli.entropy(special.expit(numbers(p.logits))).sum(-1)
        case Categorical():
            return stats.entropy(special.softmax(numbers(p.logits), axis=-1), axis=-1)
    raise TypeError(type(p))


def covariance_of(p: Distribution) -> Tensor:
    match p:
        case FullGaussian():
            return p.scale_tril @ p.scale_tril.mT
        case Categorical():
            return torch.diag_embed(p.mean) - p.mean[..., :, None] * p.mean[..., None, :]
        case Mixture():
            weights = p.logits.softmax(-1)[..., None, None]
            off = p.components.mean - p.mean[..., None, :]
            outer = off[..., :, None] * off[..., None, :]
            return (weights * (covariance_of(p.components) + outer)).sum(-3)
    return torch.diag_embed(p.variance)


# -- shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [(), (N,), (2, N)], ids=str)
def test_the_last_axis_is_the_event(build: Build, n: Shape) -> None:
    p = build(double, n=n)
    assert (p.batch_shape, p.event_shape) == (n, (G,))
    assert p.mean.shape == p.variance.shape == p.stddev.shape == (*n, G)
    assert sample_of(p).shape == (*n, G)
    assert p.log_prob(sample_of(p, 5)).shape == (5, *n)


def test_log_prob_is_one_number_per_row(p: Distribution) -> None:
    assert p.log_prob(sample_of(p)).shape == (N,)
    assert p.log_prob(sample_of(p, 5)).shape == (5, N)
    assert p.log_prob(sample_of(p, 5, 2)).shape == (5, 2, N)
    assert p.log_prob(sample_of(p)[0]).shape == (N,)


def test_log_prob_of_rows_is_that_of_each_row(p: Distribution) -> None:
    value = sample_of(p)
    alone = torch.stack([p.log_prob(value[n])[n] for n in range(N)])
    torch.testing.assert_close(alone, p.log_prob(value), rtol=1e-13, atol=1e-13)


def test_no_rows_are_a_batch_too(build: Build) -> None:
    p = build(double, n=(0,))
    assert p.mean.shape == p.variance.shape == (0, G)
    assert sample_of(p, 2).shape == (2, 0, G)
    assert sample_of(build(double), 0).shape == (0, N, G)
    assert p.log_prob(torch.ones(2, 0, G)).shape == (2, 0)


def test_expand_commutes_with_log_prob_and_moments(p: Distribution) -> None:
    wide, value = p.expand(Size((5, N))), sample_of(p, 5)
    assert type(wide) is type(p)
    assert (wide.batch_shape, wide.event_shape) == ((5, N), (G,))
    torch.testing.assert_close(wide.log_prob(value), p.log_prob(value))
    torch.testing.assert_close(wide.log_prob(value[0]), p.log_prob(value[0]).expand(5, N))
    torch.testing.assert_close(wide.mean, p.mean.expand(5, N, G))
    torch.testing.assert_close(wide.variance, p.variance.expand(5, N, G))


# -- densities -------------------------------------------------------------------------------------


def test_log_prob_is_scipys(build: Build, p: Distribution) -> None:
    value = sample_of(p, 7, seed=9)
    value = torch.cat([value, far_from(build, value)])
    expected = in_scipy(p, numbers(value), np.ones(G, dtype=bool))
    np.testing.assert_allclose(p.log_prob(value), expected, rtol=1e-10, atol=1e-12)


def widened(p: Distribution) -> Distribution:
    """Return the same distribution, its very parameters cast to float64."""
    own = {k: getattr(p, k).double() for k in p.arg_constraints}
    inner = {k: widened(getattr(p, k)) for k in ("base", "components") if hasattr(p, k)}
    return type(p)(**own, **inner)  # type: ignore[arg-type]


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_float32_is_within_2e5_and_3e6_of_float64(build: Build, spread: float) -> None:
    # Parameters (of scales and means, the logarithms) up to about 8, values as they are sampled.
    p = build(lambda *shape, seed=0: spread * single(*shape, seed=seed))
    value = sample_of(p, 20, seed=9)
    found, expected = p.log_prob(value), widened(p).log_prob(value.double())
    assert (found.dtype, value.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=2e-5)


def support_of(build: Build, g: int) -> tuple[Tensor, Tensor]:
    """Return points of the support ``(k, 1, g)`` and the volume that each stands for ``(k,)``."""
    if build in ONE_HOT:
        return torch.eye(g, dtype=F64)[:, None], torch.ones(g, dtype=F64)
    if build in CONTINUOUS:  # the trapezoidal rule is exact to rounding for smooth tails
        step = 0.05 if g == 1 else 0.16
        one, log_volume = torch.arange(-24, 24, step, dtype=F64), math.log(step)
    else:
        one, log_volume = torch.arange(2 if build in BINARY else 3000, dtype=F64), 0.0
    points = torch.cartesian_prod(*[one] * g).reshape(-1, 1, g)
    volume = torch.full((len(points),), g * log_volume, dtype=F64)
    if build.__name__ in POSITIVE:
        return points.exp(), (volume + points.sum((-2, -1))).exp()
    return points, volume.exp()


@pytest.mark.parametrize(
    ("build", "g"),
    [(b, 1) for b in (*CONTINUOUS, *COUNTS)]
    + [(b, 2) for b in CONTINUOUS]
    + [(b, G) for b in (*BINARY, *ONE_HOT)],
    ids=lambda v: v if isinstance(v, int) else name(v),
)
def test_density_integrates_to_one_mean_and_variance(build: Build, g: int) -> None:
    p = build(double, n=(2,), g=g)
    points, volume = support_of(build, g)
    mass = (p.log_prob(points).exp() * volume[:, None])[..., None]
    one = torch.ones(2, 1, dtype=F64)
    torch.testing.assert_close(mass.sum(0), one, rtol=0, atol=1e-10)
    torch.testing.assert_close((mass * points).sum(0), p.mean, rtol=1e-8, atol=1e-10)
    squares = (mass * (points - p.mean).square()).sum(0)
    torch.testing.assert_close(squares, p.variance, rtol=1e-8, atol=1e-10)


def test_gradients_in_the_parameters_are_numerical_ones(build: Build) -> None:
    leaves = leaves_of(build)
    value = sample_of(build(double), 2, seed=9)
    assert all(leaf.requires_grad for leaf in leaves)
    assert_numerical(lambda *own: built_of(build, own).log_prob(value), leaves)


def test_second_derivatives_are_numerical_ones(build: Build) -> None:
    leaves = leaves_of(build, n=(2,), g=2)
    value = sample_of(build(double, n=(2,), g=2), 2, seed=9)

    def log_prob(*own: Tensor) -> Tensor:
        # A sum alone would leave out that the gradient of log p takes part in others.
        return built_of(build, own).log_prob(value).tanh()

    assert torch.autograd.gradgradcheck(log_prob, leaves, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("draw", [double, single], ids=["float64", "float32"])
def test_torch_func_gives_the_gradient_of_every_row(build: Build, draw: Draw) -> None:
    leaves = [leaf.detach().to(draw(1).dtype) for leaf in leaves_of(build, n=())]
    values = sample_of(build(draw, n=()), 6, seed=9)
    of_row = torch.func.grad(lambda own, value: built_of(build, own).log_prob(value))
    found = torch.func.vmap(of_row, in_dims=(None, 0))(leaves, values)
    for row, value in enumerate(values):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        expected = torch.autograd.grad(built_of(build, own).log_prob(value), own)
        for of_rows, of_one in zip(found, expected, strict=True):
            torch.testing.assert_close(of_rows[row], of_one, rtol=1e-4, atol=1e-4)


def test_forward_derivatives_are_the_backward_ones(build: Build) -> None:
    leaves = [leaf.detach() for leaf in leaves_of(build, n=())]
    value = sample_of(build(double, n=()), seed=9)
    moved = [torch.ones_like(leaf) for leaf in leaves]

    def ask(*own: Tensor) -> Tensor:
        return built_of(build, own).log_prob(value)

    _, forward = torch.func.jvp(ask, tuple(leaves), tuple(moved))
    backward = sum(g.sum() for g in torch.func.grad(ask, tuple(range(len(leaves))))(*leaves))
    torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.int64])
def test_values_of_any_type_give_the_same(build: Build, dtype: torch.dtype) -> None:
    if dtype == torch.int64 and build in CONTINUOUS:
        pytest.skip("no whole numbers")
    leaves = [leaf.detach().float().requires_grad_() for leaf in leaves_of(build)]
    p = built_of(build, leaves)
    value = sample_of(p, 5, seed=9)
    found, expected = p.log_prob(value.to(dtype)), p.log_prob(value)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-4)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(found.sum(), leaves))


@every(CONTINUOUS)
def test_gradients_in_the_value_are_numerical_ones(build: Build) -> None:
    p = build(double)
    value = sample_of(p, 2, seed=9).requires_grad_()
    assert_numerical(p.log_prob, value)


def test_parameters_are_checked_on_request_alone() -> None:
    nan, zero, one = torch.full((2, 3), math.nan), torch.zeros(2, 3), torch.ones(2, 3)
    upper = torch.ones(2, 3, 3)
    wrong: list[tuple[str, Callable[..., Distribution]]] = [
        ("loc", lambda **v: Gaussian(nan, one, **v)),
        ("scale", lambda **v: Gaussian(zero, -one, **v)),
        ("loc", lambda **v: FullGaussian(nan, torch.eye(3), **v)),
        ("scale_tril", lambda **v: FullGaussian(zero, -torch.eye(3), **v)),
        ("scale_tril", lambda **v: FullGaussian(zero, upper, **v)),
        ("loc", lambda **v: LogNormal(nan, one, **v)),
        ("scale", lambda **v: LogNormal(zero, zero, **v)),
        ("logits", lambda **v: Bernoulli(nan, **v)),
        ("logits", lambda **v: Categorical(nan, **v)),
        ("log_mean", lambda **v: Poisson(nan, **v)),
        ("log_mean", lambda **v: NegativeBinomial(nan, zero, **v)),
        ("log_inverse_dispersion", lambda **v: NegativeBinomial(zero, nan, **v)),
        ("log_mean", lambda **v: NegativeBinomial(Shares(nan, zero[:, :1]), zero, **v)),
        (
            "log_inverse_dispersion",
            lambda **v: NegativeBinomial(Shares(zero, one[:, :1]), nan, **v),
        ),
        ("logits", lambda **v: ZeroInflated(Poisson(zero), nan, **v)),
        ("logits", lambda **v: Mixture(nan[:, :2], Gaussian(zero[:, None], one), **v)),
    ]
    for parameter, make in wrong:
        assert make().event_shape == (3,)
        with pytest.raises(ValueError, match=f"parameter {parameter} "):
            make(validate_args=True)
    assert Categorical(torch.tensor([0.0, -INF]), validate_args=True).event_shape == (2,)


# -- corners ---------------------------------------------------------------------------------------

SCALES, LOCS, LOGITS = (1e-6, 1.0, 1e6), (-1e4, 0.0, 1e4), (-1e4, 0.0, 1e4)
LOG_MEANS, LOG_RS = (-100.0, 0.0, 14.0), (-7.0, 0.0, 18.0)
REALS, POSITIVES, WHOLES = (-1e4, 0.0, 1.0), (1e-6, 1.0, 1e6), (0.0, 1.0, 1e6)
BITS = (0.0, 1.0)


def pair(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], -1)


def full_of(loc: Tensor, first: Tensor, second: Tensor, slope: Tensor) -> FullGaussian:
    rows = pair(first, torch.zeros_like(first)), pair(slope * second, second)
    return FullGaussian(pair(loc, -loc), torch.stack(rows, -2))


def both(component: Callable[..., Distribution]) -> Callable[..., Mixture]:
    """Return a maker of mixtures of a component at its parameters and at the next corner's."""

    def mixture(first: Tensor, second: Tensor, *own: Tensor) -> Mixture:
        twice = [torch.stack([value, value.roll(1, 0)], -2) for value in own]
        return Mixture(pair(first, second), component(*twice))

    return mixture


def inflated_nb(log_mean: Tensor, log_r: Tensor, logits: Tensor) -> ZeroInflated:
    return ZeroInflated(NegativeBinomial(log_mean, log_r), logits)


def inflated_poisson(log_mean: Tensor, logits: Tensor) -> ZeroInflated:
    return ZeroInflated(Poisson(log_mean), logits)


FULL = (LOCS, SCALES, SCALES, (0.0, 1.0))
CORNERS = {
    "gaussian": (Gaussian, (LOCS, SCALES), REALS),
    "full_gaussian": (full_of, FULL, REALS),
    "log_normal": (LogNormal, (LOCS, SCALES), POSITIVES),
    "bernoulli": (Bernoulli, (LOGITS,), BITS),
    "poisson": (Poisson, (LOG_MEANS,), WHOLES),
    "nb": (NegativeBinomial, (LOG_MEANS, LOG_RS), WHOLES),
    "zero_inflated_poisson": (inflated_poisson, (LOG_MEANS, LOGITS), WHOLES),
    "zero_inflated_nb": (inflated_nb, (LOG_MEANS, LOG_RS, LOGITS), WHOLES),
    "mixture_of_gaussians": (both(Gaussian), (LOGITS, LOGITS, LOCS, SCALES), REALS),
    "mixture_of_full_gaussians": (both(full_of), (LOGITS, LOGITS, *FULL), REALS),
    "mixture_of_log_normals": (both(LogNormal), (LOGITS, LOGITS, LOCS, SCALES), POSITIVES),
    "mixture_of_bernoullis": (both(Bernoulli), (LOGITS, LOGITS, LOGITS), BITS),
    "mixture_of_nbs": (both(NegativeBinomial), (LOGITS, LOGITS, LOG_MEANS, LOG_RS), WHOLES),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("corner", CORNERS)
def test_corners_are_finite_with_finite_gradients(corner: str, dtype: torch.dtype) -> None:
    make, axes, values = CORNERS[corner]
    grid = torch.tensor(list(itertools.product(*axes, values)), dtype=dtype)
    *own, value = (column[:, None] for column in grid.unbind(-1))
    leaves = [leaf.clone().requires_grad_() for leaf in (*own, value)]
    p, value = make(*leaves[:-1]), leaves[-1]
    value = value.expand(-1, *p.event_shape)
    found = [p.log_prob(value)]
    for seen in (True, False):
        found.append(p.marginal_log_prob(value, torch.full_like(value, seen, dtype=torch.bool)))
    if not isinstance(p, Mixture | Poisson | NegativeBinomial | ZeroInflated):
        found.append(p.entropy())
    for each in found:
        assert each.isfinite().all()
        for gradient in torch.autograd.grad(
            each.sum(), leaves, retain_graph=True, materialize_grads=True
        ):
            assert gradient.isfinite().all()


RULED_OUT = ((0.0, 1.0, -INF), (-INF, 0.3, -INF), (-1e4, 1e4, -INF), (1e4, -1e4, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("row", RULED_OUT, ids=str)
def test_categories_may_be_ruled_out(row: tuple, dtype: torch.dtype) -> None:
    logits = torch.tensor(row, dtype=dtype, requires_grad=True)
    p = Categorical(logits)
    log_prob = p.log_prob(torch.eye(3, dtype=dtype))
    assert torch.equal(log_prob == -INF, logits == -INF)
    for each in (log_prob[logits != -INF], p.entropy(), p.mean, p.variance):
        assert each.isfinite().all()
        assert torch.autograd.grad(each.sum(), logits, retain_graph=True)[0].isfinite().all()
    assert (sample_of(p, 1000)[:, logits < logits.max() - 1e3] == 0).all()


@law
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=4), st.integers(0, 4))
def test_a_category_ruled_out_changes_nothing_else(row: list, where: int) -> None:
    kept = torch.tensor(row, dtype=F64, requires_grad=True)
    where = min(where, len(row))
    out = torch.full((1,), -INF, dtype=F64)
    p, less = Categorical(torch.cat([kept[:where], out, kept[where:]])), Categorical(kept)
    torch.testing.assert_close(p.entropy(), less.entropy())
    gradients = [torch.autograd.grad(each.entropy(), kept)[0] for each in (p, less)]
    torch.testing.assert_close(*gradients)


@every(tuple(b for b in ALL if name(b).startswith("mixture")))
def test_a_component_ruled_out_changes_nothing(build: Build) -> None:
    p = build(double)
    assert isinstance(p, Mixture)
    first, value = p.logits[:, :1].clone().requires_grad_(), sample_of(p, 5)
    logits = torch.cat([first, torch.full_like(first, -INF)], -1)
    alone, weights = Mixture(logits, p.components), torch.tensor([1.0, 0.0], dtype=F64)
    of_first = p.components.log_prob(value[..., None, :])[..., 0]
    torch.testing.assert_close(alone.log_prob(value), of_first)
    torch.testing.assert_close(alone.mean, p.components.mean[:, 0])
    torch.testing.assert_close(alone.variance, p.components.variance[:, 0])
    torch.testing.assert_close(alone.log_weights.exp(), weights.expand(N, C))
    gradient = torch.autograd.grad(alone.log_prob(value).sum(), first)[0]
    torch.testing.assert_close(gradient, torch.zeros(N, 1, dtype=F64))


def test_mixtures_draw_from_no_component_ruled_out() -> None:
    components = Gaussian(torch.tensor([[0.0], [1e3]]), torch.ones(1))
    assert (sample_of(Mixture(torch.tensor([0.0, -INF]), components), 1000) < 100).all()
    assert (sample_of(Mixture(torch.tensor([-1e4, 1e4]), components), 1000) > 100).all()


def test_bernoulli_at_the_ends_is_sure() -> None:
    logits = torch.tensor([-1e4, 1e4])
    assert torch.equal(sample_of(Bernoulli(logits), 1000), torch.tensor([0.0, 1.0]).expand(1000, 2))


# -- samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)], ids=str)
def test_samples_have_the_stated_shape_and_support(p: Distribution, shape: Shape) -> None:
    assert sample_of(p, *shape).shape == (*shape, N, G)
    assert sample_of(p.expand(Size((2, N))), *shape).shape == (*shape, 2, N, G)
    assert p.support.check(sample_of(p, *shape)).all()


def test_samples_have_the_stated_mean_and_covariance(p: Distribution) -> None:
    off = sample_of(p, DRAWS, seed=5) - p.mean
    close_in_errors(off, torch.zeros(N, G, dtype=F64))
    covariance = covariance_of(p)
    torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), p.variance)
    close_in_errors(off[..., :, None] * off[..., None, :], covariance)


def test_copies_made_by_expand_are_drawn_alone(p: Distribution) -> None:
    first, second = sample_of(p.expand(Size((2, N))), 50).unbind(1)
    assert (first != second).any(0).all()


def test_a_generator_fixes_the_draw_and_spares_the_global_state(p: Distribution) -> None:
    before = torch.get_rng_state()
    first, again, other = (sample_of(p, 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_generator_advances(p: Distribution) -> None:
    generator = seeded(0)
    first, second = (p.sample(Size((50,)), generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_without_a_generator_the_global_state_decides(p: Distribution) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = p.sample(Size((50,)))
        torch.manual_seed(3)
        assert torch.equal(p.sample(Size((50,))), first)
        assert not torch.equal(p.sample(Size((50,))), first)


def test_samples_carry_no_gradient_and_keep_their_type(build: Build) -> None:
    assert not sample_of(build(learned), 2).requires_grad
    assert sample_of(build(single), 2).dtype == torch.float32
    assert sample_of(build(double), 2).dtype == F64


@every(SMOOTH[:8])
def test_samples_that_can_be_differentiated_are_the_samples(build: Build) -> None:
    p = build(learned)
    assert p.has_rsample
    moving = p.rsample(Size((7,)), generator=seeded(0))  # type: ignore[call-arg]
    assert moving.requires_grad
    assert torch.equal(moving.detach(), sample_of(p, 7))


def test_gaussian_samples_move_with_loc_and_scale() -> None:
    loc, scale = double(N, G).requires_grad_(), double(N, G, seed=1).exp().requires_grad_()
    z = Gaussian(loc, scale).rsample(torch.Size((7,)), generator=seeded(0))
    d_loc, d_scale = torch.autograd.grad(z.sum(), [loc, scale])
    noise = (z - loc) / scale
    torch.testing.assert_close(d_loc, torch.full((N, G), 7.0, dtype=F64))
    torch.testing.assert_close(d_scale, noise.sum(0))


def test_full_gaussian_samples_move_with_their_factor() -> None:
    loc = learned(N, G)
    tril = factor(double(N, G), double(N, G, G, seed=1)).requires_grad_()
    z = FullGaussian(loc, tril).rsample(Size((7,)), generator=seeded(0))
    d_loc, d_tril = torch.autograd.grad(z.sum(), [loc, tril])
    noise = torch.linalg.solve(tril, (z - loc)[..., None])[..., 0].sum(0)
    torch.testing.assert_close(d_loc, torch.full((N, G), 7.0, dtype=F64))
    torch.testing.assert_close(d_tril, noise[:, None, :].expand(N, G, G))


def test_log_normal_samples_are_exponentials() -> None:
    p = log_normal(double)
    logs = Gaussian(p.loc, p.scale).sample(Size((7,)), generator=seeded(0))
    torch.testing.assert_close(sample_of(p, 7), logs.exp())


@every(COUNTS)
def test_counts_are_sampled_as_often_as_their_mass_says(build: Build) -> None:
    p = build(double)
    value = sample_of(p, DRAWS, seed=6)
    for x, d in itertools.product((0.0, 1.0, 2.0, 5.0), range(G)):
        seen = torch.arange(G) == d
        mass = p.marginal_log_prob(torch.full((G,), x, dtype=F64), seen).exp()
        error = (mass * (1 - mass) / DRAWS).sqrt()
        assert (((value[..., d] == x).double().mean(0) - mass).abs() < 5 * error).all()


def test_zero_inflation_refuses_a_base_of_fewer_entries() -> None:
    # One count shared by all entries is no distribution of independent ones.
    with pytest.raises((ValueError, RuntimeError)):
        ZeroInflated(Poisson(torch.zeros(N, 1)), torch.zeros(G))


@pytest.mark.parametrize("log_r", [-7.0, 18.0])
def test_nb_samples_at_the_ends_of_the_dispersion(log_r: float) -> None:
    p = NegativeBinomial(torch.zeros(1), torch.full((1,), log_r))
    value = sample_of(p, 4 * DRAWS)
    zeros = p.entry_log_prob(torch.zeros(1)).exp().item()
    assert value.isfinite().all()
    error = (zeros * (1 - zeros) / (4 * DRAWS)) ** 0.5
    assert (value == 0).float().mean().item() == pytest.approx(zeros, abs=5 * error)


# -- strata ----------------------------------------------------------------------------------------


@every(SMOOTH)
def test_strata_are_the_components_or_one(build: Build) -> None:
    q, before = build(double), torch.get_rng_state()
    z, log_weights = strata(q, 5, seeded(0))
    c = C if isinstance(q, Mixture) else 1
    assert z.shape == (5, c, N, G)
    assert log_weights.shape == (c, N)
    assert (z.dtype, log_weights.dtype) == (F64, F64)
    torch.testing.assert_close(log_weights.exp().sum(0), torch.ones(N, dtype=F64))
    expected = q.logits.softmax(-1).T if isinstance(q, Mixture) else torch.ones(1, N, dtype=F64)
    torch.testing.assert_close(log_weights.exp(), expected)
    again, other = (strata(q, 5, seeded(seed))[0] for seed in (0, 1))
    assert torch.equal(z, again)
    assert not torch.equal(z, other)
    assert torch.equal(torch.get_rng_state(), before)


@every(tuple(b for b in SMOOTH if name(b).startswith("mixture")))
def test_every_stratum_is_its_component(build: Build) -> None:
    q = build(double)
    assert isinstance(q, Mixture)
    z, _ = strata(q, DRAWS, seeded(0))
    close_in_errors(z, q.components.mean.movedim(1, 0))
    off = z - q.components.mean.movedim(1, 0)
    close_in_errors(off.square(), q.components.variance.movedim(1, 0))


@every(SMOOTH)
def test_strata_estimate_means_and_their_gradients(build: Build) -> None:
    # E_q[f] of f(x) = sum_d (d + 1) x_d - x_d^2 / 2, known from the moments.
    leaves, slope, repeats = leaves_of(build), torch.arange(1, G + 1, dtype=F64), 100
    q, generator = built_of(build, leaves), seeded(7)
    exact = (slope * q.mean - 0.5 * (q.variance + q.mean.square())).sum(-1)
    expected = torch.autograd.grad(exact.sum(), leaves)
    values, gradients = [], []
    for _ in range(repeats):
        z, log_weights = strata(built_of(build, leaves), 200, generator)
        f = (slope * z - 0.5 * z.square()).sum(-1)
        estimate = (log_weights.exp() * f.mean(0)).sum(0)
        values.append(estimate.detach())
        gradients.append(torch.autograd.grad(estimate.sum(), leaves))
    close_in_errors(torch.stack(values), exact.detach())
    for found, known in zip(zip(*gradients, strict=True), expected, strict=True):
        assert known.abs().max() > 0.01
        close_in_errors(torch.stack(found), known)


def test_strata_give_the_gradient_in_the_weights() -> None:
    # The derivative of E_q[f] in the logit of a component is its weight times its surplus.
    logits = learned(N, C)
    q = Mixture(logits, gaussian(double, (N, C)))
    z, log_weights = strata(q, 50, seeded(0))
    means = z.square().sum(-1).mean(0)  # (c, n)
    estimate = (log_weights.exp() * means).sum(0)
    gradient = torch.autograd.grad(estimate.sum(), logits)[0]
    weights = logits.softmax(-1)
    torch.testing.assert_close(gradient, weights * (means - estimate).T)


def test_strata_vary_less_than_samples_of_the_mixture() -> None:
    # Of k samples of each component: sum_c w_c^2 / k; of c k samples of the mixture: Var / (c k).
    apart, repeats = torch.tensor([[-3.0], [3.0]], dtype=F64), 10_000
    q = Mixture(torch.zeros(C, dtype=F64), Gaussian(apart, torch.ones(1, dtype=F64)))
    z, log_weights = strata(q.expand(Size((repeats,))), 2, seeded(0))
    by_strata = (log_weights.exp() * z[..., 0].mean(0)).sum(0)
    plain = sample_of(q, repeats, 2 * C)[..., 0].mean(-1)
    assert by_strata.var().item() == pytest.approx(1 / 4, rel=0.07)
    assert plain.var().item() == pytest.approx(10 / 4, rel=0.07)


# -- entropy ---------------------------------------------------------------------------------------


@every(WITH_ENTROPY)
def test_entropy_is_scipys(build: Build) -> None:
    p = build(double)
    assert p.entropy().shape == (N,)
    np.testing.assert_allclose(p.entropy(), entropy_in_scipy(p), rtol=1e-10, atol=1e-12)


@every(WITH_ENTROPY)
def test_entropy_is_the_mean_surprise(build: Build) -> None:
    p = build(double)
    close_in_errors(-p.log_prob(sample_of(p, DRAWS, seed=3)), p.entropy())


@every(WITH_ENTROPY)
def test_entropy_expands_and_can_be_differentiated(build: Build) -> None:
    p, leaves = build(double), leaves_of(build)
    wide = p.expand(Size((5, N))).entropy()
    torch.testing.assert_close(wide, p.entropy().expand(5, N))
    idle = torch.zeros((), dtype=F64)  # a Gaussian's does not depend on its location

    def entropy(*own: Tensor) -> Tensor:
        return built_of(build, own).entropy() + sum((idle * leaf.sum() for leaf in own), idle)

    assert_numerical(entropy, leaves)


@every(tuple(b for b in ALL if b not in WITH_ENTROPY))
def test_entropy_without_a_closed_form_says_so(build: Build) -> None:
    with pytest.raises(NotImplementedError):
        build(double).entropy()


@pytest.mark.parametrize("logit", [3.0, 12.0, 25.0, 50.0])
def test_entropy_of_a_bernoulli_is_that_of_its_opposite(logit: float) -> None:
    rare, sure = (Bernoulli(torch.full((1,), sign * logit, dtype=F64)) for sign in (-1, 1))
    torch.testing.assert_close(sure.entropy(), rare.entropy(), rtol=1e-10, atol=0)


# -- marginals -------------------------------------------------------------------------------------


def masks(*shape: int, seed: int = 11) -> Tensor:
    return torch.rand(shape, generator=seeded(seed)) < 0.5


@every(WITH_MARGINALS)
def test_marginal_of_all_entries_is_the_log_prob(build: Build) -> None:
    p = build(double)
    value = sample_of(p, 5, seed=9)
    for seen in (torch.ones(5, N, G), torch.ones(N, G), torch.ones(G)):
        found = p.marginal_log_prob(value, seen.bool())
        torch.testing.assert_close(found, p.log_prob(value), rtol=1e-10, atol=1e-12)


@every(WITH_MARGINALS)
def test_marginal_of_no_entry_is_zero(build: Build) -> None:
    p = build(learned)
    found = p.marginal_log_prob(sample_of(p, 5), torch.zeros(N, G, dtype=torch.bool))
    assert found.shape == (5, N)
    torch.testing.assert_close(found, torch.zeros(5, N, dtype=F64), rtol=0, atol=1e-13)


@every(WITH_MARGINALS)
@pytest.mark.parametrize("shape", [(6, N, G), (N, G), (6, 1, G), (G,)], ids=str)
def test_marginal_is_scipys(build: Build, shape: Shape) -> None:
    p, seen = build(double), masks(*shape)
    value = sample_of(p, 6, seed=9)
    found = p.marginal_log_prob(value, seen)
    assert found.shape == (6, N)
    expected = in_scipy(p, numbers(value), numbers(seen))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@every((*CONTINUOUS, *BINARY))
@pytest.mark.parametrize("kept", [0, 1])
def test_marginal_integrates_the_rest_out(build: Build, kept: int) -> None:
    p, seen = build(double, g=2), torch.arange(2) == kept
    value, (points, volume) = sample_of(p, seed=9), support_of(build, 1)
    whole = torch.where(seen, value, points)
    integral = (p.log_prob(whole).exp() * volume[:, None]).sum(0).log()
    found = p.marginal_log_prob(value, seen)
    torch.testing.assert_close(found, integral, rtol=1e-9, atol=1e-9)


@every(WITH_MARGINALS)
@pytest.mark.parametrize("garbage", [math.nan, INF, -INF, -7.5])
def test_what_stands_unobserved_does_not_matter(build: Build, garbage: float) -> None:
    p_leaves, seen = leaves_of(build), masks(5, N, G)
    clean = sample_of(build(double), 5, seed=9).requires_grad_()
    dirty = torch.where(seen, clean.detach(), garbage).requires_grad_()
    found = []
    for value in (clean, dirty):
        log_prob = built_of(build, p_leaves).marginal_log_prob(value, seen)
        by = [*p_leaves, value] if build in CONTINUOUS else p_leaves
        found.append([log_prob, *torch.autograd.grad(log_prob.sum(), by)])
    for of_clean, of_dirty in zip(*found, strict=True):
        assert of_dirty.isfinite().all()
        torch.testing.assert_close(of_dirty, of_clean, rtol=1e-13, atol=1e-13)


@every(WITH_MARGINALS)
def test_gradients_of_marginals_are_numerical_ones(build: Build) -> None:
    seen, leaves = masks(N, G), leaves_of(build)
    value = torch.where(seen, sample_of(build(double), seed=9), math.nan)

    def marginal(*own: Tensor) -> Tensor:
        return built_of(build, own).marginal_log_prob(value, seen)

    assert_numerical(marginal, leaves)


@every(WITH_MARGINALS)
def test_marginals_in_float32_are_those_in_float64(build: Build) -> None:
    p, seen = build(single), masks(20, N, G)
    value = sample_of(p, 20, seed=9)
    found = p.marginal_log_prob(value, seen)
    assert found.dtype == torch.float32
    expected = widened(p).marginal_log_prob(value.double(), seen)
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=2e-5)


@pytest.mark.parametrize("narrow", [1e-2, 1e-3, 1e-4, 1e-5])
def test_marginal_of_a_thin_full_gaussian_keeps_its_digits(narrow: float) -> None:
    # The covariance has the square of the condition of its factor: float32 cannot hold it.
    p = FullGaussian(torch.zeros(2), torch.tensor([[1.0, 0.0], [1.0, narrow]]))
    value, seen = sample_of(p, 20), torch.ones(2, dtype=torch.bool)
    found = p.marginal_log_prob(value, seen)
    torch.testing.assert_close(found, p.log_prob(value), rtol=1e-3, atol=1e-3)


# -- the Gamma behind the negative binomial --------------------------------------------------------


@every(NBS)
def test_nb_is_the_poisson_of_its_rates(build: Build) -> None:
    p = build(double)
    assert isinstance(p, NegativeBinomial)
    assert (p.rates.batch_shape, p.rates.event_shape) == ((N,), (G,))
    torch.testing.assert_close(p.rates.mean, p.mean)
    torch.testing.assert_close(p.rates.variance, p.variance - p.mean)
    step = 0.02
    log_rate = torch.arange(-200, 12, step, dtype=F64)[:, None, None].expand(-1, N, G)
    log_density = p.rates.base_dist.log_prob(log_rate.exp()) + log_rate + math.log(step)
    for x in (0.0, 1.0, 2.0, 7.0, 40.0):
        mass = stats.poisson.logpmf(x, log_rate.exp().numpy())
        integral = (log_density + torch.from_numpy(mass)).logsumexp(0)
        expected = p.entry_log_prob(torch.full((N, G), x, dtype=F64))
        torch.testing.assert_close(integral, expected, rtol=1e-10, atol=1e-10)


@law
@given(st.floats(-4, 4), st.floats(-2, 5), st.integers(0, 30))
def test_nb_of_one_entry_is_the_poisson_of_its_rates(m: float, log_r: float, x: int) -> None:
    p = NegativeBinomial(*(torch.tensor([v], dtype=F64) for v in (m, log_r)))
    log_rate = torch.arange(-300, 12, 0.01, dtype=F64)[:, None]
    log_density = p.rates.log_prob(log_rate.exp()) + log_rate[:, 0] + math.log(0.01)
    integral = torch.logsumexp(log_density + x * log_rate[:, 0] - log_rate[:, 0].exp(), 0)
    expected = p.log_prob(torch.tensor([float(x)], dtype=F64)).item()
    assert integral.item() - math.lgamma(x + 1) == pytest.approx(expected, rel=1e-9, abs=1e-9)


# -- against torch's own ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "torchs"),
    [
        (gaussian, lambda p: reference.Normal(p.loc, p.scale)),
        (log_normal, lambda p: reference.LogNormal(p.loc, p.scale)),
        (bernoulli, lambda p: reference.Bernoulli(logits=p.logits)),
        (poisson, lambda p: reference.Poisson(p.log_mean.exp())),
        (
            nb_per_gene,
            lambda p: reference.NegativeBinomial(
                p.inverse_dispersion, logits=p.log_mean - p.log_inverse_dispersion
            ),
        ),
    ],
)
def test_entries_are_torchs(build: Build, torchs: Callable) -> None:
    p = build(double)
    assert isinstance(p, Factorised)
    value, expected = sample_of(p, 5), torchs(p)
    torch.testing.assert_close(p.entry_log_prob(value), expected.log_prob(value))
    torch.testing.assert_close(p.log_prob(value), expected.log_prob(value).sum(-1))
    torch.testing.assert_close(p.mean, expected.mean)
    torch.testing.assert_close(p.variance, expected.variance)


@law
@given(st.floats(-50, 50), st.floats(0, 1))
def test_bernoulli_gives_a_fraction_the_cross_entropy(logit: float, fraction: float) -> None:
    p = Bernoulli(torch.tensor([logit], dtype=F64))
    zero, one = p.log_prob(torch.eye(2, dtype=F64)[:, :1]).flip(0).tolist()
    expected = fraction * one + (1 - fraction) * zero
    found = p.log_prob(torch.tensor([fraction], dtype=F64)).item()
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_full_gaussian_is_torchs_and_that_of_its_covariance() -> None:
    p = full_gaussian(double)
    value, torchs = sample_of(p, 5), reference.MultivariateNormal(p.loc, scale_tril=p.scale_tril)
    torch.testing.assert_close(p.log_prob(value), torchs.log_prob(value))
    torch.testing.assert_close(p.covariance, torchs.covariance_matrix)
    again = FullGaussian.of_covariance(p.loc, p.covariance)
    torch.testing.assert_close(again.scale_tril, p.scale_tril)


@every((gaussian, gaussian_of_one_scale, gaussian_of_one_loc))
def test_full_gaussian_of_a_diagonal_is_the_diagonal_one(build: Build) -> None:
    p = build(double)
    full, value = FullGaussian.of_diagonal(p), sample_of(p, 5)
    assert full.batch_shape == p.batch_shape
    torch.testing.assert_close(full.log_prob(value), p.log_prob(value))
    torch.testing.assert_close(full.variance, p.variance)
    torch.testing.assert_close(full.entropy(), p.entropy())


@pytest.mark.parametrize(
    "shapes",
    [
        [(3,)],
        [(), ()],
        [(2, 3), (3,)],
        [(4, 1, 3), (2, 1), ()],
        [(0, 3), (1, 3)],
        [(2, 1), (2, 3), (2, 1)],
        [(1,), (0,)],
    ],
)
def test_shapes_broadcast_as_torch_has_it(shapes: list[tuple[int, ...]]) -> None:
    sizes = [torch.Size(shape) for shape in shapes]
    assert broadcast_shape(*sizes) == torch.broadcast_shapes(*sizes)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for a, b in [((2,), (3,)), ((2, 1), (3, 4)), ((0,), (3,)), ((3,), (2,)), ((3,), (0,))]:
        with pytest.raises(RuntimeError, match=r"broadcast|match"):
            broadcast_shape(torch.Size(a), torch.Size(b))


# -- few of many components ------------------------------------------------------------------------


def test_sampling_a_large_mixture_looks_at_the_components_drawn_alone() -> None:
    """All of them, for every sample, would be 10^11 numbers."""
    loc = torch.arange(50_000.0)[:, None].expand(-1, 20)
    x = Mixture(torch.zeros(50_000), Gaussian(loc, torch.tensor(0.01))).sample(
        (100_000,), generator=seeded(0)
    )
    assert ((x - x.round()).abs() < 0.1).all()
    assert torch.equal(x.round(), x.round()[:, :1].expand_as(x))  # one component a sample
    assert abs(x.mean() - 24_999.5) < 5 * 50_000 / math.sqrt(12 * 100_000)


def test_chunks_of_samples_are_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    p = mixture_of_bernoullis(double)
    monkeypatch.setattr("scvae.core.distributions.mixture.MOST", 1)
    x = p.sample((300, 3), generator=seeded(0))
    assert x.shape == (300, 3, *p.batch_shape, G)
    error = (p.variance / 900).sqrt()
    assert ((x.mean((0, 1)) - p.mean).abs() < 5 * error).all()


# -- values outside the support --------------------------------------------------------------------

NAN = math.nan
NOT_TAKEN = {
    "negative count": (Poisson, [2.0, -1.0]),
    "broken count": (lambda a, **v: NegativeBinomial(a, a, **v), [0.0, 0.5]),
    "broken inflated count": (lambda a, **v: ZeroInflated(Poisson(a), a, **v), [0.0, 0.5]),
    "NaN count": (lambda a, **v: ZeroInflated(NegativeBinomial(a, a), a, **v), [NAN, 0.0]),
    "half a one": (Bernoulli, [0.5, 1.0]),
    "two categories": (Categorical, [1.0, 1.0]),
    "zero of a log-normal": (lambda a, **v: LogNormal(a, a.exp(), **v), [0.0, 1.0]),
    "NaN of a Gaussian": (lambda a, **v: Gaussian(a, a.exp(), **v), [NAN, 1.0]),
    "NaN of a full one": (lambda a, **v: FullGaussian(a, torch.eye(2), **v), [NAN, 1.0]),
    "broken count of a mixture": (
        lambda a, **v: Mixture(torch.zeros(3), Poisson(a.expand(3, 2)), **v),
        [0.5, 1.0],
    ),
}


@pytest.mark.parametrize(("build", "value"), NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_values_outside_the_support_are_refused_where_asked(
    build: Callable[..., Distribution], value: list
) -> None:
    zeros, x = torch.zeros(2), torch.ones(3, 2)
    x[:, 1] = float(build is not Categorical)
    strict = build(zeros, validate_args=True)
    assert strict.log_prob(x).isfinite().all()
    x[1] = torch.tensor(value)
    with pytest.raises(ValueError, match=r"Row \[1\] of x lies outside the support of a"):
        strict.log_prob(x)
    build(zeros).log_prob(x)  # not asked
    with pytest.raises(ValueError, match=r"x has shape \(3, 5\), but it must be \(..., 2\)"):
        strict.log_prob(torch.ones(3, 5))


def test_what_is_not_observed_may_be_anything_where_values_are_checked() -> None:
    seen, x = torch.tensor([True, False]), torch.tensor([[1.0, -7.5], [0.0, NAN]])
    for build in (Poisson, Categorical):
        strict, plain = (build(torch.zeros(2), validate_args=v) for v in (True, False))
        found = strict.marginal_log_prob(x, seen.expand(2, 2))
        assert torch.equal(found, plain.marginal_log_prob(x, seen.expand(2, 2)))
    assert Categorical(torch.zeros(2), validate_args=True).entropy() > 0


# -- entries that choose their component -----------------------------------------------------------


def two_nbs(log_fold: float = 2.0) -> EntryMixture:
    """Background of log-mean 1 and foreground above it, of one dispersion for both."""
    means = torch.tensor([[1.0], [1.0 + log_fold]], dtype=F64).expand(N, 2, G)
    return EntryMixture(double(N, 2, G), NegativeBinomial(means, torch.full((G,), 1.5, dtype=F64)))


def test_responsibilities_are_bayes_rule() -> None:
    p, x = two_nbs(), sample_of(two_nbs(), 7)
    joint = p.logits.softmax(-2) * p.components.entry_log_prob(x[..., None, :]).exp()
    found = p.log_responsibilities(x).exp()
    torch.testing.assert_close(found, joint / joint.sum(-2, keepdim=True))
    torch.testing.assert_close(found.sum(-2), torch.ones(7, N, G, dtype=F64))


def test_responsibilities_say_nothing_where_components_are_alike() -> None:
    p = two_nbs(log_fold=0.0)
    found = p.log_responsibilities(sample_of(p))
    torch.testing.assert_close(found, p.log_weights)


def test_entries_choose_each_their_own_component() -> None:
    # Of a mixture of rows the entries rise together; of entries they do not.
    means = torch.tensor([[0.0], [4.0]], dtype=F64).expand(2, 2)
    value = sample_of(EntryMixture(torch.zeros(2, 2, dtype=F64), Poisson(means)), DRAWS)
    assert abs(np.corrcoef(value.T)[0, 1]) < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("log_r", [-7.0, 0.0, 18.0])
@pytest.mark.parametrize("x", [0.0, 1.0, 1e5])
def test_an_entry_mixture_is_finite_in_float32(x: float, log_r: float) -> None:
    logits = torch.tensor([[-40.0], [40.0]]).requires_grad_()
    means = torch.tensor([[-20.0], [12.0]]).requires_grad_()
    p = EntryMixture(logits, NegativeBinomial(means, torch.full((1,), log_r)))
    log_prob = p.log_prob(torch.tensor([x]))
    assert log_prob.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob, [logits, means]))


def test_an_entry_mixture_refuses_weights_of_other_entries() -> None:
    with pytest.raises((ValueError, RuntimeError)):
        EntryMixture(torch.zeros(2, G), Poisson(torch.zeros(N, 2, 1)))


def test_shares_by_their_former_name_are_the_composition() -> None:
    draw = Generator().manual_seed(0)
    logits, log_r = (torch.randn(5, width, generator=draw) for width in (4, 3))
    log_total, x = torch.full((5, 1), 2.0), torch.tensor([1.0, 0.0, 3.0]).expand(5, 3)
    expected = NegativeBinomial(Shares(logits, log_total, 3), log_r).log_prob(x)
    assert torch.equal(NegativeBinomialShares(logits, log_total, log_r).log_prob(x), expected)
