"""A model's file with labelled cells: it labels as it did, holds no counts, and is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad

import scvae
from scvae import ConfigError, DataError, FileError
from scvae.analysis.labels import transfer
from scvae.cli import main
from scvae.errors import ScvaeWarning
from scvae.io import read_file, write_file
from scvae.models.keep.migrations import FORMAT

Fitted = tuple[AnnData, scvae.Model]


@pytest.fixture(scope="module")
def atlas(trained: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adata, model = trained
    cells = adata.copy()
    cells.obs["broad"] = np.where(cells.obs["cell_type"] == "type_0", "one", "others")
    cells.uns["cell_type_colors"] = ["#FF0000", "#00FF00", "#0000FF", "#FFFFFFFF"]
    path = tmp_path_factory.mktemp("atlas") / "atlas.scvae"
    model.save(path, reference=cells, labels="cell_type", parent="broad")
    return path


def test_the_file_alone_labels_as_the_cells_do(trained: Fitted, atlas: Path) -> None:
    adata, model = trained
    loaded = scvae.load(atlas)
    assert model.reference is None
    table = loaded.predict(adata)
    by_cells = transfer(model, adata, adata, "cell_type")  # and by their counts
    assert (table["label"] == by_cells["label"]).mean() > 0.99
    same = ["strangeness", "unknown"]
    pd.testing.assert_frame_equal(table[same], by_cells[same])
    np.testing.assert_allclose(table["probability"], by_cells["probability"], atol=0.2)
    pd.testing.assert_frame_equal(table, transfer(loaded, None, adata))
    np.testing.assert_array_equal(loaded.embed(adata), model.embed(adata))


def test_it_holds_what_it_says_and_no_counts(trained: Fitted, atlas: Path) -> None:
    adata, model = trained
    reference = scvae.load(atlas).reference
    assert reference is not None
    assert (reference.column, len(reference)) == ("cell_type", 600)
    assert reference.colours == ["#ff0000", "#00ff00", "#0000ff", "#ffffff"]
    assert reference.parents == ["one", "others", "others", "others"]
    labels = np.array(reference.names)[reference.label.numpy()]
    assert (labels == adata.obs["cell_type"].astype(str)).all()
    own = (adata.obs["cell_type"] == "type_2").to_numpy()
    shares = adata.X[own].toarray()
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(reference.expression[2], shares.mean(0), atol=1e-6)
    bare = atlas.parent / "bare.scvae"
    model.save(bare)
    grown = atlas.stat().st_size - bare.stat().st_size
    assert grown / 600 < 8 * 30 + 24 + 4 * 400 / 600 + 5  # bytes a cell
    tensors, _ = read_file(atlas, content_format=FORMAT)
    whole = [
        name for name, tensor in tensors.items() if 600 in tensor.shape and 100 in tensor.shape
    ]
    assert not whole


def test_an_atlas_stays_one_when_it_is_extended_and_saved_again(
    trained: Fitted, atlas: Path, tmp_path: Path
) -> None:
    adata, _ = trained
    query = adata[:100].copy()
    query.obs["batch"] = "run_9"
    wider = scvae.load(atlas).extend(query, max_steps=20)
    table = wider.predict(query)
    assert (table["label"].astype(str) == query.obs["cell_type"].astype(str)).mean() > 0.9
    wider.save(tmp_path / "wider.scvae")
    pd.testing.assert_frame_equal(scvae.load(tmp_path / "wider.scvae").predict(query), table)


def test_a_file_says_what_it_loses_where_genes_are_missing(trained: Fitted, atlas: Path) -> None:
    adata, _ = trained
    loaded = scvae.load(atlas)
    with pytest.warns(ScvaeWarning, match=r"by all genes .* adata has 80%.*labels\.transfer\("):
        loaded.predict(adata[:, :80].copy())
    with pytest.warns(ScvaeWarning) as said:
        loaded.predict(adata[:, :95].copy())
    assert not [w for w in said if "embedded by" in str(w.message)]


def test_what_is_missing_is_named(trained: Fitted, tmp_path: Path) -> None:
    adata, model = trained
    path = tmp_path / "model.scvae"
    with pytest.raises(ConfigError, match=r"carries no labelled cells.*model\.save\("):
        model.predict(adata)
    with pytest.raises(ConfigError, match="but reference=None"):
        model.save(path, labels="cell_type")
    with pytest.raises(ConfigError, match=r"but labels=None"):
        model.save(path, reference=adata)
    with pytest.raises(DataError, match="no column 'x'"):
        model.save(path, reference=adata, labels="x")
    assert not path.exists()


BROKEN: dict[str, Any] = {
    "a label twice": lambda t, c: c["reference"].update(names=["a", "a", "b", "c"]),
    "one label": lambda t, c: c["reference"].update(names=["a"]),
    "a colour": lambda t, c: c["reference"].update(colours=["red"] * 4),
    "parents": lambda t, c: c["reference"].update(parents=["one"]),
    "a field": lambda t, c: c["reference"].update(more=1),
    "no header": lambda t, c: c.pop("reference"),
    "no tensors": lambda t, c: [t.pop(n) for n in list(t) if n.startswith("reference.")],
    "a missing tensor": lambda t, c: t.pop("reference.loc"),
    "NaN": lambda t, c: t["reference.loc"].view(-1)[:1].fill_(torch.nan),
    "a code": lambda t, c: t["reference.label"][:1].fill_(4),
    "a batch": lambda t, c: t["reference.batch"][:1].fill_(-1),
    "a type": lambda t, c: t.update({"reference.log_px": t["reference.log_px"].double()}),
    "a shape": lambda t, c: t.update({"reference.scale": t["reference.scale"][:-1].clone()}),
    "a rare label": lambda t, c: t["reference.label"].clamp_(max=2),
    "a scale": lambda t, c: t["reference.scale"][:1].fill_(0.0),
    "no label tensor": lambda t, c: t.update({"reference.label": torch.zeros(())}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_section_that_cannot_be_one_is_refused(what: str, atlas: Path, tmp_path: Path) -> None:
    tensors, content = read_file(atlas, content_format=FORMAT)
    BROKEN[what](tensors, content)
    path = tmp_path / "broken.scvae"
    write_file(path, tensors, content, content_format=FORMAT)
    with pytest.raises(FileError, match=r"broken\.scvae is damaged: its reference"):
        scvae.load(path)


def test_the_command_maps_and_writes_labels(
    trained: Fitted, atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    adata, _ = trained
    query = adata[:80].copy()
    query.obs["batch"] = "run_9"
    query.write_h5ad("query.h5ad")
    line = f"map {atlas} query.h5ad -o out.h5ad --labels labels.csv"
    assert main(line.split()) == 0
    assert "--batch new" in (said := capsys.readouterr().out)
    assert "out.h5ad: 80 cells," in said
    out, table = read_h5ad("out.h5ad"), pd.read_csv("labels.csv", index_col="cell")
    expected = scvae.load(atlas).predict(query, batch="new")
    assert table.index.tolist() == query.obs_names.tolist()
    assert table["label"].tolist() == expected["label"].tolist()
    assert out.obs["predicted_label"].tolist() == expected["label"].tolist()
    assert out.obs["predicted_unknown"].tolist() == expected["unknown"].tolist()
    np.testing.assert_allclose(
        out.obsm["X_scvae"], scvae.load(atlas).embed(query, batch="new"), atol=1e-5
    )
    assert main([*line.split(), "--extend", "--quiet"]) == 0
    assert main(f"map {atlas} query.h5ad -o out.h5ad --batch nowhere".split()) == 1
    assert "--batch nowhere is not one of the model's" in capsys.readouterr().err
