"""Heads: what their numbers mean, mixtures of experts by hand, and entries that were not observed.

A recording expert writes down every row it is asked about: a sparse mixture asks nobody in vain.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributions as reference
from torch.nn.functional import softplus

from scvae.core import (
    BERNOULLI,
    CATEGORICAL,
    FULL_GAUSSIAN,
    GAUSSIAN,
    LOG_NORMAL,
    MLP,
    NEGATIVE_BINOMIAL,
    POISSON,
    UNIT_GAUSSIAN,
    VAE,
    Batch,
    Decoder,
    Encoder,
    Family,
    Gaussian,
    Head,
    Mixture,
    MixtureOfExperts,
    StandardNormal,
    elbo,
    zero_inflated,
)
from scvae.core.heads import SMALLEST_SCALE, positive
from scvae.core.networks import Linear
from tests.draws import draw, seeded

F64 = torch.float64
N, K, H, D = 5, 3, 4, 3
law = settings(deadline=None, derandomize=True, max_examples=40)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
FAMILIES: dict[str, Family] = {
    "gaussian": GAUSSIAN,
    "unit gaussian": UNIT_GAUSSIAN,
    "full gaussian": FULL_GAUSSIAN,
    "log-normal": LOG_NORMAL,
    "bernoulli": BERNOULLI,
    "categorical": CATEGORICAL,
    "poisson": POISSON,
    "negative binomial": NEGATIVE_BINOMIAL,
}
each_family = pytest.mark.parametrize("name", FAMILIES)
shapes = st.sampled_from([(), (N,), (K, N)])


def values_of(name: str, *shape: int, seed: int = 9) -> Tensor:
    """Return values in the support of a family."""
    raw = draw(*shape, seed=seed)
    if name == "categorical":
        return torch.nn.functional.one_hot(raw.argmax(-1), shape[-1]).double()
    return {
        "log-normal": raw.exp(),
        "bernoulli": (raw > 0).double(),
        "poisson": (3 * raw.abs()).floor(),
        "negative binomial": (3 * raw.abs()).floor(),
    }.get(name, raw)


def lower(numbers: Tensor, d: int) -> Tensor:
    """Return L of a full Gaussian, entry by entry."""
    rest = iter(numbers[..., 2 * d :].unbind(-1))
    zero = torch.zeros_like(numbers[..., 0])
    rows = []
    for i in range(d):
        diagonal = softplus(numbers[..., d + i]) + SMALLEST_SCALE
        below = [next(rest) for _ in range(i)]
        rows.append(torch.stack([*below, diagonal, *[zero] * (d - 1 - i)], -1))
    return torch.stack(rows, -2)


def by_hand(name: str, numbers: Tensor, d: int) -> reference.Distribution:
    """Return torch's own distribution with the parameters that a family promises."""
    first, second = numbers[..., :d], numbers[..., d:]
    scale = torch.log1p(second[..., :d].exp()) + SMALLEST_SCALE if len(second) else second
    if name == "full gaussian":
        return reference.MultivariateNormal(first, scale_tril=lower(numbers, d))
    if name == "categorical":
        return reference.OneHotCategorical(logits=numbers)
    mean, r = first.exp(), second.exp()
    entries = {
        "gaussian": lambda: reference.Normal(first, scale),
        "unit gaussian": lambda: reference.Normal(first, torch.ones_like(first)),
        "log-normal": lambda: reference.LogNormal(first, scale),
        "bernoulli": lambda: reference.Bernoulli(logits=first),
        "poisson": lambda: reference.Poisson(mean),
        "negative binomial": lambda: reference.NegativeBinomial(r, mean / (r + mean)),
    }[name]()
    return reference.Independent(entries, 1)


# -- families --------------------------------------------------------------------------------------


@each_family
@law
@given(st.integers(1, 4), shapes, st.integers(0, 10_000))
def test_numbers_mean_what_the_family_says(name: str, d: int, lead: tuple, seed: int) -> None:
    family = FAMILIES[name]
    numbers = draw(*lead, family.size(d), seed=seed)
    p, expected = family.build(numbers, d), by_hand(name, numbers, d)
    assert p.batch_shape == lead
    assert p.event_shape == (d,)
    value = values_of(name, *lead, d, seed=seed + 1)
    close(p.log_prob(value), expected.log_prob(value))
    close(p.mean, expected.mean)
    close(p.variance, expected.variance)


@each_family
@pytest.mark.parametrize("d", [2, 3, 5])
def test_a_family_needs_every_number_it_asks_for(name: str, d: int) -> None:
    family = FAMILIES[name]
    numbers = draw(N, family.size(d)).requires_grad_()
    p = family.build(numbers, d)
    (gradient,) = torch.autograd.grad(p.log_prob(values_of(name, N, d) + 0.0).sum(), numbers)
    assert (gradient != 0).any(0).all()
    entries = {"gaussian": 2 * d, "log-normal": 2 * d, "negative binomial": 2 * d}
    full = d + d * (d + 1) // 2
    assert family.size(d) == {**entries, "full gaussian": full}.get(name, d)


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("most", [1.0, 10.0, 100.0])
def test_any_numbers_make_a_distribution(name: str, dtype: torch.dtype, most: float) -> None:
    family, rows = FAMILIES[name], 200
    size = family.size(D)
    uniform = torch.rand(rows, size, generator=seeded(0), dtype=F64) * 2 - 1
    corners = (torch.rand(rows, size, generator=seeded(1), dtype=F64) < 0.5) * 2.0 - 1
    numbers = (most * torch.cat([uniform, corners])).to(dtype).requires_grad_()
    p = family.build(numbers, D)
    for parameter, constraint in p.arg_constraints.items():
        found = getattr(p, parameter)
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert constraint.check(found).all(), parameter
    log_prob = p.log_prob(values_of(name, 2 * rows, D).to(dtype))
    assert log_prob.isfinite().all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), numbers)
    assert gradient.isfinite().all()
    if name in ("bernoulli", "categorical", "poisson", "negative binomial"):
        assert (log_prob <= 1e-4).all()


@each_family
def test_samples_have_the_shape_of_the_event_and_follow_the_generator(name: str) -> None:
    family = FAMILIES[name]
    p = family.build(draw(K, N, family.size(D)), D)
    first, again, other = (p.sample((7,), generator=seeded(seed)) for seed in (0, 0, 1))
    assert first.shape == (7, K, N, D)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scales_never_fall_below_the_smallest() -> None:
    x = torch.linspace(-100, 100, 401)
    found = positive(x)
    assert found.min().item() == pytest.approx(SMALLEST_SCALE, rel=1e-6)
    assert (found.diff() >= 0).all()
    close(positive(x.double()), torch.logaddexp(x.double(), torch.zeros(1)) + SMALLEST_SCALE)


@pytest.mark.parametrize("name", ["poisson", "negative binomial"])
@law
@given(st.integers(1, 4), shapes, st.integers(0, 10_000))
def test_zero_inflation_replaces_entries_by_zero(name: str, d: int, lead: tuple, seed: int) -> None:
    family = zero_inflated(FAMILIES[name])
    numbers = draw(*lead, family.size(d), seed=seed)
    p, base = family.build(numbers, d), by_hand(name, numbers[..., :-d], d)
    pi, value = torch.sigmoid(numbers[..., -d:]), values_of(name, *lead, d, seed=seed + 1)
    density = (1 - pi) * base.base_dist.log_prob(value).exp() + pi * (value == 0)
    close(p.log_prob(value), density.log().sum(-1))
    assert p.event_shape == (d,)


@pytest.mark.parametrize(
    "family", [*FAMILIES.values(), zero_inflated(POISSON)], ids=[*FAMILIES, "zero-inflated"]
)
def test_a_head_survives_a_pickle(family: Family) -> None:
    head, h = Head(H, D, family), torch.randn(N, H, generator=seeded(0))
    again = pickle.loads(pickle.dumps(head))
    assert torch.equal(again(h).mean, head(h).mean)


# -- heads -----------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("lead", [(), (N,), (K, N)], ids=str)
def test_a_head_is_a_linear_layer_and_a_family(name: str, lead: tuple[int, ...]) -> None:
    head, h = Head(H, D, FAMILIES[name], seeded(0)).double(), draw(*lead, H, seed=1)
    expected = by_hand(name, h @ head.linear.weight.T + head.linear.bias, D)
    value = values_of(name, *lead, D)
    found = head(h).log_prob(value)
    assert found.shape == lead
    close(found, expected.log_prob(value))


def test_heads_follow_their_generator_and_spare_the_global_state() -> None:
    before = torch.get_rng_state()
    for build in (partial(Head, H, D, GAUSSIAN), partial(MixtureOfExperts, H, D, GAUSSIAN, 3)):
        first, again, other = (build(generator=seeded(s)).state_dict() for s in (0, 0, 1))
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not any(torch.equal(first[key], other[key]) for key in first)
        assert all(tensor.dtype == torch.float32 for tensor in first.values())
    assert torch.equal(torch.get_rng_state(), before)


def test_experts_differ_at_the_start() -> None:
    moe = MixtureOfExperts(H, D, GAUSSIAN, 4, generator=seeded(0))
    weights = [expert.weight for expert in moe.experts]
    assert not any(torch.equal(a, b) for a, b in pairwise(weights))


# -- mixtures of experts ---------------------------------------------------------------------------


class Recording(nn.Module):
    """A linear expert that keeps every row it was asked about."""

    def __init__(self, n_out: int, seed: int = 0, n_in: int = H) -> None:
        super().__init__()
        self.linear = Linear(n_in, n_out, seeded(seed))
        self.seen: list[Tensor] = []

    def forward(self, h: Tensor) -> Tensor:
        self.seen.append(h.detach().clone())
        return self.linear(h)


class Gate(nn.Module):
    """A gate of given numbers for every row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, h: Tensor) -> Tensor:
        return self.logits.expand(*h.shape[:-1], -1)


def mixture_by_hand(
    name: str, experts: Sequence[nn.Module], logits: Tensor, h: Tensor, y: Tensor
) -> Tensor:
    """Return log sum_i softmax(logits)_i p_i(y | h)."""
    log_weights = logits - logits.exp().sum(-1, keepdim=True).log()
    joint = [
        log_weights[..., i] + by_hand(name, expert(h), y.shape[-1]).log_prob(y)
        for i, expert in enumerate(experts)
    ]
    return torch.stack(joint).logsumexp(0)


def highest(logits: Tensor, n_active: int) -> Tensor:
    """Return the logits with all but the `n_active` highest of every row at minus infinity."""
    rank = (logits[..., None, :] > logits[..., :, None]).sum(-1)
    return torch.where(rank < n_active, logits, -math.inf)


@pytest.mark.parametrize("name", ["gaussian", "full gaussian", "bernoulli", "poisson"])
@pytest.mark.parametrize("lead", [(), (N,), (K, N)], ids=str)
@pytest.mark.parametrize("n_active", [None, 1, 2, 3])
def test_mixture_of_experts_is_the_gated_sum(
    name: str, lead: tuple[int, ...], n_active: int | None
) -> None:
    moe = MixtureOfExperts(H, D, FAMILIES[name], 3, n_active=n_active, generator=seeded(0))
    moe, h, y = moe.double(), 2 * draw(*lead, H, seed=1), values_of(name, *lead, D)
    p = moe(h)
    assert isinstance(p, Mixture)
    assert p.batch_shape == lead
    assert p.event_shape == (D,)
    logits = highest(moe.gate(h), n_active or 3)
    expected = mixture_by_hand(name, moe.experts, logits, h, y)
    close(p.log_prob(y), expected)
    parameters = list(moe.parameters())
    found, wanted = (
        torch.autograd.grad(value.sum(), parameters, allow_unused=True, materialize_grads=True)
        for value in (p.log_prob(y), expected)
    )
    for a, b in zip(found, wanted, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", ["gaussian", "full gaussian", "bernoulli"])
def test_mixture_of_experts_has_its_mean_and_marginals(name: str) -> None:
    moe = MixtureOfExperts(H, D, FAMILIES[name], 3, generator=seeded(0)).double()
    h, y = draw(N, H, seed=1), values_of(name, N, D)
    weights = torch.softmax(moe.gate(h), -1)
    parts = [by_hand(name, expert(h), D) for expert in moe.experts]
    mean = sum(weights[:, i : i + 1] * part.mean for i, part in enumerate(parts))
    close(moe(h).mean, mean)
    observed = draw(N, D, seed=4) > 0
    spoilt = torch.where(observed, y, math.nan)
    everything = moe(h).marginal_log_prob(y, torch.ones(N, D, dtype=torch.bool))
    close(everything, moe(h).log_prob(y))
    assert torch.equal(
        moe(h).marginal_log_prob(spoilt, observed), moe(h).marginal_log_prob(y, observed)
    )


def recording(
    n_experts: int, n_active: int | None, logits: Tensor
) -> tuple[MixtureOfExperts, list[Recording]]:
    experts = [Recording(GAUSSIAN.size(D), seed) for seed in range(n_experts)]
    moe = MixtureOfExperts(H, D, GAUSSIAN, experts, gate=Gate(logits), n_active=n_active).double()
    return moe, experts


@law
@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(0, 10_000))
def test_every_expert_sees_exactly_the_rows_that_chose_it(
    n_experts: int, n_active: int, samples: bool, seed: int
) -> None:
    n_active, lead = min(n_active, n_experts), (K, N) if samples else (N,)
    logits, h = draw(*lead, n_experts, seed=seed), draw(*lead, H, seed=seed + 1)
    moe, experts = recording(n_experts, n_active, logits)
    moe(h)
    chosen = highest(logits, n_active) > -math.inf
    assert (chosen.sum(-1) == n_active).all()
    for i, expert in enumerate(experts):
        wanted = h[chosen[..., i]]
        assert len(expert.seen) == (len(wanted) > 0)
        if len(wanted):
            assert torch.equal(expert.seen[0], wanted)


def test_an_expert_no_row_chose_is_not_asked_and_learns_nothing() -> None:
    logits = torch.tensor([0.5, -9.0, 1.0, -7.0], dtype=F64)
    moe, experts = recording(4, 2, logits)
    h, y = draw(N, H, seed=1), draw(N, D, seed=2)
    moe(h).log_prob(y).sum().backward()
    assert [len(expert.seen) for expert in experts] == [1, 0, 1, 0]
    for expert, used in zip(experts, (True, False, True, False), strict=True):
        gradient = expert.linear.weight.grad
        assert (gradient is not None and bool(gradient.any())) == used
    gate = moe.gate.logits.grad
    assert gate is not None
    assert torch.equal(gate != 0, torch.tensor([True, False, True, False]))


def test_a_row_teaches_the_experts_it_chose_alone() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 3.0, 0.0]], dtype=F64)
    moe, experts = recording(3, 1, logits)
    log_prob = moe(draw(3, H, seed=1)).log_prob(draw(3, D, seed=2))
    for row, choice in enumerate((0, 2, 1)):
        for i, expert in enumerate(experts):
            weight = expert.linear.weight
            (gradient,) = torch.autograd.grad(log_prob[row], weight, retain_graph=True)
            assert bool(gradient.any()) == (i == choice)


@law
@given(st.integers(1, 4), st.integers(0, 10_000))
def test_a_sparse_mixture_is_the_dense_one_with_other_gates_shut(n_active: int, seed: int) -> None:
    logits, h, y = draw(N, 4, seed=seed), draw(N, H, seed=seed + 1), draw(N, D, seed=seed + 2)
    sparse, experts = recording(4, n_active, logits)
    shut = MixtureOfExperts(H, D, GAUSSIAN, experts, gate=Gate(highest(logits, n_active))).double()
    p, q = sparse(h), shut(h)
    assert p.components.batch_shape == (N, n_active)
    close(p.log_prob(y), q.log_prob(y))
    close(p.mean, q.mean)
    close(p.variance, q.variance)
    close(p.log_weights.exp().sum(-1), torch.ones(N, dtype=F64))
    weights = [expert.linear.weight for expert in experts]
    found, wanted = (
        torch.autograd.grad(
            dist.log_prob(y).sum(), weights, allow_unused=True, materialize_grads=True
        )
        for dist in (p, q)
    )
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
    gates = [torch.autograd.grad(m(h).log_prob(y).sum(), m.gate.logits)[0] for m in (sparse, shut)]
    close(*gates)


def test_all_experts_active_is_the_default() -> None:
    h, y = draw(K, N, H, seed=1), draw(K, N, D, seed=2)
    dense, all_active = (
        MixtureOfExperts(H, D, GAUSSIAN, 4, n_active=n, generator=seeded(0)).double()
        for n in (None, 4)
    )
    assert dense(h).components.batch_shape == (K, N, 4)
    assert torch.equal(dense(h).log_prob(y), all_active(h).log_prob(y))
    assert torch.equal(dense(h).mean, all_active(h).mean)


def test_gate_and_experts_of_ones_own() -> None:
    experts = [MLP(H, GAUSSIAN.size(D), normalise=False, generator=seeded(s)) for s in (0, 1)]
    gate = nn.Sequential(Linear(H, 7, seeded(2)), nn.Tanh(), Linear(7, 2, seeded(3)))
    moe = MixtureOfExperts(H, D, GAUSSIAN, experts, gate=gate).double()
    h, y = draw(N, H, seed=1), draw(N, D, seed=2)
    close(moe(h).log_prob(y), mixture_by_hand("gaussian", experts, gate(h), h, y))
    assert {id(p) for p in moe.parameters()} == {
        id(p) for module in (*experts, gate) for p in module.parameters()
    }


@pytest.mark.parametrize("n_active", [-1, 0, 4])
def test_an_impossible_number_of_active_experts_is_refused(n_active: int) -> None:
    with pytest.raises(ValueError, match=f"n_active={n_active}.* between 1 and the 3 experts"):
        MixtureOfExperts(H, D, GAUSSIAN, 3, n_active=n_active)


@pytest.mark.parametrize("width", [2, 4, 9])
@pytest.mark.parametrize("n_active", [None, 1])
def test_a_gate_of_another_width_is_refused(width: int, n_active: int | None) -> None:
    gate = Linear(H, width, seeded(0))
    with pytest.raises(ValueError, match=str(width)):
        MixtureOfExperts(H, D, GAUSSIAN, 3, gate=gate, n_active=n_active)(torch.zeros(N, H))


def test_no_rows_make_a_mixture_of_no_rows() -> None:
    none = torch.zeros(0, H)
    assert Head(H, D, GAUSSIAN)(none).batch_shape == (0,)
    for n_active in (None, 1):
        p = MixtureOfExperts(H, D, GAUSSIAN, 3, n_active=n_active)(none)
        assert p.log_prob(torch.zeros(0, D)).shape == (0,)


def crossing(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return x and y = x or y = -x with a little noise, each half of the time."""
    x = torch.rand(n, 1, generator=seeded(seed), dtype=F64) * 4 - 2
    sign = torch.randint(0, 2, (n, 1), generator=seeded(seed + 1)) * 2.0 - 1
    return x, sign * x + 0.1 * draw(n, 1, seed=seed + 2)


def held_out(head: nn.Module, steps: int = 300) -> float:
    x, y = crossing(400, 0)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -head(x).log_prob(y).mean()
        loss.backward()
        optimizer.step()
    x, y = crossing(2000, 10)
    return head(x).log_prob(y).mean().item()


def test_two_linear_experts_learn_two_crossing_lines() -> None:
    single = held_out(Head(1, 1, GAUSSIAN, seeded(0)).double())
    mixture = held_out(MixtureOfExperts(1, 1, GAUSSIAN, 2, generator=seeded(0)).double())
    x, y = crossing(2000, 10)
    both = torch.stack([reference.Normal(sign * x, 0.1).log_prob(y) for sign in (1, -1)])
    truth = (both.logsumexp(0) - math.log(2)).mean().item()
    assert mixture > single + 1
    assert truth - 0.1 < mixture <= truth + 0.01


# -- encoders and decoders -------------------------------------------------------------------------

G = 4


class Spy(nn.Module):
    """A network that keeps what it was given, and appends the covariates to a linear layer."""

    def __init__(self, n_in: int, n_out: int, n_covariates: int = 0) -> None:
        super().__init__()
        self.linear = Linear(n_in + n_covariates, n_out, seeded(0))
        self.given: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        self.given.append((x, s))
        both = x if s is None else torch.cat([x, s.expand(*x.shape[:-1], s.shape[-1])], -1)
        return torch.tanh(self.linear(both))


def encoder(n_covariates: int = 0) -> Encoder:
    return Encoder(Spy(G, H, n_covariates), Head(H, 2, GAUSSIAN, seeded(1))).double()


OBSERVED = torch.tensor(
    [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]
).bool()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 5.0, 1e300])
def test_an_encoder_does_not_look_at_what_was_not_observed(garbage: float) -> None:
    net = encoder()
    results = []
    for fill in (0.0, garbage):
        x = torch.where(OBSERVED, draw(N, G), fill).requires_grad_()
        q = net(Batch(x, observed=OBSERVED))
        loss = (q.mean + q.variance).square().sum()
        results.append((q, torch.autograd.grad(loss, [x, *net.parameters()])))
    (clean, wanted), (dirty, found) = results
    assert torch.equal(clean.loc, dirty.loc)
    assert torch.equal(clean.scale, dirty.scale)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
        assert a.any()
    assert not found[0][~OBSERVED].any()
    assert found[0][OBSERVED].all()


def test_entries_not_observed_count_as_zero() -> None:
    net, x = encoder(), draw(N, G)
    assert torch.equal(net(Batch(x, observed=OBSERVED)).loc, net(Batch(x * OBSERVED.double())).loc)
    everything = torch.ones_like(OBSERVED)
    assert torch.equal(net(Batch(x, observed=everything)).loc, net(Batch(x)).loc)
    assert not torch.allclose(net(Batch(x)).loc, net(Batch(x, observed=OBSERVED)).loc)


def test_encoders_and_decoders_pass_the_covariates_of_every_cell() -> None:
    x, s, z = draw(N, G), draw(N, 2, seed=1), draw(K, N, 2, seed=2)
    decoder = Decoder(Spy(2, H, 2), Head(H, G, GAUSSIAN, seeded(1))).double()
    calls: list[tuple[nn.Module, Callable[[Batch], Gaussian]]] = []
    calls.append((net := encoder(2), net))
    calls.append((decoder, partial(decoder, z)))
    for module, ask in calls:
        before = ask(Batch(x, s)).loc
        moved = ask(Batch(x, s + torch.eye(N, dtype=F64)[1][:, None])).loc
        spy = module.network
        assert isinstance(spy, Spy)
        assert spy.given[0][1] is s
        changed = (before != moved).any(-1).view(-1, N)
        assert torch.equal(changed, (torch.arange(N) == 1).expand_as(changed))
    assert torch.equal(net.network.given[0][0], x)
    assert torch.equal(decoder.network.given[0][0], z)
    assert decoder(z, Batch(x, s)).batch_shape == (K, N)
    plain = encoder()
    plain(Batch(x))
    assert plain.network.given[0][1] is None


def test_a_decoder_treats_every_sample_alike() -> None:
    decoder = Decoder(Spy(2, H), Head(H, G, GAUSSIAN, seeded(1))).double()
    z, batch = draw(K, N, 2), Batch(draw(N, G))
    whole = decoder(z, batch)
    for k in range(K):
        close(whole.loc[k], decoder(z[k : k + 1], batch).loc[0])


def head_of(name: str, n_in: int, experts: int | None) -> nn.Module:
    family = FAMILIES[name]
    if experts is None:
        return Head(n_in, G, family, seeded(2))
    return MixtureOfExperts(n_in, G, family, experts, n_active=2, generator=seeded(2))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "categorical"])
@pytest.mark.parametrize("experts", [None, 3], ids=["head", "mixture"])
def test_a_bound_does_not_look_at_what_was_not_observed(name: str, experts: int | None) -> None:
    posterior = Encoder(MLP(G, H, generator=seeded(0)), Head(H, 2, GAUSSIAN, seeded(1)))
    likelihood = Decoder(MLP(2, H, generator=seeded(3)), head_of(name, H, experts))
    vae = VAE(StandardNormal(2), posterior, likelihood).double()
    results = []
    for fill in (1.0, math.nan, math.inf, 2.0):
        x = torch.where(OBSERVED, values_of(name, N, G), fill).requires_grad_()
        bound = elbo(vae.terms(Batch(x, observed=OBSERVED), 3, seeded(4)))
        parameters = [p for p in vae.parameters() if p.requires_grad]
        inputs = [x, *parameters]
        results.append((bound, torch.autograd.grad(bound.sum(), inputs, allow_unused=True)))
    (clean, wanted), *others = results
    assert clean.isfinite().all()
    for dirty, found in others:
        assert torch.equal(clean, dirty)
        for a, b in zip(found, wanted, strict=True):
            assert a is None or torch.equal(a, b)
            assert a is None or a.isfinite().all()
        if found[0] is not None:
            assert not found[0][~OBSERVED].any()


def test_a_cell_of_which_nothing_was_observed_pays_its_kl_alone() -> None:
    for name in FAMILIES:
        if name == "categorical":
            continue
        decoder = Decoder(Spy(2, H), head_of(name, H, 3))
        vae = VAE(StandardNormal(2), encoder(), decoder).double()
        terms = vae.terms(Batch(values_of(name, N, G), observed=OBSERVED), 3, seeded(0))
        close(terms.log_px[:, 3], torch.zeros(K, dtype=F64), msg=name)
        close(elbo(terms)[3], -terms.kl[3], msg=name)


def test_a_mixture_of_experts_is_a_posterior_whose_gate_learns() -> None:
    q_head = MixtureOfExperts(H, 2, GAUSSIAN, 3, n_active=2, generator=seeded(0))
    posterior = Encoder(Spy(G, H), q_head)
    vae = VAE(
        StandardNormal(2), posterior, Decoder(Spy(2, H), Head(H, G, GAUSSIAN, seeded(1)))
    ).double()
    terms = vae.terms(Batch(draw(N, G)), 4, seeded(3))
    assert terms.z.shape == (4 * 2, N, 2)
    bound = elbo(terms)
    assert bound.shape == (N,)
    gradients = torch.autograd.grad(bound.sum(), list(q_head.gate.parameters()))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
