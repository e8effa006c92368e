"""How a kernel is called by every thread of a team: one table of addresses, parts claimed in turn.

Rows are cut into parts; whichever thread is free takes the next. What a part computes does not
depend on who computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# A table holds: parts claimed, parts, rows, then the address, rows and columns of every matrix.
HEADER, MOST = 3, 4096


def entry(function: Callable[[Any], None]) -> Callable[[], Any]:
    """Return what compiles a kernel: when it is first wanted, which few ever are."""
    return partial(cfunc(types.void(types.CPointer(types.int64)), cache=True), function)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


@intrinsic
def _next(context: Any, address: Any) -> Any:
    """Return the number at an address, and add 1 to it, as one step for all threads."""

    def build(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        number = ir.IntType(64)
        counter = builder.inttoptr(values[0], number.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(number, 1), "seq_cst")

    return types.int64(types.int64), build


@njit(cache=True, nogil=True)
def opened(pointer):  # type: ignore[no-untyped-def]
    """Return the table at a pointer."""
    return carray(pointer, (MOST,))


@njit(cache=True, nogil=True)
def claim(table):  # type: ignore[no-untyped-def]
    """Return the rows ``[start, stop)`` of the next part; none once all are claimed."""
    part = _next(table.ctypes.data)
    parts, rows = table[1], table[2]
    if part >= parts:
        return rows, rows
    return rows * part // parts, rows * (part + 1) // parts


@njit(cache=True, nogil=True)
def matrix(table, i):  # type: ignore[no-untyped-def]
    """Return the i-th matrix of a table, float32."""
    at = HEADER + 3 * i
    address = _pointer(table[at])
    return carray(address, (table[at + 1], table[at + 2]), dtype=np.float32)


@njit(cache=True, nogil=True)
def vector(table, i):  # type: ignore[no-untyped-def]
    """Return the i-th matrix of a table, which is one column, float32: next to each other for all
    that the compiler knows, as they are not in a column of a matrix."""
    at = HEADER + 3 * i
    return carray(_pointer(table[at]), (table[at + 1],), dtype=np.float32)


@njit(cache=True, nogil=True)
def numbers(table, i):  # type: ignore[no-untyped-def]
    """Return the i-th matrix of a table, which is one column, as the int32 that its bits are."""
    at = HEADER + 3 * i
    return carray(_pointer(table[at]), (table[at + 1],), dtype=np.int32)
