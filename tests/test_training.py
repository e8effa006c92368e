"""The training loop: seeds, schedules, best weights, early stopping, and what it leaves alone."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from scvae.core.batch import Batch
from scvae.core.distributions import Gaussian
from scvae.core.networks import Linear
from scvae.core.objectives import elbo
from scvae.core.priors import StandardNormal
from scvae.core.vae import VAE, Terms
from scvae.errors import ConfigError, ScvaeError, TrainingError
from scvae.train.average import POWER, snapshot, update_average, with_weights
from scvae.train.checks import NotFiniteError, check_finite
from scvae.train.deterministic import deterministic_algorithms
from scvae.train.history import History
from scvae.train.loop import Step, evaluate, step_of, train
from scvae.train.optimizer import optimizer_of
from scvae.train.ranks import Ranks
from scvae.train.run import SLOWER, Run, State
from scvae.train.schedule import Schedule
from tests.draws import seeded

N, G, D = 160, 5, 2
law = settings(deadline=None, derandomize=True, max_examples=100)


def both(seed: int = 0) -> tuple[Generator, Generator]:
    """Return the generators of the order and of the noise."""
    return seeded(2 * seed), seeded(2 * seed + 1)


# -- a small model: x | z ~ N(Wz, s^2 I) with W known, and a linear encoder to be learned ----------

W = torch.tensor([[1.5, 0, 1, -1, 0.5], [0, 1.0, -1, -1, 0]])
NOISE = 0.5
PLAIN = {"learning_rate": 0.05, "weight_decay": 0.0}


def data(n: int = N, seed: int = 0) -> Tensor:
    generator = seeded(seed)
    z = torch.randn(n, D, generator=generator)
    return z @ W + NOISE * torch.randn(n, G, generator=generator)


class Encoder(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.loc = Linear(G, D, seeded(seed))
        self.log_scale = nn.Parameter(torch.zeros(D))

    def forward(self, batch: Batch) -> Gaussian:
        return Gaussian(self.loc(batch.x), self.log_scale.exp())


class Decoder(nn.Module):
    def forward(self, z: Tensor, batch: Batch) -> Gaussian:
        return Gaussian(z @ W, torch.tensor(NOISE))


def build(seed: int = 0) -> VAE:
    return VAE(StandardNormal(D), Encoder(seed), Decoder())


def batch_of(x: Tensor) -> Batch:
    return Batch(x, x.new_zeros(len(x), 0))


def parts(x: Tensor, size: int = 32) -> list[Batch]:
    return [batch_of(part) for part in x.split(size)]


def shuffled(x: Tensor) -> Callable[[Generator], list[Batch]]:
    return lambda order: parts(x[torch.randperm(len(x), generator=order)])


def fit(
    seed: int = 0,
    steps: int = 60,
    x: Tensor | None = None,
    n_held_out: int = N,
    **options: float,
) -> tuple[VAE, History]:
    """Train on `x` and hold out another draw; everything random is of `seed`."""
    vae = build(seed)
    x = data() if x is None else x
    schedule = Schedule(steps, **PLAIN, **{"patience": steps, **options})
    held_out = lambda: parts(data(n_held_out, seed=1))  # noqa: E731
    return vae, train(vae, shuffled(x), held_out, schedule, *both(seed))


def advance(run: Run, steps: int) -> None:
    """Take steps, as `train` does between evaluations."""
    step = step_of(run)
    for _ in range(steps):
        minibatch = run.next_minibatch()
        run.count(step(minibatch, run.rate, run.beta), len(minibatch))


def weights(vae: VAE) -> Tensor:
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


# -- seeds -----------------------------------------------------------------------------------------


def measured(history: History) -> tuple:
    return history.step, history.train, history.validation, history.beta, history.best_step


def test_the_same_seed_gives_the_same_bits() -> None:
    (first, one), (second, two) = fit(seed=3), fit(seed=3)
    assert torch.equal(weights(first), weights(second))
    assert measured(one) == measured(two)


def test_another_seed_gives_other_weights() -> None:
    (first, one), (second, two) = fit(seed=3), fit(seed=4)
    assert not torch.equal(weights(first), weights(second))
    assert one.train != two.train


def global_states() -> tuple:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


def test_global_random_states_are_neither_read_nor_changed() -> None:
    before = global_states()
    vae, _ = fit()
    assert global_states() == before
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        assert torch.equal(weights(fit()[0]), weights(vae))


@pytest.mark.parametrize("other", [(1, 7), (7, 1)], ids=["order", "noise"])
def test_the_order_and_the_noise_are_drawn_each_from_its_own_generator(
    other: tuple[int, int],
) -> None:
    orders, noises = [], []
    for seeds in ((1, 1), other):
        seen, drawn = [], []

        def epoch(order: Generator, seen: list[Tensor] = seen) -> Iterator[Batch]:
            for batch in shuffled(data())(order):
                seen.append(batch.x)
                yield batch

        def keep(run: Run, drawn: list[Tensor] = drawn) -> None:
            drawn.append(run.state().tensors["random.noise"])

        schedule, generators = Schedule(12, evaluations=4), map(seeded, seeds)
        held_out = lambda: parts(data(seed=1))  # noqa: E731
        train(build(), epoch, held_out, schedule, *generators, keep=keep)
        orders.append(torch.cat(seen))
        noises.append(torch.cat(drawn))
    assert torch.equal(*orders) == (other[0] == 1)
    assert torch.equal(*noises) == (other[1] == 1)


# -- what is learned -------------------------------------------------------------------------------


def test_the_bound_meets_the_log_evidence() -> None:
    # The encoder can be the exact posterior but for its correlation, so its best bound is known.
    x, precision = data(seed=1), torch.eye(D) + W @ W.T / NOISE**2
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(G), W.T @ W + NOISE**2 * torch.eye(G)
    )
    lost = 0.5 * (precision.diagonal().log().sum() - precision.logdet())  # mean-field KL
    best = (marginal.log_prob(x).mean() - lost).item()
    vae, _ = fit(steps=600, x=data(2000, seed=2), n_held_out=4000)
    bounds = [evaluate(vae, parts(x), seed=seed) for seed in range(200)]
    error = np.std(bounds) / math.sqrt(len(bounds))
    assert best - 0.1 < np.mean(bounds) < best + 5 * error
    scale = vae.posterior.log_scale.detach().exp()
    torch.testing.assert_close(scale, precision.diagonal().rsqrt(), rtol=0.05, atol=0)


def test_training_improves_the_held_out_bound() -> None:
    vae = build()
    before = evaluate(vae, parts(data(seed=1)))
    _, history = fit(steps=200)
    assert history.best > before + 1


# -- the best weights and early stopping -----------------------------------------------------------


def spoiling(vae: VAE, after: int) -> Callable[[Generator], Iterator[Batch]]:
    """Return an epoch that pushes the weights away at every step after the first `after`."""
    seen = 0

    def epoch(order: Generator) -> Iterator[Batch]:
        nonlocal seen
        for batch in parts(data()):
            seen += 1
            if seen > after:
                vae.posterior.loc.weight.detach().add_(0.5)
            yield batch

    return epoch


def test_the_best_weights_come_back() -> None:
    schedule = Schedule(120, **PLAIN, patience=120)
    vae = build()
    history = train(vae, spoiling(vae, 70), lambda: parts(data(seed=1)), schedule, *both())
    assert history.validation[-1] < history.best - 1  # the last weights were worse
    assert evaluate(vae, parts(data(seed=1))) == history.best
    assert history.best_step == history.step[int(np.argmax(history.validation))] <= 70
    assert not history.stopped_early


@pytest.mark.parametrize("patience", [1, 3, 8])
def test_patience_counts_evaluations_since_the_best(patience: int) -> None:
    schedule = Schedule(400, **PLAIN, patience=patience)
    vae = build()
    history = train(vae, spoiling(vae, 100), lambda: parts(data(seed=1)), schedule, *both())
    assert history.stopped_early
    assert history.step[-1] < 400
    assert history.step[-1] - history.best_step == patience * schedule.every
    assert evaluate(vae, parts(data(seed=1))) == history.best


def test_best_is_never_below_any_evaluation_and_all_are_recorded() -> None:
    _, history = fit(steps=100)
    assert history.best == max(history.validation)
    assert history.best_step in history.step
    lengths = {len(v) for v in (history.step, history.train, history.validation, history.beta)}
    assert lengths == {len(history.step)} == {34}
    assert history.step == sorted(set(history.step))
    assert history.step[-1] == 100
    assert not history.stopped_early


@pytest.mark.parametrize("steps", [1, 2, 7, 39, 40, 41, 99])
def test_exactly_the_stated_steps_are_taken(steps: int) -> None:
    taken = 0

    def epoch(order: Generator) -> Iterator[Batch]:
        nonlocal taken
        for batch in parts(data()):
            taken += 1
            yield batch

    schedule = Schedule(steps, patience=steps)
    history = train(build(), epoch, lambda: parts(data(seed=1)), schedule, *both())
    assert history.step[-1] == taken == steps
    assert history.beta[-1] == 1


def test_every_evaluation_is_reported() -> None:
    reported: list[int] = []
    schedule = Schedule(40, evaluations=8)
    history = train(
        build(),
        lambda order: parts(data()),
        lambda: parts(data(seed=1)),
        schedule,
        *both(),
        lambda so_far: reported.append(so_far.step[-1]),
    )
    assert reported == history.step == [5, 10, 15, 20, 25, 30, 35, 40]


def test_speed_is_cells_over_seconds() -> None:
    _, history = fit(steps=20)
    assert history.cells_per_second * history.seconds == pytest.approx(20 * 32)


# -- the objective ---------------------------------------------------------------------------------


@law
@given(st.integers(1, 3_000_000), st.floats(0, 1))
def test_beta_reaches_one_at_the_stated_share_of_any_number_of_steps(n: int, share: float) -> None:
    schedule, reached = Schedule(n, warmup=share), round(share * n)
    assert schedule.beta(max(reached, 1) - 1) == 1
    assert schedule.beta(n - 1) == 1
    assert schedule.beta(0) > 0
    if reached >= 2:
        assert schedule.beta(reached - 2) < 1
        half = schedule.beta(reached // 2)
        assert half == pytest.approx((reached // 2 + 1) / reached)


@law
@given(st.integers(1, 3000), st.floats(1e-5, 1))
def test_rate_rises_to_its_peak_and_falls_to_zero(steps: int, peak: float) -> None:
    schedule = Schedule(steps, peak)
    rates = [schedule.rate(step) for step in range(0, steps, max(1, steps // 50))]
    top = schedule.rate(math.ceil(0.3 * steps)) if steps > 1 else peak
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert rates[0] == pytest.approx(0.04 * peak)
    assert schedule.rate(steps) == pytest.approx(0, abs=1e-12)
    if steps >= 50:
        assert top == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize(("share", "total"), [(0.0, 100), (0.1, 100), (0.25, 8), (1.0, 3)])
def test_the_last_beta_of_a_fit_is_one(share: float, total: int) -> None:
    _, history = fit(steps=total, warmup=share)
    assert history.beta[-1] == 1
    assert history.beta == sorted(history.beta)


class Constant(nn.Module):
    """A likelihood of log p(x | z) = theta * x: the bound and its gradient are known."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def forward(self, z: Tensor, batch: Batch) -> Constant:
        self.modes.append(self.training)
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        return (self.theta * x.sum(-1))[None]


class Idle(nn.Module):
    """A posterior whose weights have a gradient, of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, batch: Batch) -> Gaussian:
        loc = 0 * self.weight[:1].expand(len(batch.x), 1)
        return Gaussian(loc, torch.ones_like(loc))


class Fixed(nn.Module):
    def __init__(self, loc: float) -> None:
        super().__init__()
        self.loc = loc

    def forward(self, batch: Batch) -> Gaussian:
        loc = torch.full((len(batch.x), 1), self.loc)
        return Gaussian(loc, torch.ones_like(loc))


def constant(kl: float = 0.0) -> VAE:
    """Return a VAE of elbo(x) = sum x - beta * kl."""
    return VAE(Fixed(0.0), Fixed(math.sqrt(2 * kl)), Constant())


def test_evaluate_is_the_mean_over_cells_not_over_parts() -> None:
    x = torch.tensor([[1.0], [2.0], [3.0], [10.0]])
    assert evaluate(constant(), [batch_of(x[:3]), batch_of(x[3:])]) == pytest.approx(4)
    assert evaluate(constant(kl=1.5), parts(x, 2)) == pytest.approx(2.5)


def test_evaluate_of_several_processes_is_the_mean_over_the_cells_of_all() -> None:
    class Other(Ranks):
        device = "cpu"

        def sum(self, values: torch.Tensor) -> None:
            values += torch.tensor([6.0, 2.0])

    x = torch.tensor([[1.0], [2.0], [7.0]])
    assert evaluate(constant(), [batch_of(x)], ranks=Other(0, 2)) == pytest.approx(16 / 5)
    assert evaluate(constant(), [], ranks=Other(1, 2)) == pytest.approx(3)


def test_evaluate_uses_the_same_noise_each_time() -> None:
    vae, x = build(), parts(data())
    assert evaluate(vae, x) == evaluate(vae, x) != evaluate(vae, x, seed=1)


def test_the_trained_bound_is_weighted_and_the_held_out_bound_is_not() -> None:
    ones = [batch_of(torch.zeros(4, 1))]
    schedule = Schedule(20, warmup=0.5, evaluations=20, patience=20)
    history = train(constant(kl=3.0), lambda order: ones, lambda: ones, schedule, *both())
    beta = [min(1, step / 10) for step in range(1, 21)]
    assert history.beta == pytest.approx(beta)
    assert history.train == pytest.approx([-3 * b for b in beta], rel=1e-5)
    assert history.validation == pytest.approx([-3.0] * 20)


# -- the average of the weights --------------------------------------------------------------------


def running_average(values: np.ndarray) -> np.ndarray:
    """Return the average of weights of steps 1, 2, ..., updated after every step."""
    average = [values[0]]
    for step in range(2, len(values) + 1):
        old = ((step - 1) / step) ** (POWER + 1)
        average.append(old * average[-1] + (1 - old) * values[step - 1])
    return np.array(average)


@law
@given(updates=st.lists(st.integers(1, 50), min_size=1, max_size=20, unique=True))
def test_the_average_weights_a_step_by_a_power_of_its_number(updates: list[int]) -> None:
    """Between updates the weights stand still, so that the integral of t^4 is exact."""
    vae, updates = build(), sorted(updates)
    average, last, expected, total = snapshot(vae), 0, 0.0, 0.0
    for step in updates:
        with torch.no_grad():
            vae.posterior.loc.weight.fill_(step)
        update_average(average, vae, last, step)
        share = step ** (POWER + 1) - last ** (POWER + 1)
        expected, total, last = expected + share * step, total + share, step
    found = average["posterior.loc.weight"].double()
    np.testing.assert_allclose(found.numpy(), expected / total, rtol=1e-5)


def test_what_is_kept_is_the_average() -> None:
    vae, seen = build(), []
    kept: list[dict[str, Tensor]] = []
    train(
        vae,
        shuffled(data()),
        lambda: parts(data(seed=1)),
        Schedule(20, evaluations=1, patience=20, **PLAIN),
        *both(),
        keep=lambda run: (seen.append(snapshot(run.vae)), kept.append(run.average)),  # type: ignore[func-returns-value,arg-type]
    )
    for name, weight in vae.state_dict().items():
        torch.testing.assert_close(weight, kept[-1][name], rtol=0, atol=0)
        assert not torch.equal(weight, seen[-1][name])  # training itself goes on from its own


def test_counters_are_copied_and_statistics_averaged() -> None:
    norm = nn.BatchNorm1d(2)
    vae = VAE(StandardNormal(2), norm, Decoder())
    average = snapshot(vae)
    norm(torch.full((4, 2), 8.0))
    update_average(average, vae, 1, 2)
    assert average["posterior.num_batches_tracked"] == 1
    new = float(norm.running_mean[0])
    assert average["posterior.running_mean"][0].item() == pytest.approx(new * (1 - 0.5**5))


def test_other_weights_are_lent_and_taken_back_even_after_an_error() -> None:
    vae, other = build(0), snapshot(build(1))
    own, place = snapshot(vae), vae.posterior.loc.weight.data_ptr()
    lent = []

    def fails() -> None:
        with with_weights(vae, other):
            lent.append(vae.posterior.loc.weight.clone())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(lent[0], other["posterior.loc.weight"])
    assert all(torch.equal(own[name], now) for name, now in vae.state_dict().items())
    assert vae.posterior.loc.weight.data_ptr() == place  # a captured graph writes there


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
def test_weight_decay_shrinks_the_posterior_alone(decay: float) -> None:
    vae, zeros = VAE(Fixed(0.0), Idle(), Constant()), [batch_of(torch.zeros(4, 1))]
    schedule = Schedule(30, learning_rate=0.02, weight_decay=decay)
    train(vae, lambda order: zeros, lambda: zeros, schedule, *both())
    shrunk = np.cumprod([1 - schedule.rate(step) * decay for step in range(30)])
    kept = float(running_average(shrunk)[-1])
    torch.testing.assert_close(vae.posterior.weight.detach(), torch.full((3,), kept))
    assert vae.likelihood.theta.item() == 1


def test_the_train_entry_is_the_mean_since_the_last_one() -> None:
    def epoch(order: Generator) -> Iterator[Batch]:
        for value in (1.0, 2.0, 3.0, 4.0, 5.0, 7.0):
            yield batch_of(torch.full((2, 1), value))

    schedule = Schedule(6, learning_rate=1e-30, weight_decay=0, evaluations=3)
    history = train(constant(), epoch, lambda: parts(torch.ones(2, 1)), schedule, *both())
    assert history.train == pytest.approx([1.5, 3.5, 6.0])


def test_the_model_trains_in_train_mode_and_is_judged_and_left_in_eval_mode() -> None:
    vae, schedule = constant(), Schedule(3, evaluations=3)
    cells = [batch_of(torch.zeros(4, 1))]
    train(vae, lambda order: cells, lambda: cells, schedule, *both())
    assert vae.likelihood.modes == [True, False] * 3
    assert not vae.training


def test_epochs_follow_one_another() -> None:
    started = 0

    def epoch(order: Generator) -> list[Batch]:
        nonlocal started
        started += 1
        return [batch_of(torch.full((2, G), float(started)))] * 2

    run = Run(build(), epoch, Schedule(40), *both())
    assert [run.next_minibatch().x[0, 0].item() for _ in range(5)] == [1, 1, 2, 2, 3]


# -- failures --------------------------------------------------------------------------------------


def quietly(run: Callable[[], History]) -> History:
    """Return what `run` returns, with its warnings of rollbacks swallowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_cell_ends_training_with_step_and_gene(value: float) -> None:
    x = data()
    x[7, 2] = value
    named = r"after step \d+, the reconstruction, gene '2'.* was not finite.*scvae\.fit\(adata"
    with pytest.raises(TrainingError, match=named) as e:
        quietly(lambda: fit(x=x)[1])
    assert isinstance(e.value, ScvaeError)
    assert isinstance(e.value, RuntimeError)


def test_one_bad_moment_sends_training_back_to_the_best_weights() -> None:
    seen = 0

    def epoch(order: Generator) -> Iterator[Batch]:
        nonlocal seen
        for batch in parts(data()):
            seen += 1
            yield batch_of(batch.x * math.nan) if seen == 30 else batch

    vae, schedule = build(), Schedule(80, evaluations=8, patience=80)
    with pytest.warns(UserWarning, match=r"After step 30, the training ELBO was not finite"):
        history = train(vae, epoch, lambda: parts(data(seed=1)), schedule, *both())
    assert history.rollbacks == [30]
    assert all(math.isfinite(value) for value in history.train + history.validation)
    assert history.best_step > 30  # it went on, and got better
    assert evaluate(vae, parts(data(seed=1))) == history.best


def test_a_rollback_lowers_the_rate_and_looks_at_every_step() -> None:
    run = Run(build(), lambda order: parts(data()), Schedule(40), *both())
    advance(run, 5)
    before = {name: value.clone() for name, value in run.best.items()}
    run.roll_back()
    assert run.scale == SLOWER
    for name, value in run.vae.state_dict().items():
        assert torch.equal(value, before[name])
    run.epoch = lambda order: [batch_of(torch.full((4, G), math.nan))]
    run._minibatches = iter(())
    with pytest.raises(NotFiniteError) as e:
        advance(run, 1)
    assert (e.value.term, e.value.entry) == ("reconstruction", 0)
    for name, value in run.vae.state_dict().items():  # the step was not taken
        assert torch.equal(value, before[name])


def test_no_step_is_added_after_a_bad_moment_at_the_end() -> None:
    seen = 0

    def epoch(order: Generator) -> Iterator[Batch]:
        nonlocal seen
        for batch in parts(data()):
            seen += 1
            yield batch_of(batch.x * math.nan) if seen == 38 else batch

    vae, schedule = build(), Schedule(40, evaluations=8, patience=80)
    with pytest.warns(UserWarning, match=r"After step 40, the training ELBO was not finite"):
        history = train(vae, epoch, lambda: parts(data(seed=1)), schedule, *both())
    assert seen == 40
    assert (history.rollbacks, history.step[-1]) == ([40], 35)
    assert not history.stopped_early
    assert evaluate(vae, parts(data(seed=1))) == history.best


def test_the_hook_sees_the_gradients_before_any_weight_moves() -> None:
    vae, minibatch, seen = build(), batch_of(data()), []
    before = weights(vae)

    def hook(of: VAE, given: Batch, terms: Terms, bound: Tensor) -> None:
        assert (of, given) == (vae, minibatch)
        assert torch.equal(weights(of), before)
        assert all(p.grad is not None and p.grad.any() for p in of.parameters())
        seen.append((bound.item(), elbo(terms, 0.7).mean().item()))
        for parameter in of.parameters():
            parameter.grad.zero_()

    step = Step(vae, optimizer_of(vae), 0.0, seeded(1), hook)
    bound = step(minibatch, 1e-2, 0.7).item()
    assert seen == [(bound, bound)]
    assert torch.equal(weights(vae), before)  # the gradients that the hook left were taken


def test_a_checked_step_is_the_step() -> None:
    bounds = []
    for hook in (None, check_finite):
        vae = build()
        step = Step(vae, optimizer_of(vae), 0.01, seeded(1), hook)
        steps = [step(batch, 1e-2, 0.7).item() for batch in parts(data())]
        bounds.append([*steps, *(p.sum().item() for p in vae.parameters())])
    assert bounds[0] == bounds[1]


def test_non_finite_held_out_cells_are_named_too() -> None:
    broken = [batch_of(torch.full((4, G), math.nan))]
    for steps in (1, 2, 40):
        with pytest.raises(TrainingError, match="the held-out ELBO was not finite"):
            quietly(
                lambda steps=steps: train(
                    build(), lambda order: parts(data()), lambda: broken, Schedule(steps), *both()
                )
            )


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 5, 37])
def test_ctrl_c_keeps_the_best_weights_so_far(at: int) -> None:
    taken = 0

    def epoch(order: Generator) -> Iterator[Batch]:
        nonlocal taken
        for batch in parts(data()):
            taken += 1
            if taken == at:
                raise KeyboardInterrupt
            yield batch

    vae, schedule = build(), Schedule(400, patience=400)
    with pytest.warns(UserWarning, match="Interrupted"):
        history = train(vae, epoch, lambda: parts(data(seed=1)), schedule, *both())
    assert history.interrupted
    assert not vae.training
    assert evaluate(vae, parts(data(seed=1))) == history.best


def states_of(schedule: Schedule) -> tuple[list[State], VAE, History]:
    """Return the states after every step of a run, and what it came to."""
    states: list[State] = []
    vae = build()
    history = train(
        vae,
        shuffled(data()),
        lambda: parts(data(seed=1)),
        schedule,
        *both(3),
        keep=lambda run: states.append(copy.deepcopy(run.state())),
    )
    return states, vae, history


def test_a_run_goes_on_from_any_state_to_the_same_bits() -> None:
    schedule = Schedule(46, evaluations=7, patience=99)
    states, vae, history = states_of(schedule)
    assert len(states) == 46  # most of them between two evaluations
    for state in states:
        other = build(seed=9)  # nothing of this or of its generators is to be left
        resumed = train(
            other,
            shuffled(data()),
            lambda: parts(data(seed=1)),
            schedule,
            *both(99),
            resume=state,
        )
        assert (resumed.step, resumed.train) == (history.step, history.train)
        assert resumed.validation == history.validation
        for name, value in vae.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_a_state_is_a_copy() -> None:
    run = Run(build(), lambda order: parts(data()), Schedule(40), *both())
    advance(run, 1)
    state = run.state()
    kept = copy.deepcopy(state)
    advance(run, 5)
    assert state.numbers == kept.numbers
    for name, value in state.tensors.items():
        assert torch.equal(value, kept.tensors[name]), name


# -- deterministic algorithms ----------------------------------------------------------------------

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_algorithms_are_asked_for_and_put_back(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    asked = torch.are_deterministic_algorithms_enabled
    torch.use_deterministic_algorithms(before, warn_only=before)
    try:
        with contextlib.suppress(KeyError), deterministic_algorithms(True):
            assert asked()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise KeyError
        assert asked() == torch.is_deterministic_algorithms_warn_only_enabled() == before
        with deterministic_algorithms(False):
            assert asked() == before
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("value", [None, "", ":0:0"])
def test_without_a_workspace_of_its_own_cublas_is_not_deterministic(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKSPACE, value or "")
    if value is None:
        monkeypatch.delenv(WORKSPACE)
    with deterministic_algorithms(False):
        pass
    with (
        pytest.raises(ConfigError, match=f"{WORKSPACE} is {value!r}.*export {WORKSPACE}=:4096:8"),
        deterministic_algorithms(True),
    ):
        pass
    assert not torch.are_deterministic_algorithms_enabled()
