"""Every start of a job of several processes finds its own processes, whatever the store keeps."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from scvae.train.meeting import agree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stores of Linux")


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))


def words(store: dist.Store, order: list[int]) -> list[str]:
    """Return what the ranks agree on that begin in `order`."""
    with ThreadPoolExecutor(len(order)) as pool:
        own = [store.clone() for _ in order]  # a connection each, as processes have
        found = [pool.submit(agree, one, r, len(order)) for one, r in zip(own, order, strict=True)]
        return [future.result() for future in found]


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [2, 0, 1], [0]])
def test_all_agree_and_no_two_starts_do(store: dist.Store, order: list[int]) -> None:
    starts = [words(store, order) for _ in range(4)]
    assert all(len(set(start)) == 1 for start in starts)
    assert len({start[0] for start in starts}) == 4


def test_a_greeting_of_one_that_was_killed_holds_nobody_up(store: dist.Store) -> None:
    store.set("greeting/1", "of one that was killed before it heard")
    first, second = words(store, [0, 1])
    assert first == second


def test_a_rank_that_never_comes_is_an_error(store: dist.Store) -> None:
    store.set("greeting/1", "of one that was killed")
    store.set_timeout(timedelta(seconds=0.5))
    with pytest.raises(RuntimeError, match="not all of 2 processes came"):
        agree(store, 0, 2)
    with pytest.raises(RuntimeError):
        agree(store, 1, 2)
