"""The engine at its edges: one row, plain networks, other types, other processes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap

from scvae.core import (
    BERNOULLI,
    CATEGORICAL,
    FULL_GAUSSIAN,
    GAUSSIAN,
    MLP,
    NEGATIVE_BINOMIAL,
    POISSON,
    VAE,
    Batch,
    Bernoulli,
    Categorical,
    Decoder,
    Encoder,
    Family,
    FullGaussian,
    Fused,
    Gaussian,
    Head,
    Joint,
    LogNormal,
    Mixture,
    MixtureOfGaussians,
    NegativeBinomial,
    Poisson,
    Shares,
    StandardNormal,
    VampPrior,
    ZeroInflated,
    aggregated_posterior,
    elbo,
    importance_weighted_bound,
    impute,
    likelihood_regret,
    log_evidence,
    monte_carlo_kl,
    reconstruct,
    refine,
    score_function_elbo,
    variational_em,
)
from scvae.core.networks import BatchNorm, Layer, Linear, WideLinear
from tests.draws import seeded

N, G, D = 6, 10, 2


def ones(n: int = N) -> Tensor:
    return (torch.rand(n, G, generator=seeded(9)) < 0.5).float()


def model(n_covariates: int = 0, prior: nn.Module | None = None) -> VAE:
    g = seeded(1)
    encoder = MLP(G, 16, n_covariates=n_covariates, generator=g)
    decoder = MLP(D, 16, n_covariates=n_covariates, generator=g)
    return VAE(
        prior or StandardNormal(D),
        Encoder(encoder, Head(16, D, GAUSSIAN, g)),
        Decoder(decoder, Head(16, G, BERNOULLI, g)),
    )


# -- one row ---------------------------------------------------------------------------------------


def test_one_row_is_normalised_by_the_running_averages_and_leaves_them() -> None:
    norm = BatchNorm(4)
    norm(torch.randn(20, 4, generator=seeded(0)) * 3 + 1)  # gives the averages something to say
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    row = torch.randn(1, 4, generator=seeded(1))
    trained = norm(row)
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in state.items())
    torch.testing.assert_close(trained, norm.eval()(row))


@pytest.mark.parametrize("verb", ["elbo", "score function", "variational EM", "mixture prior"])
def test_every_verb_that_trains_takes_one_row(verb: str) -> None:
    vae, one = model(prior=MixtureOfGaussians(D, 3) if verb[0] == "m" else None), Batch(ones(1))
    if verb == "variational EM":
        before = vae.posterior.head.linear.weight.clone()
        variational_em(vae, one, rounds=2, generator=seeded(0))
        assert not torch.equal(before, vae.posterior.head.linear.weight)
        return
    ask = score_function_elbo if verb == "score function" else lambda *a: elbo(vae.terms(one))
    ask(vae, one).sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert vae.posterior.network.layers[0].weight.grad.abs().sum() > 0


# -- networks of torch -----------------------------------------------------------------------------


def convolutional() -> VAE:
    down = nn.Sequential(
        nn.Unflatten(-1, (1, 2, 5)), nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(1)
    )
    up = nn.Sequential(
        nn.Linear(D, 10), nn.Unflatten(-1, (1, 2, 5)), nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(1)
    )
    heads = Head(30, D, GAUSSIAN), Head(20, G, BERNOULLI)
    return VAE(StandardNormal(D), Encoder(down, heads[0]), Decoder(up, heads[1]))


def test_networks_of_one_argument_serve_where_there_are_no_covariates() -> None:
    vae, z = convolutional(), torch.randn(3, N, D, generator=seeded(0))
    p = vae.decode(z, Batch(ones()))
    assert p.batch_shape == (3, N)
    for k in range(3):  # a convolution sees the samples as rows
        alone = vae.decode(z[k : k + 1], Batch(ones()))
        torch.testing.assert_close(p.logits[k], alone.logits[0])
    elbo(vae.terms(Batch(ones()), 3, seeded(0))).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float64], ids=str)
@pytest.mark.parametrize("family", [BERNOULLI, POISSON], ids=["ones", "counts"])
@pytest.mark.parametrize("missing", [False, True])
def test_data_of_any_type_mean_the_same(dtype: torch.dtype, family: object, missing: bool) -> None:
    vae = model()
    vae.likelihood.head = Head(16, G, family, seeded(2))
    observed = torch.rand(N, G, generator=seeded(3)) < 0.7 if missing else None
    found = []
    for x in (ones(), ones().to(dtype)):
        vae.zero_grad()
        bound = elbo(vae.terms(Batch(x, observed=observed), 2, seeded(0)))
        bound.sum().backward()
        found.append([bound.float(), *(p.grad for p in vae.parameters())])
        vae.load_state_dict(vae.state_dict())
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer", [Linear(4, 3), Layer(4, 3), Layer(4, 3, 2), Layer(4, 3, sparse=True), WideLinear(4, 3)]
)
def test_a_wrong_width_names_both_numbers_and_the_layer(layer: nn.Module) -> None:
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=rf"{kind}\(.*4.*3.*\) takes 4 columns.* given 7: \(5, 7"):
        layer(torch.zeros(5, 7))


# -- conditions of samples -------------------------------------------------------------------------


@dataclass(frozen=True)
class Exposed(Batch):
    log_exposure: Tensor | None = None


class Rates(nn.Module):
    def forward(self, z: Tensor, batch: Exposed) -> Poisson:
        assert batch.log_exposure is not None
        return Poisson(torch.zeros(G) + batch.log_exposure.expand(*z.shape[:-1], 1))


class Conditional(nn.Module):
    def forward(self, batch: Batch) -> Gaussian:
        assert batch.s is not None
        return Gaussian(batch.s[:, :D], torch.tensor(1e-6))


def test_samples_are_conditional_on_every_field_of_a_batch() -> None:
    vae = VAE(StandardNormal(D), Encoder(MLP(G, 8), Head(8, D, GAUSSIAN)), Rates())
    exposure = torch.tensor([0.0, 5.0, 9.0])[:, None]
    told = Exposed(torch.zeros(3, 0), log_exposure=exposure)
    z, x = vae.sample(batch=told, generator=seeded(0))
    assert z.shape == (3, D)
    off = (x.mean(1) - exposure[:, 0].exp()).abs()
    assert (off < 5 * (exposure[:, 0].exp() / G).sqrt()).all()
    _, many = vae.sample(400, generator=seeded(0), batch=told[1])
    assert many.shape == (400, G)
    assert (many.mean() - exposure[1].exp()).abs() < 1


def test_one_row_of_covariates_is_for_all_samples_and_other_numbers_are_refused() -> None:
    vae = VAE(Conditional(), model().posterior, model(3).likelihood)
    z, x = vae.sample(5, torch.eye(3)[1:2])
    assert x.shape == (5, G)
    torch.testing.assert_close(z, torch.tensor([0.0, 1.0]).expand(5, 2), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="n=5 samples for 3 rows: give 5 rows, or 1"):
        vae.sample(5, torch.eye(3))
    with pytest.raises(ValueError, match="How many samples"):
        vae.sample()
    with pytest.raises(ValueError, match="Both s and batch="):
        vae.sample(5, torch.eye(3), batch=Batch(torch.zeros(5, 0)))


def test_samples_may_come_from_the_aggregated_posterior_and_be_decoded_to_means() -> None:
    vae = model()
    with torch.no_grad():
        vae.posterior.head.linear.bias[:D] = 40.0  # far from where the prior is
    q = aggregated_posterior(vae, Batch(ones()))
    z, x = vae.sample(300, generator=seeded(0), source=q)
    assert ((z.mean(0) - q.mean).abs() < 5 * q.variance.sqrt() / 300**0.5).all()
    same, means = vae.sample(300, generator=seeded(0), source=q, means=True)
    assert torch.equal(z, same)
    torch.testing.assert_close(means, vae.eval().decode(z[None], Batch(ones())[:0]).mean[0])
    assert set(x.unique().tolist()) <= {0.0, 1.0}


def test_pseudo_inputs_carry_what_the_posterior_is_conditional_on() -> None:
    class Shifted(nn.Module):
        def forward(self, batch: Exposed) -> Gaussian:
            assert batch.log_exposure is not None
            return Gaussian(batch.x[:, :D] + batch.log_exposure, torch.ones(D))

    given = Exposed(ones(3), log_exposure=torch.tensor([[1.0], [2.0], [3.0]]))
    prior = VampPrior(Shifted(), given)
    p = prior(Exposed(ones(), log_exposure=torch.zeros(N, 1)))
    torch.testing.assert_close(p.components.loc[0], given.x[:, :D] + given.log_exposure)
    assert [name for name, _ in prior.named_parameters()] == ["pseudo_inputs", "logits"]
    assert {t.dtype for t in prior.double().told} == {torch.float64}
    again = VampPrior(Shifted(), given.map(torch.zeros_like))
    again.load_state_dict(VampPrior(Shifted(), given).state_dict())
    torch.testing.assert_close(again(given).components.loc, p.components.loc[:3])


# -- what holds a model ----------------------------------------------------------------------------


def test_forward_is_what_hooks_and_compilers_hold() -> None:
    vae, seen = model(), []
    vae.register_forward_hook(lambda module, given, terms: seen.append(terms))
    vae.eval()
    terms = vae(Batch(ones()), 3, seeded(0))
    assert seen == [terms]
    expected = elbo(vae.terms(Batch(ones()), 3, seeded(0)))
    assert torch.equal(elbo(vae(Batch(ones()), 3, seeded(0))), expected)


@pytest.mark.parametrize(
    "vae",
    [
        model(),
        model(3, MixtureOfGaussians(D, 4)),
        convolutional(),
        VAE(StandardNormal(D), Fused([model().posterior]), Joint([model().likelihood])),
        VAE(VampPrior(model().posterior, ones(2)), model().posterior, model().likelihood),
    ],
    ids=["plain", "covariates", "convolutions", "joint", "vamp"],
)
def test_a_model_survives_a_pickle(vae: VAE) -> None:
    again = pickle.loads(pickle.dumps(vae))
    s = torch.ones(4, 3) if isinstance(vae.prior, MixtureOfGaussians) else None
    (z, x), (same_z, same_x) = (m.sample(4, s, seeded(0)) for m in (vae, again))
    assert torch.equal(z, same_z)
    assert torch.equal(*(t[0] if isinstance(t, tuple) else t for t in (x, same_x)))


# -- numbers of samples ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda vae, batch: vae.terms(batch, 0),
        lambda vae, batch: VAE(vae.prior, Mixed(vae), vae.likelihood).terms(batch, 0),
        lambda vae, batch: log_evidence(vae, batch, 0),
        lambda vae, batch: reconstruct(vae, batch, 0),
        lambda vae, batch: refine(vae, batch, samples=0, steps=1),
        lambda vae, batch: likelihood_regret(vae, batch, 0),
        lambda vae, batch: impute(vae, Batch(batch.x, observed=batch.x > 0), 0, steps=1),
    ],
)
def test_no_samples_are_refused(ask: object) -> None:
    with pytest.raises(ValueError, match="samples=0, but it must be at least 1"):
        ask(model(), Batch(ones()))


def test_a_spread_takes_two_samples() -> None:
    q = model().encode(Batch(ones()))
    for ask in (lambda: monte_carlo_kl(q, q, 1), lambda: score_function_elbo(model(), ones(), 1)):
        with pytest.raises(ValueError, match="samples=1, but it must be at least 2"):
            ask()


class Mixed(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: Batch) -> Mixture:
        q = self.vae.encode(batch)
        return Mixture(torch.zeros(2), Gaussian(q.loc[:, None], q.scale[:, None]))


# -- discrete latents ------------------------------------------------------------------------------


class Ones(nn.Module):
    """A prior of independent ones, or of one category."""

    def __init__(self, kind: type, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.logits = nn.Parameter(torch.randn(width, generator=seeded(5), dtype=torch.float64))

    def forward(self, batch: Batch) -> Bernoulli | Categorical:
        return self.kind(self.logits.expand(len(batch), -1))


def discrete(kind: type, width: int = 3) -> VAE:
    family = BERNOULLI if kind is Bernoulli else CATEGORICAL
    encoder, decoder = (
        MLP(n, 8, normalise=False, generator=seeded(i)) for i, n in enumerate((G, width))
    )
    posterior = Encoder(encoder, Head(8, width, family, seeded(2)))
    likelihood = Decoder(decoder, Head(8, G, BERNOULLI, seeded(3)))
    return VAE(Ones(kind, width), posterior, likelihood).double()


@pytest.mark.parametrize("kind", [Bernoulli, Categorical])
def test_all_states_give_the_exact_evidence_bound_and_gradient(kind: type) -> None:
    vae, batch = discrete(kind), Batch(ones().double())
    terms, parameters = vae.enumerated(batch), list(vae.parameters())
    assert len(terms.z) == (8 if kind is Bernoulli else 3)
    # By hand, state by state.
    q, p = vae.encode(batch), vae.prior(batch)
    evidence, bound = torch.zeros(N).double(), torch.zeros(N).double()
    for code in range(8):
        state = torch.tensor([code & 1, code >> 1 & 1, code >> 2 & 1]).double().expand(N, 3)
        if kind is Categorical and state[0].sum() != 1:
            continue
        joint = vae.log_likelihood(state[None], batch)[0] + p.log_prob(state)
        evidence = evidence + joint.exp()
        bound = bound + q.log_prob(state).exp() * (joint - q.log_prob(state))
    for kl in (False, True):
        torch.testing.assert_close(elbo(terms, sampled_kl=kl), bound)
    torch.testing.assert_close(importance_weighted_bound(terms), evidence.log())
    exact = torch.autograd.grad(bound.sum(), parameters, retain_graph=True)
    for found in (elbo(terms), elbo(vae.enumerated(batch), sampled_kl=True)):
        gradients = torch.autograd.grad(found.sum(), parameters)
        for one, other in zip(gradients, exact, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [Bernoulli, Categorical])
def test_the_score_function_gradient_is_that_of_all_states_on_average(kind: type) -> None:
    vae, batch = discrete(kind), Batch(ones().double())
    weight = vae.posterior.head.linear.bias
    (exact,) = torch.autograd.grad(elbo(vae.enumerated(batch)).sum(), weight)
    noise = seeded(0)
    draws = torch.stack(
        [
            torch.autograd.grad(score_function_elbo(vae, batch, 40, noise).sum(), weight)[0]
            for _ in range(200)
        ]
    )
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 200**0.5).all()


def test_states_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(TypeError, match="The states of a Gaussian cannot be counted"):
        model().enumerated(Batch(ones()))


def test_a_state_that_is_ruled_out_adds_nothing() -> None:
    vae, batch = discrete(Categorical), Batch(ones().double())
    with torch.no_grad():
        vae.posterior.head.linear.bias[2] = -torch.inf
    bound = elbo(vae.enumerated(batch), sampled_kl=True)
    assert bound.isfinite().all()
    torch.testing.assert_close(bound, elbo(vae.enumerated(batch)))


# -- autocast --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [BERNOULLI, POISSON, NEGATIVE_BINOMIAL, GAUSSIAN])
@pytest.mark.parametrize("posterior", [GAUSSIAN, FULL_GAUSSIAN])
def test_autocast_rounds_the_products_of_networks_alone(family: Family, posterior: Family) -> None:
    vae = model(prior=MixtureOfGaussians(D, 3, generator=seeded(4))).eval()
    vae.posterior.head = Head(16, D, posterior, seeded(2))
    vae.likelihood.head = Head(16, G, family, seeded(3))
    plain = vae.terms(Batch(ones()), 2, seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        terms = vae.terms(Batch(ones()), 2, seeded(0))
        bound = elbo(terms)
    assert terms.z.dtype == bound.dtype == torch.float32
    torch.testing.assert_close(terms.z, plain.z, rtol=0.02, atol=0.02)
    torch.testing.assert_close(bound, elbo(plain), rtol=0.02, atol=0.05)
    bound.sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# -- torch.func ------------------------------------------------------------------------------------

E3, Z3 = torch.eye(3), torch.zeros(3)
LAWS = {
    "Gaussian": lambda a: Gaussian(a, a.exp()),
    "FullGaussian": lambda a: FullGaussian(a, E3 * a.exp()),
    "LogNormal": lambda a: LogNormal(a, a.exp()),
    "Bernoulli": Bernoulli,
    "Categorical": Categorical,
    "Poisson": Poisson,
    "NegativeBinomial": lambda a: NegativeBinomial(a, a),
    "of Shares": lambda a: NegativeBinomial(Shares(a, torch.ones(1)), a),
    "ZeroInflated": lambda a: ZeroInflated(Poisson(a), a),
    "zero-inflated NB": lambda a: ZeroInflated(NegativeBinomial(a, a), a),
    "Mixture": lambda a: Mixture(a, Gaussian(a[:, None] + Z3, torch.ones(3))),
    "Mixture of Poissons": lambda a: Mixture(a, Poisson(a[:, None] + Z3)),
    "Mixture of full": lambda a: Mixture(a, FullGaussian(a[:, None] + Z3, E3.to(a))),
}


@pytest.mark.parametrize("name", LAWS)
def test_torch_func_transforms_every_law(name: str) -> None:
    x = torch.tensor([1.0, 0.0, 0.0]) if name in ("Categorical", "Bernoulli") else E3[1] + 1

    def log_prob(a: Tensor) -> Tensor:
        return LAWS[name](a).log_prob(x)

    many = torch.randn(4, 3, generator=seeded(0), dtype=torch.float64)
    values, slopes = vmap(log_prob)(many), vmap(grad(log_prob))(many)
    for a, value, slope in zip(many, values, slopes, strict=True):
        leaf = a.clone().requires_grad_()
        alone = log_prob(leaf)
        (expected,) = torch.autograd.grad(alone, leaf)
        torch.testing.assert_close(value, alone.detach())
        torch.testing.assert_close(slope, expected)
    _, moved = jvp(log_prob, (many[0],), (many[1],))
    torch.testing.assert_close(moved, slopes[0] @ many[1])
    step = 1e-5 * E3.double()
    near = [grad(log_prob)(many[0] + s) - grad(log_prob)(many[0] - s) for s in step]
    torch.testing.assert_close(
        hessian(log_prob)(many[0]), torch.stack(near) / 2e-5, rtol=1e-5, atol=1e-6
    )
