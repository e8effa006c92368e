"""Labels of a query: found where they are there, honest in probability, unknown where not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse, stats

import scvae
from scvae import ConfigError, DataError
from scvae.analysis.labels import transfer
from scvae.data.hold.cells import Dataset
from scvae.data.read.labels import labels_of
from scvae.models.label.classifier import Classifier, best_temperature, fit_classifier
from scvae.models.label.components import fit_components
from scvae.models.label.labeller import _folds, fit_panel, posterior_of
from scvae.models.label.reference import make_reference
from scvae.models.label.same_genes import with_genes
from scvae.models.label.strangeness import fit_depth, fit_strangeness, fit_types, tail

Fitted = tuple[AnnData, scvae.Model]


def drawn(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cells of three types about corners of a triangle, and their types."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=draw)
    mean = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    return mean[label] + torch.randn(n, 2, generator=draw), label


# -- classifier ------------------------------------------------------------------------------------


def test_probabilities_of_gaussians_are_those_of_bayes() -> None:
    z, label = drawn(40_000)
    found = fit_classifier(z, label, 3).probabilities(z[:500])
    mean = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    density = np.stack([stats.multivariate_normal(m).pdf(z[:500].numpy()) for m in mean], 1)
    np.testing.assert_allclose(found, density / density.sum(1, keepdims=True), atol=0.03)


def test_cells_of_rare_types_weigh_by_the_root_of_their_number() -> None:
    z, label = drawn(60_000)
    kept = (label > 0) | (torch.arange(60_000) % 4 == 0)
    found = fit_classifier(z[kept], label[kept], 3).probabilities(z[:500])
    mean = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    density = np.stack([stats.multivariate_normal(m).pdf(z[:500].numpy()) for m in mean], 1)
    density *= np.array([1 / 2, 1, 1])
    np.testing.assert_allclose(found, density / density.sum(1, keepdims=True), atol=0.03)


def test_a_panel_says_the_mean_of_its_classifiers_and_as_surely_as_it_is_right() -> None:
    z, label = drawn(6_000)
    fold = torch.arange(6_000) % 3
    noise = torch.randn(6_000, 2, generator=torch.Generator().manual_seed(9))
    one, two = (fit_panel([z], label, fold, 3), fit_panel([z, noise], label, fold, 3))
    single = one.classifiers[0]
    torch.testing.assert_close(one.probabilities([z]), single.probabilities(z))
    parts = [c.probabilities(x) for c, x in zip(two.classifiers, (z, noise), strict=True)]
    torch.testing.assert_close(two.logits([z, noise]).exp(), sum(parts) / 2)
    p = two.probabilities([z, noise])
    top, said = p.max(1)
    assert two.temperature < 0.8  # what knows nothing is not heard
    assert float((said == label).double().mean()) == pytest.approx(float(top.mean()), abs=0.04)


# -- counts ----------------------------------------------------------------------------------------


def test_components_are_those_of_scaled_log_counts(trained: Fitted) -> None:
    adata, model = trained
    observed = torch.arange(100) % 3 > 0
    dataset = model.read_rna(adata, None)
    found = fit_components(model, dataset, observed)
    x = adata.X.toarray()[:, observed.numpy()].astype(float)
    y = np.log1p(1e4 * x / np.maximum(x.sum(1, keepdims=True), 1))
    y = ((y - y.mean(0)) / y.std(0)).clip(-10, 10)
    own = model.over(dataset, found)
    assert own.shape == (600, observed.sum())
    np.testing.assert_allclose(own @ own.T, y @ y.T, atol=0.02)  # the same up to a rotation
    second = (own.T @ own) / 600
    values = np.linalg.eigvalsh(y.T @ y / 600)[::-1]
    np.testing.assert_allclose(second, np.diag(values), atol=1e-3 * values[0])


def test_genes_taken_from_the_reference_are_as_if_it_never_had_them(trained: Fitted) -> None:
    adata, model = trained
    part = adata[:, 37:].copy()
    with pytest.warns(scvae.errors.ScvaeWarning, match="63 of the model's 100"):
        query = model.read(part, partial=True)
    assert isinstance(query, Dataset)
    assert query.observed is not None
    hidden = with_genes(model, model.read_rna(adata, None), query.observed)
    for name, value in vars(posterior_of(model, query)).items():
        if value is not None:
            torch.testing.assert_close(getattr(posterior_of(model, hidden), name), value)


def test_a_query_without_genes_is_named_by_cells_without_them(trained: Fitted) -> None:
    adata, model = trained
    truth, some = adata.obs["cell_type"].astype(str), adata[:, ::4].copy()
    with pytest.warns(scvae.errors.ScvaeWarning):
        table = transfer(model, adata, some, "cell_type")
    assert (table["label"].astype(str) == truth).mean() > 0.93
    assert table["unknown"].mean() < 0.12  # whatever of the genes is there
    reference = adata.copy()
    counts = adata.X.toarray() * (np.arange(100) % 4 == 0)
    counts[:, 1] = 1.0  # so that no cell is empty; these are not looked at
    reference.X = sparse.csr_matrix(counts)
    with pytest.warns(scvae.errors.ScvaeWarning):
        again = transfer(model, reference, some, "cell_type")
    pd.testing.assert_frame_equal(again, table)


@pytest.mark.parametrize("too_sure", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_logits_are_too_sure_by(too_sure: float) -> None:
    z, label = drawn(20_000)
    logits = fit_classifier(z, label, 3).logits(z) * too_sure
    assert best_temperature(logits, label) == pytest.approx(too_sure, rel=0.08)


def test_labels_that_no_cell_had_are_never_said_and_do_not_count() -> None:
    z, label = drawn(500)
    classifier = fit_classifier(z[label < 2], label[label < 2], 3)
    p = classifier.probabilities(z)
    assert (p[:, 2] == 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(500, dtype=torch.float64))
    logits = classifier.logits(z)
    some = label < 2
    assert best_temperature(logits, label) == best_temperature(logits[some], label[some])
    assert best_temperature(logits, torch.full((500,), 2)) == 1.0
    assert isinstance(classifier, Classifier)


# -- strangeness -----------------------------------------------------------------------------------


def test_distances_are_those_of_mahalanobis_to_the_nearest_type() -> None:
    z, label = drawn(20_000)
    stretched = z @ torch.tensor([[3.0, 1.0], [0.0, 0.5]])
    found = fit_types(stretched, label, 4).distance(stretched[:50])
    mean = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    expected = torch.cdist(z[:50], mean).square().min(1).values
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.05)


def test_the_shortfall_is_a_standard_score_at_every_depth() -> None:
    draw = np.random.default_rng(0)
    depth = draw.normal(7, 0.5, 20_000)
    log_px = -200 * depth + draw.normal(size=20_000) * np.exp(0.7 * depth - 2)
    tensors = torch.from_numpy(log_px), torch.from_numpy(depth)
    found = fit_depth(*tensors).shortfall(*tensors).numpy()
    for part in np.array_split(np.argsort(depth), 5):
        assert abs(found[part].mean()) < 0.05 * found.std()
        assert found[part].std() == pytest.approx(found.std(), rel=0.05)


def test_of_the_reference_itself_a_share_is_as_strange_as_said() -> None:
    draw = torch.Generator().manual_seed(0)
    both = [torch.randn(4000, generator=draw).double() for _ in range(2)]
    strange = fit_strangeness(*both)
    for found in (strange(*both), strange(both[0], None)):
        assert found.min() >= 0
        assert found.max() < 1
        for rate in (0.01, 0.05, 0.5):
            assert (found > 1 - rate).double().mean() == pytest.approx(rate, abs=0.001)
    assert tail(torch.arange(4.0), torch.tensor([-1.0, 3.0, 9.0])).tolist() == [1.0, 0.4, 0.2]


def test_folds_are_batches_and_of_one_batch_a_fifth_each() -> None:
    batch = torch.tensor([7] * 50 + [2] * 10 + [4] * 30)
    assert len({*map(tuple, torch.stack([batch, _folds(batch)], 1).tolist())}) == 3
    assert torch.bincount(_folds(torch.zeros(50, dtype=torch.int64))).tolist() == [10] * 5
    many = torch.arange(40).repeat_interleave(3)
    assert torch.bincount(_folds(many)).tolist() == [24] * 5


def test_one_cell_and_none_are_labelled_as_among_others(trained: Fitted) -> None:
    adata, model = trained
    table = transfer(model, adata, adata[:40], "cell_type")
    alone = transfer(model, adata, adata[3:4], "cell_type")
    assert alone["label"].iloc[0] == table["label"].iloc[3]
    assert alone["probability"].iloc[0] == pytest.approx(table["probability"].iloc[3], abs=1e-5)
    assert transfer(model, adata, adata[:0], "cell_type").shape == (0, 6)


# -- all together ----------------------------------------------------------------------------------


def test_types_are_found_and_one_left_out_is_unknown(trained: Fitted) -> None:
    adata, _ = trained
    reference = adata[adata.obs["cell_type"] != "type_1"].copy()
    model = scvae.fit(reference, batch="batch", max_steps=300, progress=False)
    table = transfer(model, reference, adata, "cell_type")
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    known = truth != "type_1"
    assert (table["label"].astype(str) == truth)[known].mean() > 0.97
    assert table["unknown"][~known].mean() > 0.8
    assert table["unknown"][known].mean() < 0.1
    assert table.index.equals(adata.obs_names)
    assert (table["probability"] >= table["second_probability"]).all()
    assert (table["label"].astype(str) != table["second"].astype(str)).all()
    again = transfer(model, reference, adata[::-1], "cell_type")
    pd.testing.assert_frame_equal(
        again.loc[table.index, ["label", "second"]], table[["label", "second"]]
    )


def test_probabilities_add_up_over_parents(trained: Fitted) -> None:
    adata, model = trained
    reference = adata.copy()
    reference.obs["broad"] = np.where(adata.obs["cell_type"] == "type_0", "one", "others")
    table = transfer(model, reference, adata, "cell_type", parent="broad")
    p = make_reference(model, reference, "cell_type", call="").labeller.probabilities
    assert set(table["parent"].cat.categories) == {"one", "others"}
    assert ((table["parent"] == "one") == (table["label"] == "type_0")).mean() > 0.99
    assert (table["parent_probability"] >= table["probability"] - 1e-9).all()
    assert p is not None
    reference.obs.loc[reference.obs_names[:5], "broad"] = "third"
    with pytest.raises(DataError, match=r"the label 'type_\d', of which .*broad.* says \["):
        transfer(model, reference, adata, "cell_type", parent="broad")


def test_cells_without_a_label_teach_nothing(trained: Fitted) -> None:
    adata, model = trained
    reference = adata.copy()
    some = np.arange(600) % 3 == 0
    reference.obs["cell_type"] = reference.obs["cell_type"].astype(object)
    reference.obs.loc[some, "cell_type"] = None
    one = transfer(model, reference, adata, "cell_type")
    two = transfer(model, adata[~some].copy(), adata, "cell_type")
    assert (one["label"] == two["label"]).mean() > 0.99
    np.testing.assert_allclose(one["probability"], two["probability"], atol=1e-3)


def test_some_genes_and_unseen_batches_are_taken(trained: Fitted) -> None:
    adata, model = trained
    query = adata[:100, 10:].copy()
    query.obs["batch"] = "new one"
    with pytest.warns(scvae.errors.ScvaeWarning, match="90 of the model's 100"):
        table = transfer(model, adata, query, "cell_type", batch="new", key_added="found")
    assert (table["label"].astype(str) == query.obs["cell_type"].astype(str)).mean() > 0.9
    assert query.obs["found"].tolist() == table["label"].tolist()
    assert {"found_probability", "found_unknown"} <= set(query.obs)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([None] * 6, "has no labels"),
        (["a"] * 5 + [None], "one label alone, 'a'"),
        (["a"] * 3 + ["b"] * 2 + ["c"], r"1 labels of one cell \(first: 'c'\)"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: list[str | None], said: str) -> None:
    with pytest.raises(DataError, match=said):
        labels_of(pd.DataFrame({"cell_type": labels}), "cell_type")


def test_what_is_missing_is_named(trained: Fitted) -> None:
    adata, model = trained
    with pytest.raises(DataError, match="no column 'celltype'"):
        transfer(model, adata, adata, "celltype")
    with pytest.raises(DataError, match="adata is a int; an AnnData is needed"):
        transfer(model, 5, adata, "cell_type")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"carries no labelled cells.*labels='cell_type'\)"):
        transfer(model, None, adata)
    with pytest.raises(ConfigError, match=r"false_alarms=2"):
        transfer(model, adata, adata, "cell_type", false_alarms=2)
