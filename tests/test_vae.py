"""The engine against a model that can be solved by hand: bounds, terms, and networks.

The linear-Gaussian model z ~ N(0, I), x | z ~ N(Wz + b, s^2 I) with orthogonal columns of W has a
diagonal posterior and a marginal likelihood in closed form, so that every bound has a known value.
Where a bound is an expectation over q, it is taken exactly: log p(x | z) is quadratic in z, and the
2d points loc +- sqrt(d) scale e_i have the mean and the covariance of q.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch import distributions as reference

from scvae.core.batch import Batch
from scvae.core.distributions import Gaussian
from scvae.core.heads import BERNOULLI, Decoder, Head
from scvae.core.kl import kl_divergence
from scvae.core.networks import MLP, Layer, Linear
from scvae.core.objectives import elbo, importance_weighted_bound, log_evidence, warmup
from scvae.core.priors import StandardNormal
from scvae.core.vae import VAE, Terms
from tests.draws import draw, seeded

F64 = torch.float64
N, G, D = 6, 5, 2
law = settings(deadline=None, derandomize=True, max_examples=60)
numbers = st.floats(-3, 3).map(lambda v: round(v, 3))
vectors = st.lists(numbers, min_size=D, max_size=D)


# -- the linear-Gaussian model ---------------------------------------------------------------------


@dataclass(frozen=True)
class LinearModel:
    """p(z) = N(0, I), p(x | z) = N(Wz + b, s^2 I), with orthogonal columns of W ``(g, d)``."""

    w: Tensor
    b: Tensor
    s: float

    @property
    def marginal(self) -> reference.MultivariateNormal:
        covariance = self.w @ self.w.T + self.s**2 * torch.eye(len(self.w), dtype=F64)
        return reference.MultivariateNormal(self.b, covariance)

    def posterior(self, x: Tensor) -> Gaussian:
        """Return p(z | x): precision I + W'W / s^2, which is diagonal."""
        precision = 1 + self.w.square().sum(0) / self.s**2
        loc = (x - self.b) @ self.w / self.s**2 / precision
        return Gaussian(loc, precision.rsqrt().expand_as(loc))


class SigmaPoints(Gaussian):
    """A Gaussian whose "samples" are the 2d points that share its mean and covariance."""

    def rsample(self, sample_shape: object = None, generator: Generator | None = None) -> Tensor:
        d = self.loc.shape[-1]
        signs = torch.cat([torch.eye(d), -torch.eye(d)]).to(self.loc).mul(math.sqrt(d))
        return self.loc + self.scale * signs.view(2 * d, *[1] * (self.loc.dim() - 1), d)


class Likelihood(nn.Module):
    def __init__(self, model: LinearModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return Gaussian(z @ self.model.w.T + self.model.b, torch.tensor(self.model.s, dtype=F64))


class Posterior(nn.Module):
    """The exact posterior, moved by `shift` standard deviations and widened by `stretch`."""

    def __init__(
        self, model: LinearModel, kind: type[Gaussian], shift: Tensor, stretch: Tensor
    ) -> None:
        super().__init__()
        self.model, self.kind, self.shift, self.stretch = model, kind, shift, stretch

    def forward(self, batch: Batch) -> Gaussian:
        exact = self.model.posterior(batch.x)
        return self.kind(exact.loc + self.shift * exact.scale, exact.scale * self.stretch.exp())


def linear_model(s: float = 0.7) -> LinearModel:
    w = torch.linalg.qr(draw(G, D)).Q * torch.tensor([2.0, 0.5], dtype=F64)
    return LinearModel(w, draw(G, seed=1), s)


def vae_of(model: LinearModel, kind: type[Gaussian], shift: Tensor, stretch: Tensor) -> VAE:
    posterior = Posterior(model, kind, shift, stretch)
    return VAE(StandardNormal(D).double(), posterior, Likelihood(model))


def batch_of(model: LinearModel, n: int = N) -> Batch:
    return Batch(model.b + 2 * draw(n, G, seed=5), torch.zeros(n, 0, dtype=F64))


ZERO = torch.zeros(D, dtype=F64)


@pytest.mark.parametrize("s", [0.05, 0.7, 3.0])
def test_elbo_at_the_exact_posterior_is_the_log_evidence(s: float) -> None:
    model = linear_model(s)
    batch = batch_of(model)
    terms = vae_of(model, SigmaPoints, ZERO, ZERO).terms(batch)
    torch.testing.assert_close(elbo(terms), model.marginal.log_prob(batch.x), rtol=1e-11, atol=1e-8)


@law
@given(vectors, vectors)
def test_elbo_falls_short_by_the_kl_to_the_exact_posterior(shift: list, stretch: list) -> None:
    model, moved = linear_model(), [torch.tensor(v, dtype=F64) for v in (shift, stretch)]
    batch = batch_of(model)
    terms = vae_of(model, SigmaPoints, *moved).terms(batch)
    gap = model.marginal.log_prob(batch.x) - elbo(terms)
    expected = kl_divergence(Gaussian(terms.q.loc, terms.q.scale), model.posterior(batch.x))
    torch.testing.assert_close(gap, expected, rtol=1e-9, atol=1e-8)
    if any(shift) or any(stretch):
        assert (gap > 0).all()


def test_elbo_is_stationary_at_the_exact_posterior() -> None:
    model = linear_model()
    moved = [torch.zeros(D, dtype=F64, requires_grad=True) for _ in range(2)]
    bound = elbo(vae_of(model, SigmaPoints, *moved).terms(batch_of(model))).sum()
    for gradient in torch.autograd.grad(bound, moved):
        torch.testing.assert_close(gradient, ZERO, rtol=0, atol=1e-8)


def test_sampled_elbo_agrees_with_the_exact_one() -> None:
    model, moved = linear_model(), (ZERO + 0.5, ZERO + 0.3)
    batch, k = batch_of(model), 20_000
    exact = elbo(vae_of(model, SigmaPoints, *moved).terms(batch))
    terms = vae_of(model, Gaussian, *moved).terms(batch, samples=k, generator=seeded(0))
    error = terms.log_px.std(0) / math.sqrt(k)
    assert ((elbo(terms) - exact).abs() < 5 * error).all()
    both = terms.log_weight
    assert ((both.mean(0) - exact).abs() < 5 * both.std(0) / math.sqrt(k)).all()


@pytest.mark.parametrize("k", [1, 2, 30])
def test_importance_bound_at_the_exact_posterior_is_the_log_evidence(k: int) -> None:
    model = linear_model()
    batch = batch_of(model)
    terms = vae_of(model, Gaussian, ZERO, ZERO).terms(batch, samples=k, generator=seeded(0))
    bound = importance_weighted_bound(terms)
    torch.testing.assert_close(bound, model.marginal.log_prob(batch.x), rtol=0, atol=1e-8)


def test_importance_bound_rises_with_k_towards_the_log_evidence() -> None:
    model, repeats = linear_model(), 4000
    batch = Batch(batch_of(model, 1).x.expand(repeats, G), torch.zeros(repeats, 0))
    vae = vae_of(model, Gaussian, ZERO + 0.8, ZERO + 0.4)
    evidence = model.marginal.log_prob(batch.x[:1]).item()
    bounds = [
        importance_weighted_bound(vae.terms(batch, samples=k, generator=seeded(k)))
        for k in (1, 4, 16, 64)
    ]
    means = [bound.mean().item() for bound in bounds]
    errors = [bound.std().item() / math.sqrt(repeats) for bound in bounds]
    for lower, higher, error in zip(means[:-1], means[1:], errors[:-1], strict=True):
        assert higher - lower > 3 * error
    assert all(m < evidence + 5 * e for m, e in zip(means, errors, strict=True))
    assert evidence - means[-1] < 0.02 < evidence - means[0]


def test_one_importance_sample_is_a_sampled_elbo() -> None:
    model = linear_model()
    terms = vae_of(model, Gaussian, ZERO + 0.5, ZERO).terms(batch_of(model), generator=seeded(0))
    torch.testing.assert_close(importance_weighted_bound(terms), terms.log_weight[0])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_beta_weighs_the_kl_alone(beta: float) -> None:
    model = linear_model()
    terms = vae_of(model, Gaussian, ZERO + 0.5, ZERO).terms(batch_of(model), 3, seeded(0))
    torch.testing.assert_close(elbo(terms, beta), terms.log_px.mean(0) - beta * terms.kl)
    torch.testing.assert_close(elbo(terms), elbo(terms, 0.0) - terms.kl)


# -- terms -----------------------------------------------------------------------------------------


def test_terms_have_one_row_per_cell_and_sample() -> None:
    model = linear_model()
    terms = vae_of(model, Gaussian, ZERO, ZERO).terms(batch_of(model), 3, seeded(0))
    assert terms.z.shape == (3, N, D)
    assert terms.log_px.shape == terms.log_weight.shape == (3, N)
    assert terms.kl.shape == terms.q.batch_shape == terms.prior.batch_shape == (N,)


def test_terms_follow_the_generator_and_spare_the_global_state() -> None:
    model, before = linear_model(), torch.get_rng_state()
    vae = vae_of(model, Gaussian, ZERO, ZERO)
    first, again, other = (vae.terms(batch_of(model), 3, seeded(seed)).z for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_terms_and_batches_are_frozen() -> None:
    model = linear_model()
    batch = batch_of(model)
    terms = vae_of(model, Gaussian, ZERO, ZERO).terms(batch)
    with pytest.raises(dataclasses.FrozenInstanceError):
        terms.log_px = terms.kl
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.x = batch.s
    assert isinstance(terms, Terms)


def test_standard_normal_is_standard_and_follows_its_module() -> None:
    batch = batch_of(linear_model())
    p = StandardNormal(D).double()(batch)
    assert torch.equal(p.mean, torch.zeros(N, D, dtype=F64))
    assert torch.equal(p.variance, torch.ones(N, D, dtype=F64))
    assert StandardNormal(D).state_dict() == {}


# -- warm-up ---------------------------------------------------------------------------------------


@law
@given(st.integers(0, 10_000), st.integers(0, 5_000))
def test_warmup_rises_linearly_to_one_and_stays(step: int, steps: int) -> None:
    weight = warmup(step, steps)
    assert 0 < weight <= 1
    assert (weight == 1) == (step + 1 >= steps)
    assert warmup(step + 1, steps) >= weight
    if step + 1 < steps:
        assert weight == pytest.approx((step + 1) / steps)


# -- networks --------------------------------------------------------------------------------------


def test_linear_has_its_usual_law_and_spares_the_global_state() -> None:
    before = torch.get_rng_state()
    layer = Linear(100, 400, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(layer.weight, Linear(100, 400, seeded(0)).weight)
    assert layer.weight.abs().max().item() == pytest.approx(0.1, rel=1e-3)
    assert layer.weight.var().item() == pytest.approx(0.1**2 / 3, rel=0.02)
    assert layer.bias.abs().max().item() <= 0.1
    assert layer.weight.requires_grad
    assert layer.bias.requires_grad


def joined(x: Tensor, s: Tensor) -> Tensor:
    """Return activations and covariates side by side."""
    return torch.cat([x, s.expand(*x.shape[:-1], s.shape[-1])], dim=-1)


def whole_weight(layer: Layer) -> Tensor:
    """Return W and V side by side, as one weight of `joined`."""
    w, v = layer.weight, layer.covariate_weight
    return torch.cat([w.t() if layer.sparse else w, v.t()], dim=1)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(N,), (3, N)])
def test_a_layer_is_a_linear_layer_of_both_its_inputs(shape: tuple[int, ...], sparse: bool) -> None:
    """W x + V s + b is the layer of [x, s]: at birth to the last bit, its values and gradients."""
    layer, whole = Layer(7, 5, 3, seeded(0), sparse), Linear(10, 5, seeded(0))
    assert torch.equal(whole_weight(layer), whole.weight)
    assert torch.equal(layer.bias, whole.bias)
    kept = torch.rand(*shape, 7, generator=seeded(1)) < 0.1
    x, s = (draw(*shape, 7) * kept).float(), draw(N, 3, seed=1).float()
    assert layer.weight.shape == ((7, 5) if sparse else (5, 7))
    torch.testing.assert_close(layer(x, s), whole(joined(x, s)))
    weights = draw(*shape, 5, seed=2).float()
    (layer(x, s) * weights).sum().backward()
    (whole(joined(x, s)) * weights).sum().backward()
    found = [layer.weight.grad, layer.covariate_weight.grad, layer.bias.grad]
    w, v = whole.weight.grad.split([7, 3], dim=1)
    for grad, expected in zip(found, [w.t() if sparse else w, v.t(), whole.bias.grad], strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_an_mlp_is_one_of_layers_of_both_their_inputs(n_layers: int, sparse: bool) -> None:
    net = MLP(4, 8, n_layers, n_covariates=2, sparse=sparse, generator=seeded(0)).double()
    x, s = draw(3, N, 4).requires_grad_(), draw(N, 2, seed=1).requires_grad_()
    h = x
    for layer, norm in zip(net.layers, net.norms, strict=True):
        h = torch.nn.functional.linear(joined(h, s), whole_weight(layer), layer.bias)
        h = norm(h.flatten(0, 1)).view(h.shape).relu()
    torch.testing.assert_close(net(x, s), h)
    inputs = [x, s, *net.parameters()]
    found = torch.autograd.grad(net(x, s).square().sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(h.square().sum(), inputs))


def test_a_new_covariate_is_a_new_row() -> None:
    layer, wider = Layer(4, 8, 2, seeded(0)), Layer(4, 8, 3)
    row = torch.ones(1, 8)
    rows = torch.cat([layer.covariate_weight, row])
    wider.load_state_dict(layer.state_dict() | {"covariate_weight": rows})
    x, s = draw(N, 4).float(), draw(N, 3, seed=1).float()
    torch.testing.assert_close(wider(x, s), layer(x, s[:, :2]) + s[:, 2:] * row)


@pytest.mark.parametrize(("n_covariates", "given"), [(0, 1), (2, None), (2, 0), (2, 1), (2, 3)])
def test_covariates_that_a_layer_was_not_made_for_are_refused(
    n_covariates: int, given: int | None
) -> None:
    layer = Layer(4, 8, n_covariates, seeded(0))
    s = None if given is None else torch.zeros(N, given)
    with pytest.raises(ValueError, match=f"{given or 0} covariates, but .* for {n_covariates}"):
        layer(torch.zeros(N, 4), s)


def mlp(n_layers: int = 2, n_covariates: int = 2) -> MLP:
    return MLP(4, 8, n_layers, n_covariates=n_covariates, generator=seeded(0)).double()


def test_mlp_of_rows_is_that_of_each_row() -> None:
    net, x, s = mlp().eval(), draw(3, N, 4), draw(N, 2, seed=1)
    whole = net(x, s)
    assert whole.shape == (3, N, 8)
    for k in range(3):
        for n in range(N):
            torch.testing.assert_close(whole[k, n], net(x[k, n : n + 1], s[n : n + 1])[0])


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_every_layer_sees_the_covariates(n_layers: int) -> None:
    net, x, s = mlp(n_layers), draw(N, 4), draw(N, 2, seed=1)
    assert len(net.layers) == n_layers
    for layer in net.layers:
        kept = layer.covariate_weight.detach().clone()
        before = net(x, s)
        with torch.no_grad():
            layer.covariate_weight += 1
        assert not torch.allclose(net(x, s), before)
        with torch.no_grad():
            layer.covariate_weight.copy_(kept)


def test_mlp_without_covariates_takes_none() -> None:
    net, x = mlp(n_covariates=0), draw(N, 4)
    assert torch.equal(net(x), net(x, torch.zeros(N, 0, dtype=F64)))


# -- torch's own distributions ---------------------------------------------------------------------


class OfTorch(nn.Module):
    """A posterior of torch's own making: a normal, or a flow on top of it."""

    def __init__(self, flows: bool) -> None:
        super().__init__()
        self.linear, self.flows = nn.Linear(10, 4), flows
        nn.init.zeros_(self.linear.weight)  # no draw so far out that tanh rounds it to 1

    def forward(self, batch: Batch) -> reference.Distribution:
        loc, log_scale = self.linear(batch.x).chunk(2, -1)
        q = reference.Independent(reference.Normal(loc, log_scale.exp()), 1)
        tanh = [reference.transforms.TanhTransform(cache_size=1)]
        return reference.TransformedDistribution(q, tanh) if self.flows else q


class NormalOfTorch(nn.Module):
    def forward(self, batch: Batch) -> reference.Distribution:
        zeros = torch.zeros(len(batch), 2)
        return reference.Independent(reference.Normal(zeros, 1.0), 1)


@pytest.mark.parametrize("flows", [False, True])
def test_conditionals_may_return_distributions_of_torch(flows: bool) -> None:
    likelihood = Decoder(MLP(2, 16), Head(16, 10, BERNOULLI))
    vae, batch = VAE(NormalOfTorch(), OfTorch(flows), likelihood), Batch(torch.ones(7, 10))
    # So wide that most samples are 1 in float32: a flow must be asked by the very ones it drew.
    nn.init.constant_(vae.posterior.linear.bias, 2.0)  # type: ignore[union-attr, arg-type]
    vae.eval()
    elbo(vae.terms(batch, 3)).sum().backward()
    gradient = vae.posterior.linear.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, torch.Tensor)
    assert gradient.abs().sum() > 0
    estimate = log_evidence(vae, batch, 2000)
    with torch.no_grad():
        assert (elbo(vae.terms(batch, 200)) < estimate.value + 5 * estimate.standard_error).all()
    assert vae.sample(5)[1].shape == (5, 10)
