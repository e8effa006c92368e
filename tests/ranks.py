"""One of several processes that train together; started by test_ranks.py."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from scipy import sparse

import scvae
from scvae.core import networks
from scvae.core.distributions import Gaussian
from scvae.core.objectives import elbo
from scvae.data.hold.cells import Dataset
from scvae.data.hold.parts import Share
from scvae.errors import ConfigError
from scvae.train.ranks import Ranks

OPTIONS: dict[str, Any] = {
    "batch": "batch",
    "n_latent": 4,
    "n_hidden": 16,
    "max_steps": 60,
    "batch_size": 33,
    "validation": 0.2,
    "robust": False,  # genes are hidden at random, by every rank for itself
    "progress": False,
    "device": "cpu",
}

MEMORY = 15_000  # bytes: too few for the counts, and so for twice as many


def cells() -> Any:
    adata = scvae.simulate(300, 40, seed=2)
    adata.X = sparse.csr_matrix(adata.X)
    return adata


def staying(path: Path, memory: int) -> Any:
    """Open a file whose counts do not fit into memory."""
    on_disk = scvae.on_disk(path)
    on_disk.memory = memory
    return on_disk


def without_noise() -> None:
    """Let draws from a Gaussian be its mean: ranks draw their own noise, unlike one process. And
    products exact: what is rounded to bfloat16 differs where its last bits do."""
    networks.rounded_linear = torch.nn.functional.linear
    Gaussian.rsample = lambda self, sample_shape=(), generator=None: self.loc.expand(
        *sample_shape, *self.loc.shape
    )


def digest_of(model: scvae.Model) -> str:
    total = hashlib.sha256()
    for value in model.vae.state_dict().values():
        total.update(value.numpy().tobytes())
    return total.hexdigest()


def told(model: scvae.Model) -> dict[str, Any]:
    history = model.record.history
    assert history is not None
    return {
        "weights": digest_of(model),
        "validation": history.validation,
        "train": history.train,
        "step": history.step,
        "cells": round(history.cells_per_second * history.seconds),
        "interrupted": history.interrupted,
    }


def gradients(model: scvae.Model, ranks: Ranks | None) -> dict[str, Any]:
    """Return gradients, bound and running moments after a step on 33 cells."""
    vae, dataset = model.vae, model.read(cells())
    vae.train()
    rows = torch.arange(33)
    minibatch = dataset.cells(rows if ranks is None else Share(ranks.rank, ranks.size).of(rows))
    if ranks is None:
        bound = elbo(vae.terms(minibatch)).mean()
        (-bound * 33).backward()
        grads = [p.grad / 33 for p in vae.parameters()]
    else:
        with ranks.normalising(vae):
            bound = elbo(vae.terms(minibatch)).mean()
            bound = ranks.backward(vae, bound, bound, len(minibatch))
        grads = [p.grad for p in vae.parameters()]
    moments = [b for name, b in vae.named_buffers() if "running" in name or "tracked" in name]
    return {"bound": float(bound), "grads": grads, "moments": moments}


def laws(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    without_noise()
    model = scvae.fit(cells(), **{**OPTIONS, "max_steps": 3})
    model.save(folder / f"model{rank}")
    alone = gradients(scvae.load(folder / f"model{rank}", device="cpu"), None)
    whole = scvae.fit(cells(), **OPTIONS)
    found["alone"] = told(whole)
    cells().write_h5ad(path := folder / f"cells{rank}.h5ad")
    found["alone from disk"] = told(scvae.fit(staying(path, 2 * MEMORY), **OPTIONS))
    join(folder, rank)
    ranks = Ranks.here()
    assert ranks is not None
    shared = gradients(scvae.load(folder / f"model{rank}", device="cpu"), ranks)
    found["bound"] = [alone["bound"], shared["bound"]]
    for name in ("grads", "moments"):
        pairs = zip(alone[name], shared[name], strict=True)
        scale = max(float(one.double().norm()) for one in alone[name])
        found[name] = max(float((a - b).double().norm()) for a, b in pairs) / scale
    adata = cells()
    model = scvae.fit(adata, **OPTIONS)
    found["together"] = told(model)
    found["embedded"] = bool((adata.obsm["X_scvae"] == model.embed(cells())).all())
    apart = np.abs(model.elbo(cells(), samples=1) - whole.elbo(cells(), samples=1))
    found["apart"] = float(apart.mean())
    found["disk"] = told(scvae.fit(staying(path, MEMORY + 5_000 * rank), **OPTIONS))
    try:
        scvae.fit(staying(path, MEMORY) if rank else cells(), **OPTIONS)
    except ConfigError as error:
        found["elsewhere"] = str(error)
    try:
        scvae.fit(cells(), **{**OPTIONS, "seed": rank})
    except ConfigError as error:
        found["different"] = str(error)
    try:
        scvae.fit(cells(), **{**OPTIONS, "batch_size": 3})
    except ConfigError as error:
        found["few"] = str(error)
    interrupt_at(20 if rank else None)
    found["interrupted"] = told(scvae.fit(cells(), **OPTIONS))
    return found


def answers(folder: Path, rank: int) -> dict[str, Any]:
    """Ask a model alone, then together; say what was the same to the bit, and how much was done."""
    from scvae.models import fitted, results

    fitted.CHUNK_VALUES = 40 * 7  # 43 minibatches of seven cells
    model, adata = scvae.fit(cells(), **{**OPTIONS, "max_steps": 3}), cells()
    adata.write_h5ad(path := folder / f"cells{rank}.h5ad")
    genes, few = list(adata.var_names[[5, 2, 30]]), adata[:1].copy()
    questions: dict[str, Any] = {
        "embed": lambda **how: model.embed(adata, **how),
        "spread": lambda **how: model.embed(adata[:40].copy(), return_std=True, **how)[1],
        "normalized": lambda **how: model.normalized(adata, genes=genes, **how).to_numpy(),
        "half": lambda **how: model.normalized(adata, dtype="float16", **how).to_numpy(),
        "disk": lambda **how: model.embed(staying(path, 30_000), **how),
        "one cell": lambda **how: model.normalized(few, batch="own", **how).to_numpy(),
        "array": lambda **how: model.embed(adata, out=np.empty((300, 4)), **how),
    }
    alone = {name: ask() for name, ask in questions.items()}
    join(folder, rank)
    found: dict[str, Any] = {"cells": {}}
    for name, ask in questions.items():
        with counted_cells() as seen:
            together = ask(distributed=True)
        found["cells"][name] = sum(seen)
        found[name] = bool(together.dtype == alone[name].dtype and (together == alone[name]).all())
    import anndata

    for ending, read in ((".h5ad", anndata.read_h5ad), (".zarr", anndata.read_zarr)):
        model.normalized(adata, genes=genes, out=folder / f"x{ending}", distributed=True)
        found[ending] = bool((alone["normalized"] == read(folder / f"x{ending}").X).all())
        found[f"{ending} names"] = list(read(folder / f"x{ending}").var_names) == genes
    model.embed(path, out=folder / "z.zarr", distributed=True)
    z = anndata.read_zarr(folder / "z.zarr").obsm["X_scvae"]
    found["file to file"] = bool((z == alone["embed"]).all())
    kept, results.InOrder._put = results.InOrder._put, full_disk  # type: ignore[method-assign]
    results.CHUNK = 100
    found["disk is full"] = refusal(
        lambda: model.embed(adata, out=folder / "f.h5ad", distributed=True)
    )
    results.InOrder._put = kept  # type: ignore[method-assign]
    other = adata[:, ::-1].copy() if rank else adata
    found["other genes"] = refusal(lambda: model.embed(other, distributed=True)) or "same"
    found["there"] = refusal(lambda: model.embed(adata, out=folder / "z.zarr", distributed=True))
    other = adata[::-1].copy() if rank else adata
    found["other cells"] = refusal(lambda: model.embed(other, distributed=True))
    asked = genes[: 3 - rank]
    found["other question"] = refusal(
        lambda: model.normalized(adata, genes=asked, distributed=True)
    )
    found["left"] = sorted(
        one.name for one in folder.iterdir() if "part" in one.name or "f.h5" in one.name
    )
    return found


def writing(folder: Path, rank: int) -> dict[str, Any]:
    """Write denoised counts together, again and again, until a rank is killed."""
    from scvae.models import fitted

    fitted.CHUNK_VALUES = 40 * 3
    model, out = scvae.load(folder / "model", device="cpu"), folder / "out.zarr"
    join(folder, rank)
    while True:
        model.normalized(cells(), out=out, distributed=True)
        (folder / f"going{rank}").touch()
        dist.barrier()
        if rank == 0:
            shutil.rmtree(out)
        dist.barrier()


@contextlib.contextmanager
def counted_cells() -> Iterator[list[int]]:
    """Yield a list that gets the number of cells of every minibatch."""
    seen: list[int] = []
    kept = Dataset._described

    def counted(self: Dataset, rows: torch.Tensor, *given: Any) -> Any:
        seen.append(len(rows))
        return kept(self, rows, *given)

    with mock.patch.object(Dataset, "_described", counted):
        yield seen


def full_disk(*given: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device")


def refusal(ask: Callable[[], Any]) -> str:
    """Return the error of what is refused, with its kind."""
    try:
        ask()
    except scvae.ScvaeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def interrupt_at(step: int | None) -> None:
    """Let this rank, alone, be told to stop at a step."""
    taken, kept = 0, Dataset._described

    def counted(self: Dataset, *given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGINT)
        return kept(self, *given)

    Dataset._described = counted  # type: ignore[method-assign]


def endless(folder: Path, rank: int) -> dict[str, Any]:
    """Train with checkpoints at every step until a rank is killed."""
    import scvae.models.keep.checkpoint as module

    module.SECONDS_BETWEEN = 0.0
    join(folder, rank)
    options = {**OPTIONS, "max_steps": 400, "early_stopping": False}
    scvae.fit(cells(), checkpoint=folder / "kept", **options)
    return {}


def told_to_end(folder: Path, rank: int) -> dict[str, Any]:
    """Train without checkpoints but the last, until all ranks are told to end."""
    import scvae.models.keep.checkpoint as module

    kept = module.Checkpoint.keep

    def keep(self: Any, run: Any) -> None:
        (folder / f"going{rank}").touch()
        kept(self, run)

    module.SECONDS_BETWEEN = 1e9
    module.Checkpoint.keep = keep  # type: ignore[method-assign]
    join(folder, rank)
    options = {**OPTIONS, "max_steps": 10_000, "early_stopping": False}
    scvae.fit(cells(), checkpoint=folder / "kept", **options)
    return {}


def join(folder: Path, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )


if __name__ == "__main__":
    what, where, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    result = {f.__name__: f for f in (laws, answers, writing, endless, told_to_end)}[what](
        where, number
    )
    (where / f"found{number}.json").write_text(json.dumps(result))
    dist.destroy_process_group()  # threads of gloo that outlive Python end it with an abort
