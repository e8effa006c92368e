"""The compiled rows against their oracle: `numerics`, entry by entry, in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scvae.core import rows
from scvae.core.numerics import nb_log_mass, zero_inflate
from scvae.core.rows import nb_log_prob, zinb_log_prob
from tests.draws import seeded

N, G = 40, 37  # G is no multiple of any vector's width
law = settings(deadline=None, derandomize=True, max_examples=40)
Parameters = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def counts(log_mean: Tensor, seed: int = 9) -> Tensor:
    """Return counts near and far from their mean, among them zeros and large ones."""
    x = torch.poisson(log_mean.exp().clamp(max=1e5), generator=seeded(seed))
    far = torch.tensor([0.0, 1, 2, 15, 16, 17, 18, 300, 1e4]).repeat(len(x))[: len(x)]
    x[:, 0], x[:, 1] = far, 0.0
    return x


def some(log_r: float, scale: float, one_row: bool, inflated: bool) -> tuple[Tensor, Parameters]:
    log_mean = draw(N, G) * scale
    shape = (G,) if one_row else (N, G)
    parameters = {"log_mean": log_mean, "log_r": draw(*shape, seed=1) * 0.3 + log_r}
    if inflated:
        parameters["logits"] = draw(N, G, seed=2) * 4
    return counts(log_mean), parameters


def compiled(x: Tensor, p: Parameters) -> Tensor:
    return (zinb_log_prob if "logits" in p else nb_log_prob)(x, *p.values())


def oracle(x: Tensor, p: Parameters) -> Tensor:
    """Return log p of every row in float64, entry by entry."""
    mass = nb_log_mass(x.double(), p["log_mean"].double(), p["log_r"].double())
    if "logits" in p:
        mass = zero_inflate(mass, p["logits"].double(), x == 0)
    return mass.sum(-1)


def with_gradients(p: Parameters) -> Parameters:
    return {name: value.clone().requires_grad_() for name, value in p.items()}


every = pytest.mark.parametrize("inflated", [False, True], ids=["nb", "zinb"])


@pytest.mark.parametrize("one_row", [True, False])
@pytest.mark.parametrize("log_r", [-7.0, -2.0, 0.0, 3.0, 9.0, 14.0, 18.4])
@pytest.mark.parametrize("scale", [0.5, 3.0])
@every
def test_rows_are_sums_of_entries(
    log_r: float, scale: float, one_row: bool, inflated: bool
) -> None:
    x, p = some(log_r, scale, one_row, inflated)
    expected = oracle(x, p)
    size = 1e-6 * (G + x.sum(-1)) + 2e-6 * expected.abs()
    assert ((compiled(x, p) - expected).abs() < size).all()


@pytest.mark.parametrize("one_row", [True, False])
@pytest.mark.parametrize("log_r", [-7.0, 0.0, 3.0, 9.0, 18.4])
@every
def test_gradients_are_those_of_the_entries(log_r: float, one_row: bool, inflated: bool) -> None:
    x, p = some(log_r, 1.5, one_row, inflated)
    weights = draw(N, seed=3)  # rows may count unequally
    found, expected = with_gradients(p), with_gradients(p)
    (compiled(x, found) * weights).sum().backward()
    (oracle(x, expected) * weights).sum().backward()
    for name, value in found.items():
        reference = expected[name].grad
        assert value.grad is not None
        assert reference is not None
        # A sum over rows may cancel: its bound is one of its terms, which are of the size of x.
        rounding = 3e-6 * (x + p["log_mean"].exp() + 1)
        rounding = rounding.sum(0) if value.dim() == 1 else rounding
        assert ((value.grad - reference).abs() < rounding * 3 + 1e-5 * reference.abs()).all(), name


@law
@given(
    st.integers(0, 100_000),
    st.floats(-30, 12, width=32),
    st.floats(-7, 18, width=32),
    st.floats(-60, 60, width=32),
)
def test_single_entries(x: int, log_mean: float, log_r: float, logits: float) -> None:
    value = torch.tensor([[float(x)]])
    p = {"log_mean": log_mean, "log_r": log_r, "logits": logits}
    tensors = {name: torch.tensor([[number]]) for name, number in p.items()}
    for inflated in (False, True):
        given_ = tensors if inflated else {k: v for k, v in tensors.items() if k != "logits"}
        found, expected = compiled(value, given_).item(), oracle(value, given_).item()
        size = 1e-6 * (1 + x + math.exp(log_mean)) + 2e-6 * abs(expected)
        assert abs(found - expected) < size


@every
def test_any_number_of_positive_counts_in_a_row(inflated: bool) -> None:
    """Positive counts are taken 32 at a time."""
    found = [0, 1, 31, 32, 33, 63, 64, 65, 100]
    x = torch.poisson(draw(len(found), 100).abs() * 8, generator=seeded(3)) + 1
    for row, positive in zip(x, found, strict=True):
        row[torch.randperm(100, generator=seeded(positive))[positive:]] = 0
    p = {"log_mean": draw(len(found), 100, seed=1), "log_r": draw(100, seed=2)}
    if inflated:
        p["logits"] = draw(len(found), 100, seed=4)
    expected = oracle(x, p)
    assert ((compiled(x, p) - expected).abs() < 1e-6 * (100 + x.sum(-1) + expected.abs())).all()
    ours, exact = with_gradients(p), with_gradients(p)
    compiled(x, ours).sum().backward()
    oracle(x, exact).sum().backward()
    for name, value in ours.items():
        assert exact[name].grad is not None
        torch.testing.assert_close(value.grad, exact[name].grad, rtol=1e-4, atol=1e-3)


def test_large_counts_without_overdispersion_are_poisson() -> None:
    x = torch.tensor([[1.0, 15, 16, 17, 40, 1000]])
    log_mean = draw(1, 6) + x.log()
    expected = torch.distributions.Poisson(log_mean.double().exp()).log_prob(x.double()).sum()
    found = nb_log_prob(x, log_mean, torch.full((6,), 50.0)).double()
    torch.testing.assert_close(found, expected[None], rtol=1e-5, atol=1e-3)


def test_what_is_no_count_reads_no_foreign_memory() -> None:
    """At mean 1 and r 1, log NB(x) less the terms that tables hold is -(x + 1) log 2."""
    log_r = torch.zeros(1)
    for value in (-1.0, -2.0, -1e9, -1e30):
        x = torch.tensor([[value]])
        expected = torch.tensor([-(value + 1) * math.log(2)])
        found = nb_log_prob(x, x * 0, log_r), zinb_log_prob(x, x * 0, log_r, x * 0)
        torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], expected - math.log(2), rtol=1e-6, atol=1e-6)
    for value in (math.nan, math.inf):
        x = torch.tensor([[value]])
        assert nb_log_prob(x, torch.zeros(1, 1), log_r).isnan().all()
        assert zinb_log_prob(x, torch.zeros(1, 1), log_r, torch.zeros(1, 1)).isnan().all()


def test_the_vectorised_logarithm_of_float64() -> None:
    from scvae.core.kernels.arithmetic import compiled as compile_
    from scvae.core.kernels.arithmetic import log_exact

    logarithm = compile_(lambda x: log_exact(x))
    at = np.concatenate([np.linspace(-700, 700, 4001), np.linspace(-1, 1, 4001)])
    found = np.array([logarithm(value) for value in np.exp(at)])
    expected = np.log(np.exp(at))
    assert (np.abs(found - expected) <= 2e-15 * np.maximum(1, np.abs(expected))).all()


@every
def test_rows_do_not_depend_on_the_threads(inflated: bool) -> None:
    x, p = some(0.0, 1.0, True, inflated)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            q = with_gradients(p)
            out = compiled(x, q)
            out.sum().backward()
            results.append([out, *(value.grad for value in q.values())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every
def test_samples_broadcast_over_rows(inflated: bool) -> None:
    x, p = some(0.0, 1.0, True, inflated)
    several = p | {"log_mean": p["log_mean"] + draw(3, N, 1, seed=5)}
    q = with_gradients(several)
    out = compiled(x, q)
    assert out.shape == (3, N)
    torch.testing.assert_close(out.double(), oracle(x, several), rtol=1e-5, atol=1e-4)
    out.sum().backward()
    for name, value in q.items():
        assert value.grad is not None
        assert value.grad.shape == several[name].shape


def test_one_number_serves_all_entries() -> None:
    x, p = some(0.0, 1.0, True, False)
    q = with_gradients(p | {"log_r": torch.tensor(0.3)})
    compiled(x, q).sum().backward()
    spread = with_gradients(p | {"log_r": torch.full((N, G), 0.3)})
    compiled(x, spread).sum().backward()
    assert q["log_r"].grad is not None
    assert spread["log_r"].grad is not None
    torch.testing.assert_close(q["log_r"].grad, spread["log_r"].grad.sum())


@every
def test_nothing_is_nan_at_the_corners(inflated: bool) -> None:
    corners = torch.tensor([-1e4, -90.0, -30.0, 0.0, 30.0, 79.0, 85.0])
    log_mean, log_r = torch.meshgrid(corners, torch.tensor([-7.0, 0.0, 18.4]), indexing="ij")
    p = {"log_mean": log_mean.reshape(1, -1), "log_r": log_r.reshape(1, -1)}
    if inflated:
        p["logits"] = torch.full_like(p["log_mean"], -1e4)
    for count in (0.0, 1.0, 16.0, 17.0, 1e6):
        q = with_gradients(p)
        out = compiled(torch.full_like(p["log_mean"], count), q)
        out.sum().backward()
        assert not out.isnan().any()
        assert all(not value.grad.isnan().any() for value in q.values())


@pytest.mark.parametrize("count", [0.0, 1.0, 20.0, 1e5])
@pytest.mark.parametrize("nan", [math.nan, -math.nan])
@pytest.mark.parametrize("of_shares", [False, True])
@every
def test_nan_anywhere_is_nan_in_its_row(
    count: float, nan: float, of_shares: bool, inflated: bool
) -> None:
    x, p = some(0.0, 1.0, False, inflated)
    x[2, 3] = count
    names = {"log_mean": "a"} if of_shares else {}
    given_ = {"x": x} | {names.get(name, name): value for name, value in p.items()}
    if of_shares:
        given_["log_total"] = draw(N, 1, seed=5)
    ask = zinb_log_prob if inflated else nb_log_prob
    for name, value in given_.items():
        spoilt = value.clone()
        spoilt[2, 3 if value.shape[1] > 1 else 0] = nan
        named = given_ | {name: spoilt}
        if not of_shares:
            named["a"] = named.pop("log_mean")
        out = ask(**named)
        assert out[2].isnan(), name
        assert out.isnan().sum() == 1, name


def test_other_types_take_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    x, p = some(0.0, 1.0, True, True)
    monkeypatch.setattr(rows, "run", lambda *given: pytest.fail("float64 has no kernel"))
    wide = {name: value.double() for name, value in p.items()}
    torch.testing.assert_close(compiled(x.double(), wide), oracle(x, p))


def test_without_a_compiler_the_oracle_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, p = some(0.0, 1.0, True, True)
    monkeypatch.setattr(rows, "is_served", lambda *tensors: False)
    torch.testing.assert_close(compiled(x, p).double(), oracle(x, p), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_computes_too() -> None:
    program = (
        "import os, torch\n"
        "from scvae.core.rows import nb_log_prob\n"
        "torch.set_num_threads(2)\n"
        "x = torch.ones(64, 5)\n"
        "before = nb_log_prob(x, 0 * x, torch.zeros(5))\n"
        "child = os.fork()\n"
        "same = torch.equal(nb_log_prob(x, 0 * x, torch.zeros(5)), before)\n"
        "os._exit(not same) if child == 0 else print(os.waitpid(child, 0)[1], same)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == ["0", "True"]


# -- means as shares of a total --------------------------------------------------------------------


def shared(columns: int, inflated: bool) -> tuple[Tensor, Parameters]:
    """Return counts and parameters whose total also counts what lies in further columns."""
    x, p = some(0.0, 1.0, True, inflated)
    p["a"] = draw(N, columns, seed=6) * 3
    p["log_total"] = torch.log(x.sum(-1, keepdim=True) + 1)
    return x, p


def with_shares(x: Tensor, p: Parameters) -> Tensor:
    if "logits" in p:
        return zinb_log_prob(x, p["a"], p["log_r"], p["logits"], p["log_total"])
    return nb_log_prob(x, p["a"], p["log_r"], p["log_total"])


def oracle_of_shares(x: Tensor, p: Parameters) -> Tensor:
    log_mean = torch.log_softmax(p["a"].double(), -1)[:, :G] + p["log_total"].double()
    return oracle(x, p | {"log_mean": log_mean})


@pytest.mark.parametrize("columns", [G, G + 1, G + 20])
@every
def test_shares_of_a_total(columns: int, inflated: bool) -> None:
    x, p = shared(columns, inflated)
    weights = draw(N, seed=3)
    found, expected = with_gradients(p), with_gradients(p)
    a, b = with_shares(x, found), oracle_of_shares(x, expected)
    assert ((a - b).abs() < 1e-6 * (G + x.sum(-1)) + 2e-6 * b.abs()).all()
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    for name in set(p) - {"log_mean"}:
        value, reference = found[name].grad, expected[name].grad
        assert value is not None
        assert reference is not None
        size = 1e-5 * (x.sum(-1, keepdim=True) + 1)
        size = size.sum() if value.dim() == 1 else size
        assert ((value - reference).abs() < size).all(), name


@every
def test_shares_are_the_same_without_a_compiler(
    inflated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, p = shared(G + 1, inflated)
    compiled_ = with_shares(x, p)
    monkeypatch.setattr(rows, "is_served", lambda *tensors: False)
    torch.testing.assert_close(with_shares(x, p), compiled_, rtol=1e-5, atol=1e-3)


def test_shares_far_apart_and_huge_totals_stay_finite() -> None:
    a = torch.tensor([[0.0, -1e4, 90.0, -90.0]], requires_grad=True)
    for log_total in (-50.0, 0.0, 79.0, 200.0):
        total = torch.tensor([[log_total]], requires_grad=True)
        out = nb_log_prob(torch.tensor([[0.0, 3.0, 20.0, 0.0]]), a, torch.zeros(4), total)
        grads = torch.autograd.grad(out.sum(), (a, total))
        assert out.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads)


# -- types, second derivatives and torch.func ----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int32, torch.uint8])
@every
def test_counts_of_any_type_give_the_same(dtype: torch.dtype, inflated: bool) -> None:
    x, p = some(0.0, 1.0, True, inflated)
    x = x.clamp(max=200)
    q, reference = with_gradients(p), with_gradients(p)
    found, expected = compiled(x.to(dtype), q), compiled(x, reference)
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-4)
    found.sum().backward()
    expected.sum().backward()
    for name, value in q.items():
        assert value.grad is not None
        assert value.grad.dtype == torch.float32
        torch.testing.assert_close(value.grad, reference[name].grad, rtol=1e-4, atol=1e-2)


@every
def test_the_kernels_say_that_they_have_no_second_derivatives(inflated: bool) -> None:
    x, p = some(0.0, 1.0, True, inflated)
    q = with_gradients(p)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*float64"):
        torch.autograd.grad(compiled(x, q).sum(), list(q.values()), create_graph=True)


@every
def test_second_derivatives_by_torch_func_are_those_of_float64(inflated: bool) -> None:
    x, p = some(0.0, 0.5, False, inflated)
    x, p = x[:1, :5], {name: value[:1, :5] for name, value in p.items()}
    curvatures = []
    for dtype in (torch.float32, torch.float64):
        of_all = torch.func.hessian(
            lambda *values: compiled(x, dict(zip(p, values, strict=True))).sum(),
            tuple(range(len(p))),
        )
        found = of_all(*(value.to(dtype) for value in p.values()))
        curvatures.append(torch.stack([block for row in found for block in row]).double())
    assert curvatures[1].abs().max() > 0.1
    torch.testing.assert_close(*curvatures, rtol=1e-4, atol=1e-4)


@every
def test_torch_func_gives_the_gradient_of_every_row(inflated: bool) -> None:
    x, p = some(0.0, 1.0, False, inflated)
    names = list(p)

    def of_row(x: Tensor, *values: Tensor) -> Tensor:
        return compiled(x, dict(zip(names, values, strict=True)))

    every_parameter = tuple(range(1, 1 + len(p)))
    rows_ = torch.func.vmap(torch.func.grad(of_row, every_parameter))(x, *p.values())
    q = with_gradients(p)
    compiled(x, q).sum().backward()
    for found, value in zip(rows_, q.values(), strict=True):
        assert value.grad is not None
        torch.testing.assert_close(found, value.grad, rtol=1e-3, atol=1e-2)


# -- far out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_mean", [0.0, 5.0, 7.5, 12.0, 79.0, 84.0, 95.0])
@pytest.mark.parametrize("log_r", [-7.0, -1.0, 0.0, 8.0])
def test_large_counts_keep_their_digits(log_mean: float, log_r: float) -> None:
    """The slope of log NB in log-mean is about x: a mean in float32 would cost x * 6e-8 nats."""
    x = torch.tensor([[1001.0], [5000.0], [2e4], [1e6]])
    a, r = torch.tensor([[log_mean]]), torch.tensor([[log_r]])
    exact = nb_log_mass(x.double(), a.double(), r.double())[:, 0]
    assert ((nb_log_prob(x, a, r) - exact).abs() < 5e-7 * (10 + exact.abs())).all()


@pytest.mark.parametrize("x", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("log_mean", [81.0, 90.0, 300.0])
def test_beyond_what_float32_can_hold_a_mean_still_pulls_back(x: float, log_mean: float) -> None:
    for log_prob in (nb_log_prob, lambda *given: nb_log_mass(*given).sum(-1)):
        a = torch.full((1, 1), log_mean, requires_grad=True)
        value = log_prob(torch.full((1, 1), x), a, torch.zeros(1, 1))
        value.sum().backward()
        assert value.isfinite().all()
        assert -log_mean - 1 < value.item() < -79
        torch.testing.assert_close(a.grad, -torch.ones(1, 1))
