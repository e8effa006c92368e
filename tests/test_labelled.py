"""The prior over latents and labels together: sums over labels, Bayes, wrong labels, recovery."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from scvae.core import (
    GAUSSIAN,
    MLP,
    VAE,
    Batch,
    Encoder,
    Gaussian,
    Head,
    LabelledMixture,
    LinearGaussian,
    elbo,
)
from tests.draws import draw, seeded

F64 = torch.float64
D, C, T, N = 2, 6, 3, 7
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def prior_of(n_labels: int = T, times: float = 1.0, most: float = math.inf) -> LabelledMixture:
    """Return a prior whose parameters have all left their start."""
    prior = LabelledMixture(D, C, n_labels, times=times, most=most, generator=seeded(0)).double()
    with torch.no_grad():
        for i, parameter in enumerate(prior.parameters()):
            parameter += 0.5 * draw(*parameter.shape, seed=i + 1)
    return prior


def labelled(label: int | list[int], n: int = N) -> Batch:
    given = torch.full((n,), label) if isinstance(label, int) else torch.tensor(label)
    return Batch(torch.ones(n, 4, dtype=F64), label=given)


def log_prob(prior: nn.Module, label: int | list[int], z: Tensor) -> Tensor:
    found: Tensor = prior(labelled(label, z.shape[-2])).log_prob(z)
    return found


Z = 1.5 * draw(3, N, D, seed=9)


@pytest.mark.parametrize("n_labels", [1, 2, T, C])
def test_over_all_labels_it_sums_to_the_mixture(n_labels: int) -> None:
    prior = prior_of(n_labels)
    each = torch.stack([log_prob(prior, y, Z) for y in range(n_labels)])
    close(each.logsumexp(0), prior.mixture(labelled(-1)).log_prob(Z))


def test_it_is_the_weighted_sum_that_it_says() -> None:
    prior = prior_of()
    label = [0, 2, 1, 1, 0, 2, 2]
    weight = torch.softmax(prior.mixture.logits, 0)
    bears = torch.softmax(prior.label_logits, -1)
    normals = torch.distributions.Normal(prior.mixture.loc, prior.mixture.log_scale.exp())
    density = normals.log_prob(Z[..., None, :]).sum(-1).exp()  # (k, n, c)
    expected = (weight * bears[:, label].T * density).sum(-1).log()
    close(log_prob(prior, label, Z), expected)


def test_labels_make_a_probability_and_a_density() -> None:
    prior = prior_of()
    axis = torch.linspace(-12, 12, 801, dtype=F64)
    points = torch.cartesian_prod(axis, axis)[:, None]
    mass = torch.stack([log_prob(prior, y, points).exp().sum() for y in range(T)])
    mass = mass * (axis[1] - axis[0]) ** 2
    bears = torch.softmax(prior.mixture.logits, 0) @ torch.softmax(prior.label_logits, -1)
    torch.testing.assert_close(mass, bears, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_without_a_label_it_is_the_ordinary_mixture_to_the_bit(dtype: torch.dtype) -> None:
    prior, z = prior_of().to(dtype), Z.to(dtype)
    known = [0, -1, 1, -1, -1, 2, -1]
    plain = prior.mixture(labelled(-1)).log_prob(z)
    found = log_prob(prior, known, z)
    is_known = torch.tensor(known) >= 0
    assert found.dtype == dtype
    assert torch.equal(found[:, ~is_known], plain[:, ~is_known])
    assert (found[:, is_known] < plain[:, is_known]).all()
    none = Batch(torch.ones(N, 4, dtype=dtype))
    assert torch.equal(prior(none).log_prob(z), plain)
    assert torch.equal(log_prob(prior, -1, z), plain)


def test_a_gradient_of_rows_without_labels_is_that_of_the_mixture() -> None:
    prior = prior_of()
    parameters = list(prior.mixture.parameters())
    own = torch.autograd.grad(log_prob(prior, -1, Z).sum(), parameters)
    plain = torch.autograd.grad(prior.mixture(labelled(-1)).log_prob(Z).sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(own, plain, strict=True))


def test_gradients_are_those_of_differences() -> None:
    prior = prior_of()
    names = [name for name, _ in prior.named_parameters()]

    def at(z: Tensor, *values: Tensor) -> Tensor:
        batch = labelled([0, 2, 1, -1, 0, -1, 2])
        p = torch.func.functional_call(prior, dict(zip(names, values, strict=True)), (batch,))
        found: Tensor = p.log_prob(z)
        return found

    values = [p.detach().clone().requires_grad_() for p in prior.parameters()]
    assert torch.autograd.gradcheck(at, (Z.clone().requires_grad_(), *values))


def test_probabilities_are_those_of_bayes() -> None:
    prior = prior_of()
    each = torch.stack([log_prob(prior, y, Z) for y in range(T)], dim=-1)
    found = prior.probabilities(Z)
    close(found, torch.softmax(each, dim=-1))
    close(found.sum(-1), torch.ones(3, N, dtype=F64))


def test_a_label_said_several_times_is_as_many_that_are_independent() -> None:
    often, once = prior_of(times=3.0), prior_of()
    expected = once.mixture(labelled(0)).log_prob_with(Z, 3 * once.log_label(torch.ones(N).long()))
    close(log_prob(often, 1, Z), expected)
    close(often.probabilities(Z), once.probabilities(Z))  # of one more label


def test_one_label_alone_says_nothing() -> None:
    prior = prior_of(1)
    close(log_prob(prior, 0, Z), log_prob(prior, -1, Z))
    close(prior.probabilities(Z), torch.ones(3, N, 1, dtype=F64))


@pytest.mark.parametrize("times", [1.0, 50.0])
def test_a_wrong_label_costs_no_more_than_its_bound_wherever_the_row_lies(times: float) -> None:
    prior = prior_of(times=times)
    least = times * torch.log_softmax(prior.label_logits, -1).min()
    far = 40.0 * Z
    for y in range(T):
        cost = log_prob(prior, y, far) - log_prob(prior, -1, far)
        assert (cost >= least - 1e-9).all()
        assert (cost <= 1e-9).all()


@pytest.mark.parametrize("times", [1.0, 50.0])
@pytest.mark.parametrize("most", [1e-20, 0.5, 3.0, 800.0])
def test_a_bounded_label_is_mixed_with_none(times: float, most: float) -> None:
    prior, free = prior_of(times=times, most=most), prior_of(times=times)
    for z in (Z, 40.0 * Z):
        plain = log_prob(free, -1, z)
        for y in range(T):
            cost = log_prob(prior, y, z) - plain
            wholly = log_prob(free, y, z) - plain
            close(cost.exp(), -math.expm1(-most) * wholly.exp() + math.exp(-most))
            assert (cost >= -most - 1e-9).all()
            assert (cost <= 1e-9).all()


def test_a_label_without_a_bound_is_what_it_was_to_the_bit() -> None:
    prior, label = prior_of(times=50.0), torch.arange(N) % T
    plain = 50.0 * torch.log_softmax(prior.label_logits, -1).T[label]
    assert torch.equal(prior.log_label(label), plain)


def test_a_label_that_is_hopeless_pulls_nothing() -> None:
    """Where its type lies a hundred nats away, a row goes as if it had none."""
    prior = prior_of(times=50.0, most=10.0)
    with torch.no_grad():
        prior.mixture.loc.copy_(15.0 * torch.arange(C)[:, None] * torch.tensor([1.0, 0.0]))
        prior.mixture.log_scale.zero_()
        prior.label_logits.copy_(8.0 * torch.eye(T)[torch.arange(C) % T])
    z = (prior.mixture.loc[:1] + 0.1 * draw(N, D)).requires_grad_()

    def pull(label: int) -> Tensor:
        (found,) = torch.autograd.grad(log_prob(prior, label, z).sum(), [z])
        return found

    close(pull(1), pull(-1), rtol=1e-6)  # of another type
    close(log_prob(prior, 1, z), log_prob(prior, -1, z) - 10.0, rtol=1e-4)
    free = prior_of(times=50.0)
    free.load_state_dict(prior.state_dict())
    (free_pull,) = torch.autograd.grad(log_prob(free, 1, z).sum(), [z])
    assert (free_pull - pull(-1)).norm(dim=-1).min() > 1.0


def test_at_the_start_every_label_has_a_component_and_the_others_bear_all_alike() -> None:
    prior = LabelledMixture(D, C, T, wrong=0.06, generator=seeded(0))
    bears = torch.softmax(prior.label_logits, -1)
    expected = torch.full((C, T), 1 / T)
    expected[:T] = 0.03
    expected[range(T), range(T)] = 0.94
    torch.testing.assert_close(bears, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n_labels", "wrong"), [(0, 0.1), (C + 1, 0.1), (2, 0.0), (2, 1.0)])
def test_what_cannot_be_is_refused(n_labels: int, wrong: float) -> None:
    with pytest.raises(ValueError, match=r"n_labels=|wrong="):
        LabelledMixture(D, C, n_labels, wrong=wrong)


@pytest.mark.parametrize("most", [0.0, -1.0, math.nan])
def test_a_bound_that_leaves_nothing_of_a_label_is_refused(most: float) -> None:
    with pytest.raises(ValueError, match=r"most="):
        LabelledMixture(D, C, T, most=most)


def test_the_bound_is_one_on_the_evidence_of_rows_and_labels() -> None:
    model = LinearGaussian(draw(4, 1), draw(4, seed=1), torch.ones(4, dtype=F64))
    prior = LabelledMixture(1, C, T, generator=seeded(0)).double()
    encoder = Encoder(MLP(4, 8, generator=seeded(1)), Head(8, 1, GAUSSIAN, seeded(2))).double()

    class Likelihood(nn.Module):
        def forward(self, z: Tensor, batch: Batch) -> Gaussian:
            return model.likelihood(z)

    vae = VAE(prior, encoder, Likelihood())
    batch = Batch(draw(N, 4, seed=3), label=torch.tensor([0, 1, 2, -1, 0, 1, -1]))
    axis = torch.linspace(-12, 12, 4001, dtype=F64)
    z = axis[:, None, None].expand(-1, N, 1)
    joint = vae.prior(batch).log_prob(z) + vae.log_likelihood(z, batch)
    evidence = torch.trapezoid(joint.exp(), axis, dim=0).log()
    bound = elbo(vae.terms(batch, 4000, seeded(4)))
    assert (bound < evidence).all()
    # At the exact posterior of x and y the bound is tight: log p(x, y) at every z.
    log_q = joint - evidence
    mass = torch.trapezoid(log_q.exp(), axis, dim=0)
    close(mass, torch.ones(N, dtype=F64), rtol=1e-6, atol=1e-6)


def test_groups_and_the_share_of_wrong_labels_are_recovered() -> None:
    n, wrong = 3000, 0.1
    truth = torch.arange(n) % 2
    centre = torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=F64)
    z = centre[truth] + 0.5 * draw(n, 2, seed=5)
    flipped = torch.rand(n, generator=seeded(6)) < wrong
    said = torch.where(flipped, 1 - truth, truth)
    said[torch.rand(n, generator=seeded(7)) < 0.8] = -1  # most are not known
    prior = LabelledMixture(2, 2, 2, generator=seeded(0)).double()
    optimizer = torch.optim.Adam(prior.parameters(), 0.05)
    batch = Batch(z, label=said)
    for _ in range(300):
        optimizer.zero_grad()
        (-prior(batch).log_prob(z).mean()).backward()
        optimizer.step()
    found = prior.probabilities(z).argmax(-1)
    assert (found == truth).double().mean() > 0.99
    order = prior.mixture.loc[:, 0].argsort()
    bears = torch.softmax(prior.label_logits, -1)[order].diagonal()
    error = math.sqrt(wrong * (1 - wrong) / (0.2 * n / 2))
    assert ((bears - (1 - wrong)).abs() < 5 * error).all()
    assert prior.mixture.loc[order, 0].tolist() == pytest.approx([-1.5, 1.5], abs=0.1)
