"""Laws of the door: names of genes in a query, and what marks the genes of a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scvae
from scvae.cli.formats import kind_of
from scvae.errors import ScvaeWarning
from tests.test_door import QUICK, cells, pasted, refusal

SYMBOLS = ["CD3D", "CD8A", "MS4A1", "HLA-DRA", *(f"GENE{i}" for i in range(16))]
IDS = [f"ENSG{i:011d}" for i in range(20)]


def named(names: list[str], n: int = 80) -> AnnData:
    adata = cells(n)
    adata.var_names = names
    return adata


@pytest.fixture(scope="module")
def of_symbols() -> scvae.Model:
    return scvae.fit(named(SYMBOLS), **QUICK)


@pytest.fixture(scope="module")
def of_ids() -> scvae.Model:
    return scvae.fit(named(IDS), **QUICK)


@pytest.mark.parametrize(
    "form", [" {}", "{}\u00a0", '"{}"', "{}_ENSG1", "ENSG1_{}", "ENSG1|{}", "{}|ENSG1", "gene:{}"]
)
def test_names_in_other_writings_are_mapped_by_the_call(form: str, of_symbols: scvae.Model) -> None:
    query = named([form.format(name) for name in SYMBOLS], 30)
    mended = pasted(refusal(of_symbols.embed, query), query, model=of_symbols)
    assert list(mended.var_names) == SYMBOLS
    of_symbols.embed(mended)


@pytest.mark.parametrize("end", [".7", ".3_PAR_Y"])
def test_what_is_said_of_ids_that_are_mapped_is_the_call_alone(
    end: str, of_ids: scvae.Model
) -> None:
    query = named([name + end for name in IDS], 30)
    message = refusal(of_ids.embed, query)
    assert "The model's genes are" not in message
    of_ids.embed(pasted(message, query, model=of_ids))


def test_the_few_that_are_there_by_other_names_are_told_with_the_call(
    of_symbols: scvae.Model,
) -> None:
    query = named([name.replace("-", ".") for name in SYMBOLS], 30)
    with pytest.warns(ScvaeWarning, match="1 of them are there") as caught:
        of_symbols.embed(query)
    mended = pasted(str(caught[0].message), query, model=of_symbols)
    assert list(mended.var_names) == SYMBOLS


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([f"ENSMUSG{i:011d}" for i in range(20)], "ENSMUSG: ids of another species"),
        ([f"ENST{i:011d}" for i in range(20)], "add up the transcripts"),
        ([str(1000 + i) for i in range(20)], "adata's are numbers"),
        (SYMBOLS, "symbols in capitals"),
    ],
)
def test_genes_of_another_kind_are_called_so(
    names: list[str], words: str, of_ids: scvae.Model
) -> None:
    message = refusal(of_ids.embed, named(names, 30))
    assert words in message
    assert "genes=shared" not in message


# -- the genes of a fit ------------------------------------------------------------------------


def test_names_may_come_from_a_generator() -> None:
    model = scvae.fit(cells(), genes=(f"Gene{i}" for i in range(6)), **QUICK)
    assert model.architecture.n_genes == 6


@pytest.mark.parametrize("genes", [np.array([0, 2, 4]), [1, 3], range(5)])
def test_positions_are_made_names_by_the_call(genes: Any) -> None:
    assert "genes=adata.var_names[genes]" in refusal(scvae.fit, cells(), genes=genes)
    chosen = cells().var_names[genes]
    assert list(scvae.fit(cells(), genes=chosen, **QUICK).origin.genes) == list(chosen)


def test_a_table_of_genes_is_no_list_of_them() -> None:
    table = pd.DataFrame({"mean": [1.0, 2.0]}, index=["Gene1", "Gene4"])
    assert "genes=list(genes.index)" in refusal(scvae.fit, cells(), genes=table)


MARKS: dict[str, tuple[Any, int]] = {
    "ranks of some": ([float(i) if i < 7 else np.nan for i in range(20)], 7),
    "dispersions": (np.arange(20.0), 10),
    "parts that chose it": ([2, 1, 0, 0] * 5, 10),
    "yes and no": (["no", "yes"] * 10, 10),
    "R's own": (["F", "T", "F", "F"] * 5, 5),
    "bytes": ([b"False", b"True"] * 10, 10),
}


@pytest.mark.parametrize("kind", MARKS)
def test_columns_that_are_no_marks_are_made_marks_by_the_call(kind: str) -> None:
    values, number = MARKS[kind]
    adata = cells()
    adata.var["some"] = values
    message = refusal(scvae.fit, adata, genes="some").partition(", and genes=")[0]
    mended = pasted(message, adata)
    genes = "chosen" if "chosen" in mended.var else "some"
    assert scvae.fit(mended, genes=genes, **QUICK).architecture.n_genes == number


def test_where_all_cells_are_empty_none_are_left_out() -> None:
    adata = cells()
    adata.X = adata.X * 0
    message = refusal(scvae.fit, adata)
    assert "filter_cells" not in message
    assert "layer=" in message


@pytest.mark.parametrize(
    ("start", "words"),
    [("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), ("<html>404", "web page")],
)
def test_what_stands_for_a_file_of_cells_is_called_so(
    start: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "cells.h5ad").write_text(start)
    with pytest.raises(scvae.FileError, match=words):
        kind_of(tmp_path / "cells.h5ad")
