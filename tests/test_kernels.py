"""No kernel reads or writes memory that is not its own: see `guarded`, which draws what it gets."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

import scvae
from scvae.core import products, rows
from scvae.core.kernels import run as kernels
from scvae.core.kernels.layouts import demand
from scvae.core.kernels.run import COMPILING, is_served, run, told_after

needs_kernels = pytest.mark.skipif(
    not is_served(torch.zeros(1)), reason="no kernels can be compiled here"
)


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made by Linux's mprotect")
def test_whatever_is_drawn_gives_right_numbers_or_a_value_error() -> None:
    """In a process of its own, which a fault would end, and under guard pages.

    Seen to fail: with `demand` made to accept everything, the process ends by
    signal 11 at the first matrix that is too small in the kernels called straight.
    """
    program = Path(__file__).with_name("guarded.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert len(done.stdout.split()) == 4


@needs_kernels
@pytest.mark.parametrize(
    ("matrices", "said"),
    [
        ([torch.zeros(8, 5), torch.zeros(4, 3), torch.zeros(8, 3)], r"\(4, 3\).* \(5, 3\)|5"),
        ([torch.zeros(8, 5), torch.zeros(5, 3), torch.zeros(8, 2)], r"\(8, 3\).*\(8, 2\)"),
        ([torch.zeros(7, 5), torch.zeros(5, 3), torch.zeros(7, 3)], r"\(8, 5\).*\(7, 5\)"),
        ([torch.zeros(8, 5), torch.zeros(5, 3)], "3 matrices, not 2"),
        ([torch.zeros(8, 5), torch.zeros(3, 5).t(), torch.zeros(8, 3)], r"stride \(1, 5\)"),
        ([torch.zeros(8, 5).double(), torch.zeros(5, 3), torch.zeros(8, 3)], "float64"),
        ([torch.zeros(8, 5, device="meta"), torch.zeros(5, 3), torch.zeros(8, 3)], "on meta"),
        ([torch.zeros(8, 5), torch.zeros(15), torch.zeros(8, 3)], r"\(15,\)"),
    ],
)
def test_a_kernel_names_what_does_not_fit(matrices: list[torch.Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run("product", 8, *matrices)


@pytest.mark.parametrize("name", ["nb", "product", "outer"])
def test_what_was_found_to_fit_stays_so_and_the_rest_does_not(name: str) -> None:
    right = {
        "nb": [(4, 3), (4, 3), (4, 0), (1, 3), (4, 1), (4, 3), (4, 0), (4, 3)],
        "product": [(4, 3), (3, 2), (4, 2)],
        "outer": [(5, 4), (5, 2), (4, 2)],
    }[name]
    for _ in range(2):
        demand(name, 4, tuple(torch.zeros(shape) for shape in right))
        for number, (n, m) in enumerate(right):
            for other in ((n + 1, m), (n, m + 2)):
                bent = [*right[:number], other, *right[number + 1 :]]
                with pytest.raises(ValueError, match=f"kernel '{name}'"):
                    demand(name, 4, tuple(torch.zeros(shape) for shape in bent))


# -- that they are there -------------------------------------------------------------------------

IS_OURS = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


@pytest.mark.skipif(not IS_OURS, reason="tells of Linux on x86-64, where our integration runs")
def test_the_kernels_are_served_on_the_platform_of_our_integration() -> None:
    """Elsewhere the plain forms serve, and tests of the kernels are skipped; here none may be."""
    assert is_served(torch.zeros(1))
    assert not is_served(torch.zeros(1, dtype=torch.float64))


@pytest.mark.skipif(not IS_OURS, reason="tells of Linux on x86-64, where our integration runs")
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_a_fit_takes_every_kernel(likelihood: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()

    def told(name: str, *given: Any) -> None:
        asked.add(name)
        run(name, *given)

    for module in (rows, products):
        monkeypatch.setattr(module, "run", told)
    of_layer = products._Linear.apply
    monkeypatch.setattr(products, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(products._Linear, "apply", lambda *x: asked.add("wide") or of_layer(*x))
    counts = np.random.default_rng(0).poisson(0.1, (60, 30)).astype(np.float32)
    counts[:, 0] = 1.0  # no cell is empty
    scvae.fit(AnnData(counts), likelihood=likelihood, max_steps=2, progress=False)
    assert asked == {likelihood, "product", "outer", "wide"}


@pytest.mark.skipif(not IS_OURS, reason="tells of Linux on x86-64, where our integration runs")
def test_products_are_in_bfloat16_wherever_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert products._multiplies_bfloat16() == bool({"avx512_bf16", "amx_tile"} & set(flags))


# -- what is said on the way -----------------------------------------------------------------------


class Kept(logging.Handler):
    """Keeps messages, and says when one is there: it may come from another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.told.set()


def test_what_takes_long_is_told_and_what_does_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monkeypatch.setattr(kernels.logger, "handlers", [kept])
    monkeypatch.setattr(kernels.logger, "propagate", False)  # late, to those of the next test
    with told_after(3600.0, "never said"):
        pass
    with told_after(0.0, COMPILING):
        assert kept.told.wait(60)
    assert kept.messages == [COMPILING]


def test_it_is_said_once_where_kernels_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "scvae.core.kernels.entries", None)
    monkeypatch.setattr(kernels, "_kernels", cache(kernels._kernels.__wrapped__))
    assert not is_served(torch.zeros(1))
    assert not is_served(torch.zeros(1))
    (record,) = caplog.records
    assert "without compiled kernels" in record.getMessage()
    assert "NUMBA_CACHE_DIR" in record.getMessage()
