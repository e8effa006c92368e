"""Fusion against products, sums and enumerations written out by hand, and bounds over mixtures.

Experts are random Gaussians, some of them absent. What an absent one holds must touch nothing, so
that every law about absence is put twice: the value with garbage in it is the value without it, and
its gradient is exactly zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributions as reference

from scvae.core import (
    GAUSSIAN,
    MLP,
    VAE,
    Batch,
    Encoder,
    Gaussian,
    Head,
    LinearGaussian,
    Mixture,
    StandardNormal,
    elbo,
    importance_weighted_bound,
    log_evidence,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    side_by_side,
    strata,
    subsets,
)
from tests.draws import draw, seeded

F64 = torch.float64
N, M, D = 5, 3, 2
law = settings(deadline=None, derandomize=True, max_examples=25)
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)

Fuse = Callable[..., Gaussian | Mixture]
FUSIONS: dict[str, Fuse] = {
    "product": product_of_experts,
    "product without prior": partial(product_of_experts, prior_expert=False),
    "mixture": mixture_of_experts,
    "mixture of products": mixture_of_products,
    "mixture of products without prior": partial(mixture_of_products, prior_expert=False),
}
MIXTURES = {name: fuse for name, fuse in FUSIONS.items() if name.startswith("mixture")}
each_fusion = pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS.keys())
with_and_without_prior = pytest.mark.parametrize("prior_expert", [True, False])


def gaussian(*shape: int, seed: int = 0) -> Gaussian:
    """Return a random Gaussian whose parameters are leaves of the graph."""
    loc, log_scale = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    return Gaussian(loc.requires_grad_(), (0.6 * log_scale).exp().requires_grad_())


def leaves(p: Gaussian) -> list[Tensor]:
    return [p.loc, p.scale]


def at(p: Gaussian, *index: object) -> Gaussian:
    return Gaussian(p.loc[index], p.scale[index])


@dataclass(frozen=True)
class Case:
    experts: Gaussian
    prior: Gaussian
    present: Tensor
    z: Tensor

    @property
    def rows(self) -> range:
        return range(len(self.present))


def case(m: int = M, d: int = D, seed: int = 0, *, prior_rows: bool = True) -> Case:
    """Return `N` cells of which the first lacks every expert and the second none."""
    present = torch.rand(N, m, generator=seeded(seed)) < 0.6
    present[0], present[1] = False, True
    prior = gaussian(*([N] if prior_rows else []), d, seed=seed + 10)
    return Case(gaussian(N, m, d, seed=seed), prior, present, 2 * draw(7, N, d, seed=seed + 20))


cases = st.builds(
    lambda m, d, seed, prior_rows: case(m, d, seed, prior_rows=prior_rows),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 10_000),
    st.booleans(),
)
some_cases = settings(law, max_examples=10)


def prior_of(c: Case, n: int) -> Gaussian:
    return at(c.prior, n) if c.prior.batch_shape else c.prior


def by_hand(members: list[Gaussian]) -> Gaussian:
    """Return the normalised product of Gaussians over ``(d,)``, two at a time."""
    total = members[0]
    for other in members[1:]:
        share = other.variance / (total.variance + other.variance)
        loc = share * total.loc + (1 - share) * other.loc
        total = Gaussian(loc, (share * total.variance).sqrt())
    return total


def density(p: Gaussian, z: Tensor) -> Tensor:
    return reference.Independent(reference.Normal(p.loc, p.scale), 1).log_prob(z)


def functional(q: Gaussian | Mixture, z: Tensor) -> Tensor:
    """Return a number of every row that sees densities, moments and samples of q, ``(n,)``."""
    samples, log_weights = strata(q, 3, seeded(1))
    mean = (log_weights.exp() * samples.square().sum(-1)).sum(1).mean(0)
    return q.log_prob(z).sum(0) + mean + (q.mean + q.variance).sum(-1)


# -- products --------------------------------------------------------------------------------------


@with_and_without_prior
@law
@given(cases)
def test_product_is_proportional_to_the_product_of_densities(prior_expert: bool, c: Case) -> None:
    q = product_of_experts(c.experts, c.prior, c.present, prior_expert=prior_expert)
    for n in c.rows:
        z = c.z[:, n]
        ratio = density(at(q, n), z)
        for m in c.present[n].nonzero().flatten().tolist():
            ratio = ratio - density(at(c.experts, n, m), z)
        if prior_expert or not c.present[n].any():
            ratio = ratio - density(prior_of(c, n), z)
        close(ratio, ratio[:1].expand_as(ratio), atol=1e-7)


@law
@given(cases)
def test_precisions_add(c: Case) -> None:
    q = product_of_experts(c.experts, c.prior, c.present)
    there = c.present[..., None].double()
    of_experts = there / c.experts.variance
    precision = 1 / c.prior.variance + of_experts.sum(1)
    close(1 / q.variance, precision.expand_as(q.loc))
    moment = c.prior.loc / c.prior.variance + (of_experts * c.experts.loc).sum(1)
    close(q.loc * precision, moment.expand_as(q.loc))
    without = product_of_experts(c.experts, c.prior, c.present, prior_expert=False)
    some = c.present.any(1)
    close(1 / without.variance[some], of_experts.sum(1)[some])


def test_the_order_of_experts_is_irrelevant() -> None:
    c = case(4)
    order = [2, 0, 3, 1]
    for name, fuse in FUSIONS.items():
        moved = Gaussian(c.experts.loc[:, order], c.experts.scale[:, order])
        p, q = fuse(c.experts, c.prior, c.present), fuse(moved, c.prior, c.present[:, order])
        close(q.log_prob(c.z), p.log_prob(c.z), msg=name)
        close(q.mean, p.mean, msg=name)
        close(q.variance, p.variance, msg=name)
        for a, b in zip(
            torch.autograd.grad(p.log_prob(c.z).sum(), leaves(c.experts)),
            torch.autograd.grad(q.log_prob(c.z).sum(), leaves(c.experts)),
            strict=True,
        ):
            close(b, a, msg=name)


@law
@given(cases)
def test_one_expert_without_prior_is_itself(c: Case) -> None:
    for m in range(c.present.shape[1]):
        only = torch.arange(c.present.shape[1]) == m
        q = product_of_experts(c.experts, c.prior, only, prior_expert=False)
        close(q.loc, c.experts.loc[:, m])
        close(q.scale, c.experts.scale[:, m])


def test_a_product_is_sharper_than_each_of_its_experts() -> None:
    c = case()
    q = product_of_experts(c.experts, c.prior)
    assert (q.scale < c.experts.scale.amin(1)).all()
    assert (q.scale < c.prior.scale).all()


# -- absence ---------------------------------------------------------------------------------------


@each_fusion
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 0.0, 1e300])
def test_what_an_absent_expert_holds_touches_nothing(fuse: Fuse, garbage: float) -> None:
    c = case()
    there = c.present[..., None]
    spoilt = [torch.where(there, t, garbage).detach().requires_grad_() for t in leaves(c.experts)]
    clean = functional(fuse(c.experts, c.prior, c.present), c.z)
    dirty = functional(fuse(Gaussian(*spoilt), c.prior, c.present), c.z)
    assert torch.equal(dirty, clean)
    wanted = torch.autograd.grad(clean.sum(), leaves(c.experts) + leaves(c.prior))
    found = torch.autograd.grad(dirty.sum(), spoilt + leaves(c.prior))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
        assert b.isfinite().all()
        assert b.any()
    for gradient in found[:2]:
        assert not gradient[~c.present].any()


@each_fusion
@some_cases
@given(cases)
def test_an_absent_expert_is_as_one_left_out(fuse: Fuse, c: Case) -> None:
    masked = smooth(fuse(c.experts, c.prior, c.present), c.z)
    for n in c.present.any(1).nonzero().flatten().tolist():
        there = c.present[n]
        some = Gaussian(c.experts.loc[n : n + 1, there], c.experts.scale[n : n + 1, there])
        (direct,) = smooth(fuse(some, prior_of(c, n)), c.z[:, n : n + 1])
        close(masked[n], direct)
        inputs = leaves(c.experts) + leaves(c.prior)
        for a, b in zip(
            torch.autograd.grad(masked[n], inputs, retain_graph=True),
            torch.autograd.grad(direct, inputs, allow_unused=True, materialize_grads=True),
            strict=True,
        ):
            close(a, b)


def smooth(q: Gaussian | Mixture, z: Tensor) -> Tensor:
    """Return a number of every row that depends on no samples, ``(n,)``."""
    return q.log_prob(z).sum(0) + (q.mean * q.variance).sum(-1)


@each_fusion
@pytest.mark.parametrize("prior_rows", [True, False])
def test_a_cell_without_experts_gets_the_prior(fuse: Fuse, prior_rows: bool) -> None:
    c = case(prior_rows=prior_rows)
    for present in (c.present, torch.tensor(False)):
        none = ~present.expand(N, M).any(1)
        assert none.any()
        q, prior = fuse(c.experts, c.prior, present), c.prior.expand((N,))
        assert q.batch_shape == (N,)
        close(q.log_prob(c.z)[:, none], prior.log_prob(c.z)[:, none], rtol=0, atol=1e-12)
        close(q.mean[none], prior.mean[none], atol=1e-14)
        close(q.variance[none], prior.variance[none], atol=1e-14)
        found, wanted = (
            torch.autograd.grad(p.log_prob(c.z)[:, none].sum(), leaves(c.prior)) for p in (q, prior)
        )
        for a, b in zip(found, wanted, strict=True):
            close(a, b)


@each_fusion
@some_cases
@given(cases)
def test_rows_are_independent(fuse: Fuse, c: Case) -> None:
    whole = functional(fuse(c.experts, c.prior, c.present), c.z)
    for n in c.rows:
        gradients = torch.autograd.grad(whole[n], leaves(c.experts), retain_graph=True)
        assert all(not gradient[torch.arange(N) != n].any() for gradient in gradients)
        alone = fuse(at(c.experts, slice(n, n + 1)), prior_of(c, n), c.present[n : n + 1])
        close(
            alone.log_prob(c.z[:, n : n + 1])[:, 0],
            fuse(c.experts, c.prior, c.present).log_prob(c.z)[:, n],
        )


@each_fusion
def test_presence_broadcasts(fuse: Fuse) -> None:
    c = case()
    by_expert, by_cell = torch.tensor([True, False, True]), torch.arange(N)[:, None] % 2 == 0
    for present in (by_expert, by_cell, torch.tensor(True)):
        found = fuse(c.experts, c.prior, present).log_prob(c.z)
        assert torch.equal(found, fuse(c.experts, c.prior, present.expand(N, M)).log_prob(c.z))
    everyone = fuse(c.experts, c.prior).log_prob(c.z)
    assert torch.equal(everyone, fuse(c.experts, c.prior, torch.tensor(True)).log_prob(c.z))
    assert not torch.allclose(everyone, fuse(c.experts, c.prior, by_expert).log_prob(c.z))


# -- mixtures of experts ---------------------------------------------------------------------------


def gates(kind: str, m: int) -> Tensor | None:
    shapes = {"uniform": None, "fixed": (m,), "gated": (N, m)}
    shape = shapes[kind]
    return None if shape is None else draw(*shape, seed=33).mul(2).requires_grad_()


def weights_by_hand(logits: Tensor | None, present: Tensor) -> Tensor:
    """Return the weights, renormalised over the experts present, by plain arithmetic."""
    raw = torch.ones(()) if logits is None else logits.exp()
    kept = raw * present.double()
    return kept / kept.sum(-1, keepdim=True)


each_gate = pytest.mark.parametrize("kind", ["uniform", "fixed", "gated"])


@each_gate
@law
@given(cases)
def test_mixture_is_the_weighted_sum_over_the_experts_present(kind: str, c: Case) -> None:
    logits = gates(kind, c.present.shape[1])
    q = mixture_of_experts(c.experts, c.prior, c.present, logits=logits)
    weights = weights_by_hand(logits, c.present)
    some = c.present.any(1)
    densities = density(c.experts, c.z[..., None, :]).exp()
    close(q.log_prob(c.z)[:, some], (weights * densities).sum(-1).log()[:, some])
    close(q.log_weights.exp()[some], weights[some])


@each_gate
def test_mixture_has_its_mean_and_variance(kind: str) -> None:
    c, logits = case(), gates(kind, M)
    q = mixture_of_experts(c.experts, c.prior, c.present, logits=logits)
    some = c.present.any(1)
    weights = weights_by_hand(logits, c.present)[..., None]
    mean = (weights * c.experts.loc).sum(1)
    second = (weights * (c.experts.variance + c.experts.loc.square())).sum(1)
    close(q.mean[some], mean[some])
    close(q.variance[some], (second - mean.square())[some])


def test_mixture_samples_come_from_the_experts_present_by_their_weights() -> None:
    loc = torch.tensor([[[0.0], [100.0], [200.0]]], dtype=F64)
    experts = Gaussian(loc, torch.ones(1, dtype=F64))
    prior, present = Gaussian(loc[0, 0] - 100, torch.ones(1)), torch.tensor([True, False, True])
    logits = torch.tensor([0.0, 5.0, math.log(3)], dtype=F64)
    z = mixture_of_experts(experts, prior, present, logits=logits).sample((4000,), seeded(0))
    nearest = (z[..., None, :] - loc).abs().squeeze(-1).argmin(-1)
    assert (nearest != 1).all()
    share = (nearest == 2).double().mean().item()
    assert share == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 4000))


def test_gates_count_up_to_a_constant_of_every_cell() -> None:
    c, logits = case(), draw(N, M, seed=4)
    first, second = (
        mixture_of_experts(c.experts, c.prior, c.present, logits=gate).log_prob(c.z)
        for gate in (logits, logits + 10 * draw(N, 1, seed=5))
    )
    close(first, second)


def test_the_gradient_of_a_gate_is_responsibility_minus_weight() -> None:
    c, logits = case(), gates("gated", M)
    assert logits is not None
    q = mixture_of_experts(c.experts, c.prior, c.present, logits=logits)
    weights = torch.nan_to_num(weights_by_hand(logits, c.present))
    joint = weights * density(c.experts, c.z[..., None, :]).exp()
    responsibility = torch.nan_to_num(joint / joint.sum(-1, keepdim=True))
    (found,) = torch.autograd.grad(q.log_prob(c.z).sum(), logits)
    close(found, (responsibility - weights).sum(0))
    assert not found[~c.present].any()
    assert not found[0].any()
    assert found[1].all()


def test_what_the_gate_says_of_an_absent_expert_touches_nothing() -> None:
    c, logits = case(), gates("gated", M)
    assert logits is not None
    clean = functional(mixture_of_experts(c.experts, c.prior, c.present, logits=logits), c.z)
    wanted = torch.autograd.grad(clean.sum(), [logits, *leaves(c.experts)])
    for garbage in (math.nan, math.inf, -math.inf, 1e300):
        gate = torch.where(c.present, logits, garbage).detach().requires_grad_()
        dirty = functional(mixture_of_experts(c.experts, c.prior, c.present, logits=gate), c.z)
        assert torch.equal(clean, dirty)
        for a, b in zip(
            torch.autograd.grad(dirty.sum(), [gate, *leaves(c.experts)]), wanted, strict=True
        ):
            assert torch.equal(a, b)


def test_gates_move_with_their_experts() -> None:
    c, order, logits = case(4), [3, 1, 0, 2], draw(N, 4, seed=6).requires_grad_()
    moved = Gaussian(c.experts.loc[:, order], c.experts.scale[:, order])
    p = mixture_of_experts(c.experts, c.prior, c.present, logits=logits)
    q = mixture_of_experts(moved, c.prior, c.present[:, order], logits=logits[:, order])
    close(p.log_prob(c.z), q.log_prob(c.z))
    inputs = [logits, *leaves(c.experts)]
    for a, b in zip(
        torch.autograd.grad(p.log_prob(c.z).sum(), inputs),
        torch.autograd.grad(q.log_prob(c.z).sum(), inputs),
        strict=True,
    ):
        close(a, b)


def test_a_cell_without_experts_gets_the_prior_whatever_its_gate_says() -> None:
    c = case()
    q = mixture_of_experts(c.experts, c.prior, c.present, logits=gates("gated", M))
    assert torch.equal(q.components.loc[0], c.prior.loc[0].expand(M, D))
    assert torch.equal(q.components.scale[0], c.prior.scale[0].expand(M, D))
    close(q.log_prob(c.z)[:, 0], density(at(c.prior, 0), c.z[:, 0]), rtol=0, atol=1e-12)


# -- mixtures of products --------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@with_and_without_prior
@settings(law, max_examples=10)
@given(st.integers(0, 10_000), st.booleans())
def test_mixture_of_products_is_the_mean_over_all_sets(
    m: int, prior_expert: bool, seed: int, prior_rows: bool
) -> None:
    c = case(m, seed=seed, prior_rows=prior_rows)
    q = mixture_of_products(c.experts, c.prior, c.present, prior_expert=prior_expert)
    for n in c.rows:
        there = c.present[n].nonzero().flatten().tolist()
        sets = [s for size in range(m) for s in itertools.combinations(there, size + 1)]
        prior = prior_of(c, n)
        products = [
            by_hand([at(c.experts, n, i) for i in s] + ([prior] if prior_expert else []))
            for s in sets
        ] or [prior]
        # By their logarithms: far out in the tails the densities themselves are zero in float64.
        of_each = torch.stack([density(p, c.z[:, n]) for p in products])
        close(q.log_prob(c.z)[:, n], of_each.logsumexp(0) - math.log(len(products)))
        mean = torch.stack([p.mean for p in products]).mean(0)
        close(q.mean[n], mean)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@with_and_without_prior
def test_mixture_of_products_holds_products_and_experts(m: int, prior_expert: bool) -> None:
    c = case(m)
    q = mixture_of_products(c.experts, c.prior, prior_expert=prior_expert)
    assert q.components.batch_shape == q.logits.shape == (N, 2**m - 1)
    close(q.log_weights.exp(), torch.full((N, 2**m - 1), 1 / (2**m - 1), dtype=F64))
    for members, which in zip(subsets(m), q.components.loc.unbind(1), strict=True):
        product = product_of_experts(c.experts, c.prior, members, prior_expert=prior_expert)
        close(which, product.loc)
    singles = q.components.loc[:, subsets(m).sum(1) == 1]
    alone = [c.experts.loc[:, i] for i in range(m)]
    if prior_expert:
        prior = c.prior
        alone = [product_of_experts(at(c.experts, slice(None), [i]), prior).loc for i in range(m)]
    close(singles, torch.stack(alone, 1))
    everyone = product_of_experts(c.experts, c.prior, prior_expert=prior_expert)
    close(q.components.scale[:, subsets(m).all(1)][:, 0], everyone.scale)


def test_mixture_of_products_of_one_expert_is_the_product() -> None:
    c = case(1)
    found, wanted = (
        fuse(c.experts, c.prior, c.present).log_prob(c.z)
        for fuse in (mixture_of_products, product_of_experts)
    )
    close(found, wanted)


@pytest.mark.parametrize("m", range(1, 7))
def test_subsets_are_all_distinct_and_not_empty(m: int) -> None:
    rows = subsets(m)
    assert rows.dtype == torch.bool
    assert rows.shape == (2**m - 1, m)
    found = {frozenset(row.nonzero().flatten().tolist()) for row in rows}
    sizes = range(1, m + 1)
    wanted = {frozenset(s) for size in sizes for s in itertools.combinations(range(m), size)}
    assert found == wanted
    assert torch.equal(rows.sum(0), torch.full((m,), 2 ** (m - 1)))


# -- side by side ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (N,), (4, N)])
def test_side_by_side_keeps_every_expert(batch: tuple[int, ...]) -> None:
    apart = [gaussian(*batch, D, seed=5 * i) for i in range(M)]
    together = side_by_side(apart)
    assert together.batch_shape == (*batch, M)
    assert together.event_shape == (D,)
    for m, expert in enumerate(apart):
        assert torch.equal(together.loc[..., m, :], expert.loc)
        assert torch.equal(together.scale[..., m, :], expert.scale)
    again = side_by_side([at(together, ..., m, slice(None)) for m in range(M)])
    assert torch.equal(again.loc, together.loc)
    z = draw(*batch, D, seed=9)
    each = torch.stack([expert.log_prob(z) for expert in apart], -1)
    close(together.log_prob(z[..., None, :]), each)


def test_side_by_side_broadcasts() -> None:
    apart = [gaussian(D, seed=1), gaussian(N, D, seed=5), gaussian(1, D, seed=9)]
    together = side_by_side(apart)
    assert together.batch_shape == (N, 3)
    for m, expert in enumerate(apart):
        assert torch.equal(together.loc[:, m], expert.loc.expand(N, D))
        assert torch.equal(together.scale[:, m], expert.scale.expand(N, D))


# -- from networks to a bound, with cells of which a part is missing -------------------------------

VIEWS = ((0, 3), (3, 7), (7, 9))  # columns of x that the experts see
VIEW_NAMES = range(len(VIEWS))


class Fused(nn.Module):
    """q(z | x) fused of one encoder per view, each of which may be missing for a cell."""

    def __init__(self, fuse: Fuse, *, normalise: bool) -> None:
        super().__init__()
        self.fuse = fuse
        self.encoders = nn.ModuleList(
            Encoder(
                MLP(stop - start, 8, normalise=normalise, generator=seeded(start)),
                Head(8, D, GAUSSIAN, seeded(stop)),
            )
            for start, stop in VIEWS
        )
        self.prior = StandardNormal(D)

    def forward(self, batch: Batch) -> Gaussian | Mixture:
        assert batch.observed is not None
        experts, present = [], []
        for encoder, (start, stop) in zip(self.encoders, VIEWS, strict=True):
            seen = batch.observed[:, start:stop]
            experts.append(encoder(Batch(batch.x[:, start:stop], observed=seen)))
            present.append(seen.all(1))
        prior = self.prior(batch)
        return self.fuse(side_by_side(experts), prior, torch.stack(present, 1))


class LinearLikelihood(nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return self.model.likelihood(z)


def linear_model(g: int, d: int) -> LinearGaussian:
    noise = draw(g, seed=2).mul(0.3).exp()
    return LinearGaussian(draw(g, d), draw(g, seed=1), noise)


def partly_missing(fill: float) -> Batch:
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    observed = torch.cat(
        [present[:, m : m + 1].expand(-1, b - a) for m, (a, b) in enumerate(VIEWS)], 1
    )
    return Batch(torch.where(observed, draw(5, 9), fill), observed=observed)


def gradients_of(vae: VAE, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    bound = elbo(vae.terms(batch, samples=2, generator=seeded(3)))
    gradients = torch.autograd.grad(bound.sum(), list(vae.parameters()), allow_unused=True)
    return bound, [g for g in gradients if g is not None]


@each_fusion
@pytest.mark.parametrize("normalise", [False, True])
def test_missing_views_leave_no_trace_in_any_weight(fuse: Fuse, normalise: bool) -> None:
    vae = VAE(
        StandardNormal(D), Fused(fuse, normalise=normalise), LinearLikelihood(linear_model(9, D))
    ).double()
    (bound, wanted), *others = (
        gradients_of(vae, partly_missing(fill)) for fill in (0.0, math.nan, math.inf, 7.0)
    )
    assert all(gradient.isfinite().all() for gradient in wanted)
    assert all(gradient.any() for gradient in wanted if gradient.dim() == 2)
    for other, found in others:
        assert torch.equal(bound, other)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@each_fusion
def test_an_encoder_learns_from_the_cells_that_have_its_view_alone(fuse: Fuse) -> None:
    posterior = Fused(fuse, normalise=False).double()
    batch = partly_missing(math.nan)
    assert batch.observed is not None
    z = draw(4, 5, D, seed=8)
    per_cell = posterior(batch).log_prob(z).sum(0)
    for m, (start, _) in enumerate(VIEWS):
        weights = list(posterior.encoders[m].parameters())
        for n in range(5):
            gradients = torch.autograd.grad(per_cell[n], weights, retain_graph=True)
            assert any(g.any() for g in gradients) == bool(batch.observed[n, start])


# -- bounds over mixtures --------------------------------------------------------------------------


class Guess(nn.Module):
    """A posterior of fixed, wrong experts around the exact one, the same for every cell."""

    def __init__(self, fuse: Fuse, model: LinearGaussian, present: Tensor, m: int = 2) -> None:
        super().__init__()
        self.fuse, self.model, self.present = fuse, model, present
        d = model.loading.shape[1]
        self.shift = nn.Parameter(1.3 * draw(m, d, seed=7))
        self.stretch = nn.Parameter(0.3 + 0.2 * draw(m, d, seed=8))
        self.prior = StandardNormal(d).double()

    def forward(self, batch: Batch) -> Gaussian | Mixture:
        exact = self.model.posterior(batch.x)
        scale = exact.variance.sqrt()[:, None]
        experts = Gaussian(exact.loc[:, None] + self.shift * scale, scale * self.stretch.exp())
        return self.fuse(experts, self.prior(batch), self.present)


def gated(experts: Gaussian, prior: Gaussian, present: Tensor) -> Mixture:
    """Return a mixture of experts of clearly unequal weights."""
    logits = torch.linspace(1.5, -0.5, experts.batch_shape[-1], dtype=F64)
    return mixture_of_experts(experts, prior, present, logits=logits)


each_mixture = pytest.mark.parametrize(
    "fuse", [*MIXTURES.values(), gated], ids=[*MIXTURES, "gated mixture"]
)


def guessing(fuse: Fuse, present: list[bool], g: int = 4, d: int = D) -> tuple[VAE, Batch]:
    model = linear_model(g, d)
    posterior = Guess(fuse, model, torch.tensor(present), len(present))
    vae = VAE(StandardNormal(d).double(), posterior, LinearLikelihood(model))
    return vae, Batch(model.marginal.sample((3,), seeded(11)))


def exact_evidence(vae: VAE, batch: Batch) -> Tensor:
    likelihood = vae.likelihood
    assert isinstance(likelihood, LinearLikelihood)
    return likelihood.model.log_prob(batch.x)


PRESENCES = [[True, True], [True, False, True], [False, False]]


@each_mixture
@pytest.mark.parametrize("present", PRESENCES, ids=str)
@torch.no_grad()
def test_the_stratified_elbo_is_the_elbo(fuse: Fuse, present: list[bool]) -> None:
    vae, batch = guessing(fuse, present)
    k, many = 4000, 20_000
    terms = vae.terms(batch, k, seeded(0))
    values = terms.log_weight.view(k, -1, 3)
    weights = terms.q.log_weights.exp().T
    error = ((weights.square() * values.var(0)).sum(0) / k).sqrt()
    plain = vae.terms_at(terms.q.sample((many,), generator=seeded(1)), terms.q, batch)
    assert plain.log_share is None
    plain_error = plain.log_weight.std(0) / math.sqrt(many)
    wide = 5 * (error.square() + plain_error.square()).sqrt()
    assert ((elbo(terms) - elbo(plain)).abs() < wide).all()
    gap = exact_evidence(vae, batch) - elbo(terms)
    assert (gap > 2 * wide).all()


@each_mixture
@pytest.mark.parametrize("present", PRESENCES, ids=str)
def test_the_shares_of_strata_sum_to_one(fuse: Fuse, present: list[bool]) -> None:
    vae, batch = guessing(fuse, present)
    for k in (1, 2, 7):
        terms = vae.terms(batch, k, seeded(0))
        assert terms.log_share is not None
        assert terms.log_share.shape == terms.log_px.shape == (k * terms.q.logits.shape[-1], 3)
        close(terms.log_share.exp().sum(0), torch.ones(3, dtype=F64))
        close(terms.mean(torch.full_like(terms.log_px, 3.0)), torch.full((3,), 3.0, dtype=F64))


def test_absent_strata_weigh_nothing() -> None:
    vae, batch = guessing(mixture_of_experts, [True, False, True])
    terms = vae.terms(batch, 4, seeded(0))
    assert terms.log_share is not None
    absent = torch.arange(12) % 3 == 1
    assert (terms.log_share[absent] == -math.inf).all()
    assert (terms.log_share[~absent] > -math.inf).all()
    values = terms.log_px.detach().requires_grad_()
    (found,) = torch.autograd.grad(terms.mean(values).sum(), values)
    assert not found[absent].any()
    close(found[~absent], torch.full((8, 3), 1 / 8, dtype=F64))
    moved = torch.where(absent[:, None], 1e6, values)
    assert torch.equal(terms.mean(moved), terms.mean(values))


@pytest.mark.parametrize("fuse", [gated, mixture_of_experts])
def test_sharing_strata_is_sampling_every_component_by_itself(fuse: Fuse) -> None:
    vae, batch = guessing(fuse, [True, True, True])
    terms = vae.terms(batch, 5, seeded(0))
    components, weights = terms.q.components, terms.q.log_weights.exp()
    assert components.batch_shape == (3, 3)
    z = terms.z.view(5, 3, 3, D)  # draws, components, cells
    standard = (z - components.loc.movedim(1, 0)) / components.scale.movedim(1, 0)
    assert standard.abs().max() < 5  # every stratum lies where its own component is
    by_component = terms.log_px.view(5, 3, 3).mean(0)
    close(terms.reconstruction, (weights.T * by_component).sum(0))
    ratios = terms.log_weight.exp().view(5, 3, 3).mean(0)
    close(importance_weighted_bound(terms), (weights.T * ratios).sum(0).log())


@each_mixture
@torch.no_grad()
def test_the_stratified_importance_bound_rises_to_the_log_evidence(fuse: Fuse) -> None:
    vae, batch = guessing(fuse, [True, True])
    repeats, steps = 2500, (1, 8, 64)
    one = Batch(batch.x[:1].expand(repeats, -1))
    evidence = exact_evidence(vae, batch)[0].item()
    bounds = [importance_weighted_bound(vae.terms(one, k, seeded(k))) for k in steps]
    means = [bound.mean().item() for bound in bounds]
    errors = [bound.std().item() / math.sqrt(repeats) for bound in bounds]
    for lower, higher, error in zip(means[:-1], means[1:], errors[:-1], strict=True):
        assert higher - lower > 3 * error
    assert all(m < evidence + 5 * e for m, e in zip(means, errors, strict=True))
    assert evidence - means[-1] < 0.03 < evidence - means[0]
    plain = elbo(vae.terms(one, 4, seeded(9)))
    assert plain.mean().item() < means[0] - errors[0]


@each_fusion
def test_log_evidence_is_right_whatever_the_fusion(fuse: Fuse) -> None:
    vae, batch = guessing(fuse, [True, True])
    estimate = log_evidence(vae, batch, 20_000, seeded(0), chunk=5000)
    off = (estimate.value - exact_evidence(vae, batch)).abs()
    assert (off < 5 * estimate.standard_error).all()
    assert (estimate.standard_error < 0.05).all()


# -- gradients of a bound in the gate, against quadrature ------------------------------------------

GRID = torch.linspace(-9, 9, 6001, dtype=F64)[:, None]


class Gated(nn.Module):
    """A gated mixture of fixed experts over one latent dimension, with a gate of every cell."""

    def __init__(self, n: int, present: list[bool]) -> None:
        super().__init__()
        m = len(present)
        self.logits = nn.Parameter(draw(m, seed=3).expand(n, m).clone())
        loc = torch.tensor([-1.0, 0.5, 1.5], dtype=F64)[:m, None]
        self.loc = nn.Parameter(loc.expand(n, m, 1).clone())
        self.scale = torch.tensor([0.5, 0.8, 0.3], dtype=F64)[:m, None]
        self.present, self.prior = torch.tensor(present), StandardNormal(1).double()

    def forward(self, batch: Batch) -> Mixture:
        experts = Gaussian(self.loc, self.scale)
        return mixture_of_experts(experts, self.prior(batch), self.present, logits=self.logits)


def quadrature_elbo(posterior: Gated, model: LinearGaussian, x: Tensor) -> Tensor:
    """Return E_q[log p(x, z) - log q(z)] by the trapezoid rule, for one cell."""
    log_q = posterior(Batch(x)).log_prob(GRID[:, None])[:, 0]
    prior = Gaussian(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    log_joint = prior.log_prob(GRID) + model.likelihood(GRID).log_prob(x)
    return torch.trapezoid(log_q.exp() * (log_joint - log_q), GRID[:, 0])


@pytest.mark.parametrize("present", [[True, True, True], [True, False, True]], ids=str)
def test_the_gate_learns_by_the_gradient_of_the_elbo(present: list[bool]) -> None:
    model, n, step = linear_model(2, 1), 3000, 1e-4
    x = model.marginal.sample((1,), seeded(0))
    posterior = Gated(n, present)
    vae = VAE(StandardNormal(1).double(), posterior, LinearLikelihood(model))
    bound = elbo(vae.terms(Batch(x.expand(n, -1)), 4, seeded(1)))
    exact = Gated(1, present)
    value = quadrature_elbo(exact, model, x).item()
    assert bound.mean().item() == pytest.approx(value, abs=5 * bound.std().item() / math.sqrt(n))
    samples = torch.autograd.grad(bound.sum(), [posterior.logits, posterior.loc])
    for sample, parameter in zip(samples, (exact.logits, exact.loc), strict=True):
        flat, error = sample.reshape(n, 3), sample.reshape(n, 3).std(0) / math.sqrt(n)
        for m in range(3):
            bounds = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[m] += sign * step
                    bounds.append(quadrature_elbo(exact, model, x).item())
                    parameter.view(-1)[m] -= sign * step
            slope = (bounds[0] - bounds[1]) / (2 * step)
            off = abs(flat[:, m].mean().item() - slope)
            assert off <= 5 * error[m].item() + 1e-6
            assert (slope != 0) == present[m]
            assert present[m] or not flat[:, m].any()


# -- scales that float32 can hold, and precisions that it cannot -----------------------------------


@pytest.mark.parametrize("prior_expert", [True, False])
@pytest.mark.parametrize("small", [1e-30, 1e-20, 1e-10, 1e-3, 1.0, 1e20])
def test_products_and_their_gradients_hold_at_any_scale(small: float, prior_expert: bool) -> None:
    """The precision of a scale of 1e-20 is 1e40, which float32 cannot hold."""
    found = []
    for dtype in (torch.float32, F64):
        loc = torch.tensor([[[1.0], [2.0], [-3.0]]], dtype=dtype, requires_grad=True)
        scale = torch.tensor([[[1.0], [1.0], [2.0]]], dtype=dtype).mul(small).requires_grad_()
        one = torch.ones(1, dtype=dtype)
        fuse = mixture_of_products(
            Gaussian(loc, scale), Gaussian(0 * one, one), prior_expert=prior_expert
        )
        for q in (
            product_of_experts(
                Gaussian(loc, scale), Gaussian(0 * one, one), prior_expert=prior_expert
            ),
            fuse.components,
        ):
            asked = q.loc.sum() + q.scale.log().sum()
            gradients = torch.autograd.grad(asked, [loc, scale], retain_graph=True)
            # By log scale, as networks give it: the gradient by scale itself may be beyond float32.
            of_log = gradients[1] * scale.detach()
            found.append([q.loc, q.scale / small, gradients[0], of_log])
    for single, double in zip(found[:2], found[2:], strict=True):
        for one, other in zip(single, double, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=1e-5)
