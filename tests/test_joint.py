"""Several parts at once, against linear-Gaussian views of one z, which are solved by hand.

x_m | z ~ N(W_m z + b_m, s_m^2 I) with orthogonal columns of every W_m: p(z | x_m) is then, but for
its prior, a diagonal Gaussian, and the product of them the exact posterior of any set of parts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from scvae.core import (
    BERNOULLI,
    GAUSSIAN,
    MLP,
    NEGATIVE_BINOMIAL,
    VAE,
    Batch,
    Decoder,
    Encoder,
    Fused,
    Gaussian,
    Head,
    Joint,
    Mixture,
    Parts,
    StandardNormal,
    elbo,
    importance_weighted_bound,
    kl_divergence,
    log_evidence,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    reconstruct,
    zero_inflated,
)
from tests.draws import draw, seeded

F64 = torch.float64
N, D, WIDTHS = 8, 2, (5, 3, 4)
FUSIONS = {
    "product": product_of_experts,
    "product without prior": partial(product_of_experts, prior_expert=False),
    "mixture": mixture_of_experts,
    "mixture of products": mixture_of_products,
}
each_fusion = pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS.keys())
# Every set of parts that a cell may have been measured in, the empty one included.
PRESENT = torch.tensor(list(itertools.product([True, False], repeat=3)))


@dataclass(frozen=True)
class View:
    """One part: x = W z + b + s e."""

    w: Tensor
    b: Tensor
    s: float


VIEWS = [
    View(torch.linalg.qr(draw(g, D, seed=g)).Q * torch.tensor([2.0, 0.5]), draw(g, seed=9), s)
    for g, s in zip(WIDTHS, (0.7, 0.3, 1.5), strict=True)
]


class Expert(nn.Module):
    """What a part alone says of z: its likelihood as a function of z."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view, self.moved = view, nn.Parameter(torch.zeros(D, dtype=F64))

    def forward(self, batch: Batch) -> Gaussian:
        v = self.view
        precision = v.w.square().sum(0) / v.s**2
        loc = (batch.x - v.b) @ v.w / v.s**2 / precision + self.moved
        return Gaussian(loc, precision.rsqrt())


class Likelihood(nn.Module):
    def __init__(self, view: View) -> None:
        super().__init__()
        self.view, self.moved = view, nn.Parameter(torch.zeros(len(view.b), dtype=F64))

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        v = self.view
        return Gaussian(z @ v.w.T + v.b + self.moved, torch.tensor(v.s, dtype=F64))


def model(fuse=product_of_experts, order=(0, 1, 2)) -> VAE:
    views = [VIEWS[i] for i in order]
    posterior = Fused([Expert(v) for v in views], fuse)
    return VAE(StandardNormal(D).double(), posterior, Joint([Likelihood(v) for v in views]))


def cells(fill: float = 0.0, order=(0, 1, 2)) -> Parts:
    """Return cells of one set of parts each; absent parts hold `fill`."""
    made = []
    for i in order:
        x = VIEWS[i].b + 2 * draw(N, WIDTHS[i], seed=20 + i)
        made.append(Batch(torch.where(PRESENT[:, i, None], x, fill), present=PRESENT[:, i]))
    return Parts(tuple(made))


def exact_evidence(parts: Parts) -> Tensor:
    """Return log p of what each cell was measured in, from one big Gaussian."""
    answers = []
    for row in range(N):
        there = [m for m in range(3) if PRESENT[row, m]]
        if not there:
            answers.append(torch.zeros((), dtype=F64))
            continue
        w = torch.cat([VIEWS[m].w for m in there])
        noise = torch.cat([torch.full((WIDTHS[m],), VIEWS[m].s ** 2, dtype=F64) for m in there])
        loc = torch.cat([VIEWS[m].b for m in there])
        x = torch.cat([parts.parts[m].x[row] for m in there])
        answers.append(MultivariateNormal(loc, w @ w.T + noise.diag()).log_prob(x))
    return torch.stack(answers)


def exact_posterior(parts: Parts) -> Gaussian:
    precision, moment = torch.ones(N, D, dtype=F64), torch.zeros(N, D, dtype=F64)
    for m, (view, part) in enumerate(zip(VIEWS, parts.parts, strict=True)):
        seen = PRESENT[:, m, None]
        precision += torch.where(seen, view.w.square().sum(0) / view.s**2, 0.0)
        moment += torch.where(seen, (part.x - view.b) @ view.w / view.s**2, 0.0)
    return Gaussian(moment / precision, precision.rsqrt())


def test_the_product_of_experts_is_the_exact_posterior() -> None:
    q, exact = model().encode(cells()), exact_posterior(cells())
    torch.testing.assert_close(q.loc, exact.loc, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.scale, exact.scale, rtol=1e-12, atol=1e-12)


def test_every_weight_at_the_exact_posterior_is_the_evidence_of_what_was_measured() -> None:
    terms = model().terms(cells(), 7, seeded(0))
    expected = exact_evidence(cells()).expand(7, N)
    torch.testing.assert_close(terms.log_weight, expected, rtol=1e-12, atol=1e-11)
    assert importance_weighted_bound(terms)[-1].abs() < 1e-12  # of nothing


@each_fusion
def test_the_evidence_is_that_of_one_big_gaussian_whatever_the_proposal(fuse: object) -> None:
    estimate = log_evidence(model(fuse), cells(), 20_000, seeded(1))
    low, high = estimate.interval(1 - 1e-6)  # a mixture of experts may be too narrow a proposal
    truth = exact_evidence(cells())
    assert ((low - 1e-12 <= truth) & (truth <= high + 1e-12)).all()
    assert high.isfinite().sum() > 4


@each_fusion
def test_what_an_absent_part_holds_touches_nothing(fuse: object) -> None:
    found = []
    for fill in (0.0, 1e30, math.nan):
        vae = model(fuse)
        bound = elbo(vae.terms(cells(fill), 3, seeded(2)), sampled_kl=True)
        gradients = torch.autograd.grad(bound.sum(), list(vae.parameters()))
        found.append([bound, *gradients])
    for value in zip(*found, strict=True):
        assert value[0].isfinite().all()
        assert torch.equal(value[0], value[1])
        assert torch.equal(value[0], value[2])
    assert all(gradient.abs().sum() > 0 for gradient in found[0][1:])


@each_fusion
def test_parts_may_come_in_any_order(fuse: object) -> None:
    plain = model(fuse).encode(cells())
    z = draw(4, N, D, seed=3)
    for order in itertools.permutations(range(3)):
        vae, parts = model(fuse, order), cells(order=order)
        expected = model(fuse).log_likelihood(z, cells())
        torch.testing.assert_close(vae.log_likelihood(z, parts), expected, rtol=1e-12, atol=1e-12)
        q = vae.encode(parts)
        torch.testing.assert_close(q.log_prob(z), plain.log_prob(z), rtol=1e-12, atol=1e-12)


def test_a_prior_of_its_own_takes_part() -> None:
    class Elsewhere(nn.Module):
        def forward(self, batch: Parts) -> Gaussian:
            return Gaussian(torch.full((len(batch), D), 3.0, dtype=F64), torch.tensor(0.5))

    fused = Fused([Expert(v) for v in VIEWS], product_of_experts, Elsewhere())
    q, experts = fused(cells()), [e(p) for e, p in zip(fused.experts, cells().parts, strict=True)]
    precision = sum(e.scale**-2 for e in experts) + 4
    torch.testing.assert_close(q.scale[0], precision[0].rsqrt())
    torch.testing.assert_close(q.loc[-1], torch.full((D,), 3.0, dtype=F64))
    assert kl_divergence(q, Elsewhere()(cells()))[-1].abs() < 1e-9


def test_numbers_of_parts_must_fit() -> None:
    two = Parts(cells().parts[:2])
    with pytest.raises(ValueError, match="3 experts for 2 parts"):
        model().encode(two)
    with pytest.raises(ValueError, match="3 likelihoods for 2 parts"):
        model().decode(torch.zeros(1, N, D, dtype=F64), two)


def test_missing_entries_of_a_part_that_is_there_are_integrated_out() -> None:
    seen = draw(N, WIDTHS[0], seed=7) > 0
    first = cells().parts[0]
    spoilt = replace(first, x=torch.where(seen, first.x, math.nan), observed=seen)
    z = draw(2, N, D, seed=3)
    found = model().log_likelihood(z, Parts((spoilt, *cells().parts[1:])))
    decoded = model().decode(z, cells())
    alone = torch.where(seen & PRESENT[:, :1], decoded.of[0].entry_log_prob(first.x), 0.0).sum(-1)
    others = [
        torch.where(PRESENT[:, m], decoded.of[m].log_prob(cells().parts[m].x), 0.0) for m in (1, 2)
    ]
    torch.testing.assert_close(found, alone + others[0] + others[1])


@pytest.mark.parametrize("present", [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]])
@pytest.mark.parametrize("training", [True, False])
def test_experts_that_are_given_absent_cells_say_what_they_say_without(
    present: list[int], training: bool
) -> None:
    there = torch.tensor(present, dtype=torch.bool)
    first = Batch(draw(4, 5, seed=1).where(there[:, None], torch.tensor(math.nan)), present=there)
    batch = Parts((first, Batch(draw(4, 3, seed=2), present=~there)))
    found = []
    for whole in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoders = [Encoder(MLP(g, 6, 2), Head(6, D, GAUSSIAN)) for g in (5, 3)]
        fused = Fused([e.double() for e in encoders], whole=whole).train(training)
        q = fused(batch)
        (q.loc.square().sum() + q.scale.log().sum()).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in fused.parameters()]
        moments = [m for name, m in fused.named_buffers() if "running" in name]
        found.append([q.loc.detach(), q.scale.detach(), *gradients, *moments])
    for left_out, given in zip(*found, strict=True):
        torch.testing.assert_close(given, left_out, rtol=1e-10, atol=1e-12)


def small(fuse: object = product_of_experts) -> VAE:
    encoders = [Encoder(MLP(g, 8, normalise=False), Head(8, D, GAUSSIAN)) for g in (6, 4)]
    families = (zero_inflated(NEGATIVE_BINOMIAL), BERNOULLI)
    decoders = [
        Decoder(MLP(D, 8), Head(8, g, family)) for g, family in zip((6, 4), families, strict=True)
    ]
    return VAE(StandardNormal(D), Fused(encoders, fuse), Joint(decoders))


def mixed(n: int = 40) -> Parts:
    there = torch.arange(n) % 3 > 0
    counts = torch.poisson(torch.full((n, 6), 3.0), generator=seeded(0))
    ones = (draw(n, 4, seed=2) > 0).float()
    blank = torch.where(there[:, None], ones, math.nan)
    return Parts((Batch(counts), Batch(blank, present=there)))


@pytest.mark.parametrize("fuse", [product_of_experts, mixture_of_experts], ids=["product", "mix"])
def test_counts_and_ones_train_together(fuse: object) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = small(fuse)
    optimizer, noise = torch.optim.Adam(vae.parameters(), 0.02), seeded(4)
    bounds = []
    for _ in range(60):
        loss = -elbo(vae.terms(mixed(), generator=noise)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bounds.append(-loss.item())
    assert sum(bounds[-10:]) > sum(bounds[:10]) + 10


def test_a_joint_model_is_sampled_and_decoded_part_by_part() -> None:
    vae = small()
    z, x = vae.sample(5, generator=seeded(0))
    assert z.shape == (5, D)
    assert [t.shape for t in x] == [(5, 6), (5, 4)]
    assert set(x[1].unique().tolist()) <= {0.0, 1.0}
    counts, ones = reconstruct(vae, mixed())
    assert counts.isfinite().all()
    assert ones.shape == (40, 4)
    assert ((ones > 0) & (ones < 1)).all()  # of absent ones, too


def test_a_mixture_of_experts_weighs_those_present_the_same() -> None:
    q = model(mixture_of_experts).encode(cells())
    assert isinstance(q, Mixture)
    shares = PRESENT.double() / PRESENT.sum(1, keepdim=True)
    torch.testing.assert_close(q.log_weights.exp()[:-1], shares[:-1])
