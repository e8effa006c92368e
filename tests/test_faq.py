"""The page of questions: every error that it quotes is one that the package raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scvae

PAGE = (Path(__file__).parent.parent / "docs" / "faq.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"```text\n(.*?)\n```", PAGE, flags=re.DOTALL)


def log_values() -> None:
    adata = cells()
    adata.X = np.log1p(adata.X)
    scvae.fit(adata)


def a_fraction() -> None:
    adata = cells()
    adata.X[3, 2] = 1.25
    scvae.fit(adata)


def a_nan() -> None:
    adata = cells()
    adata.X[3, 2] = np.nan
    scvae.fit(adata)


def an_empty_cell() -> None:
    adata = cells()
    adata.X[3] = 0
    scvae.fit(adata)


def names_twice() -> None:
    adata = cells()
    adata.var_names = ["GAPDH", "GAPDH", *adata.var_names[2:]]
    scvae.fit(adata)


def a_missing_batch() -> None:
    adata = cells()
    adata.obs["donor"] = pd.Categorical(["a", None] + ["b"] * 18)
    scvae.fit(adata, batch="donor")


def a_column_that_is_not_there() -> None:
    scvae.fit(cells(), batch="donor")


def an_argument_of_others() -> None:
    scvae.fit(cells(), max_epochs=400)  # type: ignore[call-arg]


def an_unknown_batch() -> None:
    adata = cells()
    model = scvae.fit(adata, batch="batch", max_steps=2, n_latent=2, progress=False)
    query = adata.copy()
    query.obs["batch"] = ["new"] * 20
    model.embed(query)


def lacking_genes() -> None:
    scvae.fit(cells(), genes=["gene_0", "gene_1", "CD3D"])


def a_file_that_is_no_model() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.scvae")
        path.write_text("no model at all\n")
        scvae.load(path)


def a_path() -> None:
    scvae.fit("cells.loom")  # type: ignore[arg-type]


def cells() -> AnnData:
    adata = AnnData(np.random.default_rng(0).poisson(2.0, (20, 6)).astype(np.float32))
    adata.obs_names = [f"cell_{i}" for i in range(20)]
    adata.var_names = [f"gene_{i}" for i in range(6)]
    adata.obs["batch"] = ["one", "two"] * 10
    return adata


CAUSES: list[Callable[[], None]] = [
    log_values,
    a_fraction,
    a_nan,
    an_empty_cell,
    names_twice,
    a_path,
    a_column_that_is_not_there,
    a_missing_batch,
    an_argument_of_others,
    an_unknown_batch,
    lacking_genes,
    a_file_that_is_no_model,
]


def test_every_quotation_has_its_cause() -> None:
    assert len(QUOTED) == len(CAUSES)


@pytest.mark.parametrize(("quoted", "cause"), list(zip(QUOTED, CAUSES, strict=False)))
@pytest.mark.filterwarnings("ignore")
def test_a_quoted_error_is_raised_as_it_stands(quoted: str, cause: Callable[[], None]) -> None:
    with pytest.raises((scvae.ScvaeError, TypeError)) as raised:
        cause()
    said = re.sub(r"\S*/(?=model\.scvae)", "", str(raised.value))  # of a folder that is gone
    assert " ".join(said.split()) == " ".join(quoted.split())
