"""Log-masses of counts against exact arithmetic: values, gradients, sums, limits and corners.

The reference is Python's decimal arithmetic at 50 digits, fed with the very floating-point numbers
that the function gets, so that its error is the function's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from scvae.core import numerics
from scvae.core.numerics import (
    digamma_error,
    log_ratio,
    nb_log_mass,
    poisson_log_mass,
    stirling_error,
    zero_inflate,
)

COUNTS = (0, 1, 2, 5, 50, 1000, 10_000)
DISPERSIONS = (1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 9.0, 11.0, 1e2, 1e3, 1e4, 1e6, 1e8)
MEANS = (1e-4, 1e-2, 0.5, 1.0, 5.0, 47.0, 1e3, 1e4, 1e5)
LOGITS = (-80.0, -20.0, -2.0, -0.1, 0.0, 0.3, 5.0, 80.0)
CORNERS = tuple(
    itertools.product((-110.0, -100.0, -8.0, 0.0, 5.0, 12.0), (-7.0, -2.0, 0.0, 4.0, 11.0, 18.0))
)
F64 = torch.float64
ROUNDING = torch.finfo(torch.float32).eps
EXACT = Context(prec=50, Emin=-(10**9), Emax=10**9)


@pytest.fixture(params=["at the non-zeros", "everywhere"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each law along both paths: non-zeros alone (CPU), and everywhere (accelerators)."""
    if request.param == "everywhere":
        monkeypatch.setattr(numerics, "_nonzero", lambda x: None)
    return request.param


# -- the exact reference ---------------------------------------------------------------------------


@cache
def rising(log_r: float) -> dict[int, tuple[Decimal, Decimal]]:
    """Return, per x, log of Gamma(x + r) / (Gamma(r) x!) and the sum of 1 / (r + i) over i < x."""
    with localcontext(EXACT):
        r, product, total, found = Decimal(log_r).exp(), Decimal(1), Decimal(0), {}
        for i in range(max(COUNTS) + 1):
            if i in COUNTS:
                found[i] = (product.ln(), total)
            product, total = product * (r + i) / (i + 1), total + 1 / (r + i)
        return found


@cache
def exact_nb(x: int, log_mean: float, log_r: float) -> tuple[float, float, float]:
    """Return the log-mass and its derivatives in log mean and log r."""
    coefficient, harmonic = rising(log_r)[x]
    with localcontext(EXACT):
        mean, r = Decimal(log_mean).exp(), Decimal(log_r).exp()
        stay = r / (r + mean)
        value = coefficient + x * (mean / (r + mean)).ln() + r * stay.ln()
        d_r = r * (harmonic + stay.ln() + (mean - x) / (r + mean))
        return float(value), float(stay * (x - mean)), float(d_r)


def exact_poisson(x: int, log_mean: float) -> tuple[float, float]:
    with localcontext(EXACT):
        mean = Decimal(log_mean).exp()
        value = x * Decimal(log_mean) - mean - Decimal(math.factorial(x)).ln()
        return float(value), float(x - mean)


def exact_inflated(log_mass: float, logits: float, is_zero: bool) -> tuple[float, float, float]:
    """Return the inflated log-mass and its derivatives in the log-mass and the logits."""
    with localcontext(EXACT):
        mass, odds = Decimal(log_mass).exp(), Decimal(logits).exp()
        drop = odds / (1 + odds)
        total = drop * is_zero + mass / (1 + odds)
        from_mass = mass / (1 + odds) / total
        return float(total.ln()), float(from_mass), float(1 - from_mass - drop)


# -- what is measured ------------------------------------------------------------------------------


def nb_table(dtype: torch.dtype, counts: tuple[int, ...] = COUNTS) -> dict[str, np.ndarray]:
    """Return values, gradients and their exact counterparts over the whole grid."""
    grid = np.array(list(itertools.product(counts, MEANS, DISPERSIONS)))
    x = torch.tensor(grid[:, 0], dtype=dtype)
    log_mean = torch.tensor(np.log(grid[:, 1]), dtype=dtype, requires_grad=True)
    log_r = torch.tensor(np.log(grid[:, 2]), dtype=dtype, requires_grad=True)
    out = nb_log_mass(x, log_mean, log_r)
    gradients = torch.autograd.grad(out.sum(), [log_mean, log_r])
    triples = zip(grid[:, 0], log_mean.tolist(), log_r.tolist(), strict=True)
    exact = np.array([exact_nb(int(c), m, r) for c, m, r in triples])
    return {
        "x": grid[:, 0],
        "mean": grid[:, 1],
        "found": torch.stack([out.detach(), *gradients], dim=1).double().numpy(),
        "exact": exact,
    }


def worst(error: np.ndarray, bound: np.ndarray) -> float:
    """Return the largest error in units of its bound; a NaN counts as infinite."""
    return float(np.nan_to_num(np.abs(error) / bound, nan=np.inf).max())


def value_and_gradients(
    function: Callable[..., Tensor], x: Tensor, *parameters: Tensor
) -> list[Tensor]:
    leaves = [p.clone().requires_grad_() for p in parameters]
    out = function(x, *leaves)
    return [out.detach(), *torch.autograd.grad(out.sum(), leaves)]


# -- negative binomial -----------------------------------------------------------------------------


def test_nb_is_exact_in_float64() -> None:
    table = nb_table(F64)
    bound = 1e-10 * np.abs(table["exact"]) + 1e-12
    assert worst(table["found"] - table["exact"], bound) < 1


def test_nb_agrees_with_scipy() -> None:
    grid = np.array(list(itertools.product(COUNTS[:-1], MEANS[:-2], DISPERSIONS[:-3])))
    x, mean, r = grid.T
    found = nb_log_mass(*(torch.tensor(v) for v in (x, np.log(mean), np.log(r))))
    np.testing.assert_allclose(found, stats.nbinom.logpmf(x, r, r / (r + mean)), 1e-10, 1e-10)


@pytest.mark.parametrize("r", [1e2, 1e4, 1e6, 1e8])
def test_nb_near_the_poisson_loses_less_than_1e5_in_float32(r: float) -> None:
    x = torch.tensor([0.0, 1.0, 5.0, 50.0])
    parameters = [torch.full((4,), math.log(v)) for v in (5.0, r)]
    found = torch.stack(value_and_gradients(nb_log_mass, x, *parameters), dim=1).double()
    log_mean, log_r = (p[0].item() for p in parameters)
    exact = torch.tensor([exact_nb(int(c), log_mean, log_r) for c in x], dtype=F64)
    assert (found - exact).abs().max().item() < 1e-5


def test_nb_value_in_float32_is_within_rounding_of_its_terms() -> None:
    table = nb_table(torch.float32)
    x, mean, exact = table["x"], table["mean"], table["exact"][:, 0]
    terms = x * np.abs(np.log(mean / (x + 1)))
    bound = 1e-5 + 1e-6 * np.abs(exact) + 2 * ROUNDING * terms
    assert worst(table["found"][:, 0] - exact, bound) < 1


def test_nb_value_in_float32_is_within_rounding_of_the_answer() -> None:
    # As the module promises: no term is larger than the answer, from r = 1e-3 to r = 1e8.
    table = nb_table(torch.float32, COUNTS[:-1])
    exact = table["exact"][:, 0]
    assert worst(table["found"][:, 0] - exact, 1e-5 + 3e-6 * np.abs(exact)) < 1


@pytest.mark.parametrize("which", [1, 2], ids=["log mean", "log r"])
def test_nb_gradient_in_float32_is_within_rounding_of_mean_and_count(which: int) -> None:
    table = nb_table(torch.float32, COUNTS[:-1])
    exact, largest = table["exact"][:, which], np.maximum(table["x"], table["mean"])
    bound = 1e-5 + 1e-6 * np.abs(exact) + 2 * ROUNDING * largest
    assert worst(table["found"][:, which] - exact, bound) < 1


def test_nb_passes_gradcheck() -> None:
    x = torch.tensor([0, 1, 2, 7, 0, 40.0], dtype=F64)
    for log_mean, log_r in itertools.product((-3.0, 0.5, 3.0), (-4.0, 0.0, 3.0, 6.0)):
        leaves = [torch.full((6,), v, dtype=F64).requires_grad_() for v in (log_mean, log_r)]
        assert torch.autograd.gradcheck(lambda m, r: nb_log_mass(x, m, r), leaves)


@pytest.mark.parametrize("log_mean", [-2.0, 1.0, 3.0])
@pytest.mark.parametrize("log_r", [-1.0, 0.0, 3.0, 12.0])
def test_nb_sums_to_one_with_the_stated_moments(log_mean: float, log_r: float) -> None:
    x = torch.arange(6000).double()
    mass = nb_log_mass(x, torch.tensor(log_mean, dtype=F64), torch.tensor(log_r, dtype=F64)).exp()
    mean, r = math.exp(log_mean), math.exp(log_r)
    assert mass.sum().item() == pytest.approx(1, abs=1e-10)
    assert (mass * x).sum().item() == pytest.approx(mean, rel=1e-9)
    assert (mass * (x - mean) ** 2).sum().item() == pytest.approx(mean + mean**2 / r, rel=1e-8)


@pytest.mark.parametrize("log_r", [12.0, 14.0, 18.0])
def test_nb_meets_the_poisson_at_the_stated_rate(log_r: float) -> None:
    # Expanding in 1/r: log NB - log Poisson = [(x - mean)^2 - x] / (2 r) + O(1/r^2).
    x, log_mean, r = torch.arange(40).double(), torch.tensor(1.6, dtype=F64), math.exp(log_r)
    gap = nb_log_mass(x, log_mean, torch.tensor(log_r, dtype=F64)) - poisson_log_mass(x, log_mean)
    first_order = ((x - log_mean.exp()) ** 2 - x) / (2 * r)
    assert (gap - first_order).abs().max().item() < 40**3 / r**2 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nb_is_finite_at_the_corners(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 5, 1000, 100_000.0], dtype=dtype)
    for log_mean, log_r in CORNERS:
        parameters = [torch.full((5,), v, dtype=dtype) for v in (log_mean, log_r)]
        out, d_mean, d_r = value_and_gradients(nb_log_mass, x, *parameters)
        assert torch.stack([out, d_mean, d_r]).isfinite().all(), (log_mean, log_r)
        assert (out <= 0).all(), (log_mean, log_r)


@pytest.mark.parametrize("log_mean", [-110.0, -100.0, -30.0])
def test_nb_and_poisson_are_exact_where_the_mean_underflows(log_mean: float) -> None:
    x, means = torch.tensor([1.0, 2.0, 50.0]), torch.full((3,), log_mean)
    for log_r in (-7.0, 0.0, 9.0):
        exact = [exact_nb(int(c), log_mean, log_r)[0] for c in x]
        found = nb_log_mass(x, means, torch.full((3,), log_r))
        np.testing.assert_allclose(found, exact, rtol=1e-6)
    exact = [exact_poisson(int(c), log_mean)[0] for c in x]
    np.testing.assert_allclose(poisson_log_mass(x, means), exact, rtol=1e-6)


# -- Poisson ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [(F64, 1e-10, 1e-12), (torch.float32, 2e-6, 1e-5)],
    ids=["float64", "float32"],
)
def test_poisson_is_exact(dtype: torch.dtype, relative: float, absolute: float) -> None:
    grid = np.array(list(itertools.product(COUNTS, MEANS)))
    x = torch.tensor(grid[:, 0], dtype=dtype)
    log_mean = torch.tensor(np.log(grid[:, 1]), dtype=dtype)
    found = torch.stack(value_and_gradients(poisson_log_mass, x, log_mean), 1).double().numpy()
    pairs = zip(grid[:, 0], log_mean.tolist(), strict=True)
    exact = np.array([exact_poisson(int(c), m) for c, m in pairs])
    rounding = torch.finfo(dtype).eps * np.maximum(grid[:, :1], grid[:, 1:])
    assert worst(found - exact, relative * np.abs(exact) + absolute + rounding) < 1


def test_poisson_agrees_with_scipy() -> None:
    grid = np.array(list(itertools.product(COUNTS, MEANS)))
    found = poisson_log_mass(torch.tensor(grid[:, 0]), torch.tensor(np.log(grid[:, 1])))
    np.testing.assert_allclose(found, stats.poisson.logpmf(*grid.T), 1e-10, 1e-10)


def test_poisson_passes_gradcheck_and_sums_to_one() -> None:
    x = torch.arange(300).double()
    for log_mean in (-5.0, 0.0, 2.0, 4.0):
        leaf = torch.full((300,), log_mean, dtype=F64).requires_grad_()
        assert torch.autograd.gradcheck(lambda m: poisson_log_mass(x[:9], m[:9]), [leaf])
        assert poisson_log_mass(x, leaf).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("log_mean", [-110.0, -100.0, 0.0, 12.0])
def test_poisson_is_finite_at_the_corners(log_mean: float) -> None:
    x = torch.tensor([0, 1, 5, 1000, 100_000.0])
    both = value_and_gradients(poisson_log_mass, x, torch.full((5,), log_mean))
    assert torch.stack(both).isfinite().all()


# -- zero inflation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [(F64, 1e-13, 1e-14), (torch.float32, 4e-7, 4e-7)],
    ids=["float64", "float32"],
)
def test_zero_inflation_is_exact(dtype: torch.dtype, relative: float, absolute: float) -> None:
    masses = (-1e5, -300.0, -80.0, -5.0, -0.7, -1e-3, -1e-8)
    grid = list(itertools.product(masses, LOGITS, (False, True)))
    mass, logits = (torch.tensor([row[i] for row in grid], dtype=dtype) for i in (0, 1))
    is_zero = torch.tensor([row[2] for row in grid])
    leaves = [mass.requires_grad_(), logits.requires_grad_()]
    out = zero_inflate(*leaves, is_zero)
    found = torch.stack([out.detach(), *torch.autograd.grad(out.sum(), leaves)], 1).double().numpy()
    rows = zip(mass.tolist(), logits.tolist(), is_zero.tolist(), strict=True)
    exact = np.array([exact_inflated(*row) for row in rows])
    assert worst(found - exact, relative * np.abs(exact) + absolute) < 1


def test_zero_inflation_passes_gradcheck() -> None:
    mass = torch.tensor([-3.0, -0.2, -9.0, -1.0], dtype=F64)
    is_zero = torch.tensor([True, False, True, True])
    for logits in (-6.0, -0.3, 0.4, 5.0):
        leaves = [mass, torch.full((4,), logits, dtype=F64)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        assert torch.autograd.gradcheck(lambda m, h: zero_inflate(m, h, is_zero), leaves)


@pytest.mark.parametrize("logits", [-30.0, -1.0, 0.0, 2.0])
def test_inflated_masses_sum_to_one(logits: float) -> None:
    x = torch.arange(4000).double()
    mass = nb_log_mass(x, torch.tensor(1.5, dtype=F64), torch.tensor(-0.5, dtype=F64))
    total = zero_inflate(mass, torch.tensor(logits, dtype=F64), x == 0).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-10)


def test_zero_inflation_fades_into_its_base() -> None:
    x = torch.arange(30).float()
    base = nb_log_mass(x, torch.tensor(1.5), torch.tensor(0.5))
    assert torch.equal(zero_inflate(base, torch.tensor(-80.0), x == 0), base)
    gaps = [
        (zero_inflate(base, torch.tensor(h), x == 0) - base).abs().max() for h in (-2, -5, -10.0)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_full_zero_inflation_leaves_zeros_only() -> None:
    x = torch.tensor([0.0, 3.0])
    out = zero_inflate(torch.tensor([-5.0, -2.0]), torch.tensor(80.0), x == 0)
    assert out.tolist() == pytest.approx([0, -82])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_inflated_nb_is_finite_at_the_corners(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 1000, 100_000.0], dtype=dtype)

    def inflated(x: Tensor, log_mean: Tensor, log_r: Tensor, logits: Tensor) -> Tensor:
        return zero_inflate(nb_log_mass(x, log_mean, log_r), logits, x == 0)

    for (log_mean, log_r), logits in itertools.product(CORNERS, (-80.0, 0.0, 80.0)):
        parameters = [torch.full((4,), v, dtype=dtype) for v in (log_mean, log_r, logits)]
        found = torch.stack(value_and_gradients(inflated, x, *parameters))
        assert found.isfinite().all(), (log_mean, log_r, logits)


# -- shapes ----------------------------------------------------------------------------------------

SHAPES = [
    ((4, 3), (4, 3), (3,)),
    ((4, 3), (2, 4, 3), (3,)),
    ((4, 3), (2, 4, 3), (4, 3)),
    ((4, 3), (2, 1, 3), (4, 1)),
    ((4, 3), (4, 1), ()),
    ((2, 4, 3), (3,), (1, 3)),
    ((3,), (4, 3), (3,)),
    ((), (), ()),
    ((0, 3), (0, 3), (3,)),
]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def whole(shape: tuple[int, ...]) -> Tensor:
    """Return counts of which about half are zero."""
    return draw(shape, 3).mul(3).clamp(min=0).round()


@pytest.mark.parametrize(("x", "log_mean", "log_r"), SHAPES, ids=str)
def test_nb_broadcasts_like_its_expansion(x: tuple, log_mean: tuple, log_r: tuple) -> None:
    counts, parameters = whole(x), [draw(log_mean, 1), draw(log_r, 2)]
    shape = torch.broadcast_shapes(x, log_mean, log_r)
    found = value_and_gradients(nb_log_mass, counts, *parameters)
    full = [p.expand(shape).clone() for p in parameters]
    expected = value_and_gradients(nb_log_mass, counts.expand(shape).clone(), *full)
    assert found[0].shape == shape
    torch.testing.assert_close(found[0], expected[0], rtol=1e-13, atol=1e-13)
    for own, wide, p in zip(found[1:], expected[1:], parameters, strict=True):
        torch.testing.assert_close(own, wide.sum_to_size(p.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("x", "log_mean", "logits"), SHAPES, ids=str)
def test_poisson_and_inflation_broadcast_like_their_expansion(
    x: tuple, log_mean: tuple, logits: tuple
) -> None:
    def inflated(x: Tensor, log_mean: Tensor, logits: Tensor) -> Tensor:
        return zero_inflate(poisson_log_mass(x, log_mean), logits, x == 0)

    counts, parameters = whole(x), [draw(log_mean, 1), draw(logits, 2)]
    shape = torch.broadcast_shapes(x, log_mean, logits)
    found = value_and_gradients(inflated, counts, *parameters)
    full = [p.expand(shape).clone() for p in parameters]
    expected = value_and_gradients(inflated, counts.expand(shape).clone(), *full)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-13, atol=1e-13)
    for own, wide, p in zip(found[1:], expected[1:], parameters, strict=True):
        torch.testing.assert_close(own, wide.sum_to_size(p.shape), rtol=1e-12, atol=1e-12)


def test_memory_layout_does_not_matter() -> None:
    x, log_mean, log_r = whole((4, 3)), draw((4, 3), 1), draw((4, 3), 2)
    transposed = [t.T.contiguous().T for t in (x, log_mean, log_r)]
    for count, mean, r in itertools.product(*zip((x, log_mean, log_r), transposed, strict=True)):
        for own, other in zip(
            value_and_gradients(nb_log_mass, count, mean, r),
            value_and_gradients(nb_log_mass, x, log_mean, log_r),
            strict=True,
        ):
            assert torch.equal(own, other)
        assert torch.equal(poisson_log_mass(count, mean), poisson_log_mass(x, log_mean))


def test_two_backward_passes_give_the_same_gradient_and_spare_the_inputs() -> None:
    x, log_mean, log_r, logits = whole((4, 3)), draw((4, 3), 1), draw((3,), 2), draw((4, 3), 4)
    before = [t.clone() for t in (x, log_mean, log_r, logits)]
    leaves = [t.requires_grad_() for t in (log_mean, log_r, logits)]
    out = zero_inflate(nb_log_mass(x, log_mean, log_r), logits, x == 0).sum()
    first = torch.autograd.grad(out, leaves, retain_graph=True)
    second = torch.autograd.grad(out, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *leaves), strict=True))


# -- the pieces ------------------------------------------------------------------------------------


def test_stirling_and_digamma_errors_are_small_and_continuous() -> None:
    y = torch.tensor([0.01, 0.5, 1.0, 3.0, 9.999, 10.0, 10.001, 50.0], dtype=F64)
    stirling = torch.lgamma(y) - ((y - 0.5) * y.log() - y + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(stirling_error(y), stirling, rtol=0, atol=4e-14)
    torch.testing.assert_close(digamma_error(y), torch.digamma(y) - y.log(), rtol=0, atol=4e-14)


def test_digamma_series_is_exact_where_it_starts() -> None:
    # digamma(10) = H_9 - Euler's constant; H_9 = 7129 / 2520.
    exact = 7129 / 2520 - 0.57721566490153286061 - math.log(10)
    assert digamma_error(torch.tensor([10.0], dtype=F64)).item() == pytest.approx(exact, abs=1e-15)


def test_log_ratio_keeps_every_digit_near_one_and_near_zero() -> None:
    small = torch.tensor([1e-9, -1e-9, 1e-3], dtype=F64)
    near_one = log_ratio(1 + small, torch.ones(3, dtype=F64), small)
    np.testing.assert_allclose(near_one, np.log1p(small.numpy()), rtol=1e-15)
    tiny = torch.tensor([1e-30, 1e-300], dtype=F64)
    near_zero = log_ratio(tiny, torch.ones(2, dtype=F64), tiny - 1)
    np.testing.assert_allclose(near_zero, np.log(tiny.numpy()), rtol=1e-15)
