"""Analyses of cells and fitted models: functions, none of which changes what it is given."""

from scvae.analysis.compare import Comparison, compare
from scvae.analysis.correlations import correlations
from scvae.analysis.doublets import Doublets, doublets
from scvae.analysis.loadings import interpret, loadings
from scvae.analysis.markers import markers
from scvae.analysis.neighbours import lay_out, neighbors
from scvae.analysis.perturb import Perturbation, perturb

__all__ = [
    "Comparison",
    "Doublets",
    "Perturbation",
    "compare",
    "correlations",
    "doublets",
    "interpret",
    "lay_out",
    "loadings",
    "markers",
    "neighbors",
    "perturb",
]
