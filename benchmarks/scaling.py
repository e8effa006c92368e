"""Time and memory of a whole fit against the number of cells.

    python benchmarks/scaling.py [--cells 1000 10000 ...] [--peer-python PYTHON] [--peer-cells ...]

Simulated counts, 2,000 genes at about 10 % density, eight kinds of cells. Every size runs in a
process of its own: `scvae.fit` with its defaults, from the AnnData in memory to the written
embedding; the memory is what the process peaks at above what it held before the fit. The peer's
time is that of about 400 steps, less what an empty run takes, times the number of epochs that it
chooses by default: an extrapolation, since the real thing takes hours. Writes work/scaling.json and
scaling.png, and prints the exponent of time against cells from 10,000 on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from scipy import sparse
from sets import HERE, WORK

N_GENES, KINDS, BLOCK = 2_000, 8, 10_000
PEER_STEPS = 400


def simulated(n: int) -> anndata.AnnData:
    """Return counts of cells of eight kinds, made a block at a time."""
    rng = np.random.default_rng(0)
    share = rng.gamma(0.5, size=(KINDS, N_GENES)).astype(np.float32)
    share *= 0.1 / share.mean()
    parts = []
    for start in range(0, n, BLOCK):
        rows = min(BLOCK, n - start)
        chance = np.minimum(share[rng.integers(KINDS, size=rows)], 0.9)
        part = sparse.csr_matrix(rng.random((rows, N_GENES), dtype=np.float32) < chance, dtype="f4")
        part.data = rng.geometric(0.4, part.nnz).astype(np.float32)
        parts.append(part)
    return anndata.AnnData(sparse.vstack(parts, format="csr"))


class PeakMemory:
    """The most memory that this process holds while it is watched, in bytes above the start."""

    def __enter__(self) -> PeakMemory:
        self.start = self.most = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, _resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def above(self) -> int:
        return self.most - self.start


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def ours(adata: anndata.AnnData) -> dict[str, Any]:
    import scvae

    scvae.fit(adata[:300].copy(), max_steps=5, progress=False)  # loads and compiles
    size = adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes
    with PeakMemory() as memory:
        start = time.perf_counter()
        model = scvae.fit(adata, progress=False)
        seconds = time.perf_counter() - start
    history = model.record.history
    return {
        "seconds": seconds,
        "training": history.seconds,
        "steps": history.step[-1],
        "device": model.record.device,
        "memory": memory.above,
        "size": size,
        "elbo": model.record.elbo_held_out,
    }


def theirs(adata: anndata.AnnData) -> dict[str, Any]:
    import scvi

    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    epochs = max(1, min(round(20_000 / adata.n_obs * 400), 400))
    some = max(2, round(PEER_STEPS * 128 / adata.n_obs))
    times = []
    for count in (1, 1, 1 + some):  # the first warms up; what does not grow with epochs cancels
        start = time.perf_counter()
        model.train(max_epochs=count, enable_progress_bar=False)
        times.append(time.perf_counter() - start)
    return {"seconds": (times[2] - times[1]) / some * epochs, "epochs": epochs}


def in_process(python: str, who: str, n: int) -> dict[str, Any]:
    command = [python, str(HERE / "scaling.py"), "--only", who, "--cells", str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        who, f"{n:,}", {k: round(v, 1) if isinstance(v, float) else v for k, v in measured.items()}
    )
    return measured


def exponent(times: dict[int, float]) -> float:
    """Return the slope of log time against log cells, from 10,000 cells on."""
    large = [n for n in times if n >= 10_000]
    return float(np.polyfit(np.log(large), np.log([times[n] for n in large]), 1)[0])


def draw(found: dict[str, dict[int, dict[str, Any]]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    names = {"scvae": "scvae.fit", "scvi": "scvi-tools train (400 steps, extrapolated)"}
    for who, measured in found.items():
        cells = sorted(measured)
        axes.loglog(cells, [measured[n]["seconds"] for n in cells], "o-", label=names[who])
    axes.set(xlabel="cells", ylabel="seconds, defaults", title="2,000 genes, 10 % density")
    axes.legend()
    figure.savefig(HERE / "scaling.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--peer-cells", type=int, nargs="*", default=[10**3, 10**4])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", choices=("scvae", "scvi"), help="measure one, in this process")
    given = parser.parse_args()
    if given.only:
        run = {"scvae": ours, "scvi": theirs}[given.only]
        print(json.dumps(run(simulated(given.cells[0]))))
        return
    WORK.mkdir(exist_ok=True)
    found = {
        "scvae": {n: in_process(sys.executable, "scvae", n) for n in given.cells},
        "scvi": {n: in_process(given.peer_python, "scvi", n) for n in given.peer_cells},
    }
    (WORK / "scaling.json").write_text(json.dumps(found))
    draw(found)
    slope = exponent({n: measured["seconds"] for n, measured in found["scvae"].items()})
    print(f"time grows as cells to the power of {slope:.2f} from 10,000 on")


if __name__ == "__main__":
    main()
