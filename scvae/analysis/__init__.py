"""Analyses of cells and fitted models: functions, none of which changes what it is given."""

from scvae.analysis import labels
from scvae.analysis.compare import Comparison, compare
from scvae.analysis.correlations import correlations
from scvae.analysis.doublets import Doublets, doublets
from scvae.analysis.judging import judge
from scvae.analysis.loadings import interpret, loadings
from scvae.analysis.mapping import MappingCheck, mapping_check
from scvae.analysis.markers import markers
from scvae.analysis.neighbours import lay_out, neighbors
from scvae.analysis.null_batch import NullBatch, null_batch
from scvae.analysis.perturb import Perturbation, perturb

__all__ = [
    "Comparison",
    "Doublets",
    "MappingCheck",
    "NullBatch",
    "Perturbation",
    "compare",
    "correlations",
    "doublets",
    "interpret",
    "judge",
    "labels",
    "lay_out",
    "loadings",
    "mapping_check",
    "markers",
    "neighbors",
    "null_batch",
    "perturb",
]
