"""Alignment: known offsets are found, and what no batch effect explains is left where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import scvae
from scvae.models import alignment as module
from scvae.models import embedding
from scvae.models.alignment import Alignment, fit_alignment
from tests.draws import seeded

D = 6
law = settings(deadline=None, derandomize=True, max_examples=25)
seeds = st.integers(0, 10_000)


def types(seed: int, n: int = 1_200, n_types: int = 5, n_batches: int = 2) -> tuple[Tensor, ...]:
    """Return cells of well separated types, their types and their batches, without an effect."""
    draw = seeded(seed)
    turned = torch.linalg.qr(torch.randn(D, D, generator=draw))[0]
    means = 20 * turned[:n_types]  # 28 apart
    kind = torch.randint(n_types, (n,), generator=draw)
    batch = torch.randint(n_batches, (n,), generator=draw)
    return means[kind] + torch.randn(n, D, generator=draw), kind, batch


def offsets(seed: int, n_types: int = 5, n_batches: int = 2) -> Tensor:
    """Return an offset for every type and batch, that of the first batch 0, ``(k, b, d)``."""
    found = torch.randn(n_types, n_batches, D, generator=seeded(seed + 1))
    found[:, 0] = 0
    return found


def means_of(x: Tensor, kind: Tensor, batch: Tensor) -> Tensor:
    k, b = int(kind.max()) + 1, int(batch.max()) + 1
    return torch.stack(
        [torch.stack([x[(kind == i) & (batch == j)].mean(0) for j in range(b)]) for i in range(k)]
    )


@law
@given(seed=seeds, n_batches=st.integers(2, 4))
def test_an_offset_of_every_type_and_batch_is_taken_out(seed: int, n_batches: int) -> None:
    x, kind, batch = types(seed, n_batches=n_batches)
    moved = x + offsets(seed, n_batches=n_batches)[kind, batch]
    before = means_of(moved, kind, batch)
    aligned = fit_alignment(moved, batch, n_batches, seeded(0))(moved, batch)
    after = means_of(aligned, kind, batch)
    left = (after - after.mean(1, keepdim=True)).norm()
    assert left < 0.35 * (before - before.mean(1, keepdim=True)).norm()
    within = [float((each[kind == 0] - each[kind == 0].mean(0)).std()) for each in (x, aligned)]
    assert within[1] == pytest.approx(within[0], rel=0.1)  # types are not pressed together


@law
@given(seed=seeds)
def test_one_cluster_has_the_offsets_in_closed_form(seed: int) -> None:
    """With one cluster, all belongs to it, and offsets solve a ridge regression."""
    draw = seeded(seed)
    batch = torch.tensor([0] * 6 + [1] * 12)
    x = torch.randn(18, D, generator=draw).double() + batch[:, None]
    start = Alignment(*module_start(x))
    found = module._estimated(module._sums(start, x, batch), start)
    n = torch.tensor([6.0, 12.0]).double()
    design = torch.cat([torch.ones(18, 1), torch.nn.functional.one_hot(batch).double()], dim=1)
    penalty = torch.diag(torch.cat([torch.zeros(1).double(), module.RIDGE * n]))
    solved = torch.linalg.solve(design.T @ design + penalty, design.T @ x)
    torch.testing.assert_close(found.offset[0], solved[1:])
    torch.testing.assert_close(found.centre[0], solved[:1] + solved[1:])
    residual = x - found.centre[0][batch]
    torch.testing.assert_close(found.variance[0], residual.square().mean())


def module_start(x: Tensor) -> tuple[Tensor, ...]:
    zeros = torch.zeros(1, 2, D).double()
    one = torch.ones(1).double()
    return one.log(), zeros, one, zeros, torch.ones(()).double()


@law
@given(seed=seeds)
def test_a_cell_is_moved_alone_as_among_others(seed: int) -> None:
    x, kind, batch = types(seed, n=400)
    x = x + offsets(seed)[kind, batch]
    aligned = fit_alignment(x, batch, 2, seeded(0))
    whole = aligned(x, batch)
    order = torch.randperm(400, generator=seeded(seed))
    torch.testing.assert_close(aligned(x[order], batch[order]), whole[order])
    torch.testing.assert_close(aligned(x[:1], batch[:1]), whole[:1])


@law
@given(seed=seeds)
def test_batches_that_do_not_differ_are_moved_by_less_than_their_noise(seed: int) -> None:
    x, _, batch = types(seed)
    shift = fit_alignment(x, batch, 2, seeded(0)).shift(x, batch)
    assert shift.square().mean().sqrt() < 0.35  # where the cells of a type spread by 1


@law
@given(seed=seeds)
def test_a_type_of_one_batch_stays_apart(seed: int) -> None:
    """A type near another one, and in the first batch alone, keeps its distance."""
    x, kind, batch = types(seed)
    beside = 6.0 * torch.nn.functional.normalize(torch.ones(D), dim=0)
    extra = x[kind == 0][:100] + beside
    whole = torch.cat([x, extra])
    batches = torch.cat([batch, torch.zeros(len(extra), dtype=torch.long)])
    aligned = fit_alignment(whole, batches, 2, seeded(0))(whole, batches)
    distance = (aligned[len(x) :].mean(0) - aligned[: len(x)][kind == 0].mean(0)).norm()
    assert distance > 0.8 * beside.norm()


def test_a_cluster_of_one_batch_is_not_moved_at_all() -> None:
    x, kind, batch = types(3)
    batch = torch.where(kind == 0, 0, batch)
    x = x + offsets(3)[kind, batch] + 50.0 * (kind == 0)[:, None]
    shift = fit_alignment(x, batch, 2, seeded(0)).shift(x, batch)
    assert shift[kind == 0].abs().max() < 1e-3
    assert shift[(kind != 0) & (batch == 1)].norm(dim=1).mean() > 0.1


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_strength_is_the_share_of_the_shift(strength: float) -> None:
    x, kind, batch = types(1)
    x = x + offsets(1)[kind, batch]
    full = fit_alignment(x, batch, 2, seeded(0)).shift(x, batch)
    part = fit_alignment(x, batch, 2, seeded(0), strength)
    torch.testing.assert_close(part.shift(x, batch), strength * full)
    assert max(part.moved(x, batch, batch, 2)) > 0


def test_offsets_are_estimated_from_all_cells_and_clusters_from_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_CELLS", 300)
    x, kind, batch = types(2, n=6_000)
    moved = x + offsets(2)[kind, batch]
    after = means_of(fit_alignment(moved, batch, 2, seeded(0))(moved, batch), kind, batch)
    before = means_of(moved, kind, batch)
    spread = lambda means: (means - means.mean(1, keepdim=True)).norm()  # noqa: E731
    assert spread(after) < 0.35 * spread(before)


def test_of_many_cells_so_many_are_aligned_by_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(0, 3_000, 3)
    assert embedding._some(rows, 1_000, seeded(0)) is rows
    monkeypatch.setattr(embedding, "MOST_ALIGNED", 400)
    some = embedding._some(rows, 700, seeded(0))
    assert len(embedding._some(rows, 300, seeded(0))) == 300
    assert len(some) == len(some.unique()) == 400
    assert torch.equal(some, some.sort().values)
    assert torch.isin(some, rows).all()
    assert abs(float(some.double().mean()) - 1_498.5) < 4 * 866 / 20  # from everywhere


def test_a_fit_aligns_all_cells_by_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = scvae.simulate(900, 40, n_batches=2, seed=3)
    quick: dict[str, Any] = {"batch": "batch", "max_steps": 20, "n_latent": 5, "progress": False}
    whole = scvae.fit(adata, **quick).embed(adata)
    monkeypatch.setattr(embedding, "MOST_ALIGNED", 500)
    part = scvae.fit(adata, **quick).embed(adata)
    moved, spread = np.linalg.norm(part - whole), np.linalg.norm(whole - whole.mean(0))
    assert 0 < moved < 0.05 * spread


@pytest.mark.parametrize(("n", "noise"), [(12, 0.0), (2_000, 1.0)])
def test_moved_is_in_distances_between_cells(n: int, noise: float) -> None:
    """Cells spread by 10 in one direction: two of them are 10 sqrt 2 apart. Batches, 2 apart in
    another, meet in the middle; in one cluster as in many."""
    batch = torch.arange(n) % 2
    x = noise * torch.randn(n, D, generator=seeded(0))
    x[:, 0] += 10 * (torch.arange(n) // 2 % 2 * 2 - 1)
    x[:, 1] += 2.0 * batch
    found = fit_alignment(x, batch, 2, seeded(0)).moved(x, batch, batch, 2)
    assert found == pytest.approx([1 / (10 * 2**0.5)] * 2, rel=0.25)


def test_many_cells_are_moved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kind, batch = types(4)
    aligned = fit_alignment(x + offsets(4)[kind, batch], batch, 2, seeded(0))
    whole = aligned(x, batch)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    torch.testing.assert_close(aligned(x, batch), whole)


def test_the_same_seed_gives_the_same_bits() -> None:
    x, _, batch = types(5)
    first, second = (fit_alignment(x, batch, 2, seeded(7)) for _ in range(2))
    assert torch.equal(first.offset, second.offset)
    state = torch.get_rng_state()
    fit_alignment(x, batch, 2, seeded(7))
    assert torch.equal(torch.get_rng_state(), state)


NOISE = torch.randn(60, D, generator=seeded(0))
IN_TURN = torch.arange(60) % 2
ODD: dict[str, tuple[Tensor, Tensor, int]] = {
    "all alike": (torch.zeros(60, D), IN_TURN, 2),
    "two cells": (NOISE[:2], IN_TURN[:2], 2),
    "a batch without cells": (NOISE, IN_TURN, 3),
    "huge values": (1e6 * NOISE, IN_TURN, 2),
    "tiny values": (1e-8 * NOISE, IN_TURN, 2),
    "batches in order": (NOISE, torch.arange(60) // 30, 2),
    "one column": (NOISE[:, :1], IN_TURN, 2),
    "one cell of a batch": (NOISE, (torch.arange(60) == 7).long(), 2),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_cells_give_finite_numbers(kind: str) -> None:
    x, batch, n_batches = ODD[kind]
    fitted = fit_alignment(x, batch, n_batches, seeded(0))
    aligned = fitted(x, batch)
    assert aligned.shape == x.shape
    assert aligned.isfinite().all()
    assert (fitted.variance > 0).all()
    assert np.isfinite(fitted.moved(x, batch, batch, n_batches)).all()
    every = torch.arange(n_batches)
    assert fitted(x[:1].expand(n_batches, -1), every).isfinite().all()
