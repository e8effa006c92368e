"""Where counts lie while a model trains, and how they are sent ahead where they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

SHARE = 0.5  # of a GPU's free memory that counts may take; the rest is for training
Given = TypeVar("Given")
Made = TypeVar("Made")


def fits(nbytes: int, device: torch.device) -> bool:
    """Return whether counts may lie on `device`: in host memory always, on a GPU if they take at
    most `SHARE` of what is free there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= SHARE * free


def ahead(make: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Yield ``make(item)`` of every item; the next is made on another thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="scvae-ahead") as thread:
        waiting = None
        for item in items:
            following = thread.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
