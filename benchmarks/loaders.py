"""Cells per second that come off the disk in random minibatches, side by side with annbatch and
scDataset, and no training.

    python benchmarks/loaders.py [--cells 100000] [--genes 2000] [--device cuda] [--repeats 3]
        [--folder loaders]

Needs Python 3.12, and `pip install "annbatch[zarrs,torch]" scDataset`. Cells are those of disk.py,
in an h5ad file of CSR, sorted by batch and type; annbatch shuffles them once into a collection of
its own (told, not timed). Every loader hands out all cells once, in minibatches of 128, dense, on
the device:

- scvae: the file, and the collection, of which 200 MB may be in memory;
- annbatch: its collection, with its defaults (32 chunks of 512 rows at a time), and with the chunks
  of its own example (256 of 32);
- scDataset: the file, with its default of 16 minibatches a fetch in blocks of 16 rows, and with 256
  minibatches a fetch.

Each answer is a process of its own that reads an epoch once after the files have left the system's
cache ("cold"), then again ("warm").
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from disk import write_cells

SIZE, MEMORY = 128, 200e6
FILE, COLLECTION = "cells.h5ad", "cells.zarr"
Minibatches = Callable[[], Iterator[torch.Tensor]]


def scvae_reads(path: Path, device: str) -> Minibatches:
    import scvae
    from scvae.data.hold.cells import Dataset
    from scvae.data.read.survey import survey

    counts = survey(scvae.on_disk(path, memory=MEMORY).X, keep=True).held
    n = counts.shape[0]
    batch = np.zeros(n, dtype=np.int64)
    cells = Dataset.build(counts, np.zeros((n, 0), np.float32), batch, np.ones(n), device)
    rows, generator = torch.arange(n, device=device), torch.Generator().manual_seed(0)
    return lambda: (one.x for one in cells.shuffled(rows, SIZE, generator))


def annbatch_reads(path: Path, device: str, chunk: int, chunks: int) -> Minibatches:
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})

    def counts_alone(group: Any) -> anndata.AnnData:
        return anndata.AnnData(anndata.io.sparse_dataset(group["X"]))

    loader = Loader(
        batch_size=SIZE,
        chunk_size=chunk,
        preload_nchunks=chunks,
        shuffle=True,
        to="torch",
        preload_to_gpu=device == "cuda",
    )
    loader.use_collection(DatasetCollection(path, mode="r"), load_adata=counts_alone)
    return lambda: (one["X"].to(device).to_dense() for one in loader)


def scdataset_reads(path: Path, device: str, fetch: int) -> Minibatches:
    from scdataset import BlockShuffling, scDataset

    cells = scDataset(
        anndata.read_h5ad(path, backed="r"),
        BlockShuffling(block_size=16),
        batch_size=SIZE,
        fetch_factor=fetch,
        fetch_transform=lambda some: some.to_memory().X,
        batch_transform=lambda rows: torch.from_numpy(rows.toarray()),
    )
    return lambda: (one.to(device) for one in cells)


LOADERS: dict[str, tuple[str, Callable[[Path, str], Minibatches]]] = {
    "scvae, h5ad": (FILE, scvae_reads),
    "scvae, collection": (COLLECTION, scvae_reads),
    "annbatch, 32 x 512 rows": (COLLECTION, lambda p, d: annbatch_reads(p, d, 512, 32)),
    "annbatch, 256 x 32 rows": (COLLECTION, lambda p, d: annbatch_reads(p, d, 32, 256)),
    "scDataset, fetch of 16": (FILE, lambda p, d: scdataset_reads(p, d, 16)),
    "scDataset, fetch of 256": (FILE, lambda p, d: scdataset_reads(p, d, 256)),
}


def forget(path: Path) -> None:
    """Ask the system to drop what it holds of a file, or of all files in a folder."""
    for file in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def rate(minibatches: Minibatches, device: str) -> tuple[float, float]:
    """Return cells per second of an epoch, and the sum of its counts, which all must agree on."""
    begun, n, total = time.perf_counter(), 0, torch.zeros((), dtype=torch.float64, device=device)
    for x in minibatches():
        n += len(x)
        total += x.sum()
    return n / (time.perf_counter() - begun), float(total)


def measured(name: str, folder: Path, device: str) -> dict[str, float]:
    where, loader = LOADERS[name]
    minibatches = loader(folder / where, device)
    forget(folder / where)
    (cold, _), (warm, total) = rate(minibatches, device), rate(minibatches, device)
    return {"cold": cold, "warm": warm, "total": total}


def make(folder: Path, n_cells: int, n_genes: int) -> None:
    from annbatch import DatasetCollection

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE).exists():
        write_cells(folder / FILE, n_cells, n_genes)
    if not (folder / COLLECTION).exists():
        begun = time.perf_counter()
        DatasetCollection(folder / COLLECTION).add_adatas([folder / FILE])
        print(f"annbatch made its collection in {time.perf_counter() - begun:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("loaders"))
    parser.add_argument("--child", choices=LOADERS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(measured(a.child, a.folder, a.device)))
        return
    make(a.folder, a.cells, a.genes)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LOADERS}
    for _ in range(a.repeats):
        for name, kept in found.items():
            command = [sys.executable, "-W", "ignore", __file__, "--child", name]
            command += ["--folder", str(a.folder), "--device", a.device]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(name, done.stderr[-800:])
                continue
            kept.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, kept[-1], flush=True)
    for name, kept in found.items():
        for state in ("cold", "warm") if kept else ():
            rates = sorted(one[state] for one in kept)
            print(f"{name}, {state}: {statistics.median(rates):,.0f} cells/s", end=" ")
            print(f"({rates[0]:,.0f} to {rates[-1]:,.0f}), counts {kept[0]['total']:,.0f}")


if __name__ == "__main__":
    main()
