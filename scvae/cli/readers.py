"""Reading files of cells: cells x genes, which counting pipelines write the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae.cli.console import say
from scvae.errors import FileError

if TYPE_CHECKING:
    from anndata import AnnData

GENES = "Gene Expression"  # the feature type of genes in files of Cell Ranger

# -- AnnData's own -----------------------------------------------------------------------------


def read_h5ad(path: Path) -> AnnData:
    import anndata

    return anndata.read_h5ad(path)


def read_zarr(path: Path) -> AnnData:
    import anndata

    return anndata.read_zarr(path)


def read_h5mu(path: Path) -> Any:
    """Read all modalities, as MuData, without columns that were not there."""
    import mudata

    with mudata.set_options(pull_on_update=False):
        return mudata.read_h5mu(path)


def read_modality(path: Path, modality: str | None) -> AnnData:
    import h5py
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        names = sorted(file["mod"])
        if modality is None and len(names) == 1:
            modality = names[0]
        if modality not in names:
            found = "" if modality is None else f", not {modality!r}"
            raise FileError(
                f"{path} holds several kinds of measurement: {', '.join(names)}{found}. Name the "
                f"one of the genes: --modality {'rna' if 'rna' in names else names[0]}; all of "
                "them go to a file named so: -o out.h5mu"
            )
        return read_elem(file[f"mod/{modality}"])


# -- counting pipelines ------------------------------------------------------------------------


def is_genome(group: Any) -> bool:
    return hasattr(group, "keys") and {"barcodes", "genes", "indptr"} <= set(group.keys())


def read_10x_v3(path: Path) -> AnnData:
    import h5py

    with h5py.File(path, "r") as file:
        group = file["matrix"]
        features = group["features"]
        kinds = _text(features["feature_type"]) if "feature_type" in features else None
        columns = {"gene_ids": _text(features["id"])}
        if "genome" in features:
            columns["genome"] = _text(features["genome"])
        return genes_of(_sparse(group), group["barcodes"], features["name"], columns, kinds)


def read_10x_v2(path: Path) -> AnnData:
    import h5py

    with h5py.File(path, "r") as file:
        genomes = [name for name in file if is_genome(file[name])]
        if len(genomes) > 1:
            raise FileError(
                f"{path} holds several genomes ({', '.join(genomes)}), in matrices of their own: "
                "scanpy.read_10x_h5(path, genome=...).write_h5ad('one.h5ad') makes a file of one."
            )
        group = file[genomes[0]]
        columns = {"gene_ids": _text(group["genes"])}
        return genes_of(_sparse(group), group["barcodes"], group["gene_names"], columns, None)


def _sparse(group: Any) -> Any:
    """Return cells x genes: the columns of the file are the rows here."""
    from scipy import sparse

    n_genes, n = map(int, group["shape"][:])
    return sparse.csr_matrix(
        (group["data"][:], group["indices"][:], group["indptr"][:]), (n, n_genes)
    )


def genes_of(
    x: Any, barcodes: Any, names: Any, columns: dict[str, list[str]], kinds: list[str] | None
) -> AnnData:
    """Return the genes alone, with unique names, telling what is left out."""
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    obs = pd.DataFrame(index=pd.Index(_text(barcodes), dtype=object))
    if kinds is not None:
        columns["feature_types"] = kinds
    adata = AnnData(x, obs, pd.DataFrame(columns, index=pd.Index(_text(names), dtype=object)))
    if kinds is not None and GENES in kinds and len(set(kinds)) > 1:
        others = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds) if kind != GENES}
        left = ", ".join(f"{n:,} of {kind!r}" for kind, n in others.items())
        say(f"warning: only the genes are taken; left out: {left}.")
        adata = adata[:, np.array(kinds) == GENES].copy()
    repeated = int(adata.var_names.duplicated().sum())
    if repeated:
        say(
            f"warning: {repeated:,} names of genes repeat (first: "
            f"{adata.var_names[adata.var_names.duplicated()][0]!r}); they get -1, -2, ... added."
        )
        adata.var_names_make_unique()
    return adata


def _text(values: Any) -> list[str]:
    """Return strings of a dataset of bytes or strings."""
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values[:]]


def read_loom(path: Path) -> AnnData:
    """Read loom: genes x cells, names and all other attributes of rows and columns."""
    import h5py
    from anndata import AnnData
    from scipy import sparse

    with h5py.File(path, "r") as file:
        obs = _attributes(file["col_attrs"], ("CellID", "cell_id", "obs_names", "barcode"))
        var = _attributes(file["row_attrs"], ("Gene", "gene", "var_names", "Accession"))
        layers = {
            name: sparse.csr_matrix(values[:].T) for name, values in file.get("layers", {}).items()
        }
        adata = AnnData(sparse.csr_matrix(file["matrix"][:].T), obs, var, layers=layers)
    adata.var_names_make_unique()
    return adata


def _attributes(group: Any, names: Iterable[str]) -> Any:
    import pandas as pd

    one = {key: values for key, values in group.items() if len(values.shape) == 1}
    table = {
        key: _text(values) if values.dtype.kind in "OS" else values[:]
        for key, values in one.items()
    }
    index = next((table.pop(name) for name in names if name in table), None)
    frame = pd.DataFrame(table)
    frame.index = pd.Index(frame.index.astype(str) if index is None else index, dtype=object)
    return frame
