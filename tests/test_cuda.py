"""What runs on a GPU alone: skipped where there is none, except for Triton's own interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from cells import architecture_of_rna, facts_of_rna
from scipy import sparse
from test_distributions import ALL, Build, every, single
from torch import Generator, Tensor

import scvae
from scvae.core.rows import nb_log_prob, zinb_log_prob
from scvae.data.hold.cells import Dataset
from scvae.modalities.rna import Statistics
from scvae.models.network import build_vae
from scvae.train.loop import Step, fastest
from scvae.train.optimizer import optimizer_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="this torch came without Triton"
)

INTERPRETED = """
import torch
from cells import architecture_of_rna, facts_of_rna
from scvae.core.kernels import cuda
from scvae.core.kernels.run import run

def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

n = 9
for g, outside, rows_of_r, inflated, shared in [
    (37, 0, 1, False, False), (37, 1, 9, True, True), (1500, 1, 9, True, True),
    (1024, 0, 1, False, True), (1025, 0, 1, True, False),
]:
    width = g + outside
    x = torch.poisson((draw(n, g, seed=3) * 1.5).exp())
    x[:, 0] = torch.tensor([0.0, 1, 15, 16, 17, 18, 300, 1e4, 1e5])
    r = (draw(rows_of_r, g, seed=1) * 2).exp()
    r[0, 1], r[0, 2] = 1e9, 1e-3
    total = torch.log(x.sum(1, keepdim=True)) if shared else torch.empty(n, 0)
    a = draw(n, width, seed=0)
    if not shared:
        a[:, 0] = x[:, 0].clamp(min=1).log()  # where large counts are likely, digits matter
        a[0, 3], a[1, 4], x[1, 4] = 90.0, 90.0, 3.0  # means beyond float32
    given = [x, a, total, r, draw(n, g, seed=4) * 3]
    names = [width, 1, g, g]
    if not inflated:
        given, names = given[:-1], names[:-1]
    found, expected = ([torch.zeros(n, w) for w in (1, *names)] for _ in range(2))
    cuda.launch(given, found[0], found[1:])
    run("zinb" if inflated else "nb", n, *given, *expected)
    for i, (a, b) in enumerate(zip(found, expected)):
        size = b.abs() + g + (x.sum(1, keepdim=True) if shared or i else 0)
        assert ((a - b).abs() < 2e-6 * size).all(), (g, inflated, shared, i)
"""


@needs_triton
@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter needs older NumPy"
)
def test_the_fused_kernel_is_the_cpus_in_tritons_interpreter() -> None:
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])  # this folder's own modules
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", INTERPRETED]
    subprocess.run(command, check=True, env=environment, timeout=600)


def seeded(seed: int, device: str = "cpu") -> Generator:
    return Generator(device).manual_seed(seed)


def parameters(n: int = 40, g: int = 300) -> list[Tensor]:
    """Return x, logits of shares, log r, log-odds of zeros, log total."""
    x = torch.poisson((torch.randn(n, g, generator=seeded(0)) * 2).exp(), generator=seeded(1))
    a, h = (torch.randn(n, g, generator=seeded(seed)) for seed in (2, 3))
    return [x, a, torch.randn(g, generator=seeded(4)) * 3, h, (x.sum(-1, keepdim=True) + 1).log()]


@needs_gpu
@needs_triton
@pytest.mark.parametrize("inflated", [False, True])
def test_rows_on_the_gpu_are_rows_on_the_cpu(inflated: bool) -> None:
    results = []
    for device in ("cpu", "cuda"):
        x, *rest = (p.to(device).requires_grad_(i > 0) for i, p in enumerate(parameters()))
        a, log_r, h, total = rest
        found = (
            zinb_log_prob(x, a, log_r, h, total) if inflated else nb_log_prob(x, a, log_r, total)
        )
        found.sum().backward()
        results.append([found.detach(), *(p.grad for p in rest if p.grad is not None)])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-4, atol=1e-3)


@needs_gpu
def test_the_graph_takes_the_steps_that_are_taken_one_by_one() -> None:
    adata = scvae.simulate(n_cells=520, n_genes=60)
    weights = []
    for form in (lambda step: step, fastest):
        architecture = architecture_of_rna(60, prior="mixture")
        statistics = Statistics(torch.zeros(60), torch.ones(1), torch.ones(1))
        vae = build_vae(architecture, facts_of_rna(statistics), seeded(0)).to("cuda").train()
        dataset = on_the_gpu(adata)
        step = form(Step(vae, optimizer_of(vae), 0.01, seeded(1, "cuda")))
        rows = torch.arange(520, device="cuda")
        for _ in range(3):
            for batch in dataset.shuffled(rows, 100, seeded(2, "cuda")):
                bound = step(batch, 1e-3, 0.5)
        assert bound.isfinite()
        weights.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-2, atol=1e-3)


def on_the_gpu(adata: AnnData) -> Dataset:
    counts = sparse.csr_matrix(adata.X)
    n = counts.shape[0]
    library = np.asarray(counts.sum(1)).ravel().astype(float)
    design, codes = np.zeros((n, 0), dtype=np.float32), np.zeros(n, dtype=np.int64)
    return Dataset.build(counts, design, codes, library, "cuda")


@needs_gpu
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_a_fit_on_the_gpu_is_as_good_as_on_the_cpu(likelihood: str) -> None:
    adata = scvae.simulate(n_cells=600, n_genes=100, seed=1)
    bounds = [
        scvae.fit(
            adata, likelihood=likelihood, max_steps=200, device=device, progress=False
        ).record.elbo_held_out
        for device in ("cpu", "cuda")
    ]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.02)


@needs_gpu
def test_streamed_counts_train_the_same_model() -> None:
    adata = scvae.simulate(n_cells=2000, n_genes=100, seed=1)
    summaries = [
        scvae.fit(adata, stream=stream, device="cuda", max_steps=50, progress=False).record
        for stream in (False, True)
    ]
    assert summaries[1].counts == "streamed from host memory"
    assert summaries[1].elbo_held_out == pytest.approx(summaries[0].elbo_held_out, rel=1e-3)


TWICE = """
import numpy as np
import scvae

adata = scvae.simulate(n_cells=600, n_genes=100, seed=1)
embeddings = []
for _ in range(2):
    scvae.fit(adata, deterministic=True, device="cuda", max_steps=50, progress=False)
    embeddings.append(adata.obsm["X_scvae"].copy())
assert np.array_equal(*embeddings)
"""


@needs_gpu
def test_deterministic_fits_are_equal_to_the_bit() -> None:
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    subprocess.run([sys.executable, "-c", TWICE], check=True, env=environment, timeout=600)


@needs_gpu
@every(ALL)
def test_distributions_are_the_same_on_both_devices(build: Build) -> None:
    def there(*shape: int, seed: int = 0) -> Tensor:
        return single(*shape, seed=seed).cuda()

    here, on_gpu = build(single), build(there)
    x = here.sample((3,))
    torch.testing.assert_close(
        on_gpu.log_prob(x.cuda()).cpu(), here.log_prob(x), rtol=1e-4, atol=1e-4
    )
    assert on_gpu.sample().device.type == "cuda"


OPTIONS: list[dict[str, Any]] = [
    {"library_size": "latent"},
    {"dispersion": "gene-batch"},
    {"dispersion": "gene-cell"},
    {"prior": "normal"},
    {"n_layers": 2},
    {"encode_covariates": False},
    {"covariates": "cell_type"},
    {"decoder": "linear"},
    {"robust": True},
]


@needs_gpu
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_kind_of_model_trains_on_the_gpu(options: dict[str, Any]) -> None:
    bounds = []
    for device in ("cpu", "cuda"):
        adata = scvae.simulate(n_cells=600, n_genes=100, seed=1)
        model = scvae.fit(
            adata, batch="batch", max_steps=100, device=device, progress=False, **options
        )
        bounds.append(model.record.elbo_held_out)
        assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert bounds[1] == pytest.approx(bounds[0], rel=0.02)


@needs_gpu
def test_a_model_answers_alike_on_both_devices(tmp_path: Path) -> None:
    adata = scvae.simulate(n_cells=600, n_genes=100, seed=1)
    fitted = scvae.fit(adata, batch="batch", max_steps=100, device="cuda", progress=False)
    fitted.save(tmp_path / "model.scvae")
    models = [scvae.load(tmp_path / "model.scvae", device=device) for device in ("cpu", "cuda")]
    answers = [
        (
            model.embed(adata),
            model.embed(adata, return_std=True)[1],
            model.normalized(adata),
            model.elbo(adata, samples=50),
        )
        for model in models
    ]
    np.testing.assert_allclose(fitted.embed(adata), answers[1][0], rtol=1e-3, atol=1e-3)
    for on_cpu, on_gpu in zip(*answers, strict=True):
        scale = np.abs(np.asarray(on_cpu, dtype=float)).mean()
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=0.02, atol=0.02 * scale)


GOES_ON = """
import sys
import numpy as np
import scvae
from scvae.models.keep import checkpoint
from scvae.train.run import Run

checkpoint.SECONDS_BETWEEN = 0.0
kept = checkpoint.Checkpoint.keep

def keep(self, run):
    if run.is_due:
        kept(self, run)
        if sys.argv[1] == "killed" and run.taken >= 60:
            raise SystemExit(9)

checkpoint.Checkpoint.keep = keep
adata = scvae.simulate(n_cells=600, n_genes=100, seed=1)
model = scvae.fit(
    adata, batch="batch", checkpoint=sys.argv[2], deterministic=True, device="cuda", max_steps=120,
    progress=False,
)
np.save(sys.argv[3], adata.obsm["X_scvae"])
"""


@needs_gpu
def test_a_fit_cut_on_the_gpu_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    codes, found = [], []
    for form, folder in (("whole", "a"), ("killed", "b"), ("resumed", "b")):
        file = tmp_path / f"{form}.npy"
        command = [sys.executable, "-c", GOES_ON, form, str(tmp_path / folder), str(file)]
        codes.append(subprocess.run(command, env=environment, timeout=600).returncode)
        if file.exists():
            found.append(np.load(file))
    assert codes == [0, 9, 0]
    np.testing.assert_array_equal(*found)
