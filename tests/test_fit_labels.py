"""A fit with labels: what it learns from, where labels travel, and that it names other cells."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scvae
from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.data.read.labels import labels_of, read_labels
from scvae.data.read.several import sources_of
from scvae.errors import ConfigError, DataError, FileError
from scvae.models import prepare
from scvae.models.keep import checkpoint
from scvae.models.keep.checkpoint import NAME
from scvae.models.keep.minified import describe_reference, read_reference, reference_tensors
from scvae.models.label.learned import some_of_each
from scvae.models.network import LABEL_NATS

QUICK: dict[str, Any] = {"n_latent": 4, "n_hidden": 16, "max_steps": 30, "progress": False}


def cells(n: int = 300, g: int = 60, seed: int = 1) -> AnnData:
    """Return cells of which a third has no label, in one of two ways."""
    adata = scvae.simulate(n, g, batch_effect=1.0, seed=seed)
    adata.obs["type"] = adata.obs["cell_type"].astype(str).astype(object)
    adata.obs.iloc[::6, adata.obs.columns.get_loc("type")] = None
    adata.obs.iloc[1::6, adata.obs.columns.get_loc("type")] = "Unknown"
    return adata


def fit(adata: Any, **options: Any) -> scvae.Model:
    asked = {"batch": "batch", "labels": "type", "unlabelled": "Unknown", **QUICK, **options}
    return scvae.fit(adata, **asked)


@pytest.fixture(scope="module")
def learned() -> tuple[AnnData, scvae.Model]:
    adata = cells(600, 100)
    return adata, fit(adata, max_steps=400, n_latent=10, n_hidden=64)


def truth(adata: AnnData) -> np.ndarray:
    return adata.obs["cell_type"].astype(str).to_numpy()


# -- what is learned -------------------------------------------------------------------------------


def test_cells_without_a_label_are_named(learned: tuple[AnnData, scvae.Model]) -> None:
    adata, model = learned
    table = model.predict(adata)
    hidden = ~adata.obs["type"].isin(truth(adata)).to_numpy()
    assert hidden.sum() == 200
    assert (table["label"].astype(str) == truth(adata))[hidden].mean() > 0.9
    assert list(table["label"].cat.categories) == sorted(set(truth(adata)))
    assert table["unknown"].mean() < 0.15


def test_every_type_has_found_its_components(learned: tuple[AnnData, scvae.Model]) -> None:
    adata, model = learned
    prior: Any = model.vae.prior
    z = model.over(model.read(adata), lambda batch: model.vae.encode(batch).mean)
    said = prior.of_z.probabilities(torch.from_numpy(z)).argmax(-1).numpy()
    names = np.array(sorted(set(truth(adata))))
    assert (names[said] == truth(adata)).mean() > 0.9


def test_labels_that_are_wrong_are_outvoted() -> None:
    adata = cells(600, 100)
    draw, names = np.random.default_rng(0), np.array(sorted(set(truth(adata))))
    wrong = draw.random(600) < 0.1
    adata.obs["type"] = np.where(wrong, draw.choice(names, 600), truth(adata))
    model = fit(adata, unlabelled=None, max_steps=300, n_latent=10, n_hidden=64)
    table = model.predict(adata)
    assert (table["label"].astype(str) == truth(adata))[wrong].mean() > 0.8


def test_without_labels_a_model_is_what_it_was() -> None:
    one, other = cells(), cells()
    scvae.fit(one, batch="batch", **QUICK)
    model = scvae.fit(other, batch="batch", labels=None, **QUICK)
    assert np.array_equal(one.obsm["X_scvae"], other.obsm["X_scvae"])
    assert model.reference is None
    assert "n_labels" not in str(model.record.to_json())
    with pytest.raises(ConfigError, match=r"Fit it with labels: scvae\.fit\(adata, labels="):
        model.predict(one)


def test_no_value_and_the_one_that_is_no_label_are_the_same_to_the_bit() -> None:
    adata, other = cells(), cells()
    other.obs["type"] = other.obs["type"].replace("Unknown", None)
    model, same = fit(adata), fit(other, unlabelled=None)
    assert np.array_equal(adata.obsm["X_scvae"], other.obsm["X_scvae"])
    assert model.record.digest == same.record.digest
    other.obs["type"] = (
        other.obs["type"]
        .astype("category")
        .cat.reorder_categories(["type_3", "type_1", "type_0", "type_2"])
    )
    assert fit(other, unlabelled=None).record.digest == same.record.digest


def test_labels_change_what_is_learned() -> None:
    adata, other = cells(), cells()
    fit(adata)
    other.obs["type"] = np.roll(other.obs["type"].to_numpy(), 1)
    fit(other)
    assert not np.allclose(adata.obsm["X_scvae"], other.obsm["X_scvae"], atol=1e-3)


def test_the_bound_is_less_by_what_labels_cost() -> None:
    """At one and the same weights: E_q[log p(z, y) - log p(z)], never above 0."""
    adata = cells()
    model = fit(adata)
    dataset: Any = model.read(adata)
    label = torch.from_numpy(labels_of(adata.obs, "type", "Unknown").codes)
    labelled = Dataset(dataset.counts, dataset.s, dataset.batch, dataset.log_library, label=label)

    def bounds(cells: Any) -> torch.Tensor:
        return model.vae.terms(cells, generator=torch.Generator().manual_seed(0)).kl[:, None]

    without, with_them = (model.over(data, bounds)[:, 0] for data in (dataset, labelled))
    known = label.numpy() >= 0
    assert np.array_equal(without[~known], with_them[~known])
    assert (with_them[known] >= without[known]).all()
    assert (with_them[known] > without[known]).mean() > 0.9


def test_a_wrong_label_costs_its_cell_no_more_than_twenty_nats(
    learned: tuple[AnnData, scvae.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, model = learned
    dataset: Any = model.read(adata)
    given = dataset.counts, dataset.s, dataset.batch, dataset.log_library
    right = torch.from_numpy(labels_of(adata.obs, "cell_type").codes)
    wrong = Dataset(*given, label=(right + 1) % len(set(truth(adata))))

    def bounds(cells: Any) -> torch.Tensor:
        return model.vae.terms(cells, generator=torch.Generator().manual_seed(0)).kl[:, None]

    plain = model.over(dataset, bounds)
    cost = model.over(wrong, bounds) - plain
    assert cost.max() <= LABEL_NATS + 1e-3
    assert cost.mean() > LABEL_NATS / 2
    monkeypatch.setattr(model.vae.prior.of_z, "most", math.inf)
    assert (model.over(wrong, bounds) - plain).mean() > 2 * LABEL_NATS


# -- where they travel -----------------------------------------------------------------------------


LABEL = np.arange(40) % 5 - 1


def dataset_of(label: np.ndarray | None, stream: bool) -> Dataset:
    """Return cells whose number is the code of their batch."""
    counts = sparse.random(40, 7, 0.5, format="csr", dtype=np.float32, rng=0)
    design, number = np.zeros((40, 2), dtype=np.float32), np.arange(40)
    return Dataset.build(counts, design, number, np.ones(40), "cpu", stream=stream, label=label)


@pytest.mark.parametrize("stream", [False, True])
def test_every_minibatch_has_its_labels(stream: bool) -> None:
    dataset, order = dataset_of(LABEL, stream), torch.Generator().manual_seed(0)
    several: Any = Datasets.of([dataset, dataset])
    near, _ = dataset.near(torch.tensor([7, 3]))
    for held in (dataset, several, near):
        for batch in held.shuffled(torch.arange(len(held)), 13, order):
            assert batch.label.tolist() == LABEL[batch.batch].tolist()
            assert batch[1:3].label.tolist() == LABEL[batch.batch[1:3]].tolist()
    assert dataset_of(None, stream).cells(torch.tensor([3])).label is None


def test_cells_on_disk_have_the_labels_of_the_same_cells_in_memory(tmp_path: Path) -> None:
    adata = cells()
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    on_disk = scvae.on_disk(tmp_path / "cells.h5ad")
    on_disk.memory = 20_000  # bytes: too few for the counts
    model, in_memory = fit(on_disk), fit(adata)
    assert model.record.counts == "streamed from disk"
    one, other = model.reference, in_memory.reference
    assert one is not None
    assert other is not None
    assert torch.equal(one.label, other.label)
    assert torch.equal(one.batch, other.batch)
    torch.testing.assert_close(one.expression, other.expression)
    torch.testing.assert_close(one.log_library, other.log_library)


def test_cells_taken_off_the_disk_keep_their_labels(tmp_path: Path) -> None:
    adata = cells()
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    on_disk = scvae.on_disk(tmp_path / "cells.h5ad")
    on_disk.memory = 20_000
    read = prepare.prepare(sources_of(on_disk), "batch", None, None, None, "observed")
    labels = labels_of(adata.obs, "type", "Unknown")
    read = dataclasses.replace(read, labels=labels)
    dataset = prepare.dataset_of(read, torch.device("cpu"), None)
    rows = torch.tensor([250, 3, 77, 78])
    near, own = dataset.near(rows)
    assert len(near) == 4
    for found in (near.cells(own), dataset.cells(rows)):
        assert found.label is not None
        assert found.label.tolist() == labels.codes[rows].tolist()


def test_a_checkpoint_goes_on_with_the_same_labels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    adata, again = cells(), cells()
    fit(adata, checkpoint=tmp_path)
    assert (tmp_path / NAME).exists()
    fit(again, checkpoint=tmp_path)
    assert np.array_equal(adata.obsm["X_scvae"], again.obsm["X_scvae"])
    other = cells()
    other.obs["type"] = np.roll(other.obs["type"].to_numpy(), 1)
    with pytest.raises(FileError, match="checkpoint of another fit"):
        fit(other, checkpoint=tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"library_size": "latent"},
        {"robust": True},
        {"decoder": "linear"},
        {"batch": None},
        {"stream": True},
        {"likelihood": "zinb", "dispersion": "gene-batch", "covariates": "library_size"},
    ],
)
def test_labels_go_with_every_kind_of_model(options: dict[str, Any], tmp_path: Path) -> None:
    adata = cells(120, 30)
    model = fit(adata, **{**options, "max_steps": 10})
    model.save(tmp_path / "model.scvae")
    table = scvae.load(tmp_path / "model.scvae").predict(adata)
    pd.testing.assert_frame_equal(table, model.predict(adata))
    assert np.isfinite(adata.obsm["X_scvae"]).all()


def test_new_batches_are_learned_and_named(learned: tuple[AnnData, scvae.Model]) -> None:
    adata, model = learned
    query = adata[:200].copy()
    query.obs["batch"] = "new one"
    del query.obs["type"]
    wider = model.extend(query, max_steps=20)
    assert (wider.predict(query)["label"].astype(str) == truth(query)).mean() > 0.9
    table = model.predict(query, batch="new")
    assert (table["label"].astype(str) == truth(query)).mean() > 0.9
    pd.testing.assert_frame_equal(wider.predict(adata), model.predict(adata))


# -- what a model remembers ------------------------------------------------------------------------


def test_a_file_remembers_the_labelled_cells(
    learned: tuple[AnnData, scvae.Model], tmp_path: Path
) -> None:
    adata, model = learned
    model.save(tmp_path / "model.scvae")
    loaded = scvae.load(tmp_path / "model.scvae")
    known, reference = loaded.reference, model.reference
    assert known is not None
    assert reference is not None
    assert known.column == "type"
    assert len(known) == 400
    assert known.least_temperature == reference.least_temperature > 0
    assert (known.label >= 0).all()
    pd.testing.assert_frame_equal(loaded.predict(adata), model.predict(adata))
    assert repr(loaded.summary()).split("Training")[0] == repr(model.summary()).split("Training")[0]
    assert "labels             4 of 'type', of 400 cells" in str(loaded.summary())


@pytest.mark.parametrize("least", [9.0, -1.0, float("nan"), "1", True, None])
def test_a_temperature_that_cannot_be_one_is_refused(
    learned: tuple[AnnData, scvae.Model], least: Any
) -> None:
    model = learned[1]
    assert model.reference is not None
    tensors = {k.partition(".")[2]: v for k, v in reference_tensors(model.reference).items()}
    fields = describe_reference(model.reference)
    assert read_reference(tensors, fields, model.architecture) is not None
    with pytest.raises(ValueError, match="least_temperature"):
        read_reference(tensors, {**fields, "least_temperature": least}, model.architecture)


def test_probabilities_are_no_surer_than_cells_held_out_allow(
    learned: tuple[AnnData, scvae.Model],
) -> None:
    model = learned[1]
    reference = model.reference
    assert reference is not None
    hot = dataclasses.replace(reference, least_temperature=6.0)
    cold = dataclasses.replace(reference, least_temperature=0.0)
    (classifier,) = hot.labeller.panel.classifiers
    assert classifier.temperature == 6.0
    assert hot.labeller.panel.temperature >= 1
    sure, unsure = (r.labeller.probabilities(r.posterior).amax(1) for r in (cold, hot))
    assert unsure.mean() < sure.mean() - 0.05


@pytest.mark.parametrize("most", [20, 60, 1000])
def test_of_many_cells_every_label_keeps_its_share(most: int) -> None:
    codes = np.repeat([-1, 0, 1, 2], [100, 200, 40, 2])
    rows = some_of_each(codes, most, np.random.default_rng(0))
    assert (np.diff(rows) > 0).all()
    sizes = np.bincount(codes[rows], minlength=3)
    expected = np.maximum(2, np.ceil(np.array([200, 40, 2]) * min(1, most / 242)))
    assert sizes.tolist() == expected.tolist()
    assert (codes[rows] >= 0).all()


# -- what is refused -------------------------------------------------------------------------------


def obs_of(values: Any) -> pd.DataFrame:
    return pd.DataFrame({"type": values}, index=[f"cell_{i}" for i in range(len(values))])


def test_labels_are_read_as_they_are_written() -> None:
    found = labels_of(obs_of([2.0, 1.0, None, 2.0, 1.0]), "type")
    assert found.names == ["1", "2"]
    assert found.codes.tolist() == [1, 0, -1, 1, 0]
    mixed = pd.Categorical(["b", "a", "no", "b", "a", None], categories=["no", "b", "a", "unseen"])
    found = labels_of(obs_of(mixed), "type", "no")
    assert found.names == ["a", "b"]
    assert found.codes.tolist() == [1, 0, -1, 1, 0, -1]
    assert read_labels(obs_of(["a"]), None, None) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([None] * 6, "has no labels: every cell is without a value"),
        (["Unknown"] * 4 + [None] * 2, "every cell is 'Unknown' or without a value"),
        (["a"] * 5 + ["Unknown"], "one label alone, 'a'"),
        (["a"] * 3 + ["b"] * 2 + ["Unknown"] * 2 + ["c"], r"1 labels of one cell \(first: 'c'\)"),
        (["a", "a", "b", "b"], "no cell has that value"),
    ],
)
def test_labels_that_teach_nothing_are_refused(values: list[str | None], said: str) -> None:
    with pytest.raises((DataError, ConfigError), match=said):
        labels_of(obs_of(values), "type", "Unknown")


def test_amounts_are_no_labels() -> None:
    with pytest.raises(DataError, match=r"holds amounts, from 0 to 1, and no labels"):
        labels_of(obs_of(np.linspace(0, 1, 50)), "type")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "typ"}, r"no column 'typ' \(given as labels\); did you mean labels='type'"),
        ({"labels": ["type"]}, r"labels=\['type'\] must be the name of one column.*labels='type'"),
        ({"labels": 5}, "labels=5 must be the name of one column"),
        ({"labels": None}, "unlabelled='Unknown' is a value of a column of labels, but lab"),
        ({"unlabelled": "unknown"}, r"unlabelled='unknown', but no cell has that value"),
        ({"unlabelled": 3}, "unlabelled=3, but it must be a name or None"),
        ({"prior": "normal"}, "but prior='normal': prior='mixture'"),
        ({"labels": "batch", "unlabelled": None}, "labels='batch' is the batch, too"),
        ({"validation": "known"}, "no two have cells to learn from"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], said: str) -> None:
    adata = cells(60, 20)
    adata.obs["known"] = adata.obs["type"].isin(truth(adata))
    with pytest.raises((DataError, ConfigError), match=said):
        fit(adata, **options)
    assert "X_scvae" not in adata.obsm


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "typ"}, "did you mean labels='type'"),
        ({"labels": "type", "unlabelled": "unknown"}, "no cell has that value"),
        ({"unlabelled": "Unknown"}, "labels=None"),
        ({"labels": "batch"}, "labels='batch' is the batch, too"),
    ],
)
def test_check_says_what_fit_would_refuse(options: dict[str, Any], said: str) -> None:
    (error,) = scvae.check(cells(60, 20), batch="batch", **options).errors
    assert said in error.text
    good = scvae.check(cells(60, 20), batch="batch", labels="type", unlabelled="Unknown")
    assert good.ok


def test_several_kinds_are_refused_by_both() -> None:
    mdata = scvae.simulate(60, 20, modalities=["rna", "protein"])
    mdata.obs["type"] = np.resize(["a", "b"], 60)
    with pytest.raises(ConfigError, match=r"labels='type' are of cells of RNA alone") as found:
        fit(mdata, batch=None, unlabelled=None)
    assert str(found.value) in [error.text for error in scvae.check(mdata, labels="type").errors]
