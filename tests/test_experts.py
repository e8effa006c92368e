"""Sparse experts that train: what the switch multiplies, what the balance is, who does the work."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scvae.core import BERNOULLI, FULL_GAUSSIAN, GAUSSIAN, Family, MixtureOfExperts, load_balance
from scvae.core.networks import Linear
from tests.draws import draw, seeded

F64 = torch.float64
N, H, D = 7, 4, 3
law = settings(deadline=None, derandomize=True, max_examples=25)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


# -- the switch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [GAUSSIAN, FULL_GAUSSIAN, BERNOULLI])
@pytest.mark.parametrize("n_active", [1, 2, 4])
@pytest.mark.parametrize("lead", [(), (N,), (2, N)], ids=str)
def test_a_switch_multiplies_what_an_expert_says_by_its_gate(
    family: Family, n_active: int, lead: tuple[int, ...]
) -> None:
    moe = MixtureOfExperts(H, D, family, 4, n_active=n_active, switch=True, generator=seeded(0))
    moe, h = moe.double(), 3 * draw(*lead, H, seed=1)
    value = (draw(*lead, D, seed=2) > 0).double()
    gates = moe.gate(h).reshape(-1, 4)
    found = moe(h).log_prob(value).reshape(-1)
    for i, row in enumerate(h.reshape(-1, H)):
        best = sorted(range(4), key=lambda e: -gates[i, e].item())[:n_active]
        opened = gates[i].exp() / gates[i].exp().sum()
        parts = [
            family.build(opened[e] * moe.experts[e](row), D).log_prob(value.reshape(-1, D)[i])
            + gates[i, e]
            - gates[i, best].logsumexp(0)
            for e in best
        ]
        close(found[i], torch.stack(parts).logsumexp(0))


def test_the_gate_of_a_single_active_expert_learns_by_the_switch_alone() -> None:
    h, y = draw(N, H, seed=1), draw(N, D, seed=2)
    for switch in (False, True):
        moe = MixtureOfExperts(
            H, D, GAUSSIAN, 4, n_active=1, switch=switch, generator=seeded(0)
        ).double()
        moe(h).log_prob(y).sum().backward()
        assert bool(moe.gate.weight.grad.any()) == switch


# -- the balance -----------------------------------------------------------------------------------


def balance_by_hand(gates: Tensor, n_active: int) -> float:
    rows, n = gates.reshape(-1, gates.shape[-1]).tolist(), gates.shape[-1]
    f, p = [0.0] * n, [0.0] * n
    for row in rows:
        total = sum(map(math.exp, row))
        for e in sorted(range(n), key=lambda e: -row[e])[:n_active]:
            f[e] += 1 / (n_active * len(rows))
        p = [a + math.exp(g) / total / len(rows) for a, g in zip(p, row, strict=True)]
    return n * sum(a * b for a, b in zip(f, p, strict=True))


@law
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(0, 10_000))
def test_balance_is_that_of_the_paper(n: int, n_active: int, rows: int, seed: int) -> None:
    gates, n_active = 2 * draw(2, rows, n, seed=seed), min(n, n_active)
    found = load_balance(gates, n_active)
    assert found.item() == pytest.approx(balance_by_hand(gates, n_active), rel=1e-10)
    assert 0 < found <= n + 1e-9


def test_balance_is_one_where_all_are_alike_and_their_number_where_one_takes_all() -> None:
    assert load_balance(30 * torch.eye(5, dtype=F64)).item() == pytest.approx(1)
    alone = torch.tensor([40.0, 0, 0, 0, 0], dtype=F64).expand(N, 5)
    assert load_balance(alone).item() == pytest.approx(5)
    assert load_balance(torch.zeros(N, 5), n_active=5).item() == pytest.approx(1)


def test_the_gradient_of_the_balance_shuts_the_gate_that_is_chosen_too_often() -> None:
    gates = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.5, 0.0]], dtype=F64)
    gates.requires_grad_()
    (gradient,) = torch.autograd.grad(load_balance(gates), gates)
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 2] < 0).all()
    close(gradient.sum(-1), torch.zeros(3, dtype=F64))


@pytest.mark.parametrize(
    ("gates", "n_active", "match"),
    [
        (torch.zeros(0, 3), 1, "hold no rows"),
        (torch.zeros(2, 3), 4, "n_active=4"),
        (torch.zeros(2, 3), 0, "n_active=0"),
    ],
)
def test_a_balance_of_nothing_is_refused(gates: Tensor, n_active: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_balance(gates, n_active)


# -- who does the work -----------------------------------------------------------------------------


def flops_of(n_experts: int, n_active: int | None) -> int:
    """Return the multiplications and additions of the experts alone."""
    experts = [
        nn.Sequential(Linear(16, 32), nn.ReLU(), Linear(32, GAUSSIAN.size(D)))
        for _ in range(n_experts)
    ]
    gate = Choices(torch.randn(64, n_experts, generator=seeded(0)))
    moe = MixtureOfExperts(16, D, GAUSSIAN, experts, gate=gate, n_active=n_active)
    with FlopCounterMode(display=False) as counter:
        moe(torch.randn(64, 16, generator=seeded(1)))
    return counter.get_total_flops()


class Choices(nn.Module):
    """A gate whose numbers are given."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = numbers

    def forward(self, h: Tensor) -> Tensor:
        return self.numbers


@pytest.mark.parametrize("n_active", [1, 2, 4])
def test_work_grows_with_the_active_experts_alone(n_active: int) -> None:
    one = 2 * 64 * (16 * 32 + 32 * GAUSSIAN.size(D))
    assert [flops_of(n, n_active) for n in (4, 16, 64)] == [n_active * one] * 3
    assert flops_of(16, None) == 16 * one


def test_an_expert_of_another_width_is_named() -> None:
    experts = [Linear(H, 6), Linear(H, 5)]
    moe = MixtureOfExperts(H, D, GAUSSIAN, experts)
    with pytest.raises(ValueError, match="gives 5 numbers, but the family needs 6 for n_out=3"):
        moe(torch.zeros(N, H))


def test_switched_experts_take_any_number_of_rows_and_survive_copying() -> None:
    moe = MixtureOfExperts(H, D, GAUSSIAN, 5, n_active=1, switch=True, generator=seeded(0))
    for lead in ((), (0,), (1,), (3, 0), (2, 3)):
        assert moe(torch.zeros(*lead, H)).log_prob(torch.zeros(*lead, D)).shape == lead
    again = deepcopy(moe)
    h = torch.randn(N, H, generator=seeded(1))
    assert torch.equal(again(h).mean, moe(h).mean)
    h[2] = math.nan
    assert moe(h).mean.isnan().any(-1).nonzero().flatten().tolist() == [2]


# -- no expert dies --------------------------------------------------------------------------------

SLOPES, OFFSETS = (2.0, -3.0, 1.0, 3.0), (0.0, 1.0, -1.0, 0.5)


def pieces(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return x, and y on four lines, one for each quarter of the interval."""
    x = torch.rand(n, 1, generator=seeded(seed)) * 4 - 2
    which = (x[:, 0] + 2).long()
    slope, offset = torch.tensor(SLOPES)[which, None], torch.tensor(OFFSETS)[which, None]
    middle = which[:, None] - 1.5
    y = slope * (x - middle) + offset + 0.1 * torch.randn(n, 1, generator=seeded(seed + 1))
    return x, y


def trained(switch: bool, seed: int, steps: int = 400) -> MixtureOfExperts:
    g = seeded(seed)
    gate = nn.Sequential(Linear(1, 16, g), nn.Tanh(), Linear(16, 4, g))
    with torch.no_grad():
        gate[-1].bias[0] += 3  # the first expert takes every row at the start
    moe = MixtureOfExperts(1, 1, GAUSSIAN, 4, gate=gate, n_active=1, switch=switch, generator=g)
    x, y = pieces(400, 0)
    optimizer = torch.optim.Adam(moe.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = -moe(x).log_prob(y).mean()
        loss = loss + load_balance(moe.gate(x)) if switch else loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return moe


def loads(moe: MixtureOfExperts, x: Tensor) -> Tensor:
    return torch.bincount(moe.gate(x).argmax(-1), minlength=4) / len(x)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_expert_dies_of_a_balanced_switch(seed: int) -> None:
    x, y = pieces(2000, 10)
    balanced, alone = trained(True, seed), trained(False, seed)
    assert loads(balanced, x).min() > 0.1
    assert loads(alone, x).tolist() == [1, 0, 0, 0]
    gained = balanced(x).log_prob(y).mean() - alone(x).log_prob(y).mean()
    assert gained > 0.5
