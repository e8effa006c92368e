"""Products cheaper than dense ones: the same numbers, and gradients within their rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from scvae.core import products
from scvae.core.networks import Layer, Linear, WideLinear
from scvae.core.products import rounded_linear, sparse_product


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def mostly_zero(n: int, g: int, density: float) -> Tensor:
    kept = torch.rand(n, g, generator=Generator().manual_seed(7)) < density
    return draw(n, g) * kept


@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(40, 37, 16), (1, 5, 3), (128, 300, 1), (17, 1, 8)])
def test_sparse_products_are_products(shape: tuple[int, int, int], density: float) -> None:
    n, g, h = shape
    x, w, weights = mostly_zero(n, g, density), draw(g, h, seed=1), draw(n, h, seed=2)
    found, expected = w.clone().requires_grad_(), w.double().requires_grad_()
    a, b = sparse_product(x, found), x.double() @ expected
    torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    assert found.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)


def test_zeros_are_skipped_only_where_few_entries_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    kept = products.run
    monkeypatch.setattr(products, "run", lambda name, *a, **k: (names.append(name), kept(name, *a)))
    sparse_product(mostly_zero(32, 100, 0.05), draw(100, 4))
    assert names == ["product"]
    sparse_product(mostly_zero(32, 100, 0.5), draw(100, 4))
    sparse_product(mostly_zero(32, 100, 0.05).double(), draw(100, 4).double())
    sparse_product(mostly_zero(32, 100, 0.05).requires_grad_(), draw(100, 4))
    assert names == ["product"]


def test_a_gradient_in_a_sparse_input_is_still_to_be_had() -> None:
    x, w = mostly_zero(32, 100, 0.05).requires_grad_(), draw(100, 4)
    sparse_product(x, w).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, w.sum(1).expand(32, -1))


def test_a_sparse_layer_is_a_linear_layer() -> None:
    given = [Generator().manual_seed(3) for _ in range(2)]
    layer, dense = Layer(9, 4, generator=given[0], sparse=True), Linear(9, 4, given[1])
    x = mostly_zero(11, 9, 0.1)
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize("shape", [(20,), (3, 20)])
@pytest.mark.parametrize("native", [True, False])
def test_a_rounded_layer_is_near_the_exact_one(
    shape: tuple[int, ...], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_multiplies_bfloat16", lambda: native)
    given = [draw(*shape, 8), draw(30, 8, seed=1), draw(30, seed=2)]
    found, expected = ([t.clone().requires_grad_() for t in given] for _ in range(2))
    weights = draw(*shape, 30, seed=3)
    a, b = rounded_linear(*found), torch.nn.functional.linear(*expected)
    assert (a - b).norm() / b.norm() < (2**-7 if native else 1e-6)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    for value, reference in zip(found, expected, strict=True):
        assert value.grad is not None
        assert reference.grad is not None
        error = (value.grad - reference.grad).norm() / reference.grad.norm()
        assert error < (2**-7 if native else 1e-6)
    assert found[0].grad is not None
    assert expected[0].grad is not None
    assert torch.equal(found[0].grad, expected[0].grad) == (not native)


def test_a_wide_layer_is_a_linear_layer() -> None:
    layer, dense = (make(9, 40, Generator().manual_seed(3)) for make in (WideLinear, Linear))
    assert layer.state_dict().keys() == dense.state_dict().keys()
    x = draw(11, 9)
    torch.testing.assert_close(layer(x), dense(x), rtol=0.02, atol=0.02)  # may be rounded
    layer.eval()
    assert torch.equal(layer(x), dense(x))


@pytest.mark.parametrize("native", [True, False])
def test_products_have_second_derivatives(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient penalty on two layers, in float32 against float64."""
    monkeypatch.setattr(products, "_multiplies_bfloat16", lambda: native)
    x, weights = mostly_zero(32, 100, 0.05), [draw(100, 6, seed=1), draw(9, 6, seed=2), draw(9)]
    curvatures = []
    for dtype in (torch.float32, torch.float64):
        w, *layer = (t.to(dtype).requires_grad_() for t in weights)
        out = rounded_linear(torch.tanh(sparse_product(x.to(dtype), w)), *layer)
        first = torch.autograd.grad(out.square().sum(), [w, *layer], create_graph=True)
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        curvatures.append(torch.autograd.grad(penalty, [w, *layer]))
    for found, expected in zip(*curvatures, strict=True):
        assert (found - expected).norm() < (0.05 if native else 1e-5) * expected.norm()


@pytest.mark.parametrize("columns", [1, 60, 200, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sparse_layer_refuses_other_columns(columns: int, dtype: torch.dtype) -> None:
    layer = Layer(100, 16, sparse=True, generator=Generator().manual_seed(0)).to(dtype)
    with pytest.raises(ValueError, match=rf"takes 100 columns.*\(8, {columns}\)"):
        layer(torch.zeros(8, columns, dtype=dtype))
