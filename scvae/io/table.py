"""The table of a safetensors file: where the bytes of every tensor are, checked before any is read.

The format is eight bytes with the length of a JSON header, the header, and the bytes of all
tensors (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scvae.io.strict import shown

SIZES = {"F32": 4, "F64": 8, "I64": 8, "U8": 1}  # all that scvae writes
DTYPES = {"F32": "float32", "F64": "float64", "I64": "int64", "U8": "uint8"}  # names in torch
MOST_TENSORS = 2**16
MOST_DIMENSIONS = 8
LARGEST_DIMENSION = 2**40


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes
    ----------
    name, dtype, shape
        What it is; `dtype` is a key of `DTYPES`.
    start, stop
        Where its bytes are, counted from the end of the header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_table(table: dict[str, Any], size: int) -> list[Entry]:
    """Return the entries of a table in the order of their bytes.

    Parameters
    ----------
    table
        The header without its metadata.
    size
        Bytes that follow the header.

    Raises
    ------
    ValueError
        If the tensors do not fill these bytes exactly, one after another.
    """
    if len(table) > MOST_TENSORS:
        raise ValueError(f"it has {len(table)} tensors, more than {MOST_TENSORS}")
    entries = [_entry(name, fields) for name, fields in table.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise ValueError(f"tensor {shown(entry.name)} begins at byte {entry.start}, not {end}")
        end = entry.stop
    if end != size:
        raise ValueError(f"{end} bytes of tensors should follow its header, but {size} do")
    return entries


def _entry(name: str, fields: Any) -> Entry:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {shown(name)} is of type {shown(dtype)}, not of {[*DTYPES]}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown(name)} has shape {shown(shape)} at {shown(offsets)}")
    start, stop = offsets
    if stop - start != math.prod(shape) * SIZES[dtype]:
        raise ValueError(
            f"tensor {shown(name)} of shape {shown(shape)} and type {dtype} has "
            f"{stop - start} bytes"
        )
    return Entry(name, dtype, tuple(shape), start, stop)


def _are_sizes(numbers: Any) -> bool:
    """Return whether `numbers` is a list of few whole numbers within reason. True is none."""
    return (
        isinstance(numbers, list)
        and len(numbers) <= MOST_DIMENSIONS
        and all(type(number) is int and 0 <= number < LARGEST_DIMENSION for number in numbers)
    )
