"""The compiled optimiser: torch's AdamW is its oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from scvae.core.parallel import is_served
from scvae.core.priors import StandardNormal
from scvae.core.vae import VAE
from scvae.train import adamw
from scvae.train.adamw import CompiledAdamW, serves
from scvae.train.step import Step

# The last is cut into parts in its middle.
SHAPES: list[tuple[int, ...]] = [(), (3,), (7, 5), (1, 1, 2), (300, 401)]

pytestmark = pytest.mark.skipif(not is_served(torch.zeros(1)), reason="numba cannot compile here")


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(of: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": of[:2], "weight_decay": 0.3}, {"params": of[2:], "weight_decay": 0.0}]


def gradients(step: int) -> list[Tensor | None]:
    """Return gradients of very different sizes; the second parameter has none at first."""
    generator = Generator().manual_seed(100 + step)
    found: list[Tensor | None] = [
        10.0 ** (2 * i - 5) * torch.randn(shape, generator=generator)
        for i, shape in enumerate(SHAPES)
    ]
    if step < 2:
        found[1] = None
    return found


def steps(optimizer: Any, of: list[nn.Parameter], which: range) -> None:
    for step in which:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        for parameter, grad in zip(of, gradients(step), strict=True):
            parameter.grad = grad
        optimizer.step()


def test_parameters_and_moments_are_those_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    own, reference = CompiledAdamW(groups(ours)), torch.optim.AdamW(groups(theirs))
    steps(own, ours, range(12))
    steps(reference, theirs, range(12))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    found, expected = own.state_dict()["state"], reference.state_dict()["state"]
    assert found.keys() == expected.keys()
    for number, of_one in expected.items():
        assert found[number].keys() == of_one.keys()
        assert found[number]["step"] == of_one["step"] == (10 if number == 1 else 12)
        for name in ("exp_avg", "exp_avg_sq"):
            size = float(of_one[name].abs().max())  # sums that cancel are no better than this
            torch.testing.assert_close(
                found[number][name], of_one[name], rtol=1e-5, atol=1e-6 * size
            )


def test_it_goes_on_from_what_it_remembered() -> None:
    straight, broken = parameters(), parameters()
    steps(CompiledAdamW(groups(straight)), straight, range(12))
    first = CompiledAdamW(groups(broken))
    steps(first, broken, range(5))
    second = CompiledAdamW(groups(broken))
    second.load_state_dict(first.state_dict())
    steps(second, broken, range(5, 12))
    assert all(torch.equal(a, b) for a, b in zip(straight, broken, strict=True))


def test_what_it_remembers_is_a_copy_once_put_back() -> None:
    ours = parameters()
    first, second = CompiledAdamW(groups(ours)), CompiledAdamW(groups(ours))
    steps(first, ours, range(3))
    second.load_state_dict(first.state_dict())
    before = [moment.clone() for moment in second.moments[4]]
    steps(first, ours, range(3, 4))
    assert all(torch.equal(a, b) for a, b in zip(second.moments[4], before, strict=True))


def test_the_number_of_threads_changes_no_bit() -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            ours = parameters()
            steps(CompiledAdamW(groups(ours)), ours, range(4))
            found.append(ours)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_in_any_order_of_memory() -> None:
    ours, theirs = parameters(), parameters()
    for of, optimizer in (
        (ours, CompiledAdamW(groups(ours))),
        (theirs, torch.optim.AdamW(groups(theirs), lr=1e-3)),
    ):
        of[2].grad = torch.arange(35.0).view(5, 7).t() - 17.0
        optimizer.step()
    torch.testing.assert_close(ours[2], theirs[2])


def test_moments_in_any_order_of_memory() -> None:
    first, second = parameters(), parameters()
    source, other = CompiledAdamW(groups(first)), CompiledAdamW(groups(second))
    steps(source, first, range(3))
    steps(other, second, range(3))
    state = source.state_dict()
    for name in ("exp_avg", "exp_avg_sq"):
        state["state"][2][name] = state["state"][2][name].t().contiguous().t()
    source.load_state_dict(state)
    steps(source, first, range(3, 5))
    steps(other, second, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autograd_knows_that_parameters_changed() -> None:
    ours = parameters()
    optimizer = CompiledAdamW(groups(ours))
    steps(optimizer, ours, range(3))
    y = ours[2].square().sum()
    steps(optimizer, ours, range(3, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_gradients_stay_alive_until_they_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that had to be put in order lie at addresses of their own."""
    places: list[int] = []
    monkeypatch.setattr(adamw, "run_at", lambda name, rows, table, fewest: places.extend(table))
    ours = [nn.Parameter(torch.zeros(50, 70)) for _ in range(4)]
    for parameter in ours:
        parameter.grad = torch.ones(70, 50).t()
    optimizer = CompiledAdamW(groups(ours))
    optimizer.step()  # makes the moments, which would take the place of what is freed
    places.clear()
    optimizer.step()
    gradients = places[3::3][1::4]
    assert len(set(gradients)) == 4


def test_a_step_on_the_cpu_takes_it() -> None:
    posterior, likelihood = nn.Linear(2, 2), nn.Linear(2, 2)
    step = Step(VAE(StandardNormal(2), posterior, likelihood), 0.1, Generator())
    assert isinstance(step.optimizer, CompiledAdamW)


def test_no_gradient_no_step() -> None:
    ours = parameters()
    optimizer = CompiledAdamW(groups(ours))
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, parameters(), strict=True))
    steps(optimizer, ours, range(1))
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours)


def test_it_serves_contiguous_float32_alone() -> None:
    assert serves(parameters())
    assert not serves([*parameters(), nn.Parameter(torch.zeros(2, dtype=torch.float64))])
    assert not serves([nn.Parameter(torch.zeros(3, 4).t())])
