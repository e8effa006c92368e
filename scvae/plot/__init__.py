"""Pictures of an embedding and of a fit, each a matplotlib Figure of its own, or in your own Axes.

Figures are made without pyplot: no window opens, no backend is chosen, and there is no figure that
somebody has to close. In a notebook a Figure shows itself when it is the last line of a cell, and
so do the Axes that are returned here.
"""

from scvae.analysis.neighbours import neighbors
from scvae.plot.cells import scatter, umap
from scvae.plot.fits import fit_check, history

__all__ = ["fit_check", "history", "neighbors", "scatter", "umap"]
