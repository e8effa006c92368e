"""KL divergences: closed forms against torch's, integrals and samples; estimates against both."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Size, Tensor
from torch import distributions as reference
from torch.distributions import Distribution

from scvae.core.distributions import (
    Bernoulli,
    Categorical,
    FullGaussian,
    Gaussian,
    LogNormal,
    Mixture,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)
from scvae.core.kl import Estimate, closed_form_kl, kl_divergence, monte_carlo_kl
from tests.draws import draw, seeded

N, D, C = 5, 3, 2
F64 = torch.float64
INF = math.inf
Build = Callable[..., Distribution]
Shape = tuple[int, ...]
law = settings(deadline=None, derandomize=True, max_examples=60)


# -- distributions by their free parameters: (..., d) of places, then of sizes, then below ---------


def factor(size: Tensor, below: Tensor) -> Tensor:
    return torch.diag_embed(size.mul(0.3).exp()) + below.mul(0.5).tril(-1)


def gaussian(place: Tensor, size: Tensor, below: Tensor) -> Gaussian:
    return Gaussian(place, size.mul(0.3).exp())


def full_gaussian(place: Tensor, size: Tensor, below: Tensor) -> FullGaussian:
    return FullGaussian(place, factor(size, below))


def log_normal(place: Tensor, size: Tensor, below: Tensor) -> LogNormal:
    return LogNormal(place, size.mul(0.3).exp())


def bernoulli(place: Tensor, size: Tensor, below: Tensor) -> Bernoulli:
    return Bernoulli(place)


def categorical(place: Tensor, size: Tensor, below: Tensor) -> Categorical:
    return Categorical(place)


PAIRS: tuple[tuple[Build, Build], ...] = (
    (gaussian, gaussian),
    (full_gaussian, full_gaussian),
    (gaussian, full_gaussian),
    (full_gaussian, gaussian),
    (log_normal, log_normal),
    (bernoulli, bernoulli),
    (categorical, categorical),
)
ALIKE = tuple(pair for pair in PAIRS if pair[0] is pair[1])
SMOOTH = PAIRS[:5]
FACTORISED: tuple[Build, ...] = (gaussian, log_normal, bernoulli)
NUMBER_USED = {gaussian: 2, full_gaussian: 3, log_normal: 2, bernoulli: 1, categorical: 1}


def pair_name(pair: tuple[Build, Build]) -> str:
    return " || ".join(build.__name__ for build in pair)


def every(pairs: tuple[tuple[Build, Build], ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pair", pairs, ids=pair_name)


def parameters(seed: int, *batch: int, d: int = D) -> list[Tensor]:
    shapes = (*batch, d), (*batch, d), (*batch, d, d)
    return [draw(*shape, seed=seed + i) for i, shape in enumerate(shapes)]


def drawn(pair: tuple[Build, Build], *batch: int) -> tuple[Distribution, Distribution]:
    return pair[0](*parameters(0, *batch)), pair[1](*parameters(10, *batch))


def in_torch(p: Distribution, full: bool) -> Distribution:
    match p:
        case Gaussian() if full:
            return reference.MultivariateNormal(p.loc, scale_tril=torch.diag_embed(p.scale))
        case Gaussian():
            return reference.Independent(reference.Normal(p.loc, p.scale), 1)
        case FullGaussian():
            return reference.MultivariateNormal(p.loc, scale_tril=p.scale_tril)
        case LogNormal():
            return reference.Independent(reference.LogNormal(p.loc, p.scale), 1)
        case Bernoulli():
            return reference.Independent(reference.Bernoulli(logits=p.logits), 1)
        case Categorical():
            return reference.OneHotCategorical(logits=p.logits)
    raise TypeError(type(p))


def torchs_kl(q: Distribution, p: Distribution) -> Tensor:
    full = isinstance(q, FullGaussian) or isinstance(p, FullGaussian)
    return reference.kl_divergence(in_torch(q, full), in_torch(p, full))


def gradients(kl: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(kl.sum(), leaves, materialize_grads=True))


def close_in_errors(found: Tensor, expected: Tensor) -> None:
    """Assert that the mean of `found` over its first axis is `expected`, in standard errors."""
    error = found.std(0) / math.sqrt(len(found))
    assert error.isfinite().all()
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


# -- closed forms ----------------------------------------------------------------------------------


@every(PAIRS)
def test_kl_is_the_mean_log_ratio_of_samples(pair: tuple[Build, Build]) -> None:
    q, p = drawn(pair, N)
    x = q.sample(Size((50_000,)), generator=seeded(4))  # type: ignore[call-arg]
    close_in_errors(q.log_prob(x) - p.log_prob(x), kl_divergence(q, p))


@every(PAIRS)
def test_kl_in_float32_is_within_rounding_of_float64(pair: tuple[Build, Build]) -> None:
    own, other = ([v.float() for v in parameters(seed, 200)] for seed in (0, 10))
    found = kl_divergence(pair[0](*own), pair[1](*other))
    wide = ([v.double() for v in values] for values in (own, other))
    expected = kl_divergence(*(build(*values) for build, values in zip(pair, wide, strict=True)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=3e-6)


numbers = st.floats(-2, 2).map(lambda v: round(v, 3))
rows = st.lists(numbers, min_size=D + D + D * D, max_size=D + D + D * D)


def split(row: list[float]) -> list[Tensor]:
    place, size, below = torch.tensor(row, dtype=F64).split([D, D, D * D])
    return [place, size, below.view(D, D)]


@every(PAIRS)
@law
@given(rows, rows)
def test_kl_is_torchs(pair: tuple[Build, Build], a: list[float], b: list[float]) -> None:
    q, p = pair[0](*split(a)), pair[1](*split(b))
    torch.testing.assert_close(kl_divergence(q, p), torchs_kl(q, p), rtol=1e-10, atol=1e-12)


def test_kl_is_registered_with_torch() -> None:
    q, p = drawn((gaussian, gaussian), 7, N)
    assert reference.kl_divergence(q, p).shape == (7, N)
    torch.testing.assert_close(reference.kl_divergence(q, p), torchs_kl(q, p))


@every(ALIKE)
@law
@given(rows, rows)
def test_kl_is_positive_and_zero_if_equal(
    pair: tuple[Build, Build], a: list[float], b: list[float]
) -> None:
    (of_q, of_p), (q, p, same) = pair, (split(a), split(b), split(a))
    assert kl_divergence(of_q(*q), of_p(*same)).abs().item() < 1e-13
    assert kl_divergence(of_q(*q), of_p(*p)).item() > -1e-13


@every(ALIKE)
@law
@given(rows, st.integers(0, 100), st.sampled_from([-1.0, 1e-3, 0.1, 1.0]))
def test_kl_is_zero_only_if_equal(
    pair: tuple[Build, Build], a: list[float], which: int, off: float
) -> None:
    # One parameter that the distribution uses is moved: a place, a size or an entry below.
    used = NUMBER_USED[pair[0]]
    moved = split(a)
    if which % used == 2:
        moved[2][D - 1, which % (D - 1)] += off
    else:
        moved[which % used][which % D] += off
    assert kl_divergence(pair[0](*split(a)), pair[1](*moved)).item() > 1e-10


@every(((gaussian, full_gaussian), (full_gaussian, gaussian)))
@law
@given(rows, rows)
def test_kl_between_kinds_is_positive_and_zero_if_equal(
    pair: tuple[Build, Build], a: list[float], b: list[float]
) -> None:
    (place, size, below), other = split(a), split(b)
    q, p = pair[0](place, size, below), pair[1](*other)
    assert kl_divergence(q, p).item() > -1e-13
    diagonal = [build(place, size, torch.zeros_like(below)) for build in pair]
    assert kl_divergence(*diagonal).abs().item() < 1e-13
    if below.tril(-1).abs().max() >= 1e-3:
        assert kl_divergence(pair[0](*split(a)), pair[1](*split(a))).item() > 1e-10


@every(PAIRS)
def test_gradients_are_numerical_ones(pair: tuple[Build, Build]) -> None:
    leaves = [leaf.requires_grad_() for seed in (0, 10) for leaf in parameters(seed, 2)]
    nothing = torch.zeros((), dtype=F64)  # keeps parameters that a distribution does not have

    def kl(*own: Tensor) -> Tensor:
        idle = sum((nothing * leaf.sum() for leaf in own), nothing)
        return kl_divergence(pair[0](*own[:3]), pair[1](*own[3:])) + idle

    assert torch.autograd.gradcheck(kl, leaves, rtol=1e-7, atol=1e-7)


BATCHES = [((7, N), ()), ((), (7, N)), ((7, N), (N,)), ((N,), (7, 1)), ((7, 1), (1, N)), ((), ())]


@every(PAIRS)
@pytest.mark.parametrize(("of_q", "of_p"), BATCHES, ids=str)
def test_kl_broadcasts_like_its_expansion(
    pair: tuple[Build, Build], of_q: Shape, of_p: Shape
) -> None:
    q, p = pair[0](*parameters(0, *of_q)), pair[1](*parameters(10, *of_p))
    shape = torch.broadcast_shapes(of_q, of_p)
    found = kl_divergence(q, p)
    assert found.shape == shape
    expected = kl_divergence(q.expand(shape), p.expand(shape))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@every(PAIRS)
def test_kl_of_rows_is_that_of_each_row(pair: tuple[Build, Build]) -> None:
    own, other = parameters(0, N), parameters(10, N)
    whole = kl_divergence(pair[0](*own), pair[1](*other))
    for n in range(N):
        alone = kl_divergence(pair[0](*(v[n] for v in own)), pair[1](*(v[n] for v in other)))
        torch.testing.assert_close(alone, whole[n], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("build", FACTORISED, ids=lambda build: build.__name__)
def test_kl_of_independent_entries_adds_up(build: Build) -> None:
    own, other = parameters(0, N), parameters(10, N)
    whole = kl_divergence(build(*own), build(*other))
    parts = [
        kl_divergence(*(build(*(v[..., d : d + 1] for v in values)) for values in (own, other)))
        for d in range(D)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-13)


# -- invariances -----------------------------------------------------------------------------------


@law
@given(rows, rows, rows)
def test_kl_is_invariant_under_an_invertible_affine_map(a: list, b: list, c: list) -> None:
    q, p = full_gaussian(*split(a)), full_gaussian(*split(b))
    shift, size, below = split(c)
    turn = torch.linalg.qr(below + 3 * torch.eye(D, dtype=F64)).Q
    matrix = turn @ factor(size, below)

    def mapped(g: FullGaussian) -> FullGaussian:
        covariance = matrix @ g.covariance @ matrix.mT
        return FullGaussian.of_covariance(matrix @ g.loc + shift, covariance)

    found = kl_divergence(mapped(q), mapped(p)).item()
    assert found == pytest.approx(kl_divergence(q, p).item(), rel=1e-9, abs=1e-10)


def test_kl_of_diagonals_is_that_of_full_ones_with_diagonal_factors() -> None:
    q, p = drawn((gaussian, gaussian), N)
    expected = kl_divergence(q, p)
    full_q, full_p = (FullGaussian.of_diagonal(g) for g in (q, p))
    for of_q, of_p in ((full_q, full_p), (q, full_p), (full_q, p)):
        torch.testing.assert_close(kl_divergence(of_q, of_p), expected, rtol=1e-12, atol=1e-13)


def test_kl_of_log_normals_is_that_of_their_logarithms() -> None:
    q, p = drawn((log_normal, log_normal), N)
    logs = [Gaussian(each.loc, each.scale) for each in (q, p)]
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(*logs), rtol=1e-13, atol=0)


opposites = st.floats(-45, 45).map(lambda v: round(v, 3))


@law
@given(opposites, opposites)
def test_kl_of_bernoullis_does_not_care_which_side_is_one(a: float, b: float) -> None:
    # Up to the rounding of the rarer outcome, so that a sure one is as exact as a sure zero.
    q, p = (torch.tensor([v], dtype=F64) for v in (a, b))
    found = kl_divergence(Bernoulli(q), Bernoulli(p))
    flipped = kl_divergence(Bernoulli(-q), Bernoulli(-p))
    rarer = math.exp(-abs(a)) + math.exp(-abs(b))
    torch.testing.assert_close(found, flipped, rtol=1e-12, atol=1e-14 * min(1.0, rarer))


@law
@given(rows, rows, st.floats(-50, 50), st.permutations(range(D)))
def test_kl_of_categoricals_knows_neither_order_nor_constants(
    a: list, b: list, constant: float, order: list[int]
) -> None:
    q, p = split(a)[0], split(b)[0]
    expected = kl_divergence(Categorical(q), Categorical(p))
    for of_q, of_p in ((q + constant, p), (q, p + constant), (q[order], p[order])):
        found = kl_divergence(Categorical(of_q), Categorical(of_p))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_kl_of_two_categories_is_that_of_a_bernoulli() -> None:
    q, p = draw(N, 1), draw(N, 1, seed=1)
    two = [Categorical(torch.cat([v, torch.zeros_like(v)], -1)) for v in (q, p)]
    expected = kl_divergence(Bernoulli(q), Bernoulli(p))
    torch.testing.assert_close(kl_divergence(*two), expected, rtol=1e-10, atol=1e-13)


# -- corners ---------------------------------------------------------------------------------------


def crossed(*axes: tuple[float, ...], dtype: torch.dtype = F64) -> list[Tensor]:
    """Return every combination, as columns ``(k, 1)`` to be differentiated."""
    grid = torch.cartesian_prod(*(torch.tensor(axis, dtype=dtype) for axis in axes))
    return [column[:, None].clone().requires_grad_() for column in grid.unbind(-1)]


def are_finite(kl: Tensor, leaves: list[Tensor], dtype: torch.dtype) -> None:
    assert kl.dtype == dtype
    assert kl.isfinite().all()
    assert (kl >= -1e-6).all()
    assert all(gradient.isfinite().all() for gradient in gradients(kl, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_kl_of_extreme_gaussians_is_finite(dtype: torch.dtype) -> None:
    locs, scales = (-1e4, 0.0, 1e4), (1e-6, 1.0, 1e6)
    leaves = crossed(locs, scales, locs, scales, dtype=dtype)
    pairs = [Gaussian(*leaves[:2]), Gaussian(*leaves[2:])]
    for of_q in (pairs[0], FullGaussian.of_diagonal(pairs[0])):
        for of_p in (pairs[1], FullGaussian.of_diagonal(pairs[1])):
            are_finite(kl_divergence(of_q, of_p), leaves, dtype)
    are_finite(kl_divergence(*(LogNormal(g.loc, g.scale) for g in pairs)), leaves, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_kl_of_extreme_logits_is_finite(dtype: torch.dtype) -> None:
    logits = (-1e4, -20.0, 0.0, 20.0, 1e4)
    q, p = crossed(logits, logits, dtype=dtype)
    are_finite(kl_divergence(Bernoulli(q), Bernoulli(p)), [q, p], dtype)
    leaves = crossed(*[logits[::2]] * 4, dtype=dtype)
    both = [torch.cat([*pair, torch.zeros_like(pair[0])], -1) for pair in (leaves[:2], leaves[2:])]
    are_finite(kl_divergence(*(Categorical(logit) for logit in both)), leaves, dtype)


def test_kl_of_extreme_logits_is_the_log_odds_of_the_surprise() -> None:
    sure = torch.tensor([1e4], dtype=F64)
    for q, p in ((sure, -sure), (-sure, sure)):
        assert kl_divergence(Bernoulli(q), Bernoulli(p)).item() == pytest.approx(1e4, rel=1e-12)
    q, p = (torch.cat([sign * sure, 0 * sure]) for sign in (1, -1))
    assert kl_divergence(Categorical(q), Categorical(p)).item() == pytest.approx(1e4, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("sure", [-30.0, -18.0, 18.0, 30.0])
def test_kl_of_a_sure_bernoulli_keeps_its_digits(sure: float, dtype: torch.dtype) -> None:
    # To leading order the rare outcome alone counts: KL = pi (log pi - log pi_p), pi = e^-|logit|.
    q, p = (torch.full((1,), v, dtype=dtype) for v in (sure, math.copysign(1e4, sure)))
    expected = math.exp(-abs(sure)) * (1e4 - abs(sure) - 1)
    found = kl_divergence(Bernoulli(q), Bernoulli(p)).item()
    assert found == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-7, abs=0)


@law
@given(st.lists(numbers, min_size=2, max_size=4), st.lists(numbers, min_size=4, max_size=4))
def test_a_category_that_both_rule_out_does_not_count(a: list, b: list) -> None:
    leaves = [torch.tensor(v[: len(a)], dtype=F64, requires_grad=True) for v in (a, b)]
    out = torch.tensor([-INF], dtype=F64)
    found = kl_divergence(*(Categorical(torch.cat([out, leaf])) for leaf in leaves))
    expected = kl_divergence(*map(Categorical, leaves))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for own, other in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


@law
@given(rows, rows)
def test_a_category_that_q_rules_out_adds_nothing(a: list, b: list) -> None:
    # KL(q || p) = KL(q || p without the category) - log p(any other category).
    q, p = (split(v)[0].requires_grad_() for v in (a, b))
    barred = torch.cat([torch.tensor([-INF], dtype=F64), q[1:]])
    found = kl_divergence(Categorical(barred), Categorical(p))
    others = p.log_softmax(-1)[1:].logsumexp(-1)
    expected = kl_divergence(Categorical(q[1:]), Categorical(p[1:])) - others
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for own, other in zip(gradients(found, [q, p]), gradients(expected, [q, p]), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


def test_a_category_that_p_alone_rules_out_is_infinitely_surprising() -> None:
    q, p = torch.zeros(3, dtype=F64), torch.tensor([0.0, 1.0, -INF], dtype=F64)
    assert kl_divergence(Categorical(q), Categorical(p)).item() == INF


# -- where there is none ---------------------------------------------------------------------------


def mixture(*batch: int, seed: int = 0, d: int = D, component: Build = gaussian) -> Mixture:
    return Mixture(draw(*batch, C, seed=seed + 5), component(*parameters(seed, *batch, C, d=d)))


LOG_MEANS = draw(N, D)
UNREGISTERED = {
    "mixture || gaussian": (mixture(N), gaussian(*parameters(10, N))),
    "gaussian || mixture": (gaussian(*parameters(10, N)), mixture(N)),
    "mixture || mixture": (mixture(N), mixture(N, seed=20)),
    "gaussian || log_normal": (gaussian(*parameters(0, N)), log_normal(*parameters(10, N))),
    "bernoulli || categorical": (bernoulli(*parameters(0, N)), categorical(*parameters(10, N))),
    "nb || poisson": (NegativeBinomial(LOG_MEANS, LOG_MEANS), Poisson(LOG_MEANS)),
    "inflated || poisson": (ZeroInflated(Poisson(LOG_MEANS), LOG_MEANS), Poisson(LOG_MEANS)),
}


@pytest.mark.parametrize("pair", UNREGISTERED.values(), ids=UNREGISTERED)
def test_closed_form_is_none_where_none_is_registered(pair: tuple) -> None:
    assert closed_form_kl(*pair) is None
    with pytest.raises(NotImplementedError):
        kl_divergence(*pair)


@every(PAIRS)
def test_closed_form_is_the_registered_one(pair: tuple[Build, Build]) -> None:
    found, expected = closed_form_kl(*drawn(pair, N)), kl_divergence(*drawn(pair, N))
    assert found is not None
    assert torch.equal(found, expected)


def test_closed_form_hides_no_other_error() -> None:
    with pytest.raises(RuntimeError):
        closed_form_kl(gaussian(*parameters(0, 4)), gaussian(*parameters(10, 5)))


# -- Monte Carlo -----------------------------------------------------------------------------------


def is_calibrated(estimate: Estimate, exact: Tensor) -> None:
    """Assert that the errors are z-scores: of mean zero and variance one over the rows."""
    assert estimate.value.shape == estimate.standard_error.shape == exact.shape
    z = ((estimate.value - exact) / estimate.standard_error).detach()
    n = len(z)
    assert abs(z.mean().item()) < 5 / math.sqrt(n)
    assert z.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / n))


@every(PAIRS)
def test_estimates_are_unbiased_with_calibrated_errors(pair: tuple[Build, Build]) -> None:
    q, p = drawn(pair, 1000)
    is_calibrated(monte_carlo_kl(q, p, 500, seeded(0)), kl_divergence(q, p))


@every(PAIRS)
def test_estimate_is_the_mean_log_ratio_and_its_standard_error(pair: tuple[Build, Build]) -> None:
    (q, p), k = drawn(pair, N), 40
    x = q.sample(Size((k,)), generator=seeded(0))  # type: ignore[call-arg]
    ratio, estimate = q.log_prob(x) - p.log_prob(x), monte_carlo_kl(q, p, k, seeded(0))
    torch.testing.assert_close(estimate.value, ratio.mean(0))
    torch.testing.assert_close(estimate.standard_error, ratio.std(0) / math.sqrt(k))


def grid_kl(q: Distribution, p: Distribution) -> Tensor:
    """Return KL(q || p) of one-entry continuous distributions by the trapezoidal rule."""
    step = 0.1
    x = torch.arange(-20, 20, step, dtype=F64)[:, None, None]
    log_q, log_p = q.log_prob(x), p.log_prob(x)
    return (log_q.exp() * (log_q - log_p)).sum(0) * step


@pytest.mark.parametrize("of", ["mixture || gaussian", "mixture || mixture", "gaussian || mixture"])
def test_estimates_of_mixtures_are_unbiased_with_calibrated_errors(of: str) -> None:
    n = 1000
    alone = gaussian(*parameters(10, n, d=1))
    q, p = {
        "mixture || gaussian": (mixture(n, d=1), alone),
        "mixture || mixture": (mixture(n, d=1), mixture(n, seed=20, d=1)),
        "gaussian || mixture": (alone, mixture(n, d=1)),
    }[of]
    is_calibrated(monte_carlo_kl(q, p, 500, seeded(0)), grid_kl(q, p))


@pytest.mark.parametrize("component", [gaussian, full_gaussian, log_normal, bernoulli])
def test_mixture_of_one_kind_alone_has_its_kl(component: Build) -> None:
    # Two equal components, or all weight on one of two: the mixture is that component.
    n = 400
    own, p = parameters(0, n), component(*parameters(10, n))
    expected = kl_divergence(component(*own), p)
    equal = [value[:, None].expand(n, C, *value.shape[1:]) for value in own]
    other = [torch.stack([value, value + 1], 1) for value in own]
    one = torch.tensor([0.0, -INF], dtype=F64)
    for logits, twice in ((draw(n, C), equal), (one, other)):
        q = Mixture(logits, component(*twice))
        is_calibrated(monte_carlo_kl(q, p, 500, seeded(0)), expected)


def test_estimates_vary_less_by_strata() -> None:
    q, p, k = mixture(N, d=1), gaussian(*parameters(10, N, d=1)), 1000
    estimate = monte_carlo_kl(q, p, k, seeded(0))
    x = q.sample(Size((C * k,)), generator=seeded(1))
    plain = (q.log_prob(x) - p.log_prob(x)).std(0) / math.sqrt(C * k)
    assert (estimate.standard_error < 1.5 * plain).all()
    repeats = torch.stack([monte_carlo_kl(q, p, 20, seeded(i)).value for i in range(2000)])
    error = monte_carlo_kl(q, p, 20_000, seeded(0)).standard_error * math.sqrt(1000)
    torch.testing.assert_close(repeats.std(0), error, rtol=0.1, atol=0)


@every(SMOOTH)
def test_gradients_of_estimates_are_those_of_the_closed_form(pair: tuple[Build, Build]) -> None:
    leaves = [leaf.requires_grad_() for seed in (0, 10) for leaf in parameters(seed, N)]
    q, p = pair[0](*leaves[:3]), pair[1](*leaves[3:])
    expected = gradients(kl_divergence(q, p), leaves)
    generator, repeats = seeded(0), []
    for _ in range(60):
        q, p = pair[0](*leaves[:3]), pair[1](*leaves[3:])
        repeats.append(gradients(monte_carlo_kl(q, p, 100, generator).value, leaves))
    for found, known in zip(zip(*repeats, strict=True), expected, strict=True):
        close_in_errors(torch.stack(found), known)


def test_gradients_of_estimates_of_a_mixture_are_those_of_the_integral() -> None:
    logits = draw(N, C).requires_grad_()
    leaves = [logits, *(leaf.requires_grad_() for leaf in parameters(0, N, C, d=1)[:2])]
    p, idle = gaussian(*parameters(10, N, d=1)), torch.zeros(())

    def q() -> Mixture:
        return Mixture(logits, gaussian(*leaves[1:], idle))

    expected, generator = gradients(grid_kl(q(), p), leaves), seeded(0)
    repeats = [gradients(monte_carlo_kl(q(), p, 200, generator).value, leaves) for _ in range(60)]
    for found, known in zip(zip(*repeats, strict=True), expected, strict=True):
        assert known.abs().max() > 0.01
        close_in_errors(torch.stack(found), known)


@every(PAIRS)
@pytest.mark.parametrize(("of_q", "of_p"), BATCHES, ids=str)
def test_estimates_broadcast_like_the_closed_form(
    pair: tuple[Build, Build], of_q: Shape, of_p: Shape
) -> None:
    q, p = pair[0](*parameters(0, *of_q)), pair[1](*parameters(10, *of_p))
    estimate, exact = monte_carlo_kl(q, p, 2000, seeded(0)), kl_divergence(q, p)
    assert estimate.value.shape == estimate.standard_error.shape == exact.shape
    assert ((estimate.value - exact).abs() < 5.5 * estimate.standard_error).all()


@pytest.mark.parametrize(("of_q", "of_p"), BATCHES, ids=str)
def test_estimates_of_mixtures_broadcast(of_q: Shape, of_p: Shape) -> None:
    q, p = mixture(*of_q, d=1), gaussian(*parameters(10, *of_p, d=1))
    shape = torch.broadcast_shapes(of_q, of_p)
    estimate = monte_carlo_kl(q, p, 2000, seeded(0))
    assert estimate.value.shape == estimate.standard_error.shape == shape
    flat = (each.expand(shape) for each in (q, p))
    x = torch.arange(-20, 20, 0.1, dtype=F64).view(-1, *[1] * (len(shape) + 1))
    log_q, log_p = (each.log_prob(x) for each in flat)
    exact = (log_q.exp() * (log_q - log_p)).sum(0) * 0.1
    assert ((estimate.value - exact).abs() < 5.5 * estimate.standard_error).all()


def test_counts_are_estimated_too() -> None:
    # KL of Poissons: mu_q log(mu_q / mu_p) - mu_q + mu_p; of mixtures, by summing.
    q, p = draw(1000, 1), draw(1000, 1, seed=1)
    exact = (q.exp() * (q - p) - q.exp() + p.exp()).sum(-1)
    is_calibrated(monte_carlo_kl(Poisson(q), Poisson(p), 500, seeded(0)), exact)
    inflated = ZeroInflated(Poisson(q), draw(1000, 1, seed=2))
    x = torch.arange(200, dtype=F64)[:, None, None]
    log_q, log_p = inflated.log_prob(x), Poisson(p).log_prob(x)
    exact = (log_q.exp() * (log_q - log_p)).sum(0)
    is_calibrated(monte_carlo_kl(inflated, Poisson(p), 1000, seeded(0)), exact)


@pytest.mark.parametrize("q", [gaussian(*parameters(0, N)), mixture(N)], ids=["one", "mixture"])
def test_estimates_follow_the_generator_and_spare_the_global_state(q: Distribution) -> None:
    p, before = gaussian(*parameters(10, N)), torch.get_rng_state()
    first, again, other = (monte_carlo_kl(q, p, 30, seeded(seed)).value for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_errors_fall_with_the_root_of_the_samples() -> None:
    q, p = drawn((gaussian, gaussian), N)
    few, many = (monte_carlo_kl(q, p, k, seeded(0)).standard_error for k in (1000, 100_000))
    torch.testing.assert_close(few / many, torch.full((N,), 10.0, dtype=F64), rtol=0.15, atol=0)
