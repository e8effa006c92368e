"""Pictures of embeddings, fits and analyses, each a Figure of its own, or in your own Axes.

Figures are made without pyplot: no window opens, no backend is chosen, and there is no figure that
somebody has to close. In a notebook a Figure shows itself when it is the last line of a cell, and
so do the Axes that are returned here.
"""

from scvae.analysis.neighbours import neighbors
from scvae.plot.analyses import axis_loadings, doublet_scores, volcano
from scvae.plot.cells import scatter, umap
from scvae.plot.fits import fit_check, history

__all__ = [
    "axis_loadings",
    "doublet_scores",
    "fit_check",
    "history",
    "neighbors",
    "scatter",
    "umap",
    "volcano",
]
