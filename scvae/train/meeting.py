"""How the processes of a job that torchrun started find each other, at every start of it.

torchrun starts all processes again when one of them has ended, and keeps the store that they
exchange their addresses by: what those wrote that have ended is still in it, and a process that
asks first connects to an address where nobody answers. Its count of restarts does not tell starts
apart, since every node counts its own. So rank 0 makes up a word, which all of this start, and
nobody else, agree on, and addresses are kept under it.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:  # torch is built without it in places
    from torch._C._distributed_c10d import Store

PAUSE = 0.01  # seconds between looks at the store


def meet() -> None:
    """Join the processes that `torchrun` started.

    Raises RuntimeError where the others do not answer in the time that torch.distributed allows.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    word = agree(PrefixStore("scvae", store), rank, size)
    dist.init_process_group(store=PrefixStore(word, store), rank=rank, world_size=size)


def agree(store: Store, rank: int, size: int) -> str:
    """Return a word that these `size` processes have in common with no earlier start of the job.

    Every rank but the first greets with a word of its own and waits for the answer to that word,
    which no earlier rank 0 can have given.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        _answer(store, own, size)
        return own
    store.set(f"greeting/{rank}", own)
    word: str = store.get(f"answer/{own}").decode()
    store.set(f"{word}/{rank}", "heard")
    return word


def _answer(store: Store, word: str, size: int) -> None:
    """Answer greetings with `word`, old ones too, until every other rank has heard it."""
    heard = [f"{word}/{rank}" for rank in range(1, size)]
    timeout: timedelta = store.timeout  # type: ignore[attr-defined]
    until = time.monotonic() + timeout.total_seconds()
    while not store.check(heard):
        if time.monotonic() > until:
            raise RuntimeError(f"not all of {size} processes came")
        for rank in range(1, size):
            if store.check([f"greeting/{rank}"]):
                greeting = store.get(f"greeting/{rank}").decode()
                store.set(f"answer/{greeting}", word)
        time.sleep(PAUSE)
