"""Intervals of proteins that were not measured hold the share of counts that they say."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Generator

import scvae
from scvae.models.denoised import _middle
from scvae.models.judge.imputed import FEWEST, level_of, level_that_holds
from scvae.models.keep.record import Record

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
FIT: dict[str, Any] = {"n_latent": 6, "n_hidden": 32, "max_steps": 150, "progress": False}


def fit(data: Any, **arguments: Any) -> scvae.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scvae.fit(data, **{**FIT, **arguments})


@pytest.fixture(scope="module")
def split() -> tuple[scvae.Model, Any]:
    """Return a model of most cells, and the others."""
    whole = scvae.simulate(1_600, 40, modalities=["rna", "protein"], n_proteins=6, seed=3)
    return fit(whole[:1_200].copy(), validation=0.3), whole[1_200:].copy()


def counts_of(mdata: Any) -> np.ndarray:
    x = mdata["protein"].X
    return np.asarray(x.toarray() if sparse.issparse(x) else x)


def share_held(model: scvae.Model, cells: Any, truth: np.ndarray, share: float) -> np.ndarray:
    asked: dict[str, Any] = {"modality": "protein", "background": True, "return_interval": share}
    _, low, high = model.normalized(cells, **asked)
    return np.asarray(((low <= truth) & (truth <= high)).mean(axis=0))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_of_imputed_counts_hold_their_share_of_new_cells(
    split: tuple[scvae.Model, Any], share: float
) -> None:
    model, cells = split
    rna, truth = mudata.MuData({"rna": cells["rna"].copy()}), counts_of(cells)
    held = share_held(model, rna, truth, share)
    assert held.mean() == pytest.approx(share, abs=0.04)
    assert np.abs(held - share).max() < 0.1
    imputed = model.record.imputed
    assert imputed is not None
    narrow = [[level * 0.5 for level in one] for one in imputed["protein"]]
    model.record = dataclasses.replace(model.record, imputed={"protein": narrow})
    assert share_held(model, rna, truth, share).mean() < share - 0.1
    model.record = dataclasses.replace(model.record, imputed=imputed)


def test_a_level_holds_a_count_and_no_smaller_one_does() -> None:
    generator = Generator().manual_seed(0)
    draws = torch.poisson(torch.full((201, 40, 3), 4.0), generator=generator)
    x = torch.poisson(torch.full((40, 3), 4.0), generator=generator)
    level = level_that_holds(draws, x).double()
    low, high = _middle(draws, level)
    assert ((low <= x) & (x <= high)).all()
    inner = level > 0.05
    low, high = _middle(draws, (level - 0.02).clamp(min=0))
    assert not ((low <= x) & (x <= high))[inner].any()


def test_cells_that_were_measured_have_the_intervals_that_are_drawn(
    split: tuple[scvae.Model, Any],
) -> None:
    model, cells = split
    asked: dict[str, Any] = {"modality": "protein", "return_interval": 0.9}
    plain = model.normalized(cells, **asked)
    imputed = model.record.imputed
    model.record = dataclasses.replace(model.record, imputed=None)
    for one, other in zip(model.normalized(cells, **asked), plain, strict=True):
        np.testing.assert_array_equal(one, other)
    model.record = dataclasses.replace(model.record, imputed=imputed)


def test_levels_are_kept_in_the_file(split: tuple[scvae.Model, Any], tmp_path: Path) -> None:
    model, cells = split
    model.save(tmp_path / "model.scvae")
    again = scvae.load(tmp_path / "model.scvae")
    assert again.record.imputed == model.record.imputed
    rna = mudata.MuData({"rna": cells["rna"].copy()})
    asked: dict[str, Any] = {"modality": "protein", "return_interval": 0.9}
    for one, other in zip(
        again.normalized(rna, **asked), model.normalized(rna, **asked), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_of_few_cells_nothing_is_learned() -> None:
    few = scvae.simulate(FEWEST + 50, 20, modalities=["rna", "protein"], n_proteins=3, seed=3)
    assert fit(few, max_steps=2).record.imputed is None
    assert fit(few["protein"].copy(), max_steps=2, validation=0.9).record.imputed is None


def test_levels_of_other_proteins_are_not_used() -> None:
    levels = {"protein": [[0.0, 0.5, 1.0]] * 3}
    np.testing.assert_allclose(level_of(levels, "protein", 0.75, 3), 0.75)
    assert level_of(levels, "protein", 0.75, 4) is None
    assert level_of(levels, "rna", 0.75, 3) is None
    assert level_of(None, "protein", 0.75, 3) is None


@pytest.mark.parametrize("wrong", [3, {"protein": 3}, {"protein": [[0.0]]}, {"protein": [[0, 2]]}])
def test_levels_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a imputed of the wrong kind"):
        Record.from_json({"imputed": wrong})
