"""Run compiled kernels, on as many threads as torch would use.

The threads are torch's own where they can be had. Between two operations they wait for work by
spinning, which would keep a processor from any thread of ours: on two cores a kernel took twice as
long. GNU's OpenMP runtime, which torch's Linux builds use, lends them by `GOMP_parallel`, the call
that compilers emit for a parallel section; elsewhere a pool of Python's threads serves.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Timer
from typing import Any

import torch
from torch import Tensor

from scvae.core.gradients import is_transformed
from scvae.core.kernels.layouts import demand

logger = logging.getLogger("scvae")
SLOW = 5.0  # seconds: kernels that were kept are there sooner
COMPILING = "Compiling for this machine, once, which takes some ten seconds: it is kept on disk."
NOT_KEPT = (
    "Running without compiled kernels, several times slower, because they cannot be compiled and "
    "kept here: %s. Set NUMBA_CACHE_DIR to a folder that can be written, and start again."
)
PARTS = 4  # a thread: so many that none waits long for another
FEWEST = 16  # rows of a thread: less costs more to hand over than to compute
_is_forked = False


@cache
def _kernels() -> dict[str, Callable[[], Any]] | None:
    """Return what compiles every kernel, or None where this machine cannot compile or keep them."""
    try:
        from scvae.core.kernels.entries import ENTRIES
    except (ImportError, RuntimeError) as error:
        logger.warning(NOT_KEPT, error)
        return None
    return ENTRIES


@cache
def _kernel(name: str) -> Any:
    """Return a kernel, which is compiled here at its first use on this machine."""
    kernels = _kernels()
    assert kernels is not None
    with told_after(SLOW, COMPILING):
        return kernels[name]()


@contextmanager
def told_after(seconds: float, message: str) -> Iterator[None]:
    """Log a message once, where what is done within takes longer."""
    timer = Timer(seconds, logger.warning, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_served(*tensors: Tensor) -> bool:
    """Return whether kernels take these tensors: float32 on the CPU, outside of `torch.func`."""
    suits = all(
        t.dtype == torch.float32 and t.is_cpu and t.layout == torch.strided for t in tensors
    )
    return suits and _kernels() is not None and not is_transformed()


def run(name: str, rows: int, *matrices: Tensor) -> None:
    """Run a kernel over `rows` rows of contiguous float32 matrices, some of which it writes.

    Raises ValueError where the matrices are not those that the kernel takes.
    """
    demand(name, rows, matrices)
    places = [n for m in matrices for n in (m.data_ptr(), *m.shape)]
    kernel = _kernel(name)
    threads = 1 if _is_forked else max(1, min(torch.get_num_threads(), rows // FEWEST))
    parts = min(rows, threads if threads == 1 else PARTS * threads)
    table = [0, parts, rows, *places]
    numbers = (ctypes.c_int64 * len(table))(*table)
    if threads == 1:
        kernel.ctypes(numbers)
    elif (lend := _torch_threads()) is not None:
        lend(kernel.address, numbers, threads, 0)
    else:
        others = [_pool().submit(kernel.ctypes, numbers) for _ in range(threads - 1)]
        kernel.ctypes(numbers)
        for other in others:
            other.result()


@cache
def _torch_threads() -> Callable[..., None] | None:
    """Return GOMP_parallel(function, data, threads, flags) of the runtime that torch loaded."""
    try:
        lend = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    lend.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    lend.restype = None
    return lend


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="scvae")


def _mark_forked() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):  # neither kind of threads survives a fork
    os.register_at_fork(after_in_child=_mark_forked)
