"""Pictures of analyses hold the numbers that they were given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scvae
from scvae.analysis import Comparison, Doublets
from scvae.plot import axis_loadings, doublet_scores, volcano


def compared(lfc: list[float], p: list[float]) -> Comparison:
    table = pd.DataFrame({"gene": [f"g{i}" for i in range(len(p))], "group": "t", "lfc": lfc})
    table["p"], table["fdr"] = p, p
    table["lfc_low"], table["lfc_high"] = table["lfc"] - 0.5, table["lfc"] + 0.5
    return Comparison(table, pd.DataFrame(), ["why not"])


def test_a_volcano_names_the_genes_of_least_p_and_draws_intervals_of_those_found() -> None:
    ax = volcano(compared([1.0, -2.0, 0.1, 40.0], [1e-3, 1e-5, 0.9, 1e-4]), n_names=2)
    assert [text.get_text() for text in ax.texts] == ["g1", "g3"]
    grey = ax.collections[0].get_offsets()
    assert np.allclose(grey, [[0.1, -np.log10(0.9)]])
    assert ax.get_xlim()[1] == pytest.approx(2.2)  # what has no bound is at the edge
    bars = [s for c in ax.containers for s in c.lines[2][0].get_segments()]
    assert sorted(float(np.ptp(bar[:, 0])) for bar in bars) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("group", ["x", None])
def test_a_volcano_without_p_or_group_is_refused(group: str | None) -> None:
    with pytest.raises(scvae.ConfigError, match=r"not one of|has no p to draw: why not"):
        volcano(compared([1.0], [np.nan]), group)


def test_loadings_are_drawn_from_either_end() -> None:
    weights = pd.DataFrame({"1": [0.5, -1.0, 0.1, 2.0]}, index=list("abcd"))
    ax = axis_loadings(weights, "1", n_genes=1)
    assert [bar.get_width() for bar in ax.patches] == [-1.0, 2.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "d"]
    with pytest.raises(scvae.ConfigError, match=r"none of .* of weights"):
        axis_loadings(weights, "9")


def test_the_threshold_of_doublets_is_drawn() -> None:
    table = pd.DataFrame({"score": [0.1, 0.2, 0.9], "is_doublet": [False, False, True]})
    ax = doublet_scores(Doublets(table, np.array([0.8, 0.9]), 0.1, 0.7, 0.01, 1.0))
    assert ax.lines[0].get_xdata()[0] == 0.7
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "called (33.3% of cells)" in labels
