"""Commands that the pages for pipelines and for R show: they run, and write what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import pytest

import scvae

ROOT = Path(scvae.__file__).parent.parent
PIPELINES = (ROOT / "docs" / "from" / "pipelines.md").read_text(encoding="utf-8")
R = (ROOT / "docs" / "from" / "r.md").read_text(encoding="utf-8")


def block(page: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    return found


def snakemake() -> str:
    """Return the command of the rule, with its placeholders filled as Snakemake fills them."""
    rule = block(PIPELINES, "python").split("rule scvae:")[1]
    shell = "".join(re.findall(r'^ +"(.*)"$', rule.split("shell:")[1], flags=re.MULTILINE))
    names = {"{input}": "study.h5ad", "{output.h5ad}": "study.embedded.h5ad", "{threads}": "1"}
    names |= {"{output.model}": "study.scvae", "{wildcards.study}": "study"}
    for name, value in names.items():
        shell = shell.replace(name, value)
    return shell


def nextflow() -> str:
    """Return the script of the process, with its variables as Nextflow sets them."""
    script = block(PIPELINES, "groovy").split('"""')[1]
    variables = {"${study}": "study", "$task.cpus": "1", "$cells": "study.h5ad"}
    for name, value in variables.items():
        script = script.replace(name, value)
    return script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "output", "model"),
    [
        (snakemake(), "study.embedded.h5ad", "study.scvae"),
        (block(R, "sh"), "again.h5ad", "donor.scvae"),
    ],
    ids=["snakemake", "r"],
)
def test_the_commands_of_a_page_run(
    script: str, output: str, model: str, tmp_path: Path, simulated: anndata.AnnData
) -> None:
    assert "{" not in script
    assert "$" not in script
    adata = simulated.copy()
    adata.obs["donor"] = adata.obs["batch"]
    for name in ("study.h5ad", "in.h5ad"):
        adata.write_h5ad(tmp_path / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = anndata.read_h5ad(tmp_path / output)
    assert written.obsm["X_scvae"].shape == (150, 30)
    assert (written.obs_names == adata.obs_names).all()
    assert scvae.load(tmp_path / model).batches == ["batch_0", "batch_1"]


def test_nextflow_runs_the_commands_of_snakemake() -> None:
    """But for the checkpoint: a task of Nextflow that is tried again has a folder of its own."""
    commands = [line.strip() for line in nextflow().splitlines() if line.strip()]
    assert " && ".join(commands) == snakemake().replace(" --checkpoint study.run", "")


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="Snakemake is not installed")
def test_snakemake_plans_the_rule(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(block(PIPELINES, "python"))
    (tmp_path / "study.h5ad").touch()
    plan = ["snakemake", "--dry-run", "--cores", "1", "--printshellcmds"]
    done = subprocess.run(
        [*plan, "--directory", tmp_path], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = " ".join((done.stdout + done.stderr).split())
    assert " ".join(snakemake().split()) in told


def test_shell_options_of_the_pages_are_those_that_there_are() -> None:
    from scvae.cli.program import parser

    known = {"--version"}
    for action in parser()._actions:
        for own in (getattr(action, "choices", None) or {}).values():
            known |= {option for each in own._actions for option in each.option_strings}
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    for text in [*pages, (ROOT / "README.md").read_text(encoding="utf-8")]:
        for line in re.findall(r"scvae (?:fit|check|embed|info|tune|completion) [^`\n]*", text):
            assert set(re.findall(r"(?<=\s)--[a-z-]+", line)) <= known, line
