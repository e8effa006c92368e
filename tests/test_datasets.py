"""The shipped data sets: what every one of them promises, and facts that biology fixes."""

import ast
import doctest
import hashlib
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from scvae import datasets
from scvae.errors import DataError

DATA = Path(__file__).resolve().parents[1] / "data"
SHAPES = {"pbmc": (3_922, 15_727), "pancreas": (1_937, 14_738), "pbmc68k": (700, 765)}
SHIPPED = ("pbmc", "pancreas")
MAX_BYTES = 15_000_000
MIN_CELLS = 3
PBMC_MARKERS = ("CD3D", "MS4A1", "LYZ", "NKG7", "FCGR3A", "CCL5")
# What one cell type of the pancreas is known to make more of than every other.
PANCREAS_MARKERS = {
    "INS": "beta",
    "GCG": "alpha",
    "SST": "delta",
    "PPY": "gamma",
    "GHRL": "epsilon",
    "CPA1": "acinar",
    "KRT19": "ductal",
    "PECAM1": "endothelial",
    "CD68": "macrophage",
    "TPSAB1": "mast",
    "COL1A1": "activated_stellate",
    "RGS5": "quiescent_stellate",
    "PLP1": "schwann",
}

needs_files = pytest.mark.skipif(not DATA.is_dir(), reason="not in a source checkout")


def refuse(*args, **kwargs):
    raise AssertionError("a data set asked for the network")


@pytest.fixture(scope="module")
def loaded():
    """Read every data set once, with the network switched off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return {name: getattr(datasets, name)() for name in SHAPES}


@pytest.fixture(params=SHAPES)
def case(request, loaded):
    """Return the name of a data set and the data set."""
    return request.param, loaded[request.param]


def rates(adata):
    """Return each gene's mean share of a cell's counts, per cell type, as genes x types."""
    shares = sparse.diags(1.0 / totals(adata)) @ adata.X
    types = adata.obs["cell_type"]
    rows = [
        np.asarray(shares[(types == name).to_numpy()].mean(axis=0))[0]
        for name in types.cat.categories
    ]
    return np.array(rows), list(types.cat.categories)


def totals(adata):
    """Return the counts of each cell."""
    return np.asarray(adata.X.sum(axis=1)).ravel()


def digest(path):
    """Return the sha256 of a file as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def readme_rows():
    """Return file name, size and sha256 as the README of the data folder states them."""
    text = (DATA / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\w+\.h5ad)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", text)
    return {name: (int(size.replace(",", "")), sha256) for name, size, sha256 in rows}


# ------------------------------------------------------------------ what every data set promises


def test_shape_is_the_documented_one(case):
    name, adata = case
    assert adata.shape == SHAPES[name]


def test_counts_are_canonical_float32_csr(case):
    _, adata = case
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.indices.dtype == np.int32
    # A fresh matrix on the same arrays looks at them, where the old one may trust a flag.
    arrays = (adata.X.data, adata.X.indices, adata.X.indptr)
    assert sparse.csr_matrix(arrays, shape=adata.shape).has_canonical_format


def test_counts_are_positive_whole_numbers(case):
    _, adata = case
    assert adata.X.data.min() == 1
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))


def test_names_are_unique_and_no_cell_is_empty(case):
    _, adata = case
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert totals(adata).min() >= 1


def test_origin_licence_and_citation_are_stated(case):
    _, adata = case
    assert set(adata.uns) == {"source", "licence", "citation"}
    assert all(isinstance(text, str) and len(text) > 20 for text in adata.uns.values())
    assert re.search(r"\b20\d\d\b", adata.uns["citation"])


def test_two_loads_share_nothing(case):
    name, adata = case
    other = getattr(datasets, name)()
    assert not np.shares_memory(adata.X.data, other.X.data)
    np.testing.assert_array_equal(adata.X.data, other.X.data)
    assert adata.obs.equals(other.obs)


@pytest.mark.parametrize("name", SHIPPED)
def test_genes_are_ordered_by_the_cells_that_express_them(loaded, name):
    detected = loaded[name].X.getnnz(axis=0)
    assert np.all(np.diff(detected) <= 0)
    assert detected[-1] == MIN_CELLS


# ------------------------------------------------------------------ facts about the cells


def test_pbmc_batches_are_the_two_chemistries(loaded):
    batch = loaded["pbmc"].obs["batch"]
    assert list(batch.cat.categories) == ["10x v1", "10x v3"]
    assert batch.value_counts().to_dict() == {"10x v1": 2_700, "10x v3": 1_222}


def test_pbmc_holds_its_markers_in_both_batches(loaded):
    adata = loaded["pbmc"]
    for batch in ("10x v1", "10x v3"):
        cells = adata[adata.obs["batch"] == batch, list(PBMC_MARKERS)]
        fraction = cells.X.getnnz(axis=0) / cells.n_obs
        assert fraction.min() > 0.05, dict(zip(PBMC_MARKERS, fraction, strict=True))


def test_t_cell_and_b_cell_markers_exclude_each_other(loaded):
    markers = loaded["pbmc"][:, ["CD3D", "MS4A1"]].X.toarray() > 0
    both, expected = markers.all(axis=1).mean(), markers.mean(axis=0).prod()
    assert both < 0.5 * expected


def test_newer_chemistry_catches_more_molecules(loaded):
    adata = loaded["pbmc"]
    is_v3 = (adata.obs["batch"] == "10x v3").to_numpy()
    assert np.median(totals(adata)[is_v3]) > 2 * np.median(totals(adata)[~is_v3])


def test_pbmc_gene_ids_are_unique_ensembl_ids(loaded):
    ids = loaded["pbmc"].var["gene_id"]
    assert ids.is_unique
    assert ids.str.fullmatch(r"ENSG\d{11}").all()
    assert loaded["pbmc"].var.loc["CD3D", "gene_id"] == "ENSG00000167286"


def test_documented_number_of_dying_cells(loaded):
    adata = loaded["pbmc"]
    mitochondrial = adata.var_names.str.startswith("MT-")
    assert mitochondrial.sum() == 13
    share = np.asarray(adata.X[:, mitochondrial].sum(axis=1)).ravel() / totals(adata)
    assert adata.obs["batch"][share > 0.2].value_counts().to_dict() == {"10x v3": 109, "10x v1": 2}


def test_pancreas_has_three_libraries_named_as_in_its_cells(loaded):
    adata = loaded["pancreas"]
    assert list(adata.obs["batch"].cat.categories) == [f"human1_lib{i}" for i in (1, 2, 3)]
    prefixes = [name.split(".")[0] for name in adata.obs_names]
    assert list(adata.obs["batch"]) == prefixes


def test_pancreas_has_the_authors_types(loaded):
    counts = loaded["pancreas"].obs["cell_type"].value_counts()
    assert len(counts) == 14
    assert (counts["beta"], counts["alpha"], counts["t_cell"]) == (872, 236, 2)


@pytest.mark.parametrize("gene", PANCREAS_MARKERS)
def test_pancreas_marker_is_highest_in_its_type(loaded, gene):
    adata = loaded["pancreas"]
    rate, types = rates(adata)
    column = rate[:, adata.var_names.get_loc(gene)]
    assert types[int(column.argmax())] == PANCREAS_MARKERS[gene]


@pytest.mark.parametrize(
    ("gene", "cell_type"),
    [("CD79A", "CD19+ B"), ("GNLY", "CD56+ NK"), ("S100A8", "CD14+ Monocyte")],
)
def test_pbmc68k_marker_is_highest_in_its_type(loaded, gene, cell_type):
    adata = loaded["pbmc68k"]
    rate, types = rates(adata)
    assert types[int(rate[:, adata.var_names.get_loc(gene)].argmax())] == cell_type


# ------------------------------------------------------------------ recovery of pbmc68k's counts


def test_recovered_counts_lie_on_whole_numbers(loaded):
    scanpy = pytest.importorskip("scanpy")
    reduced = scanpy.datasets.pbmc68k_reduced()
    per_10k = np.expm1(reduced.raw.X.toarray().astype(np.float64))
    exact = per_10k * reduced.obs["n_counts"].to_numpy(np.float64)[:, None] / 1e4
    counts = loaded["pbmc68k"].X.toarray()
    error = np.abs(exact - counts)[counts > 0] / counts[counts > 0]
    assert error.max() < 8e-4
    assert np.all(exact[counts == 0] == 0)


def test_totals_of_pbmc68k_are_over_more_genes_than_it_holds(loaded):
    adata = loaded["pbmc68k"]
    share = totals(adata) / adata.obs["n_counts"].to_numpy()
    assert share.min() > 0.1
    assert share.max() < 0.3
    assert np.all(adata.X.getnnz(axis=1) < adata.obs["n_genes"].to_numpy())


def test_inverting_log1p_undoes_it():
    counts = sparse.random(30, 20, density=0.3, format="csr", random_state=0)
    counts.data = np.ceil(counts.data * 500)
    total = np.asarray(counts.sum(axis=1)).ravel() + 1_000
    logs = (sparse.diags(1e4 / total) @ counts).log1p().tocsr().astype(np.float32)
    recovered = datasets._invert_log1p(logs, total, 1e4)
    np.testing.assert_array_equal(recovered.toarray(), counts.toarray())


def test_pbmc68k_keeps_the_labels_of_scanpy(loaded):
    scanpy = pytest.importorskip("scanpy")
    reduced = scanpy.datasets.pbmc68k_reduced()
    obs = loaded["pbmc68k"].obs
    assert list(obs["cell_type"]) == list(reduced.obs["bulk_labels"])
    assert set(obs) == set(reduced.obs) - {"bulk_labels"} | {"cell_type"}


# ------------------------------------------------------------------ files and module


@needs_files
def test_readme_states_size_and_sha256_of_every_file():
    found = {path.name: (path.stat().st_size, digest(path)) for path in DATA.glob("*.h5ad")}
    assert set(found) == {f"{name}.h5ad" for name in SHIPPED}
    assert readme_rows() == found


@needs_files
def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in DATA.glob("*.h5ad")) <= MAX_BYTES


@needs_files
def test_readme_states_the_shapes():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    for name in SHIPPED:
        cells, genes = SHAPES[name]
        assert f"| `{name}.h5ad` | {cells:,} x {genes:,} |" in text


def test_missing_file_is_reported_with_places_and_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "_FOLDERS", (tmp_path / "one", tmp_path / "two"))
    with pytest.raises(DataError) as error:
        datasets.pbmc()
    for part in ("pbmc.h5ad", str(tmp_path / "one"), str(tmp_path / "two"), "pip install"):
        assert part in str(error.value)


def test_file_in_the_package_comes_before_the_checkout(monkeypatch, tmp_path):
    for folder in ("_data", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pbmc.h5ad").touch()
    monkeypatch.setattr(datasets, "_FOLDERS", (tmp_path / "_data", tmp_path / "data"))
    assert datasets._find("pbmc.h5ad") == tmp_path / "_data" / "pbmc.h5ad"
    (tmp_path / "_data" / "pbmc.h5ad").unlink()
    assert datasets._find("pbmc.h5ad") == tmp_path / "data" / "pbmc.h5ad"


def test_module_imports_nothing_heavy():
    body = ast.parse(Path(datasets.__file__).read_text(encoding="utf-8")).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in body if isinstance(node, ast.ImportFrom)}
    light = {"numpy", "scvae.errors"} | set(sys.stdlib_module_names)
    assert names
    assert names <= light


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(datasets)
    assert result.attempted >= 3 * len(SHAPES)
    assert result.failed == 0
