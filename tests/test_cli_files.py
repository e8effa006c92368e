"""What the command line reads, by content, and what it writes: the same cells from every form."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from anndata import AnnData
from scipy import io, sparse

import scvae
from scvae.cli import main
from scvae.cli.formats import reader_in_python
from scvae.cli.inputs import read
from scvae.cli.outputs import check_h5ad, check_model, check_space, write
from scvae.errors import ConfigError, FileError

X = np.random.default_rng(0).poisson(1.0, (7, 5)).astype(np.int32)
CELLS = [f"AAAC{i}-1" for i in range(7)]
IDS = [f"ENSG{i}" for i in range(5)]
NAMES = ["CD3D", "CD8A", "MS4A1", "LYZ", "NKG7"]


def whole(x: np.ndarray = X) -> AnnData:
    return AnnData(sparse.csr_matrix(x), pd.DataFrame(index=CELLS), pd.DataFrame(index=NAMES))


def bytes_of(texts: list[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts])


def write_10x(
    path: Path, version: int, names: list[str] = NAMES, kinds: list[str] | None = None
) -> None:
    m = sparse.csc_matrix(X.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["barcodes"] = bytes_of(CELLS)
        group["data"], group["indices"], group["indptr"] = m.data, m.indices, m.indptr
        group["shape"] = np.array(m.shape)
        if version == 2:
            group["genes"], group["gene_names"] = bytes_of(IDS), bytes_of(names)
            return
        features = group.create_group("features")
        features["id"], features["name"] = bytes_of(IDS), bytes_of(names)
        features["feature_type"] = bytes_of(kinds or ["Gene Expression"] * 5)
        features["genome"] = bytes_of(["GRCh38"] * 5)


def write_loom(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["matrix"] = X.T.astype(np.float32)
        file["layers/spliced"] = X.T * 2
        file["col_attrs/CellID"], file["col_attrs/donor"] = bytes_of(CELLS), np.arange(7)
        file["row_attrs/Gene"], file["row_attrs/Accession"] = bytes_of(NAMES), bytes_of(IDS)


def write_mtx(
    folder: Path, ending: str = ".gz", *, genes: str = "features", turned: bool = False
) -> None:
    folder.mkdir()
    open_ = gzip.open if ending else open
    with open_(folder / f"matrix.mtx{ending}", "wb") as file:
        io.mmwrite(file, sparse.coo_matrix(X if turned else X.T))
    rows = [f"{one}\t{two}\tGene Expression" for one, two in zip(IDS, NAMES, strict=True)]
    for name, lines in (("barcodes", CELLS), (genes, rows)):
        with open_(folder / f"{name}.tsv{ending}", "wb") as file:
            file.write("\n".join(lines).encode() + b"\n")


def write_h5mu(path: Path) -> None:
    import mudata

    prot = AnnData(np.ones((7, 2), np.float32), pd.DataFrame(index=CELLS))
    mudata.MuData({"rna": whole(), "prot": prot}).write(path)


FORMS: dict[str, Callable[[Path], Any]] = {
    "h5ad": lambda path: whole().write_h5ad(path),
    "zarr": lambda path: whole().write_zarr(path),
    "10x version 3": lambda path: write_10x(path, 3),
    "10x version 2": lambda path: write_10x(path, 2),
    "loom": write_loom,
    "mtx": write_mtx,
    "mtx of version 2": lambda path: write_mtx(path, "", genes="genes"),
    "mtx not packed": lambda path: write_mtx(path, ""),
    "mtx of cells x genes": lambda path: write_mtx(path, turned=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["cells", "cells.h5ad"])
def test_every_form_is_read_whatever_its_name(form: str, name: str, tmp_path: Path) -> None:
    if form == "zarr":
        pytest.importorskip("zarr")
    FORMS[form](tmp_path / name)
    adata = read(tmp_path / name)
    np.testing.assert_array_equal(adata.X.toarray(), X)
    assert (list(adata.obs_names), list(adata.var_names)) == (CELLS, NAMES)


def test_loom_keeps_layers_and_attributes(tmp_path: Path) -> None:
    write_loom(tmp_path / "a")
    adata = read(tmp_path / "a")
    np.testing.assert_array_equal(adata.layers["spliced"].toarray(), 2 * X)
    assert list(adata.obs["donor"]) == list(range(7))
    assert list(adata.var["Accession"]) == IDS


def test_only_the_genes_of_several_kinds_of_features_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["Gene Expression"] * 3 + ["Antibody Capture", "CRISPR Guide Capture"]
    write_10x(tmp_path / "a.h5", 3, kinds=kinds)
    adata = read(tmp_path / "a.h5")
    np.testing.assert_array_equal(adata.X.toarray(), X[:, :3])
    told = capsys.readouterr().err
    assert "left out: 1 of 'Antibody Capture', 1 of 'CRISPR Guide Capture'" in told


def test_repeated_names_of_genes_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_10x(tmp_path / "a.h5", 3, names=["A", "B", "A", "C", "A"])
    adata = read(tmp_path / "a.h5")
    assert list(adata.var_names) == ["A", "B", "A-1", "C", "A-2"]
    assert list(adata.var["gene_ids"]) == IDS
    assert "2 names of genes repeat (first: 'A')" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_one_modality_of_several_is_read_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("mudata")
    write_h5mu(tmp_path / "a.h5mu")
    with pytest.raises(FileError, match=r"several kinds .*prot, rna\. .*--modality rna"):
        read(tmp_path / "a.h5mu")
    np.testing.assert_array_equal(read(tmp_path / "a.h5mu", "rna").X.toarray(), X)
    assert read(tmp_path / "a.h5mu", "prot").shape == (7, 2)


NO_CELLS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: path.write_text("a,b\n1,2\n"), "none of these. What is read: .h5ad"),
    "nothing": (lambda path: path.write_bytes(b""), "it is empty"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x" * 99)), "a gzip file"),
    "a folder": (lambda path: path.mkdir(), "is a folder without cells"),
    "other HDF5": (lambda path: h5py.File(path, "w").create_group("x"), "it holds ['x']"),
    "cut short": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 99), "is damaged"),
    "a matrix alone": (
        lambda path: (write_mtx(path), (path / "barcodes.tsv.gz").unlink()),
        "there is no barcodes.tsv",
    ),
    "another matrix": (
        lambda path: (write_mtx(path, ""), (path / "barcodes.tsv").write_text("a\nb\n")),
        "5 features and 2 barcodes",
    ),
    "two matrices": (
        lambda path: (write_mtx(path, ""), (path / "b_matrix.mtx").write_text("x")),
        "holds 2 matrices (b_matrix.mtx, matrix.mtx)",
    ),
}


@pytest.mark.parametrize("case", NO_CELLS)
def test_what_holds_no_cells_is_said(case: str, tmp_path: Path) -> None:
    make, why = NO_CELLS[case]
    make(tmp_path / "a")
    with pytest.raises(FileError) as refused:
        read(tmp_path / "a")
    assert why in str(refused.value)
    assert str(tmp_path / "a") in str(refused.value)


# -- genes and columns -------------------------------------------------------------------------


def given(*options: str) -> Any:
    from scvae.cli.program import parser

    return parser().parse_args(["fit", "in", "-o", "out", *options])


def test_genes_are_a_column_or_a_file_or_names(tmp_path: Path) -> None:
    from scvae.cli.inputs import of_data

    adata, names = whole(), tmp_path / "genes.txt"
    names.write_text("CD8A\n\nLYZ \n")
    for options, genes in (
        (["highly_variable"], "highly_variable"),
        (["LYZ"], ["LYZ"]),
        (["LYZ", "CD8A"], ["LYZ", "CD8A"]),
        ([str(names)], ["CD8A", "LYZ"]),
    ):
        assert of_data(given("--genes", *options), adata) == {"genes": genes}


def test_a_column_that_says_the_same_of_all_cells_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from scvae.cli.inputs import of_data

    adata = whole()
    adata.obs["sample"], adata.obs["site"], adata.obs["age"] = "s1", list("aabbaab"), 3.0
    options = of_data(given("--batch", "sample", "--covariates", "site", "age"), adata)
    assert options == {"batch": None, "covariates": ["site"]}
    told = capsys.readouterr().err.splitlines()
    assert told[0].endswith("column 'sample' says 's1' of every cell: --batch sample is left out.")
    assert "--covariates age is left out" in told[1]
    assert of_data(given("--batch", "site"), adata) == {}
    assert of_data(given("--batch", "absent"), adata) == {}  # which fit refuses


# -- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_of_counts_is_not_replaced_by_the_result(version: int, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_10x(path, version)
    before = path.read_bytes()
    assert main(["fit", str(path), "-o", str(path)]) == 1
    assert path.read_bytes() == before
    with pytest.raises(FileError, match=f"no h5ad file, but 10x v{version}"):
        check_h5ad(path)


def test_outputs_replace_their_own_kind_alone(tmp_path: Path) -> None:
    model = Path(__file__).parent / "files" / "format_3.scvae"
    (tmp_path / "text").write_text("notes")
    (tmp_path / "empty").write_bytes(b"")
    whole().write_h5ad(tmp_path / "cells")
    for path in (tmp_path / "empty", tmp_path / "cells", tmp_path / "absent"):
        check_h5ad(path)
    for path in (tmp_path / "empty", tmp_path / "absent", model):
        check_model(path)
    for path, what in ((model, "a model of scvae"), (tmp_path / "text", "something else")):
        with pytest.raises(FileError, match=f"no h5ad file, but {what}.*--overwrite"):
            check_h5ad(path)
    for path in (tmp_path / "cells", tmp_path / "text"):
        with pytest.raises(FileError, match=r"no model of scvae.*--overwrite"):
            check_model(path)
    with pytest.raises(ConfigError, match=r"would be an h5ad file: -o .*out\.h5ad"):
        check_h5ad(tmp_path / "out.zarr")


def test_a_disk_without_room_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = whole()
    adata.layers["dense"] = X.astype(np.float64)
    x = adata.X
    needed = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes + 8 * X.size
    free = {"free": needed}
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), free))
    check_space(adata, tmp_path / "out.h5ad")
    free["free"] = needed - 1
    with pytest.raises(FileError, match=r"are free\. Give a path on another disk"):
        check_space(adata, tmp_path / "out.h5ad")
    check_space(adata, Path("/dev/null"))


def test_strings_as_pandas_3_has_them_are_written(tmp_path: Path) -> None:
    adata = whole()
    adata.obs.index, adata.var.index = (
        i.astype("string") for i in (adata.obs_names, adata.var_names)
    )
    adata.obs["note"] = pd.array([f"n{i}" for i in range(7)], dtype="string")
    anndata_default = anndata.settings.allow_write_nullable_strings
    write(adata, tmp_path / "out.h5ad")
    again = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(again.obs["note"]) == [f"n{i}" for i in range(7)]
    assert (list(again.obs_names), list(again.var_names)) == (CELLS, NAMES)
    assert anndata.settings.allow_write_nullable_strings == anndata_default


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    adata = scvae.simulate(n_cells=60, n_genes=12)
    adata.write_h5ad(tmp_path / "in.h5ad")
    scvae.fit(adata, max_steps=3, n_latent=3, progress=False).save(tmp_path / "m.scvae")
    return tmp_path


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), TypeError, KeyboardInterrupt]
)
def test_the_embedding_outlives_a_write_that_fails(
    error: Any, fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fitted)
    assert main(["embed", "m.scvae", "in.h5ad", "-o", "right.h5ad"]) == 0

    def fail(self: AnnData, path: Path) -> None:
        raise error

    monkeypatch.setattr(AnnData, "write_h5ad", fail)
    assert main(["embed", "m.scvae", "in.h5ad", "-o", "out.h5ad"]) in (1, 130)
    expected = anndata.read_h5ad("right.h5ad")
    saved = np.load("out.X_scvae.npy")
    np.testing.assert_array_equal(saved, expected.obsm["X_scvae"])
    assert Path("out.X_scvae.txt").read_text().splitlines() == list(expected.obs_names)
    assert "out.X_scvae.npy (float32, a row a cell), and the names: " in capsys.readouterr().err
    assert not os.path.exists("out.h5ad")


@pytest.mark.skipif(os.name != "posix", reason="standard output as a file of POSIX")
def test_a_result_may_go_to_a_device(fitted: Path) -> None:
    assert main(["embed", str(fitted / "m.scvae"), str(fitted / "in.h5ad"), "-o", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_a_report_is_printed_and_its_errors_are_an_exit_code(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(fitted / "in.h5ad"), "--batch", "batch"]) == 0
    assert capsys.readouterr().out.startswith("scvae.check: 0 errors")
    assert main(["check", str(fitted / "in.h5ad"), "--batch", "donor"]) == 1
    told = capsys.readouterr()
    assert "(given as --batch)" in told.out
    assert told.err.endswith("would be refused by scvae fit.\n")


@pytest.mark.filterwarnings("ignore")
def test_several_kinds_are_fitted_and_embedded_from_one_file(tmp_path: Path) -> None:
    mudata = pytest.importorskip("mudata")
    sizes = {"n_proteins": 4, "n_regions": 20, "missing": 0.2}
    mdata = scvae.simulate(60, 12, modalities=["rna", "protein"], **sizes)
    given, out, again = (tmp_path / f"{name}.h5mu" for name in ("in", "out", "again"))
    mudata.MuData({"a": mdata["rna"], "b": mdata["protein"]}).write(given)
    small = ["--max-steps", "5", "--n-latent", "3", "--n-hidden", "8", "--quiet"]
    call = ["fit", str(given), "-o", str(out), "--model", str(tmp_path / "m.scvae"), *small]
    assert main([*call, "--modalities", "rna=a", "protein=b", "--leiden"]) == 0
    made = mudata.read_h5mu(out)
    assert made.obsm["X_scvae"].shape == (made.n_obs, 3)
    assert made.obs["leiden"].notna().all()
    assert made.uns["scvae"]["modalities"]["protein"] == "b"
    assert main(["embed", str(tmp_path / "m.scvae"), str(given), "-o", str(again), "--quiet"]) == 0
    np.testing.assert_array_equal(mudata.read_h5mu(again).obsm["X_scvae"], made.obsm["X_scvae"])
    with pytest.raises(SystemExit):
        main([*call, "--modalities", "rna:a"])


@pytest.mark.filterwarnings("ignore")
def test_features_that_all_are_proteins_are_fitted_as_such_by_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, model = tmp_path / "cells.h5", tmp_path / "m.scvae"
    adata = AnnData(np.random.default_rng(0).poisson(9.0, (30, 5)).astype(np.float32))
    adata.var["feature_types"] = "Antibody Capture"
    adata.write_h5ad(given)
    call = ["fit", str(given), "-o", str(tmp_path / "o.h5ad"), "--model", str(model)]
    call += ["--max-steps", "3", "--quiet"]
    assert main(call) == 0
    assert capsys.readouterr().err.endswith("Take them for what they are: --modalities protein\n")
    assert main([*call, "--modalities", "protein"]) == 0
    assert [*scvae.load(model).modalities] == ["protein"]


# -- folders of other pipelines ----------------------------------------------------------------

PIPELINES: dict[str, dict[str, list[str]]] = {
    "quants_mat": {"quants_mat_rows.txt": CELLS, "quants_mat_cols.txt": NAMES},
    "cells_x_genes": {
        "cells_x_genes.barcodes.txt": CELLS,
        "cells_x_genes.genes.txt": IDS,
        "cells_x_genes.genes.names.txt": NAMES,
    },
    "DGE": {
        "genes.csv": ["gene_id,gene_name,genome"]
        + [f"{one},{two},hg38" for one, two in zip(IDS, NAMES, strict=True)],
        "cell_metadata.csv": ["bc_wells,sample,tscp_count"]
        + [f"{cell},s{i % 2},{i}" for i, cell in enumerate(CELLS)],
    },
    "matrix": {
        "features.tsv": ["gene_id\tgene_name"]
        + [f"{one}\t{two}" for one, two in zip(IDS, NAMES, strict=True)],
        "barcodes.tsv": ["barcode"] + [f'"{cell}"' for cell in CELLS],
    },
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_tables_of_other_pipelines_name_cells_and_genes(name: str, tmp_path: Path) -> None:
    io.mmwrite(tmp_path / f"{name}.mtx", sparse.coo_matrix(X.T if name == "matrix" else X))
    for table, lines in PIPELINES[name].items():
        (tmp_path / table).write_text("\n".join(lines) + "\n")
    adata = read(tmp_path)
    np.testing.assert_array_equal(adata.X.toarray(), X)
    assert list(adata.obs_names) == CELLS
    unique = AnnData(X, var={"names": NAMES})
    unique.var_names = NAMES
    unique.var_names_make_unique()
    assert list(adata.var_names) == list(unique.var_names)
    if name == "DGE":
        assert list(adata.obs["sample"]) == [f"s{i % 2}" for i in range(len(CELLS))]
        assert list(adata.obs["tscp_count"]) == [*range(len(CELLS))]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_call_of_the_message_reads_the_folder_in_python(name: str, tmp_path: Path) -> None:
    io.mmwrite(tmp_path / f"{name}.mtx", sparse.coo_matrix(X.T if name == "matrix" else X))
    for table, lines in PIPELINES[name].items():
        (tmp_path / table).write_text("\n".join(lines) + "\n")
    with pytest.raises(scvae.DataError) as refused:
        scvae.fit(tmp_path)
    space: dict[str, Any] = {}
    exec(str(refused.value).partition("is needed: ")[2], space)
    assert list(space["adata"].obs_names) == CELLS
    reader = reader_in_python(tmp_path)
    assert reader.startswith("scvae.cli.")
    assert eval(f"{reader}({str(tmp_path)!r})", {"scvae": scvae}).shape == X.shape


@pytest.mark.parametrize("version", [2, 3])
def test_the_folder_of_cell_ranger_is_read_by_the_call(version: int, tmp_path: Path) -> None:
    pack = gzip.compress if version == 3 else bytes
    end = ".gz" if version == 3 else ""
    buffer = BytesIO()
    io.mmwrite(buffer, sparse.coo_matrix(X.T))
    rows = [f"{one}\t{one}" + "\tGene Expression" * (version == 3) for one in IDS]
    tables = {"barcodes.tsv": CELLS, "features.tsv" if version == 3 else "genes.tsv": rows}
    (tmp_path / f"matrix.mtx{end}").write_bytes(pack(buffer.getvalue()))
    for table, lines in tables.items():
        (tmp_path / f"{table}{end}").write_bytes(pack(("\n".join(lines) + "\n").encode()))
    with pytest.raises(scvae.DataError) as refused:
        scvae.fit(tmp_path)
    space: dict[str, Any] = {"scanpy": scanpy}
    exec(str(refused.value).partition("is needed: ")[2], space)
    assert list(space["adata"].obs_names) == CELLS
    assert list(read(str(tmp_path)).obs_names) == CELLS


@pytest.mark.parametrize("name", ["barcodes.tsv.gz", "features.tsv", "genes.tsv"])
def test_names_beside_a_matrix_are_not_taken_for_a_table_of_cells(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "matrix.mtx").write_text("")
    (tmp_path / name).write_text("a\nb\n")
    with pytest.raises(scvae.FileError, match="Give the folder"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["quants_mat", "matrix"])
def test_a_square_matrix_is_turned_as_its_pipeline_writes_it(name: str, tmp_path: Path) -> None:
    square = np.random.default_rng(0).poisson(2.0, (5, 5))
    io.mmwrite(tmp_path / f"{name}.mtx", sparse.coo_matrix(square))
    cells, genes = ("_rows.txt", "_cols.txt") if name == "quants_mat" else ("", "")
    (tmp_path / (name + cells if cells else "barcodes.tsv")).write_text("\n".join("abcde"))
    (tmp_path / (name + genes if genes else "genes.tsv")).write_text("\n".join("vwxyz"))
    expected = square if name == "quants_mat" else square.T
    np.testing.assert_array_equal(read(tmp_path).X.toarray(), expected)


def test_spliced_and_unspliced_counts_of_alevin_fry_are_no_genes(tmp_path: Path) -> None:
    io.mmwrite(tmp_path / "quants_mat.mtx", sparse.coo_matrix(np.ones((4, 6), dtype=int)))
    (tmp_path / "quants_mat_rows.txt").write_text("\n".join("abcd"))
    (tmp_path / "quants_mat_cols.txt").write_text("\n".join(["g", "h", "g-U", "h-U", "g-A", "h-A"]))
    with pytest.raises(FileError, match=r"spliced, unspliced.*pyroe\.load_fry"):
        read(tmp_path)


def test_a_folder_above_the_cells_says_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "Solo.out" / "Gene").mkdir(parents=True)
    write_mtx(tmp_path / "Solo.out" / "Gene" / "raw")
    with pytest.raises(FileError, match=r"further below: Solo\.out/Gene/raw\. Give the path"):
        read(tmp_path)
