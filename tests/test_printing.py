"""Reports print on every console, whatever alphabet the names in them are of."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from anndata import AnnData

import scvae
from scvae.arguments import encodable

NAMES = {"utf-8": "Größe β", "latin-1": "Größe \\u03b2", "ascii": "Gr\\xf6\\xdfe \\u03b2"}


@pytest.fixture(scope="module")
def reports() -> list[object]:
    adata = scvae.simulate(n_cells=80, n_genes=10)
    adata.obs["batch"] = np.where(np.arange(80) % 2, "Größe β", "b")
    adata.obs["label"] = np.where(np.arange(80) % 2, "p", "q")
    model = scvae.fit(adata, batch="batch", max_steps=3, n_latent=3, progress=False)
    model.origin.covariates.categories["Größe β"] = ["a", "b"]
    return [model.summary(), model, scvae.check(adata, batch="batch")]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp1252"])
def test_reports_print_in_every_encoding(
    encoding: str, reports: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    for report in reports:
        print(report)
    stream.flush()
    told = stream.buffer.getvalue().decode(encoding)
    assert NAMES.get(encoding, NAMES["latin-1"]) in told


def test_what_scvae_itself_says_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = AnnData(np.random.default_rng(0).poisson(2.0, (60, 9)).astype(np.float32))
    adata.obs["batch"], adata.obs["label"] = ["a", "b"] * 30, ["p", "q"] * 30
    model = scvae.fit(adata, batch="batch", max_steps=3, n_latent=3, progress=False)
    for report in (model.summary(), model, scvae.check(adata, batch="batch", label="label")):
        assert str(report).isascii(), report
    assert "Cramer" in str(report)


def test_without_standard_output_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert encodable("β") == "β"
