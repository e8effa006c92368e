"""log(1 + c x) of rows: the numbers of torch, zeros kept, gradients wherever they are wanted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from scvae.core import logarithms
from scvae.core.logarithms import scaled_log1p


def counts(*shape: int) -> Tensor:
    x = (3 * torch.randn(shape, generator=Generator().manual_seed(0))).exp()
    return x * (torch.rand(shape, generator=Generator().manual_seed(1)) < 0.3)


@pytest.mark.parametrize("shape", [(7,), (1, 1), (40, 33), (3, 5, 17), (4, 0), (0, 4)], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_it_is_the_logarithm(shape: tuple[int, ...], scale: float) -> None:
    x = counts(*shape)
    c = scale * torch.rand(*shape[:-1], 1, generator=Generator().manual_seed(2))
    expected = torch.log1p(x.double() * c.double())
    torch.testing.assert_close(scaled_log1p(x, c).double(), expected, rtol=3e-7, atol=1e-12)
    torch.testing.assert_close(scaled_log1p(x.double(), c.double()), expected)
    assert ((scaled_log1p(x, c) == 0) == (x == 0)).all()


def test_one_scale_serves_all_rows_and_rows_may_lie_apart() -> None:
    x, c = counts(6, 9).t(), torch.tensor([2.0])
    torch.testing.assert_close(scaled_log1p(x, c), torch.log1p(2 * x))


def test_nan_stays_nan() -> None:
    x = torch.tensor([[1.0, math.nan, 0.0]])
    assert scaled_log1p(x, torch.ones(1, 1)).isnan().tolist() == [[False, True, False]]


def test_it_is_differentiated_where_that_is_asked_for() -> None:
    x, c = counts(4, 5).requires_grad_(), torch.full((4, 1), 2.0, requires_grad=True)
    scaled_log1p(x, c).sum().backward()
    inner = 1 / (1 + 2 * x.detach())
    assert x.grad is not None
    assert c.grad is not None
    torch.testing.assert_close(x.grad, 2 * inner)
    torch.testing.assert_close(c.grad, (x.detach() * inner).sum(1, keepdim=True))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError):
        scaled_log1p(counts(4, 5), torch.ones(3, 1))


def test_the_kernel_serves_what_needs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    kept = logarithms.run
    monkeypatch.setattr(logarithms, "run", lambda name, *a: (names.append(name), kept(name, *a)))
    scaled_log1p(counts(4, 5), torch.ones(4, 1))
    assert names == ["scaled_log1p"]
