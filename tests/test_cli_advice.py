"""Laws of the command line's advice: what it names exists, and makes a file of cells when run."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import anndata
import numpy as np
import pytest
import scanpy
from scipy.io import mmwrite

import scvae
from scvae.cli import main
from scvae.cli.formats import reader_in_python
from tests.test_door import cells


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("--batch-key", "--batch"),
        ("--batchs=donor", "--batch"),
        ("--n-epochs", "--max-steps"),
        ("--use-raw", "--layer"),
        ("--use-gpu", "--device"),
        ("--lr", "--learning-rate"),
        ("--n_latent", "--n-latent"),
        ("--xyzzy", None),
    ],
)
def test_an_option_of_another_package_gets_the_right_name(
    given: str, option: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "in.h5ad", "-o", "out.h5ad", given, "3"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip()
    assert f"unrecognized arguments: {given}" in told
    assert told.endswith(f"did you mean {option}?" if option else "3")


@pytest.mark.parametrize("index", [None, "Cell_Index"])  # with a name, over numbers of cells
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv", "x.txt"])
def test_a_table_of_text_is_made_a_file_of_cells_by_the_call(
    name: str,
    index: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    adata, path = cells(), tmp_path / name
    frame = adata.to_df().reset_index(drop=True) if index else adata.to_df()
    text = frame.to_csv(sep="," if "csv" in name else "\t", index_label=index)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert main(["fit", str(path), "-o", "out.h5ad"]) == 1
    call = re.search(r"anndata\.io\.read_csv.*'cells.h5ad'\)", capsys.readouterr().err)
    assert call is not None
    eval(call[0], {"anndata": anndata})
    np.testing.assert_array_equal(anndata.read_h5ad("cells.h5ad").X, adata.X.toarray())


def test_a_remedy_reads_the_file_as_its_kind_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adata, folder = cells(), tmp_path / "mtx"
    adata.X[3] = 0
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", adata.X.T.astype(int))
    (folder / "barcodes.tsv").write_text("\n".join(adata.obs_names) + "\n")
    (folder / "genes.tsv").write_text("\n".join(f"{g}\t{g}" for g in adata.var_names) + "\n")
    assert main(["fit", str(folder), "-o", str(tmp_path / "out.h5ad")]) == 1
    call = re.search(r"adata = (scanpy\.read_10x_mtx\('[^']*'\))", capsys.readouterr().err)
    assert call is not None
    assert eval(call[1], {"scanpy": scanpy}).shape == adata.shape


def test_readers_are_functions(tmp_path: Path) -> None:
    adata = cells()
    adata.write_h5ad(tmp_path / "x")
    assert reader_in_python(tmp_path / "x") == "anndata.read_h5ad"
    assert reader_in_python(tmp_path / "absent") == "anndata.read_h5ad"
    adata.write_zarr(tmp_path / "z")
    assert reader_in_python(tmp_path / "z") == "anndata.read_zarr"


def test_genes_that_are_there_are_written_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells().write_h5ad(tmp_path / "x.h5ad")
    words = ["fit", str(tmp_path / "x.h5ad"), "-o", str(tmp_path / "o.h5ad")]
    assert main([*words, "--genes", "Gene1", "absent", "Gene7"]) == 1
    assert "--genes Gene1 Gene7" in capsys.readouterr().err


def test_cells_of_an_unseen_batch_are_embedded_by_the_option_of_the_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adata, query = cells(), cells()
    adata.obs["batch"] = ["x", "y"] * (adata.n_obs // 2)
    query.obs["batch"] = "z"
    scvae.fit(adata, batch="batch", max_steps=3, progress=False).save(tmp_path / "m.scvae")
    query.write_h5ad(tmp_path / "q.h5ad")
    model, given, out = (str(tmp_path / name) for name in ("m.scvae", "q.h5ad", "e.h5ad"))
    assert main(["embed", model, given, "-o", out]) == 1
    message = capsys.readouterr().err
    assert "--batch new" in message
    assert f"model = scvae.load({model!r})" in message
    assert main(["embed", model, given, "-o", out, "--batch", "new"]) == 0


@pytest.mark.parametrize("as_file", [False, True])
def test_genes_that_were_given_are_written_out_in_a_remedy(
    as_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adata, genes = cells(), ["Gene1", "Gene2", "Gene3"]
    x = adata.X.toarray()
    x[[3, 5], 1:4] = 0
    adata.X = x
    adata.write_h5ad(tmp_path / "x.h5ad")
    (tmp_path / "genes.txt").write_text("\n".join(genes))
    words = [str(tmp_path / "genes.txt")] if as_file else genes
    line = ["fit", str(tmp_path / "x.h5ad"), "-o", str(tmp_path / "o.h5ad"), "--genes"]
    assert main([*line, *words]) == 1
    call = re.search(r"adata = (adata\[.*?\]\.copy\(\)) \(In", capsys.readouterr().err)
    assert call is not None
    kept = eval(call[1], {"adata": adata, "np": np})
    assert kept.n_obs == adata.n_obs - int((x[:, 1:4].sum(1) == 0).sum())
