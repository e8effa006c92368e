"""Kinds of measurement, files, analyses and several processes on a GPU; skipped without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scvae

GPU = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning"),
]
KINDS = [["protein"], ["chromatin"], ["rna", "protein"], ["rna", "chromatin"]]


def fit(data: Any, device: str = GPU, **arguments: Any) -> scvae.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scvae.fit(
            data, **{"max_steps": 100, "device": device, "progress": False} | arguments
        )


def alike(on_gpu: Any, on_cpu: Any, share: float = 0.02) -> None:
    """Two tables are the same, but for rounding in proportion to their entries' mean size."""
    gpu, cpu = (np.asarray(table, dtype=float) for table in (on_gpu, on_cpu))
    np.testing.assert_array_equal(np.isnan(gpu), np.isnan(cpu))
    np.testing.assert_allclose(gpu, cpu, rtol=share, atol=share * np.nanmean(np.abs(cpu)))


def on_both(model: scvae.Model, folder: Path) -> list[scvae.Model]:
    model.save(folder / "model.scvae")
    return [scvae.load(folder / "model.scvae", device=device) for device in (GPU, "cpu")]


# -- kinds of measurement --------------------------------------------------------------------------


def several(kinds: list[str], missing: float) -> Any:
    sizes = {"n_proteins": 12, "n_regions": 300}
    return scvae.simulate(600, 100, modalities=kinds, missing=missing, seed=1, **sizes)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("kinds", [*KINDS, ["rna", "protein", "chromatin"]], ids="+".join)
def test_kinds_train_and_answer_as_on_the_cpu(
    kinds: list[str], missing: float, tmp_path: Path
) -> None:
    if missing and len(kinds) == 1:
        pytest.skip("a cell that was not measured at all is none")
    mdata = several(kinds, missing)
    bounds = [fit(mdata, device, batch="batch").record.elbo_held_out for device in ("cpu", GPU)]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.02)
    gpu, cpu = on_both(fit(mdata, batch="batch"), tmp_path)
    alike(gpu.embed(mdata), cpu.embed(mdata))
    if len(kinds) > 1:
        alike(gpu.contributions(mdata), cpu.contributions(mdata))
    alike(gpu.elbo(mdata, samples=50), cpu.elbo(mdata, samples=50))
    for kind in kinds:
        alike(gpu.normalized(mdata, modality=kind), cpu.normalized(mdata, modality=kind))
    if "protein" in kinds:
        alike(gpu.foreground(mdata, samples=200), cpu.foreground(mdata, samples=200), 0.1)


@pytest.mark.parametrize("fusion", ["mixture", "mixture-of-products"])
def test_every_fusion_trains_on_the_gpu(fusion: str) -> None:
    mdata = several(["rna", "protein"], 0.3)
    bounds = [fit(mdata, device, fusion=fusion).record.elbo_held_out for device in ("cpu", GPU)]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.02)


def test_what_was_not_measured_is_imputed_on_the_gpu(tmp_path: Path) -> None:
    mdata = several(["rna", "protein"], 0.0)
    gpu, cpu = on_both(fit(mdata), tmp_path)
    rna = mudata.MuData({"rna": mdata["rna"].copy()})
    alike(*(model.normalized(rna, modality="protein") for model in (gpu, cpu)))
    asked: dict[str, Any] = {"modality": "protein", "return_interval": 0.9, "samples": 400}
    measured = mdata["protein"].X
    measured = measured.toarray() if sparse.issparse(measured) else np.asarray(measured)
    shares = []
    for model in (gpu, cpu):
        _, low, high = model.normalized(rna, background=True, **asked)
        shares.append(((low.to_numpy() <= measured) & (measured <= high.to_numpy())).mean())
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


# -- from disk, to disk ----------------------------------------------------------------------------


def test_counts_on_disk_train_on_the_gpu_as_those_in_memory(tmp_path: Path) -> None:
    adata = scvae.simulate(2000, 100, seed=1)
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(path := tmp_path / "cells.h5ad")
    on_disk = scvae.on_disk(path)
    on_disk.memory = 200_000  # bytes, of 800,000
    models = [fit(data, batch="batch") for data in (adata, on_disk)]
    bounds = [model.record.elbo_held_out for model in models]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.02)
    alike(models[1].embed(path), models[1].embed(adata), 1e-3)


# -- references and analyses -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnnData, list[scvae.Model]]:
    adata = scvae.simulate(800, 100, n_batches=4, seed=1)
    adata.obs["arm"] = np.where(adata.obs["batch"].cat.codes < 2, "a", "b")
    model = fit(adata, batch="batch", robust=True, validation=0.2)
    return adata, on_both(model, tmp_path_factory.mktemp("pair"))


def test_a_batch_that_is_new_lies_where_it_lies_on_the_cpu(
    pair: tuple[AnnData, list[scvae.Model]],
) -> None:
    adata, models = pair
    query = adata[:100, ::2].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new, closest = (
            [model.embed(query, batch=batch) for model in models] for batch in ("new", "closest")
        )
    alike(*new)
    apart = np.abs(closest[0] - closest[1]).max(1) > 0.01  # two batches may be nearly as close
    assert apart.mean() < 0.3


def test_a_reference_is_extended_on_the_gpu(pair: tuple[AnnData, list[scvae.Model]]) -> None:
    adata, models = pair
    query = adata[:200].copy()
    query.obs["batch"] = pd.Categorical(["later"] * 200)
    extended = [model.extend(query, batch="batch", max_steps=40) for model in models]
    for before, after in zip(models, extended, strict=True):
        np.testing.assert_array_equal(after.embed(adata), before.embed(adata))
    on_gpu, on_cpu = (model.embed(query) for model in extended)
    assert np.corrcoef(on_gpu.ravel(), on_cpu.ravel())[0, 1] > 0.99  # other noise in training


def test_analyses_say_on_the_gpu_what_they_say_on_the_cpu(
    pair: tuple[AnnData, list[scvae.Model]],
) -> None:
    adata, models = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tables = [
            scvae.analysis.compare(
                model, adata, condition="arm", groups="cell_type", replicate="batch", samples=20
            ).table
            for model in models
        ]
        markers = [scvae.analysis.markers(model, adata, groups="cell_type") for model in models]
        scores = [scvae.analysis.doublets(model, adata).table["score"] for model in models]
    alike(*(table.set_index(["gene", "group"]).sort_index()["lfc"] for table in tables), share=0.3)
    assert all(frame["gene"].notna().all() for frame in markers)
    assert np.corrcoef(*scores)[0, 1] > 0.9
    alike(*(scvae.analysis.loadings(model) for model in models))


# -- several processes -----------------------------------------------------------------------------

RANK = """
import json, sys
import scvae
import torch.distributed as dist
backend, rank, size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if size > 1 or backend == "nccl":
    file = f"file://{folder}/meet{backend}{size}"
    dist.init_process_group(backend, file, rank=rank, world_size=size)
if backend == "nccl":  # one process counts as alone: let it send, to itself
    from scvae.train import ranks
    ranks.Ranks.here = classmethod(lambda cls: cls(0, 1))
adata = scvae.simulate(600, 100, seed=1)
model = scvae.fit(adata, batch="batch", max_steps=100, device="DEVICE", progress=False)
total = sum(float(p.double().sum()) for p in model.vae.parameters())
with open(f"{folder}/{backend}{size}{rank}", "w") as file:
    json.dump([model.record.elbo_held_out, total], file)
if dist.is_initialized():
    dist.destroy_process_group()
"""


def ranks(backend: str, size: int, folder: Path) -> list[list[float]]:
    """Return the held-out bound and the sum of all weights that every process found."""
    script = RANK.replace("DEVICE", GPU)
    started = [
        subprocess.Popen([sys.executable, "-c", script, backend, str(r), str(size), str(folder)])
        for r in range(size)
    ]
    assert [process.wait(500) for process in started] == [0] * size
    return [json.loads((folder / f"{backend}{size}{r}").read_text()) for r in range(size)]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo and nccl of Linux")
@pytest.mark.parametrize(("backend", "size"), [("nccl", 1), ("gloo", 2)])
def test_processes_train_together_on_the_gpu(backend: str, size: int, tmp_path: Path) -> None:
    (alone,), together = ranks("gloo", 1, tmp_path), ranks(backend, size, tmp_path)
    assert all(one == together[0] for one in together)
    assert together[0][0] == pytest.approx(alone[0], rel=0.02)


def test_a_fit_of_several_kinds_is_repeated_to_the_bit(tmp_path: Path) -> None:
    script = (
        "import numpy as np, scvae, sys\n"
        "mdata = scvae.simulate(400, 60, modalities=['rna', 'protein', 'chromatin'], "
        "n_regions=100, missing=0.3, seed=1)\n"
        f"scvae.fit(mdata, deterministic=True, device={GPU!r}, max_steps=40, progress=False)\n"
        "np.save(sys.argv[1], mdata.obsm['X_scvae'])\n"
    )
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy")]
    for path in paths:
        command = [sys.executable, "-W", "ignore", "-c", script, path]
        subprocess.run(command, check=True, env=environment, timeout=500)
    np.testing.assert_array_equal(*map(np.load, paths))
