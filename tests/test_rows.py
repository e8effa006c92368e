"""The compiled rows against their oracle: `numerics`, entry by entry, in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from scvae.core import rows
from scvae.core.numerics import nb_log_mass, zero_inflate
from scvae.core.rows import nb_log_prob, zinb_log_prob

N, G = 40, 37  # G is no multiple of any vector's width
law = settings(deadline=None, derandomize=True, max_examples=40)
Parameters = dict[str, Tensor]


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


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


def test_other_types_take_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    x, p = some(0.0, 1.0, True, True)
    monkeypatch.setattr(rows, "_kernels", lambda: pytest.fail("float64 has no kernel"))
    wide = {name: value.double() for name, value in p.items()}
    torch.testing.assert_close(compiled(x.double(), wide), oracle(x, p))


def test_without_a_compiler_the_oracle_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, p = some(0.0, 1.0, True, True)
    monkeypatch.setattr(rows, "_kernels", lambda: None)
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
