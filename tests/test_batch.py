"""Minibatches: nothing that lies in one is forgotten when it is moved, copied or cut."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from scvae.core.batch import Batch, Parts
from scvae.core.distributions import Gaussian

N = 5


class Pair(NamedTuple):
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Measured(Batch):
    """A subclass with fields of every shape that a user may think of."""

    s: Tensor
    _: KW_ONLY
    exposure: Tensor
    pair: Pair
    named: dict[str, Tensor] = field(default_factory=dict)
    words: str = "kept"


def number(first: float, *shape: int) -> Tensor:
    """Return a tensor whose rows say which they are."""
    return first + torch.arange(N).view(N, *[1] * len(shape)).expand(N, *shape).clone().float()


def measured() -> Measured:
    return Measured(
        number(0, 3),
        number(10, 2),
        observed=number(0, 3) != 1,
        rows=torch.arange(N) + 70,
        exposure=number(20, 1),
        pair=Pair(number(30, 4), torch.zeros(1, 4)),
        named={"a": number(40)},
    )


def parts() -> Parts:
    return Parts((measured(), Batch(number(50, 2), present=torch.arange(N) > 1)), s=number(60, 1))


def names_of(batch: Measured) -> list[Tensor]:
    own = [batch.x, batch.s, batch.observed, batch.rows, batch.exposure]
    return [*own, *batch.pair, batch.named["a"]]


@pytest.mark.parametrize("make", [measured, parts])
def test_every_tensor_is_mapped_once(make: object) -> None:
    whole = make()
    seen: list[Tensor] = []

    def negated(t: Tensor) -> Tensor:
        seen.append(t)
        return ~t if t.dtype == torch.bool else -t

    there = whole.map(negated)
    assert len(seen) == len({id(t) for t in seen}) == (8 if make is measured else 11)
    first = there if make is measured else there.parts[0]
    old = whole if make is measured else whole.parts[0]
    for new, before in zip(names_of(first), names_of(old), strict=True):
        assert torch.equal(new, ~before if before.dtype == torch.bool else -before)
    assert type(there) is type(whole)
    assert first.words == "kept"
    assert isinstance(first.pair, Pair)


def test_tensors_come_in_one_order() -> None:
    whole = parts()
    copy = whole.map(Tensor.clone)
    for one, other in zip(copy.tensors, whole.tensors, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_moving_changes_floating_types_alone() -> None:
    moved = parts().to("cpu", torch.float64)
    kept = {t.dtype for t in moved.tensors}
    assert kept == {torch.float64, torch.bool, torch.int64}
    assert {t.device.type for t in parts().to("meta").tensors} == {"meta"}
    assert torch.equal(moved.parts[0].x, number(0, 3).double())


@pytest.mark.parametrize(
    "rows",
    [
        slice(1, 4),
        slice(None, None, 2),
        torch.tensor([4, 0, 0]),
        torch.arange(N) % 2 == 0,
        torch.tensor([], dtype=torch.int64),
    ],
    ids=str,
)
def test_rows_are_chosen_in_every_field(rows: slice | Tensor) -> None:
    some, wanted = parts()[rows], torch.arange(N)[rows]
    assert len(some) == len(wanted)
    first = some.parts[0]
    assert torch.equal(first.rows, wanted + 70)
    assert torch.equal(some.s[:, 0], wanted + 60.0)
    assert torch.equal(some.parts[1].present, wanted > 1)
    assert torch.equal(first.pair.low[:, 3], wanted + 30.0)
    assert torch.equal(first.pair.high, torch.zeros(1, 4))  # one row, for all


def test_a_minibatch_is_gone_through_row_by_row() -> None:
    rows = [int(one.rows) for one in measured()]
    assert rows == [70, 71, 72, 73, 74]
    assert int(measured()[-1].rows) == 74
    with pytest.raises(IndexError):
        measured()[N]


def test_a_field_of_other_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 2\) in a minibatch of 5 rows"):
        Batch(number(0, 3), torch.zeros(4, 2))[:2]


def test_parts_hold_the_same_rows() -> None:
    with pytest.raises(ValueError, match=r"these hold 5, 4"):
        Parts((Batch(number(0, 2)), Batch(number(0, 2)[:4])))
    with pytest.raises(ValueError, match="these hold none"):
        Parts(())


def test_presence_of_parts_is_a_column_each() -> None:
    expected = torch.stack([torch.ones(N).bool(), torch.arange(N) > 1], dim=1)
    assert torch.equal(parts().present, expected)


def test_cells_that_are_absent_hold_nothing_that_spreads() -> None:
    there = torch.arange(N) != 2
    spoilt = measured().map(
        lambda t: (
            torch.where(there.view(-1, *[1] * (t.dim() - 1)), t, torch.nan)
            if t.is_floating_point() and len(t) == N
            else t
        )
    )
    filled = Measured(**{**vars(spoilt), "present": there}).filled
    for new, old in zip(names_of(filled), names_of(measured()), strict=True):
        same = len(new) != N or torch.equal(new[there], old[there])
        assert same
        assert new.isfinite().all()
    assert not filled.rows[2]
    assert spoilt.filled is spoilt  # where all are present


def test_the_log_probability_is_of_what_was_observed() -> None:
    p, x = Gaussian(number(0, 3), torch.ones(3)), number(1, 3)
    seen, there = torch.arange(3) != 1, torch.arange(N) != 2
    alone = p.entry_log_prob(x)
    for batch, expected in [
        (Batch(x), alone.sum(-1)),
        (Batch(x, observed=seen.expand(N, 3)), alone[:, seen].sum(-1)),
        (Batch(x, present=there), torch.where(there, alone.sum(-1), 0.0)),
    ]:
        torch.testing.assert_close(batch.log_prob(p), expected)


def test_distributions_of_torch_leave_out_entries_where_these_are_independent() -> None:
    seen, x = torch.arange(3) != 1, torch.where(torch.arange(3) != 1, number(1, 3), math.nan)
    loc = number(0, 3).requires_grad_()
    batch = Batch(x, observed=seen.expand(N, 3))
    found = batch.log_prob(Independent(Normal(loc, 1.0), 1))
    torch.testing.assert_close(found, batch.log_prob(Gaussian(loc, torch.ones(3))))
    (gradient,) = torch.autograd.grad(found.sum(), loc)
    assert torch.equal(gradient, torch.where(seen, 1.0, 0.0).expand(N, 3))
    with pytest.raises(TypeError, match="A MultivariateNormal cannot leave out entries"):
        batch.log_prob(MultivariateNormal(loc, torch.eye(3)))
