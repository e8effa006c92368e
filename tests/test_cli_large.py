"""The command line on files that memory is not to hold."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.cli import main

STEPS = ["--max-steps", "5", "--n-latent", "4", "--seed", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scvae.cli.large.SHARE", 1e-9)
    monkeypatch.setattr("scvae.models.on_disk.LEAST_MEMORY", 1)
    monkeypatch.setattr("scvae.data.hold.residence.free_memory", lambda: 20 * 10**12)
    adata = scvae.simulate(200, 30, seed=0)
    adata.X = sparse.csr_matrix(adata.X)
    adata.layers.clear()
    adata.write_h5ad("in.h5ad")
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


def test_fit_embed_and_normalize_write_what_they_write_of_files_in_memory(
    folder: Path, fitted: tuple[AnnData, scvae.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path("in.h5ad").read_bytes()
    fit = f"fit in.h5ad -o out.h5ad --batch batch --model m.scvae {' '.join(STEPS)} --quiet"
    assert run(fit) == 0
    model, out = scvae.load("m.scvae"), anndata.read_h5ad("out.h5ad")
    assert model.record.counts == "streamed from disk"
    np.testing.assert_array_equal(out.obsm["X_scvae"], model.embed("in.h5ad"))
    assert out.uns["scvae"]["batch"] == "batch"
    assert (out.X != anndata.read_h5ad("in.h5ad").X).nnz == 0
    assert run("embed m.scvae in.h5ad -o z.h5ad --key Z --quiet") == 0
    np.testing.assert_array_equal(anndata.read_h5ad("z.h5ad").obsm["Z"], out.obsm["X_scvae"])
    line = "normalize m.scvae in.h5ad -o d.zarr --genes gene_3 gene_1 --dtype float16 --quiet"
    assert run(line) == 0
    expected = model.normalized("in.h5ad", genes=["gene_3", "gene_1"])
    found = anndata.read_zarr("d.zarr")
    np.testing.assert_array_equal(found.X, expected.to_numpy().astype("float16"))
    assert list(found.obs_names) == list(out.obs_names)
    assert Path("in.h5ad").read_bytes() == before
    assert sorted(os.listdir()) == ["d.zarr", "in.h5ad", "m.scvae", "out.h5ad", "z.h5ad"]


def test_the_output_may_be_the_input(folder: Path) -> None:
    assert run(f"fit in.h5ad -o in.h5ad --batch batch {' '.join(STEPS)} --quiet") == 0
    assert anndata.read_h5ad("in.h5ad").obsm["X_scvae"].shape == (200, 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit in.h5ad -o out.h5ad --leiden", "leave --leiden and --umap out"),
        ("normalize m.scvae in.h5ad -o d.csv", "must end in .zarr or .h5ad"),
        ("normalize m.scvae in.h5ad -o in.h5ad", "in.h5ad is there already"),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 1
    assert message in capsys.readouterr().err
    assert os.listdir() == ["in.h5ad"]
