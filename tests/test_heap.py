"""The heap while training: freed memory is used again, and given back at the end."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from scvae.train import heap
from scvae.train.heap import steady_heap

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")

# In a process of its own: glibc adapts to what was freed before.
FAULTS = """
import resource, torch
from pathlib import Path
from scvae.train.heap import steady_heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def use():
    return [torch.empty(10 * 2**18).fill_(1.0) for _ in range(8)]  # of 10 MiB

def faults():
    for _ in range(10):
        use()  # the heap finds its size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        use()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20

torch.set_num_threads(1)
use()
level = resident()
with steady_heap():
    print(faults())
print(resident() - level)
"""


@needs_glibc
def test_freed_memory_is_used_again_and_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    )
    faults, kept = map(float, done.stdout.split())
    assert faults < 2**20 / 4096  # a megabyte of 80; else at least four, mostly all
    assert kept < 10


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __getattr__(self, name: str) -> None:
            raise AttributeError(name)

    heap._glibc.cache_clear()
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: Library())
    try:
        with steady_heap():
            assert heap._glibc() is None
    finally:
        heap._glibc.cache_clear()
