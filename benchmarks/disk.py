"""Training from disk beside training in memory: held-out ELBO, time and resident memory.

    python benchmarks/disk.py [--cells 100000] [--genes 2000] [--steps 2000] [--seeds 3]
        [--memory 64e6] [--file cells.h5ad] [--depth 2000] [--only disk] [--embed] [--denoise]

    python benchmarks/disk.py --cells 1000000 --memory 500e6 --steps 2000 --seeds 1 --only disk
    python benchmarks/disk.py --cells 10000000 --depth 400 --memory 500e6 --seeds 1 --only disk

Cells are simulated by blocks and written to an h5ad file as CSR, sorted by batch and type, which is
how atlases lie on disk and the worst that shuffling by blocks can meet. Every run is a process of
its own, and both kinds take turns. Steps, minibatches, split and initial weights are the same;
only the order of the cells differs. Time is that of the steps with their evaluations, without
reading the file first, and of the whole; memory is the most that the process ever held, that of
its libraries included. A file takes 8 bytes a count that is not zero (5 GB of a million cells, 23
GB of ten million at a depth of 400); it is written in blocks, in 0.6 GB of memory up to
100,000 cells. Of more, all but so many (`--distinct`) are copies, and these are held: 5 kB each.

`--denoise` writes denoised shares of all genes as float16 into a zarr store beside the file, and
copies the array that it wrote into another one, in the same chunks: what writing alone takes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

BLOCK, TYPES, BATCHES = 5_000, 12, 5
DISTINCT = 100_000  # cells that are simulated; of more, the others are copies
DEPTH = 2_000  # counts of a cell


def simulated(
    group: np.ndarray, n_genes: int, depth: float, rng: np.random.Generator
) -> Iterator[sparse.csr_matrix]:
    """Yield counts of cells of these groups, a block at a time."""
    shares = rng.gamma(0.3, 1.0, (TYPES, n_genes)) * rng.lognormal(0, 1, n_genes)
    shares = shares + 0.3 * shares.mean(0)
    effects = rng.lognormal(0, 0.4, (BATCHES, n_genes))
    for start in range(0, len(group), BLOCK):
        batch, kind = np.divmod(group[start : start + BLOCK], TYPES)
        mean = shares[kind] * effects[batch]
        mean *= rng.gamma(2.0, 0.5, mean.shape)
        depths = depth * rng.lognormal(0, 0.4, len(mean))
        counts = rng.poisson(mean / mean.sum(1, keepdims=True) * depths[:, None])
        yield sparse.csr_matrix(counts.astype(np.float32))


def repeated(
    group: np.ndarray, n_genes: int, depth: float, distinct: int, rng: np.random.Generator
) -> Iterator[sparse.csr_matrix]:
    """Yield counts as `simulated` does; cells beyond so many different ones are copies of some."""
    own = np.sort(rng.integers(0, TYPES * BATCHES, distinct).astype(group.dtype))
    pool = sparse.vstack([*simulated(own, n_genes, depth, rng)], format="csr")
    first, size = np.searchsorted(own, np.arange(TYPES * BATCHES)), np.bincount(own)
    for start in range(0, len(group), BLOCK):
        of = group[start : start + BLOCK]
        yield pool[first[of] + (rng.random(len(of)) * size[of]).astype(int)]


def write_cells(
    path: Path, n_cells: int, n_genes: int, depth: float = DEPTH, distinct: int = DISTINCT
) -> None:
    """Write simulated cells, a block at a time, sorted by batch, then by type."""
    from anndata.io import write_elem

    rng = np.random.default_rng(0)
    group = np.sort(rng.integers(0, TYPES * BATCHES, n_cells).astype(np.int8))
    blocks = (
        simulated(group, n_genes, depth, rng)
        if n_cells <= distinct
        else repeated(group, n_genes, depth, distinct, rng)
    )
    indptr = np.zeros(n_cells + 1, dtype=np.int64)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        x.attrs["shape"] = np.array([n_cells, n_genes])
        options = {"shape": (0,), "maxshape": (None,), "chunks": (2**17,)}
        data = x.create_dataset("data", dtype=np.float32, **options)
        indices = x.create_dataset("indices", dtype=np.int32, **options)
        for block, start in zip(blocks, range(0, n_cells, BLOCK), strict=True):
            begin = len(data)
            for stored, values in ((data, block.data), (indices, block.indices)):
                stored.resize((begin + block.nnz,))
                stored[begin:] = values
            ends = block.indptr[1:].astype(np.int64)
            indptr[start + 1 : start + len(block.indptr)] = begin + ends
        x["indptr"] = indptr
        batch, kind = np.divmod(group, TYPES)
        _write_columns(file, {"batch": batch, "cell_type": kind}, n_cells)
        write_elem(file, "var", pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))


def _write_columns(file: h5py.File, codes: dict[str, np.ndarray], n_cells: int) -> None:
    """Write obs as AnnData does, but for the names of the cells, which go a block at a time."""
    from anndata.io import write_elem

    obs = file.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
    obs.attrs["_index"], obs.attrs["column-order"] = "_index", list(codes)
    names = obs.create_dataset("_index", shape=(n_cells,), dtype=h5py.string_dtype())
    names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    for start in range(0, n_cells, BLOCK):
        stop = min(start + BLOCK, n_cells)
        names[start:stop] = [f"cell_{i}" for i in range(start, stop)]
    for column, values in codes.items():
        levels = [f"{column}_{i}" for i in range(values.max() + 1)]
        write_elem(obs, column, pd.Categorical.from_codes(values, levels))


def most_resident() -> float:
    """Return the most memory that this process held, in GB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e9


def denoised(model: Any, cells: Any, place: Path) -> dict[str, float]:
    """Return the seconds of writing denoised shares to zarr, and of writing them again."""
    import zarr

    begun = time.perf_counter()
    model.normalized(cells, out=place, dtype="float16")
    whole = time.perf_counter() - begun
    wrote = zarr.open_array(place / "X", mode="r")
    again, writing = zarr.create_array(place / "again", **_alike(wrote)), 0.0
    for start in range(0, wrote.shape[0], BLOCK):
        block = wrote[start : start + BLOCK]
        begun = time.perf_counter()
        again[start : start + BLOCK] = block
        writing += time.perf_counter() - begun
    shutil.rmtree(place)
    return {"denoise": whole, "writing": writing}


def _alike(array: Any) -> dict[str, Any]:
    names = ("shape", "dtype", "chunks", "compressors")
    return {name: getattr(array, name) for name in names}


def run(
    how: str, path: Path, steps: int, seed: int, memory: float, embed: bool, denoise: bool
) -> dict[str, float]:
    """Fit in this process; return what was measured."""
    import anndata

    import scvae

    begun = time.perf_counter()
    cells = scvae.on_disk(path, memory=memory) if how == "disk" else anndata.read_h5ad(path)
    model = scvae.fit(
        cells, batch="batch", max_steps=steps, early_stopping=False, seed=seed, progress=False
    )
    whole = time.perf_counter() - begun
    found = {
        "elbo": model.record.elbo_held_out,
        "seconds": model.record.history.seconds,
        "whole": whole,
    }
    if embed and how == "disk":
        begun = time.perf_counter()
        model.embed(cells)
        found["embed"] = time.perf_counter() - begun
    if denoise:
        found |= denoised(model, cells, path.with_suffix(".denoised.zarr"))
    return {**found, "gb": most_resident()}


def measured(how: str, a: argparse.Namespace, seed: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", how, "--file", str(a.file)]
    command += ["--steps", str(a.steps), "--seed", str(seed), "--memory", str(a.memory)]
    command += ["--embed"] * a.embed + ["--denoise"] * a.denoise
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=64e6)
    parser.add_argument("--file", type=Path, default=Path("cells.h5ad"))
    parser.add_argument("--depth", type=float, default=DEPTH, help="counts of a cell, about")
    parser.add_argument("--distinct", type=int, default=DISTINCT, help="cells that are no copies")
    parser.add_argument("--embed", action="store_true", help="time the embedding from disk, too")
    parser.add_argument("--denoise", action="store_true", help="time denoised shares to zarr, too")
    parser.add_argument("--only", choices=("disk", "memory"), help="one of the two kinds")
    parser.add_argument("--child", choices=("disk", "memory"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(run(a.child, a.file, a.steps, a.seed, a.memory, a.embed, a.denoise)))
        return
    if not a.file.exists():
        write_cells(a.file, a.cells, a.genes, a.depth, a.distinct)
        print(f"{a.file}: {a.file.stat().st_size / 1e9:.1f} GB, {most_resident():.2f} GB resident")
    kinds = [a.only] if a.only else ["memory", "disk"]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for seed in range(a.seeds):
        for kind in kinds:
            found[kind].append(measured(kind, a, seed))
            print(seed, kind, json.dumps(found[kind][-1]), flush=True)
    for name in ("elbo", "seconds", "whole", "gb"):
        means = {kind: statistics.mean(one[name] for one in found[kind]) for kind in kinds}
        print(name, *(f"{kind} {mean:.4g}" for kind, mean in means.items()))


if __name__ == "__main__":
    main()
