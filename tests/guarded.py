"""Kernels under guard pages: what is drawn gives the numbers of the plain form, or ValueError.

Run as a program, by `test_kernels`: every matrix that a kernel is given is moved to memory that
ends, or begins, at a page that nobody may touch. To read or write one number beyond it ends the
process by a segmentation fault.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from scvae.core import products, rows
from scvae.core.kernels import layouts, run
from scvae.core.numerics import nb_log_mass, zero_inflate

PAGE = mmap.PAGESIZE
law = settings(deadline=None, derandomize=True, max_examples=250, database=None)
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
plain_run = run.run
is_at_the_end = True


def guarded(tensor: Tensor) -> Tensor:
    """Return a copy that lies between two pages that may not be touched, next to one of them."""
    if not tensor.numel() or tensor.dtype != torch.float32 or not tensor.is_contiguous():
        return tensor
    size = 4 * tensor.numel()
    inside = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, inside + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + inside):
        assert libc.mprotect(page, PAGE, 0) == 0
    offset = PAGE + (inside - size if is_at_the_end else 0)
    copy = torch.frombuffer(memory, dtype=torch.float32, count=tensor.numel(), offset=offset)
    return copy.view(tensor.shape).copy_(tensor.detach())


def guarded_run(name: str, n: int, *matrices: Tensor, **more: Any) -> None:
    """Do as `run`, with all matrices between guard pages."""
    copies = [guarded(matrix) for matrix in matrices]
    plain_run(name, n, *copies, **more)
    for matrix, copy in zip(matrices, copies, strict=True):
        matrix.copy_(copy)


# -- what is drawn ---------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "expanded": lambda t: t[:1].expand(t.shape) if t.dim() else t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "strided": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "negated": lambda t: torch.complex(t, -t).conj().imag if t.dtype == torch.float32 else t,
}
sizes = st.integers(0, 7)


@st.composite
def bent(draw: st.DrawFn, shape: tuple[int, ...], how: str) -> tuple[int, ...]:
    """Return another shape: one axis of another size, gone, or more."""
    if how == "as it is":
        return shape
    if how == "one axis more":
        return (draw(st.integers(1, 3)), *shape)
    if how == "one axis less":
        return shape[1:]
    axis = draw(st.integers(0, max(len(shape) - 1, 0)))
    return (*shape[:axis], draw(st.integers(0, 40)), *shape[axis + 1 :])


@st.composite
def tensors(draw: st.DrawFn, **shapes: tuple[int, ...]) -> tuple[dict[str, Tensor], bool]:
    """Return tensors of these shapes, and whether all have them and the type of the kernels."""
    ways = ["as it is"] * 6 + ["one axis more", "one axis less", "another size"]
    found, is_right = {}, True
    for number, (name, shape) in enumerate(shapes.items()):
        way = draw(st.sampled_from(ways))
        dtype = draw(st.sampled_from([torch.float32] * 9 + [torch.float64]))
        is_right &= way == "as it is" and dtype == torch.float32
        t = torch.randn(draw(bent(shape, way)), generator=Generator().manual_seed(number))
        t = t.abs().mul(3).floor() if name == "x" else t.abs() + 0.5 if name == "scale" else t
        t = t.to(dtype)
        found[name] = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](t)
    return found, is_right


def is_plain(*given_: Tensor) -> bool:
    return all(t.is_contiguous() and not t.is_neg() for t in given_)


def judged(
    ask: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    given_: dict[str, Tensor],
    is_right: bool,
    *,
    tolerance: float = 1e-4,
) -> None:
    """Assert that value and gradients are those of the plain form in float64, or ValueError."""
    # A leaf without its layout would be another tensor: derivatives are taken in what is given.
    ours = {k: v.detach().requires_grad_(k != "x") for k, v in given_.items()}
    exact = {
        k: v.detach().double().contiguous().requires_grad_(k != "x") for k, v in given_.items()
    }
    try:
        found = ask(**ours)
    except ValueError:
        assert not is_right, {k: v.shape for k, v in given_.items()}
        return
    expected = plain(**exact)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=10 * tolerance)
    if not found.requires_grad:
        return
    weights = torch.arange(found.numel(), dtype=torch.float64).view(found.shape) / 7
    (found.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, leaf in exact.items():
        if leaf.grad is not None:
            of_ours = ours[name].grad
            assert of_ours is not None, name
            size = 10 * tolerance * (1 + float(leaf.grad.abs().max()) if leaf.numel() else 1)
            torch.testing.assert_close(
                of_ours.double(), leaf.grad, rtol=10 * tolerance, atol=size, msg=name
            )


# -- the entries -----------------------------------------------------------------------------------


def plain_rows(x: Tensor, a: Tensor, log_r: Tensor, **more: Tensor) -> Tensor:
    logits, log_total = more.get("logits"), more.get("log_total")
    if log_total is not None:
        parts = (x, log_r) if logits is None else (x, log_r, logits)
        g = (torch.broadcast_shapes(*(part.shape for part in parts)) or (1,))[-1]
        a = torch.log_softmax(a, -1)[..., :g] + log_total
    mass = nb_log_mass(x, a, log_r)
    return (mass if logits is None else zero_inflate(mass, logits, x == 0)).sum(-1)


@law
@given(st.data(), sizes, sizes, sizes, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def rows_of_counts(
    data: st.DataObject, n: int, g: int, outside: int, inflated: bool, shares: bool,
    one_row: bool, at_the_end: bool,
) -> None:  # fmt: skip
    global is_at_the_end
    is_at_the_end = at_the_end
    shapes = {"x": (n, g), "a": (n, g + outside * shares), "log_r": (g,) if one_row else (n, g)}
    if inflated:
        shapes["logits"] = (n, g)
    if shares:
        shapes["log_total"] = (n, 1)
    given_, is_right = data.draw(tensors(**shapes))
    judged(rows.zinb_log_prob if inflated else rows.nb_log_prob, plain_rows, given_, is_right)


@law
@given(st.data(), sizes, st.integers(0, 40), sizes, st.booleans())
def sparse_products(data: st.DataObject, n: int, g: int, h: int, at_the_end: bool) -> None:
    global is_at_the_end
    is_at_the_end = at_the_end
    given_, is_right = data.draw(tensors(x=(n, g), w=(g, h)))
    if len({t.dtype for t in given_.values()}) > 1:
        return  # torch refuses these products, in words of its own
    given_["x"] = torch.where(given_["x"] > 5, given_["x"], 0)
    judged(products.sparse_product, lambda x, w: x @ w, given_, is_right)


@law
@given(st.data(), sizes, sizes, sizes)
def rounded_products(data: st.DataObject, n: int, n_in: int, n_out: int) -> None:
    given_, is_right = data.draw(tensors(x=(n, n_in), weight=(n_out, n_in), bias=(n_out,)))
    if len({t.dtype for t in given_.values()}) > 1:
        return
    plain = torch.nn.functional.linear
    plain_of = lambda x, weight, bias: plain(x, weight, bias)  # noqa: E731
    judged(products.rounded_linear, plain_of, given_, is_right, tolerance=2e-2)


@law
@given(st.data(), st.sampled_from(sorted(layouts.LAYOUTS)), st.booleans())
def kernels_called_straight(data: st.DataObject, name: str, at_the_end: bool) -> None:
    global is_at_the_end
    is_at_the_end = at_the_end
    axis, layout = layouts.LAYOUTS[name][0], layouts.LAYOUTS[name][1].split()
    of_letter = {"1": 1} | {letter: data.draw(st.integers(1, 6)) for letter in "nghe"}
    of_letter |= {"t": data.draw(st.integers(0, 1)), "r": data.draw(st.sampled_from([1, 7]))}
    of_letter["u"] = of_letter["t"]
    of_letter["a"] = of_letter["g"] + of_letter["t"] * data.draw(st.integers(0, 3))
    of_letter["r"] = of_letter["n"] if of_letter["r"] == 7 else 1
    shapes = {f"m{i}": tuple(of_letter[k] for k in two) for i, two in enumerate(layout)}
    given_, is_right = data.draw(tensors(**shapes))
    rows_ = of_letter[axis] + data.draw(st.sampled_from([0, 0, 0, 1, -1, 1000]))
    is_right &= rows_ == of_letter[axis] and is_plain(*given_.values())
    try:
        guarded_run(name, rows_, *given_.values())
    except ValueError:
        assert not is_right


if __name__ == "__main__":
    assert run.is_served(torch.zeros(1)), "kernels do not compile here"
    rows.run = products.run = guarded_run  # type: ignore[attr-defined]
    torch.set_num_threads(2)
    for entry in (
        rows_of_counts,
        sparse_products,
        rounded_products,
        kernels_called_straight,
    ):
        entry()
        print(entry.__name__, flush=True)
    sys.exit(0)
