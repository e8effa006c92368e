"""Rows of few non-zeros: the same numbers as entry by entry, and gradients of both kinds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from scvae.core.distributions import Detected, Poisson, Shares
from scvae.core.numerics import detected_log_mass, log_odds_of_detection, poisson_log_mass
from scvae.core.rows import poisson_log_prob
from scvae.core.sparse_rows import detected_log_prob
from scvae.core.sparse_rows import poisson_log_prob as by_nonzeros

N, G = 6, 40
LAWS = (
    (poisson_log_prob, poisson_log_mass),
    (by_nonzeros, poisson_log_mass),
    (detected_log_prob, detected_log_mass),
)
laws = pytest.mark.parametrize(
    ("of_rows", "of_entries"), LAWS, ids=["poisson", "by_nonzeros", "detected"]
)
Law = Callable[..., Tensor]


def rows(h: int = G, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(0)
    x = (torch.rand(N, G, generator=draw) < 0.1).to(dtype)
    a = torch.randn(N, h, generator=draw, dtype=torch.float64).to(dtype)
    return x, a, torch.randn(N, 1, generator=draw, dtype=torch.float64).to(dtype) + 1


def entrywise(law: Law, x: Tensor, a: Tensor, log_total: Tensor) -> Tensor:
    return law(x, (torch.log_softmax(a, -1) + log_total)[..., :G]).sum(-1)


@laws
@pytest.mark.parametrize("h", [G, G + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_are_sums_of_entries(
    of_rows: Law, of_entries: Law, h: int, dtype: torch.dtype
) -> None:
    x, a, log_total = rows(h, dtype)
    found, wide = of_rows(x, a, log_total), (t.double() for t in (x, a, log_total))
    assert found.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        found.double(), entrywise(of_entries, *wide), rtol=tolerance, atol=tolerance
    )


@laws
@pytest.mark.parametrize("h", [G, G + 3])
def test_gradients_of_rows_are_numerical_ones_twice(of_rows: Law, of_entries: Law, h: int) -> None:
    x, a, log_total = rows(h)
    inputs = (a[:2].requires_grad_(), log_total[:2].requires_grad_())
    assert torch.autograd.gradcheck(lambda *p: of_rows(x[:2], *p), inputs)
    assert torch.autograd.gradgradcheck(lambda *p: of_rows(x[:2], *p), inputs)


@laws
def test_rows_take_samples_of_the_parameters_and_none_but_zeros(
    of_rows: Law, of_entries: Law
) -> None:
    x, a, log_total = rows()
    many = torch.stack([a, a.flip(0)])
    torch.testing.assert_close(
        of_rows(x, many, log_total), entrywise(of_entries, x, many, log_total)
    )
    total = of_rows(torch.zeros_like(x), a, log_total)
    torch.testing.assert_close(total, -log_total[:, 0].exp())


@laws
def test_rows_of_many_nonzeros_keep_their_digits(of_rows: Law, of_entries: Law) -> None:
    x, a, log_total = rows(dtype=torch.float32)
    x = torch.ones_like(x)
    found = of_rows(x, a, log_total + 6)
    wide = entrywise(of_entries, x.double(), a.double(), log_total.double() + 6)
    torch.testing.assert_close(found.double(), wide, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("h", [G, G + 3])
def test_the_kernel_of_float32_agrees_with_float64_at_any_count(h: int) -> None:
    x, a, log_total = rows(h, torch.float32)
    x[0, :4] = torch.tensor([16.0, 17.0, 300.0, 40_000.0])
    x[1] = 0.0
    many = torch.stack([a, 5 * a.flip(0)]).requires_grad_()
    log_total.requires_grad_()
    weights = torch.linspace(-1, 2, 2 * N).view(2, N)
    found = poisson_log_prob(x, many, log_total)
    slopes = torch.autograd.grad((found * weights).sum(), (many, log_total))
    wide = [t.detach().double().requires_grad_() for t in (many, log_total)]
    expected = entrywise(poisson_log_mass, x.double(), *wide)
    wide_slopes = torch.autograd.grad((expected * weights.double()).sum(), wide)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-5)
    for slope, true in zip(slopes, wide_slopes, strict=True):
        torch.testing.assert_close(slope.double(), true, rtol=2e-6, atol=2e-4)


def test_what_cannot_be_a_count_is_no_number() -> None:
    x, a, log_total = rows(dtype=torch.float32)
    x[2, 5] = torch.nan
    found = poisson_log_prob(x, a, log_total)
    assert found.isnan().tolist() == [n == 2 for n in range(N)]
    with pytest.raises(ValueError, match="do not fit each other"):
        poisson_log_prob(x[:, :7], a, torch.zeros(N + 1, 1))


def test_what_is_detected_is_a_count_above_zero() -> None:
    log_mean = torch.linspace(-60, 6, 100, dtype=torch.float64)
    mean = log_mean.exp().numpy()
    expected = stats.poisson.logsf(0, mean)
    found = detected_log_mass(torch.ones(()), log_mean)
    np.testing.assert_allclose(
        found, np.where(mean > 1e-15, expected, log_mean), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_odds_of_detection_have_sound_gradients_everywhere(dtype: torch.dtype) -> None:
    log_mean = torch.linspace(-200, 60, 600, dtype=dtype).requires_grad_()
    odds = log_odds_of_detection(log_mean)
    (slope,) = torch.autograd.grad(odds.sum(), log_mean)
    mean = log_mean.detach().exp()
    expected = torch.where(mean < 1e-6, 1.0, mean / -torch.expm1(-mean))
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Poisson, Detected])
def test_a_distribution_of_shares_is_that_of_its_log_means(kind: type) -> None:
    x, a, log_total = rows(G + 2)
    shares = Shares(a, log_total, G)
    torch.testing.assert_close(kind(shares).log_prob(x), kind(shares.log_mean).log_prob(x))
    seen = x.bool() | (torch.arange(G) % 2 == 0)
    torch.testing.assert_close(
        kind(shares).marginal_log_prob(x, seen), kind(shares.log_mean).marginal_log_prob(x, seen)
    )
