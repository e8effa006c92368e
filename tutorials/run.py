"""Run tutorials from a clean kernel: `python tutorials/run.py [--write] [NAME ...]`.

All of them, or those whose names are given: one on every core at a time, at most four. Fails if a
cell fails. With --write, one after another on all cores, the outputs are kept in the notebooks.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def run(path: Path, *, write: bool) -> None:
    """Execute one notebook in its own kernel, in the folder of the tutorials."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(HERE)}}).execute()
    if write:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day would change on every run
            if "outputs" in cell:  # progress bars, too
                cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        nbformat.write(notebook, path)
    print(f"{path.name}: {len(notebook.cells)} cells ran")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01_quickstart")
    arguments = parser.parse_args()
    paths = sorted(HERE.glob("*.ipynb"))
    if unknown := sorted(set(arguments.names) - {path.stem for path in paths}):
        parser.error(f"there is no tutorial {unknown}; there are {[path.stem for path in paths]}")
    chosen = [path for path in paths if not arguments.names or path.stem in arguments.names]
    together = 1 if arguments.write else min(4, os.cpu_count() or 1)
    if together > 1:  # each kernel has a core of its own
        os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    with ThreadPoolExecutor(together) as kernels:
        list(kernels.map(partial(run, write=arguments.write), chosen))


if __name__ == "__main__":
    main()
