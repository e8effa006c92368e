"""Where counts lie while a model trains, and how they are sent ahead where they do not fit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

SHARE = 0.5  # of free memory, a GPU's or the machine's, that counts may take; the rest is for more
UNKNOWN = 2**32  # bytes taken to be free where the system does not tell
Given = TypeVar("Given")
Made = TypeVar("Made")


def fits(nbytes: int, device: torch.device) -> bool:
    """Return whether counts may lie on `device`: in host memory always, on a GPU if they take at
    most `SHARE` of what is free there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= SHARE * free


def free_memory() -> int:
    """Return the bytes of memory that this process may still take: of what is free, its share of
    those that `torchrun` started on this machine."""
    free = UNKNOWN
    with contextlib.suppress(OSError, ValueError, AttributeError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with contextlib.suppress(OSError, LookupError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max", where a container has no bound
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        free = min(free, most - int((group / "memory.current").read_text()))
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(free, 0) // max(1, int(beside) if beside.isdigit() else 1)


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
