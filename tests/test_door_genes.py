"""Laws of the door: what is no gene, and what is a gene that is there several times."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.errors import ScvaeWarning
from tests.test_door import QUICK, cells, finding, pasted

# -- what is no gene ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["ercc-00002", "gSpikein_ERCC-00002", "RNA_SPIKE_1", "__no_feature", "__ambiguous",
     "N_unmapped", "N_multimapping", "Hashtag1", "sgRNA_TP53_1", "antibody_CD3",
     "GL000194.1:100-300", "nCount_RNA", "nFeature_RNA", "total_counts", "percent.mt",
     "Unnamed: 0"],
)  # fmt: skip
def test_what_counting_and_tables_add_to_genes_is_left_out_by_the_call(name: str) -> None:
    adata = cells()
    adata.var_names = [*adata.var_names[:19], name]
    mended = pasted(finding(adata, "named as controls"), adata)
    assert list(mended.var_names) == list(adata.var_names[:19])


@pytest.mark.parametrize(
    "name", ["N4BP1", "NCOUNT", "ercc-1", "PERCC1", "GLIS1", "KIF1A", "JHDM1D", "SGRN"]
)
def test_genes_of_names_like_those_are_genes(name: str) -> None:
    adata = cells()
    adata.var_names = [*adata.var_names[:19], name]
    assert not any("controls" in found.text for found in scvae.check(adata).warnings)


@pytest.mark.parametrize("kind", ["Negative Control Probe", "Unassigned Codeword", "Blank"])
@pytest.mark.parametrize("column", ["feature_types", "feature_type"])
def test_controls_by_type_are_left_out_by_the_call(kind: str, column: str) -> None:
    adata = cells()
    adata.var[column] = ["Gene Expression"] * 16 + [kind] * 4
    text = finding(adata, "calls features controls")
    assert f"4 of {kind!r}" in text
    with pytest.warns(ScvaeWarning, match="calls features controls"):
        assert text in scvae.fit(adata, **QUICK).record.warnings
    assert pasted(text, adata).n_vars == 16
    assert not scvae.check(adata, genes=list(adata.var_names[:16])).warnings


# -- one gene as several -----------------------------------------------------------------------

PARTS = {
    "alevin-fry": ["{}", "{}-U", "{}-A"],
    "kallisto": ["{}", "{}_nascent", "{}_ambiguous"],
    "introns": ["{}", "{}-I"],
    "versions": ["ENSG0000000000{}.1", "ENSG0000000000{}.2"],
    "spaces": ["{}", "{} "],
}


@pytest.mark.parametrize("layer", [None, "counts", "raw"])
@pytest.mark.parametrize("way", PARTS)
def test_parts_and_versions_of_a_gene_are_added_up_by_the_call(way: str, layer: Any) -> None:
    x = np.random.default_rng(0).poisson(3.0, (40, 8, len(PARTS[way]))).astype(np.float32)
    names = [form.format(i) for i in range(8) for form in PARTS[way]]
    adata = AnnData(sparse.csr_matrix(x.reshape(40, -1)))
    adata.var_names = names
    adata.raw = adata
    adata.layers["counts"] = adata.X.copy()
    text = finding(adata, "one gene is fitted as several", layer=layer)
    with pytest.warns(ScvaeWarning, match="fitted as several"):
        scvae.fit(adata, layer=layer, **QUICK)
    mended = pasted(text, adata, anndata=anndata)
    np.testing.assert_array_equal(mended.X, x.sum(2))
    assert not scvae.check(mended).warnings


def test_genes_whose_names_end_so_are_genes() -> None:
    adata = cells()
    adata.var_names = ["HLA-A", "MT-A", "GENE", "GENE-A", "ENSG00000000001.3",
                       "ENSG00000000001.3_PAR_Y", *(f"Gene{i}" for i in range(14))]  # fmt: skip
    assert not scvae.check(adata).warnings
