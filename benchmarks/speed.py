"""Wall time side by side: `python benchmarks/speed.py [SET] [--peer-python PYTHON]`.

Fits scvae with its defaults, trains scvi-tools with its defaults, and fits scvae again, each in a
process of its own with nothing else running, on the same cells; then fits scvae with the peer's
likelihood (zinb) and asks when its held-out ELBO passed the best of the peer's 400 epochs, on the
same held-out cells; then times the imports, interleaved. Only the ratios mean something on a shared
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from sets import HERE, WORK


def run(python: str, name: str, method: str, seed: int) -> dict[str, Any]:
    """Return what methods.py measured."""
    command = [python, str(HERE / "methods.py"), name, method, str(seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    measured: dict[str, Any] = json.loads((WORK / f"{name}.{method}.{seed}.json").read_text())
    return measured


def until(ours: dict[str, Any], target: float) -> float:
    """Return the seconds of the fit until its held-out negative ELBO was below `target`."""
    steps, curve = ours["curve"]["step"], ours["curve"]["nelbo"]
    passed = [step for step, nelbo in zip(steps, curve, strict=True) if nelbo < target]
    return float(ours["seconds"]) * passed[0] / steps[-1] if passed else float("inf")


def import_seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", nargs="?", default="pbmc_facs")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--repeats", type=int, default=5, help="of the imports")
    given = parser.parse_args()

    run(sys.executable, given.set, "scvae", 0)  # compiles, if nothing has yet
    ours = [run(sys.executable, given.set, "scvae", 0)["seconds"]]
    theirs = run(given.peer_python, given.set, "scvi", 0)
    ours.append(run(sys.executable, given.set, "scvae", 1)["seconds"])
    peer, best = theirs["seconds"], theirs["nelbo"]
    print(f"{given.set}: scvae {ours[0]:.1f} s and {ours[1]:.1f} s, scvi-tools {peer:.1f} s")
    print(f"fit / train: 1/{peer / max(ours):.1f} (the slower of the two)")
    needed = [until(run(sys.executable, given.set, "scvae_zinb", seed), best) for seed in (0, 1, 2)]
    print(f"until the peer's best held-out ELBO, {-best:.1f}: {[round(t, 1) for t in needed]} s")
    print(f"until then / train: 1/{peer / statistics.median(needed):.1f} (median of three seeds)")

    pairs = [
        (import_seconds("import scvae"), import_seconds("import torch, anndata"))
        for _ in range(given.repeats + 1)
    ][1:]
    used = [import_seconds("import scvae; scvae.fit") / base for _, base in pairs]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"import scvae / import torch, anndata: {ratio:.2f} (median of {given.repeats})")
    print(f"import scvae; scvae.fit / the same: {statistics.median(used):.2f}")


if __name__ == "__main__":
    main()
