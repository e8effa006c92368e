"""The job file for SLURM is one that a shell reads, and asks scvae for what it knows."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scvae.cli.program import parser

JOB = Path(__file__).parent.parent / "examples" / "slurm.sh"
SCALE = JOB.parent.parent / "docs" / "scale.md"
CLUSTER = {
    "SLURM_JOB_NODELIST": "node[3-4]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "17",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "64",
}
PROGRAMS = {
    "scontrol": "echo node3; sleep 0.05; echo node4",
    "srun": 'exec "$@"',
    "torchrun": 'echo "$OMP_NUM_THREADS"; printf "%s\\n" "$@" end',
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="a job file of bash")


def asked(folder: Path, *arguments: str) -> list[list[str]]:
    """Run the job on a cluster that says what it is told to start; return every start's words."""
    for name, line in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(JOB), *arguments],
        cwd=folder,
        env={**os.environ, **CLUSTER, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return [start.split("\n") for start in done.stdout.removesuffix("\nend\n").split("\nend\n")]


def test_a_shell_reads_the_job() -> None:
    subprocess.run(["bash", "-n", str(JOB)], check=True)
    assert os.access(JOB, os.X_OK)
    assert f"examples/{JOB.name}" in SCALE.read_text(encoding="utf-8")


def test_the_job_starts_a_process_a_gpu_that_trains_and_then_denoises(tmp_path: Path) -> None:
    fit, denoise = asked(tmp_path, "atlas.h5ad", "donor")
    for words in (fit, denoise):
        assert words[0] == "8"  # threads: 64 cores for 8 processes
        assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node3:29500"} <= {*words}
    a, b = (parser().parse_args(words[words.index("scvae") + 1 :]) for words in (fit, denoise))
    assert (a.name, str(a.input), str(a.output)) == ("fit", "atlas.h5ad", "atlas-embedded.h5ad")
    assert (a.batch, str(a.model), a.batch_size) == ("donor", "atlas.scvae", 128 * 8 * 2)
    assert (b.name, str(b.model), str(b.input)) == ("normalize", "atlas.scvae", "atlas.h5ad")
    assert (str(b.output), b.dtype) == ("atlas-denoised.zarr", "float16")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    (tmp_path / "atlas-embedded.h5ad").touch()
    (words,) = asked(tmp_path, "atlas.h5ad", "donor")
    assert "normalize" in words


def test_a_job_without_cells_says_how_it_is_started(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        asked(tmp_path)
    assert "usage: sbatch slurm.sh atlas.h5ad donor" in error.value.stderr
