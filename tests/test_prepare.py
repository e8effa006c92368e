"""What fit reads once: sums of training cells, and no pass over the counts that is not needed."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from cells import architecture_of_rna
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import scvae
from scvae.data.read import survey as survey_module
from scvae.data.read.several import sources_of
from scvae.models.prepare import Prepared, facts_of, prepare

law = settings(deadline=None, derandomize=True, max_examples=30)


def prepared(adata: AnnData, genes: list[str] | None = None, total: str = "observed") -> Prepared:
    return prepare(sources_of(adata), "batch", None, None, genes, total)


@pytest.mark.filterwarnings("ignore")
@law
@given(st.data())
def test_the_network_starts_from_the_sums_of_training_cells(data: st.DataObject) -> None:
    counts = np.random.default_rng(data.draw(st.integers(0, 9))).poisson(2.0, (40, 12))
    counts[:, 0] += 1
    adata = AnnData(sparse.csr_matrix(counts))
    adata.obs["batch"] = ["a", "b"] * 20
    adata.obs["total"] = counts.sum(axis=1) + 7.0
    total = data.draw(st.sampled_from(["observed", "total"]))
    genes = data.draw(st.sampled_from([None, ["5", "0", "8"]]))
    rows = np.array(data.draw(st.permutations(range(40)))[: data.draw(st.integers(2, 39))])
    read = prepared(adata, genes, total)
    outside = total == "total"
    n_batches = read.covariates.n_batches
    a = architecture_of_rna(len(read.first.names), n_batches=n_batches, outside=outside)
    statistics = facts_of(read, rows, a).of_kinds["rna"]
    shares = counts[rows][:, [int(name) for name in read.first.names]].sum(axis=0) + 1
    if outside:
        rest = adata.obs["total"].to_numpy()[rows].sum() - shares.sum()
        shares = np.append(shares, max(rest, 1.0))
    expected = np.log(shares / shares.sum()).astype(np.float32)
    np.testing.assert_array_equal(statistics.log_share.numpy(), expected)


def test_no_count_is_summed_twice_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are summed once, as they are read; columns then of the cells held out alone."""
    adata = scvae.simulate(n_cells=200, n_genes=12)
    summed: list[int] = []
    original = survey_module.row_sums

    def row_sums(counts: sparse.csr_matrix) -> np.ndarray:
        summed.append(counts.shape[0])
        return original(counts)

    monkeypatch.setattr(survey_module, "row_sums", row_sums)
    read = prepared(adata)
    assert read.first.library is read.first.seen.totals
    assert summed == [200]
