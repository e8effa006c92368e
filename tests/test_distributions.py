"""One conformance suite that every distribution passes: shapes, masses, samples, moments, seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor
from torch import distributions as reference
from torch.distributions import Distribution

from scvae.core.distributions import Gaussian, NegativeBinomial, Poisson, ZeroInflated

N, G = 4, 3
DRAWS = 40_000
F64 = torch.float64
Draw = Callable[..., Tensor]
Build = Callable[[Draw], Distribution]


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


def single(*shape: int, seed: int = 0) -> Tensor:
    return double(*shape, seed=seed).float()


def learned(*shape: int, seed: int = 0) -> Tensor:
    return double(*shape, seed=seed).requires_grad_()


# -- the distributions under test; each is built from random numbers drawn by `draw` ---------------


def gaussian(draw: Draw) -> Gaussian:
    return Gaussian(draw(N, G), draw(N, G, seed=1).exp())


def gaussian_of_one_scale(draw: Draw) -> Gaussian:
    return Gaussian(draw(N, G), draw(G, seed=1).exp())


def poisson(draw: Draw) -> Poisson:
    return Poisson(draw(N, G) + 1)


def nb(draw: Draw) -> NegativeBinomial:
    return NegativeBinomial(draw(N, G) + 1, draw(N, G, seed=1) + 1)


def nb_per_gene(draw: Draw) -> NegativeBinomial:
    return NegativeBinomial(draw(N, G) + 1, draw(G, seed=1) + 1)


def nb_of_one_mean(draw: Draw) -> NegativeBinomial:
    return NegativeBinomial(draw(1, G) + 1, draw(N, 1, seed=1) + 1)


def zero_inflated_poisson(draw: Draw) -> ZeroInflated:
    return ZeroInflated(poisson(draw), draw(N, G, seed=2))


def zero_inflated_nb(draw: Draw) -> ZeroInflated:
    return ZeroInflated(nb_per_gene(draw), draw(N, G, seed=2))


def zero_inflated_per_gene(draw: Draw) -> ZeroInflated:
    return ZeroInflated(nb(draw), draw(G, seed=2))


def zero_inflated_of_one_base(draw: Draw) -> ZeroInflated:
    return ZeroInflated(Poisson(draw(G) + 1), draw(N, G, seed=2))


COUNTS: tuple[Build, ...] = (
    poisson,
    nb,
    nb_per_gene,
    nb_of_one_mean,
    zero_inflated_poisson,
    zero_inflated_nb,
    zero_inflated_per_gene,
    zero_inflated_of_one_base,
)
ALL: tuple[Build, ...] = (gaussian, gaussian_of_one_scale, *COUNTS)


def name(build: Build) -> str:
    return build.__name__


@pytest.fixture(params=ALL, ids=name)
def build(request: pytest.FixtureRequest) -> Build:
    return request.param


@pytest.fixture
def p(build: Build) -> Distribution:
    return build(double)


def drawn(p: Distribution, shape: tuple, **options: Generator) -> Tensor:
    """Return samples, by the one method of `p` that takes a generator."""
    with torch.no_grad():
        return (p.rsample if p.has_rsample else p.sample)(torch.Size(shape), **options)


def sample_of(p: Distribution, *shape: int, seed: int = 0) -> Tensor:
    return drawn(p, shape, generator=seeded(seed))


def rows_of(p: Distribution, *shape: int) -> Tensor:
    """Return values in the support of `p`, ``(*shape, n, g)``, many of them zero for counts."""
    value = double(*shape, N, G, seed=9)
    return value if isinstance(p, Gaussian) else value.mul(3).clamp(min=0).round()


# -- every distribution ----------------------------------------------------------------------------


def test_the_last_axis_is_the_event(p: Distribution) -> None:
    assert p.batch_shape == (N,)
    assert p.event_shape == (G,)
    assert p.mean.shape == p.variance.shape == (N, G)


def test_log_prob_is_one_number_per_row(p: Distribution) -> None:
    assert p.log_prob(rows_of(p)).shape == (N,)
    assert p.log_prob(rows_of(p, 5)).shape == (5, N)
    assert p.log_prob(rows_of(p)[0]).shape == (N,)


def test_log_prob_of_rows_is_that_of_each_row(p: Distribution) -> None:
    value = rows_of(p)
    alone = torch.stack([p.log_prob(value[n])[n] for n in range(N)])
    torch.testing.assert_close(alone, p.log_prob(value))


def test_expand_commutes_with_log_prob_and_moments(p: Distribution) -> None:
    wide, value = p.expand((5, N)), rows_of(p, 5)
    assert (wide.batch_shape, wide.event_shape) == ((5, N), (G,))
    torch.testing.assert_close(wide.log_prob(value), p.log_prob(value))
    torch.testing.assert_close(wide.mean, p.mean.expand(5, N, G))
    torch.testing.assert_close(wide.variance, p.variance.expand(5, N, G))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_samples_have_the_stated_shape_and_support(p: Distribution, shape: tuple) -> None:
    assert sample_of(p, *shape).shape == (*shape, N, G)
    assert sample_of(p.expand((2, N)), *shape).shape == (*shape, 2, N, G)
    assert p.support.check(sample_of(p, *shape)).all()


def test_samples_have_the_stated_moments(p: Distribution) -> None:
    centred = sample_of(p, DRAWS, seed=5) - p.mean
    error_of_mean = (p.variance / DRAWS).sqrt()
    spread = centred.pow(4).mean(0) - centred.square().mean(0).square()
    assert (centred.mean(0).abs() < 5 * error_of_mean).all()
    off = centred.square().mean(0) - p.variance
    assert (off.abs() < 5 * (spread / DRAWS).sqrt()).all()


def test_a_generator_fixes_the_draw_and_spares_the_global_state(p: Distribution) -> None:
    before = torch.get_rng_state()
    first, again, other = (sample_of(p, 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_generator_advances(p: Distribution) -> None:
    generator = seeded(0)
    first, second = (drawn(p, (50,), generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_without_a_generator_the_global_state_decides(p: Distribution) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = drawn(p, (50,))
        torch.manual_seed(3)
        assert torch.equal(drawn(p, (50,)), first)


def test_samples_carry_no_gradient(build: Build) -> None:
    with torch.random.fork_rng():
        assert not build(learned).sample(torch.Size((2,))).requires_grad


def test_float32_agrees_with_float64(build: Build) -> None:
    narrow, value = build(single), rows_of(build(double), 7)
    assert narrow.log_prob(value.float()).dtype == torch.float32
    found = narrow.log_prob(value.float()).double()
    torch.testing.assert_close(found, build(double).log_prob(value), rtol=1e-5, atol=2e-5)
    assert sample_of(narrow, 2).dtype == torch.float32


def test_parameters_are_checked_on_request_alone() -> None:
    nan = torch.full((2, 3), float("nan"))
    assert Gaussian(nan, nan).log_prob(torch.zeros(2, 3)).isnan().all()
    with pytest.raises(ValueError, match="parameter scale"):
        Gaussian(torch.zeros(2, 3), -torch.ones(2, 3), validate_args=True)
    with pytest.raises(ValueError, match="parameter log_mean"):
        Poisson(nan, validate_args=True)
    with pytest.raises(ValueError, match="parameter log_inverse_dispersion"):
        NegativeBinomial(torch.zeros(2, 3), nan, validate_args=True)
    with pytest.raises(ValueError, match="parameter logits"):
        ZeroInflated(Poisson(torch.zeros(2, 3)), nan, validate_args=True)


# -- against torch's own ---------------------------------------------------------------------------


def test_gaussian_is_torchs_normal() -> None:
    p = gaussian(double)
    expected = reference.Normal(p.loc, p.scale).log_prob(rows_of(p, 5)).sum(-1)
    torch.testing.assert_close(p.log_prob(rows_of(p, 5)), expected)


def test_poisson_is_torchs_poisson() -> None:
    p = poisson(double)
    expected = reference.Poisson(p.log_mean.exp()).log_prob(rows_of(p, 5)).sum(-1)
    torch.testing.assert_close(p.log_prob(rows_of(p, 5)), expected)


def test_nb_is_torchs_negative_binomial() -> None:
    p = nb_per_gene(double)
    logits = p.log_mean - p.log_inverse_dispersion
    torchs = reference.NegativeBinomial(p.inverse_dispersion, logits=logits)
    torch.testing.assert_close(p.log_prob(rows_of(p, 5)), torchs.log_prob(rows_of(p, 5)).sum(-1))
    torch.testing.assert_close(p.mean, torchs.mean)
    torch.testing.assert_close(p.variance, torchs.variance)


def test_zero_inflation_is_a_mixture_with_zero() -> None:
    p = zero_inflated_nb(double)
    value, drop = rows_of(p, 5), torch.sigmoid(p.logits)
    mass = drop * (value == 0) + (1 - drop) * p.base.entry_log_prob(value).exp()
    torch.testing.assert_close(p.log_prob(value), mass.log().sum(-1))


# -- samples that can be differentiated ------------------------------------------------------------


def test_gaussian_samples_move_with_loc_and_scale() -> None:
    loc, scale = double(N, G).requires_grad_(), double(N, G, seed=1).exp().requires_grad_()
    z = Gaussian(loc, scale).rsample(torch.Size((7,)), generator=seeded(0))
    d_loc, d_scale = torch.autograd.grad(z.sum(), [loc, scale])
    noise = (z - loc) / scale
    torch.testing.assert_close(d_loc, torch.full((N, G), 7.0, dtype=F64))
    torch.testing.assert_close(d_scale, noise.sum(0))


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", COUNTS, ids=name)
def test_every_entry_of_a_count_sums_to_one(build: Build) -> None:
    x = torch.arange(3000, dtype=F64)[:, None, None].expand(3000, N, G)
    mass = build(double).entry_log_prob(x).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(N, G, dtype=F64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("build", COUNTS, ids=name)
def test_counts_are_sampled_as_often_as_their_mass_says(build: Build) -> None:
    p = build(double)
    value = sample_of(p, DRAWS, seed=6)
    for x in (0.0, 1.0, 2.0, 5.0):
        mass = p.entry_log_prob(torch.full((N, G), x, dtype=F64)).exp()
        error = (mass * (1 - mass) / DRAWS).sqrt()
        assert (((value == x).double().mean(0) - mass).abs() < 5 * error).all()


@pytest.mark.parametrize("log_r", [-7.0, 18.0])
def test_nb_samples_at_the_ends_of_the_dispersion(log_r: float) -> None:
    p = NegativeBinomial(torch.zeros(1), torch.full((1,), log_r))
    value = sample_of(p, 4 * DRAWS)
    zeros = p.entry_log_prob(torch.zeros(1)).exp().item()
    assert value.isfinite().all()
    error = (zeros * (1 - zeros) / (4 * DRAWS)) ** 0.5
    assert (value == 0).float().mean().item() == pytest.approx(zeros, abs=5 * error)
