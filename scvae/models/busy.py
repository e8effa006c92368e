"""Whether the threads of a fit wait for processors that other programs use, and what helps then.

Threads of OpenMP that have done their part of a step wait for the others by running in a circle. On
a machine of their own that is fastest. Where another program has taken the processor from one of
them, all wait until it gets one again, some milliseconds later, at every part of every step.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from scvae.errors import warn
from scvae.train.history import History

SECONDS = 5.0  # of training, before it is said
LEAST = 0.75  # share of the time that threads run which have processors of their own
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the environment: how threads wait

Report = Callable[[History], None]


def watched(report: Report, device: torch.device, reads_along: bool) -> Report:
    """Return a report that also says, once, if the threads of a fit wait for processors.

    Nothing is said where it cannot be told: on a GPU, of one thread, of counts that are read from
    disk meanwhile, and where threads wait otherwise than they do by themselves on Linux.
    """
    threads = torch.get_num_threads()
    untold = device.type != "cpu" or reads_along or threads < 2 or sys.platform != "linux"
    if untold or any(name in os.environ for name in WAITING):
        return report
    return Watch(report, threads)


@dataclass
class Watch:
    """A report that looks at the time that all threads have run since it was first called.

    Attributes
    ----------
    report, threads
        What is called, and how many threads train.
    clock, ran
        Return the time, and the time that threads of this process have run, in seconds.
    """

    report: Report
    threads: int
    clock: Callable[[], float] = time.perf_counter
    ran: Callable[[], float] = time.process_time
    start: tuple[float, float] | None = field(default=None, init=False)
    told: bool = field(default=False, init=False)

    def __call__(self, history: History) -> None:
        self.report(history)
        now = self.clock(), self.ran()
        if self.start is None:
            self.start = now
        passed, ran = (one - other for one, other in zip(now, self.start, strict=True))
        if self.told or passed < SECONDS or ran >= LEAST * self.threads * passed:
            return
        self.told = True
        warn(
            f"The {self.threads} threads of this fit had the time of {ran / passed:.1f} "
            "processors: other programs use them, or this one is allowed no more, and every step "
            "waits for its last thread. Fewer threads can be several times as fast: set "
            "OMP_NUM_THREADS=1 in the environment before Python starts, or call "
            "torch.set_num_threads(1) before scvae.fit."
        )
