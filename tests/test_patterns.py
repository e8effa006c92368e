"""Cells that lack a kind of measurement lie among those that have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pytest
import torch

import scvae
from scvae.data.hold.several import Datasets
from scvae.models.embedding import FEWEST_OF_PATTERN, Patterns

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning", "ignore:Posterior")
N, SMALL = 600, {"n_latent": 6, "n_hidden": 16, "max_steps": 120, "progress": False}


def mosaic(lacking: int = N // 2) -> Any:
    """Return cells of which the first, of all types and batches, lack proteins."""
    whole = scvae.simulate(N, 60, modalities=["rna", "protein"], n_proteins=12, seed=4)
    parts = {"rna": whole["rna"].copy(), "protein": whole["protein"][lacking:].copy()}
    return mudata.MuData(parts)[whole.obs_names].copy()


def shallow(mdata: Any) -> Any:
    """Thin the RNA, so that without proteins little is known of a cell."""
    rna, rng = mdata["rna"], np.random.default_rng(0)
    rna.X = rng.binomial(rna.X.toarray().astype(int), 0.2).astype(np.float32)
    rna.X[:, 0] += 1
    return mdata


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, scvae.Model]:
    mdata = mosaic()
    return mdata, scvae.fit(mdata, **SMALL)


def apart(x: np.ndarray, types: np.ndarray, lacks: np.ndarray) -> float:
    """Return how far the cells of a type that lack a kind are from its others, in the mean."""
    gaps = [
        x[(types == t) & lacks].mean(0) - x[(types == t) & ~lacks].mean(0) for t in np.unique(types)
    ]
    return float(np.mean([np.linalg.norm(gap) for gap in gaps]))


def test_what_was_not_measured_moves_a_type_no_more() -> None:
    mdata, plain = shallow(mosaic()), shallow(mosaic())
    model = scvae.fit(mdata, **SMALL)
    scvae.fit(plain, align=False, **SMALL)
    types = mdata["rna"].obs["cell_type"].astype(str).to_numpy()
    lacks = np.arange(N) < N // 2
    gaps = [apart(np.asarray(data.obsm["X_scvae"]), types, lacks) for data in (plain, mdata)]
    assert gaps[1] < 0.9 * gaps[0]
    told = dict(model.summary().sections["Embedding"])
    assert "different kinds of measurement" in told["alignment"]
    assert float(told["cells moved by"].split(",")[0]) > 0


def test_cells_of_a_pattern_that_was_not_seen_stay_where_they_are(
    fitted: tuple[Any, scvae.Model],
) -> None:
    mdata, model = fitted
    proteins = mdata["protein"]
    dataset = model.read(proteins)
    coordinates, views = model.embedding.coordinates, model.views
    plain = model.over(dataset, lambda cells: coordinates(views, model.vae.encode(cells).mean))
    np.testing.assert_array_equal(model.embed(proteins), plain)
    assert np.abs(model.embed(mdata["rna"]) - mdata.obsm["X_scvae"]).max() > 1e-3


def test_files_hold_the_patterns(fitted: tuple[Any, scvae.Model], tmp_path: Path) -> None:
    mdata, model = fitted
    model.save(tmp_path / "m.scvae")
    loaded = scvae.load(tmp_path / "m.scvae")
    np.testing.assert_array_equal(loaded.embed(mdata), np.asarray(mdata.obsm["X_scvae"]))
    _, std = loaded.embed(mdata, return_std=True)
    assert np.isfinite(std).all()


def test_few_cells_are_no_pattern() -> None:
    mdata = mosaic(lacking=FEWEST_OF_PATTERN // 2)
    model = scvae.fit(mdata, **{**SMALL, "max_steps": 5})
    assert model.embedding.patterns is None
    assert model.embedding.alignment is None


def test_groups_are_of_pattern_and_batch() -> None:
    patterns = Patterns(torch.tensor([[1, 0], [1, 1]]))
    present = torch.tensor([[True, False], [True, True], [False, True], [True, True]])
    found = patterns.groups(torch.tensor([0, 2, 1, -1]), present)
    assert found.tolist() == [0, 5, -1, -1]


def test_patterns_are_of_the_cells_trained_on(fitted: tuple[Any, scvae.Model]) -> None:
    mdata, model = fitted
    dataset = model.read(mdata)
    assert isinstance(dataset, Datasets)
    assert Patterns.of(dataset, torch.arange(N // 2)) is None
    both = Patterns.of(dataset, torch.arange(N))
    assert both is not None
    assert both.kinds.tolist() == [[1, 0], [1, 1]]
