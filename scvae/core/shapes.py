"""Shapes of tensors."""

from __future__ import annotations

from functools import lru_cache
from itertools import zip_longest

import torch
from torch import Size


@lru_cache(maxsize=4096)
def broadcast_shape(*shapes: Size) -> Size:
    """Do as `torch.broadcast_shapes`.

    That takes 40 microseconds, where a step asks ten times, and imports sympy at its first call.
    """
    aligned = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    sizes = [next((size for size in sizes if size != 1), 1) for sizes in aligned]
    if any(
        size not in (1, wanted)
        for shape in shapes
        for size, wanted in zip(reversed(shape), sizes, strict=False)
    ):
        return torch.broadcast_shapes(*shapes)  # which words the error
    return Size(reversed(sizes))
