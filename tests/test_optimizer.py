"""The optimiser: torch's AdamW is its oracle; and what every kind of step restores."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_training import batch_of, build, data, parts, seeded, weights
from torch import Generator, Tensor, nn

from scvae.core.vae import VAE
from scvae.train.checks import check_finite
from scvae.train.graph import GraphedStep
from scvae.train.loop import Step
from scvae.train.optimizer import AdamW, optimizer_of

# The last is cut into parts in its middle.
SHAPES: list[tuple[int, ...]] = [(), (3,), (7, 5), (1, 1, 2), (300, 401)]
DECAY, DECAYED = 0.3, 2


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def decaying(of: list[nn.Parameter]) -> AdamW:
    return AdamW(of, decayed=of[:DECAYED])


def torchs(of: list[nn.Parameter]) -> torch.optim.AdamW:
    groups = [{"params": of[:DECAYED], "weight_decay": DECAY}, {"params": of[DECAYED:]}]
    return torch.optim.AdamW(groups, weight_decay=0.0)


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


def rate_of(step: int) -> float:
    return 0.1 / (1 + step)


def steps(optimizer: AdamW, of: list[nn.Parameter], which: range, decay: float = DECAY) -> None:
    for step in which:
        for parameter, grad in zip(of, gradients(step), strict=True):
            parameter.grad = grad
        optimizer.step(rate_of(step), decay)


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("fused", [False, True])
def test_parameters_and_moments_are_those_of_torch(decay: float, fused: bool) -> None:
    ours, theirs = parameters(), parameters()
    own, reference = decaying(ours), torchs(theirs)
    reference.param_groups[0]["weight_decay"] = decay
    for group in reference.param_groups:
        group["fused"] = fused
    steps(own, ours, range(12), decay)
    for step in range(12):
        for group in reference.param_groups:
            group["lr"] = rate_of(step)
        for parameter, grad in zip(theirs, gradients(step), strict=True):
            parameter.grad = grad
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    found, expected = own.state(), reference.state_dict()["state"]
    assert len(found) == 3 * len(expected) == 3 * len(SHAPES)
    for number, of_one in expected.items():
        assert found[f"{number}.step"] == of_one["step"] == (10 if number == 1 else 12)
        for name in ("exp_avg", "exp_avg_sq"):
            size = float(of_one[name].abs().max())  # sums that cancel are no better than this
            torch.testing.assert_close(
                found[f"{number}.{name}"], of_one[name], rtol=1e-5, atol=1e-6 * size
            )


def test_a_rate_on_the_device_is_that_rate() -> None:
    ours, theirs = parameters(), parameters()
    for of, rate in ((ours, torch.tensor(0.5)), (theirs, 0.5)):
        optimizer = decaying(of)
        for step in range(3):
            for parameter, grad in zip(of, gradients(step), strict=True):
                parameter.grad = grad
            optimizer.step(rate, DECAY)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_it_goes_on_from_what_it_remembered() -> None:
    straight, broken = parameters(), parameters()
    steps(decaying(straight), straight, range(12))
    first = decaying(broken)
    steps(first, broken, range(5))
    second = decaying(broken)
    second.restore(first.state())
    steps(second, broken, range(5, 12))
    assert all(torch.equal(a, b) for a, b in zip(straight, broken, strict=True))


def test_what_it_remembers_is_a_copy_and_is_put_back_in_place() -> None:
    ours = parameters()
    first, second = decaying(ours), decaying(ours)
    steps(first, ours, range(3))
    state, places = first.state(), [m.exp_avg.data_ptr() for m in second.moments]
    second.restore(state)
    kept = copy.deepcopy(state)
    steps(first, ours, range(3, 4))
    for found in (state, second.state()):
        assert all(torch.equal(found[name], value) for name, value in kept.items())
    assert [m.exp_avg.data_ptr() for m in second.moments] == places  # a captured graph reads there


def test_the_number_of_threads_changes_no_bit() -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            ours = parameters()
            steps(decaying(ours), ours, range(4))
            found.append(ours)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_in_any_order_of_memory() -> None:
    ours, theirs = parameters(), parameters()
    for of, step in (
        (ours, lambda of: decaying(of).step(1e-3)),
        (theirs, lambda of: torch.optim.AdamW(of, 1e-3, weight_decay=0).step()),
    ):
        of[2].grad = torch.arange(35.0).view(5, 7).t() - 17.0
        step(of)
    torch.testing.assert_close(ours[2], theirs[2])


def test_parameters_in_any_order_of_memory() -> None:
    ours = [nn.Parameter(torch.randn(5, 7, generator=seeded(0)).t())]
    theirs = [nn.Parameter(ours[0].detach().clone())]
    own, reference = AdamW(ours), torch.optim.AdamW(theirs, 1e-2, weight_decay=0)
    for _ in range(3):
        for of in (ours, theirs):
            of[0].grad = None
            (torch.arange(35.0).view(7, 5) * of[0]).sin().sum().backward()
        own.step(1e-2)
        reference.step()
    torch.testing.assert_close(ours[0], theirs[0])


def test_moments_in_any_order_of_memory() -> None:
    first, second = parameters(), parameters()
    source, other = decaying(first), decaying(second)
    steps(source, first, range(3))
    steps(other, second, range(3))
    state = source.state()
    for name in ("2.exp_avg", "2.exp_avg_sq"):
        state[name] = state[name].t().contiguous().t()
    source.restore(state)
    steps(source, first, range(3, 5))
    steps(other, second, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autograd_knows_that_parameters_changed() -> None:
    ours = parameters()
    optimizer = decaying(ours)
    steps(optimizer, ours, range(3))
    y = ours[2].square().sum()
    steps(optimizer, ours, range(3, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_no_gradient_no_step() -> None:
    ours = parameters()
    optimizer = decaying(ours)
    optimizer.step(0.1, DECAY)
    assert all(torch.equal(a, b) for a, b in zip(ours, parameters(), strict=True))
    steps(optimizer, ours, range(1))
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours)


def test_parameters_of_two_types_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in type"):
        AdamW([*parameters(), nn.Parameter(torch.zeros(2, dtype=torch.float64))])


STEPPED = """
import sys, torch
from scvae.train.optimizer import AdamW
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
AdamW([weight]).step(0.1)
assert weight[0] != 1
print("torch._dynamo" in sys.modules)
"""


def test_it_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEPPED], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# -- every kind of step ----------------------------------------------------------------------------


class UncapturedStep(GraphedStep):
    """The graphed step on the CPU: what a graph would replay is taken again, on the same inputs."""

    def _on_the_side(self, batch: Any) -> Tensor:
        return self.step(batch, self.rate, self.beta)

    def _capture(self, batch: Any) -> Any:
        inputs, bound = batch_of(batch.x.clone()), torch.zeros(())
        graph = SimpleNamespace(replay=lambda: bound.copy_(self.step(inputs, self.rate, self.beta)))
        return graph, inputs, bound


def plain(vae: VAE, noise: Generator) -> Step:
    return Step(vae, optimizer_of(vae), 0.01, noise)


KINDS: dict[str, Callable[[Step], Any]] = {
    "plain": lambda step: step,
    "checked": lambda step: dataclasses.replace(step, hook=check_finite),
    "graphed": lambda step: UncapturedStep(step, step.noise),
}


@pytest.mark.parametrize("taken", [2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_step_moves_the_weights_by_the_same_bits(kind: str, taken: int) -> None:
    minibatches = [*parts(data()), *parts(data(seed=2))]
    whole, other = (plain(build(seed), seeded(seed)) for seed in (1, 9))
    step, resumed = KINDS[kind](whole), KINDS[kind](other)
    resumed(minibatches[-1], 1e-2, 0.7)  # nothing of this is to be left
    for minibatch in minibatches[:taken]:
        step(minibatch, 1e-2, 0.7)
    other.vae.load_state_dict(whole.vae.state_dict())
    other.optimizer.restore(whole.optimizer.state())
    other.noise.set_state(whole.noise.get_state())
    for minibatch in minibatches[taken:]:
        before = weights(whole.vae)
        assert step(minibatch, 1e-2, 0.7) == resumed(minibatch, 1e-2, 0.7)
        assert torch.equal(weights(whole.vae), weights(other.vae))
        assert not torch.equal(weights(whole.vae), before)


def test_what_a_graph_replays_is_the_step() -> None:
    found = []
    for kind in ("plain", "graphed"):
        own = plain(build(), seeded(1))
        step = KINDS[kind](own)
        bounds = [step(batch, 1e-2 / (1 + i), 0.7) for i, batch in enumerate(parts(data(), 20))]
        found.append(torch.cat([torch.stack(bounds), weights(own.vae)]))
    torch.testing.assert_close(found[1], found[0])
