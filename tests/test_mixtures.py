"""One mixture of Gaussians for all rows: against torch's normals in float64, with its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from scvae.core.distributions import Gaussian, Mixture

N, D, C = 40, 5, 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def some(spread: float, *shape: int) -> tuple[Tensor, ...]:
    """Return rows, and logits, means and scales of components as far apart as said."""
    scale = 0.2 + draw(C, D, seed=3).abs()
    return draw(*shape, D) * 2, draw(C, seed=1), draw(C, D, seed=2) * spread, scale


def log_prob(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return Mixture(logits, Gaussian(loc, scale)).expand(z.shape[:-1]).log_prob(z)


def oracle(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    normal = torch.distributions.Normal(loc, scale)
    of_each = normal.log_prob(z[..., None, :]).sum(-1)
    return torch.logsumexp(torch.log_softmax(logits, -1) + of_each, -1)


def leaves(given: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype, copy=True).requires_grad_() for t in given]


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(N,), (3, 17), (1,), (0,)])
def test_mixtures_and_their_gradients(shape: tuple[int, ...], spread: float) -> None:
    given = some(spread, *shape)
    found, expected = leaves(given, torch.float32), leaves(given, torch.float64)
    weights = draw(*shape, seed=4)
    a, b = log_prob(*found), oracle(*expected)
    assert a.dtype == torch.float32
    torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    for value, reference in zip(found, expected, strict=True):
        assert value.grad is not None
        assert reference.grad is not None
        size = float(reference.grad.abs().max()) + 1 if reference.numel() else 1.0
        torch.testing.assert_close(value.grad.double(), reference.grad, rtol=1e-5, atol=1e-5 * size)


def test_responsibilities_far_out_sum_up_to_one() -> None:
    """Half is due to each of two components as far away: in float32 alone it is .499 or .501."""
    loc = torch.tensor([[100.0], [-100.0]]).expand(2, D).clone().requires_grad_()
    log_prob(torch.zeros(1, D), torch.zeros(2), loc, torch.ones(2, D)).sum().backward()
    torch.testing.assert_close(loc.grad, -loc.detach() / 2, rtol=1e-6, atol=0)


def test_their_gradients_are_the_same_bits_every_time() -> None:
    gradients = []
    for _ in range(2):
        found = leaves(some(1.0, 128), torch.float32)
        log_prob(*found).sum().backward()
        gradients.append([leaf.grad for leaf in found])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_mixtures_have_second_derivatives() -> None:
    curvatures = []
    for dtype in (torch.float32, torch.float64):
        found = leaves(some(1.0, 9), dtype)
        first = torch.autograd.grad(log_prob(*found).sum(), found, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        curvatures.append(torch.autograd.grad(penalty, found))
    for of_32, of_64 in zip(*curvatures, strict=True):
        assert of_64.abs().max() > 0.1
        size = float(of_64.abs().max())
        torch.testing.assert_close(of_32.double(), of_64, rtol=1e-4, atol=1e-4 * size)


def test_mixtures_can_be_transformed() -> None:
    z, logits, loc, scale = some(1.0, 9)
    leaf = z.clone().requires_grad_()
    of_row = torch.func.grad(lambda z: log_prob(z, logits, loc, scale))
    log_prob(leaf, logits, loc, scale).sum().backward()
    torch.testing.assert_close(torch.func.vmap(of_row)(z), leaf.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize("of_rows", [(), (6,)], ids=["one for all", "one for each row"])
def test_mixtures_refuse_another_width(
    width: int, of_rows: tuple[int, ...], dtype: torch.dtype
) -> None:
    components = Gaussian(torch.zeros(*of_rows, C, D, dtype=dtype), torch.ones(D, dtype=dtype))
    p = Mixture(torch.zeros(C, dtype=dtype), components)
    with pytest.raises(ValueError, match=rf"\(6, {width}\).*\({D},\)"):
        p.log_prob(draw(6, width).to(dtype))


def test_a_row_meets_the_mixtures_of_all_rows() -> None:
    _, logits, loc, scale = some(1.0, 1)
    p = Mixture(logits, Gaussian(loc, scale))
    z = draw(D)
    assert torch.equal(p.expand((4,)).log_prob(z), p.log_prob(z).expand(4))
    assert p.expand((4,)).log_prob(draw(3, 1, D)).shape == (3, 4)
