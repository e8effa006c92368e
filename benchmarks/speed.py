"""Wall time side by side: `python benchmarks/speed.py [SET] [--peer-python PYTHON]`.

Fits scvae with its defaults, trains scvi-tools with its defaults, and fits scvae again, each in a
process of its own with nothing else running, on the same cells; then times the imports,
interleaved. Only the ratios mean something on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from sets import HERE, WORK


def seconds(python: str, name: str, method: str, seed: int) -> float:
    """Return the training time that methods.py measured."""
    command = [python, str(HERE / "methods.py"), name, method, str(seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    measured = json.loads((WORK / f"{name}.{method}.{seed}.json").read_text())
    return float(measured["seconds"])


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

    ours = [seconds(sys.executable, given.set, "scvae", 0)]
    peer = seconds(given.peer_python, given.set, "scvi", 0)
    ours.append(seconds(sys.executable, given.set, "scvae", 1))
    print(f"{given.set}: scvae {ours[0]:.1f} s and {ours[1]:.1f} s, scvi-tools {peer:.1f} s")
    print(f"fit / train: {max(ours) / peer:.4f} (the slower of the two)")

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
