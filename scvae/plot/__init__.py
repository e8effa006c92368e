"""Pictures of embeddings, fits and analyses, each a Figure of its own, or in your own Axes.

Figures are made without pyplot: no window opens, no backend is chosen, and there is no figure that
somebody has to close. In a notebook a Figure shows itself when it is the last line of a cell, and
so do the Axes that are returned here.
"""

from typing import TYPE_CHECKING, Any

from scvae.plot.analyses import axis_loadings, doublet_scores, volcano
from scvae.plot.cells import scatter, umap
from scvae.plot.fits import fit_check, history
from scvae.plot.mapping import mapping_check
from scvae.plot.tuning import tune

if TYPE_CHECKING:
    from scvae.analysis import neighbors

__all__ = [
    "axis_loadings",
    "doublet_scores",
    "fit_check",
    "history",
    "mapping_check",
    "neighbors",
    "scatter",
    "tune",
    "umap",
    "volcano",
]


def __getattr__(name: str) -> Any:
    if name != "neighbors":
        raise AttributeError(f"module 'scvae.plot' has no attribute {name!r}")
    from scvae.analysis import neighbors  # not above: analyses need torch, and pictures do not

    return neighbors
