"""Rows of few non-zeros as torch's compressed sparse rows, for networks that are not trained.

Nothing is made dense, and a product takes as many rows of the weights at a time as the cache holds.
"""

from __future__ import annotations

import warnings
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from scvae.core.kernels.layouts import laid_out
from scvae.core.kernels.run import is_served, run

_first = Lock()
SPARSE = 0.25  # share of non-zeros up to which products with such rows were measured to be faster


def is_csr(x: Tensor) -> bool:
    """Return whether a matrix is held as compressed sparse rows."""
    return x.layout is torch.sparse_csr


def is_fast() -> bool:
    """Return whether such rows are multiplied fast here, on the processor: by a compiled kernel."""
    if not is_served(torch.zeros(1, dtype=torch.float32, device="cpu")):
        return False
    with _first:  # filters of warnings are those of all threads
        _let_torch_warn()
    return True


@cache
def _let_torch_warn() -> None:
    """Make the first such rows, at which torch says, once, that they are in beta state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        none = torch.zeros(0, device="cpu")
        csr(torch.zeros(1, device="cpu"), none, none, 0)


def csr(indptr: Tensor, indices: Tensor, values: Tensor, width: int) -> Tensor:
    """Return float32 rows ``(n, width)`` of starts ``(n + 1,)``, columns and values ``(nnz,)``."""
    shape = (len(indptr) - 1, width)
    given = (indptr.int(), indices.int(), values.float())
    return torch.sparse_csr_tensor(*given, shape, check_invariants=False)


def csr_scaled_log1p(x: Tensor, scale: Tensor) -> Tensor:
    """Return log(1 + c x) of compressed rows x ``(n, g)`` for c ``(n, 1)``, as such rows."""
    values = x.values()
    if not _is_served(x, scale):
        of_entries = scale[:, 0].repeat_interleave(x.crow_indices().diff(), output_size=len(values))
        logs = torch.log1p(values * of_entries)
    else:
        logs = torch.empty_like(values)
        given = (*_ends(x), laid_out(values)[:, None], laid_out(scale))
        run("csr_scaled_log1p", len(x), *given, logs[:, None])
    places = (x.crow_indices(), x.col_indices())
    return torch.sparse_csr_tensor(*places, logs, x.shape, check_invariants=False)


def csr_product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w for compressed rows x ``(n, g)`` and w ``(g, h)``; without a gradient by a kernel,
    which gives a row the same bits whatever stands beside it, on any number of threads."""
    if not _is_served(x, w):
        return torch.mm(x, w)
    out = w.new_empty(len(x), w.shape[1])
    entries = (_bits(x.col_indices()), laid_out(x.values())[:, None])
    run("csr_product", len(x), *_ends(x), *entries, laid_out(w), out)
    return out


def _is_served(x: Tensor, other: Tensor) -> bool:
    is_differentiated = torch.is_grad_enabled() and (other.requires_grad or x.requires_grad)
    is_narrow = x.crow_indices().dtype == x.col_indices().dtype == torch.int32
    return is_narrow and not is_differentiated and is_served(x.values(), other)


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rows start and end, as kernels take whole numbers."""
    starts = x.crow_indices()
    return _bits(starts[:-1]), _bits(starts[1:])


def _bits(numbers: Tensor) -> Tensor:
    """Return a column of int32 as float32 of the same bits, the one type that kernels are given."""
    return numbers.contiguous().view(torch.float32)[:, None]
