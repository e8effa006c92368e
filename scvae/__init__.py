"""scvae learns what each cell is from its counts.

    import scvae
    model = scvae.fit(adata, batch="donor")   # writes adata.obsm["X_scvae"]

Public names load on first use, so that `import scvae` costs what torch and anndata cost.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scvae._version import __version__

if TYPE_CHECKING:
    from scvae import analysis, core, datasets, plot
    from scvae.errors import ConfigError, DataError, FileError, ScvaeError, TrainingError
    from scvae.models.check import check
    from scvae.models.fit import fit
    from scvae.models.load import load
    from scvae.models.model import Model
    from scvae.models.on_disk import on_disk
    from scvae.models.tune import Tuning, tune
    from scvae.reporting.write import report
    from scvae.simulation import simulate

__all__ = [
    "ConfigError",
    "DataError",
    "FileError",
    "Model",
    "ScvaeError",
    "TrainingError",
    "Tuning",
    "__version__",
    "analysis",
    "check",
    "core",
    "datasets",
    "fit",
    "load",
    "on_disk",
    "plot",
    "report",
    "simulate",
    "tune",
]

_HOME = {
    "ConfigError": "scvae.errors",
    "DataError": "scvae.errors",
    "FileError": "scvae.errors",
    "ScvaeError": "scvae.errors",
    "TrainingError": "scvae.errors",
    "check": "scvae.models.check",
    "fit": "scvae.models.fit",
    "Model": "scvae.models.model",
    "load": "scvae.models.load",
    "on_disk": "scvae.models.on_disk",
    "report": "scvae.reporting.write",
    "simulate": "scvae.simulation",
    "Tuning": "scvae.models.tune",
    "tune": "scvae.models.tune",
}
_MODULES = ("analysis", "core", "datasets", "plot")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"scvae.{name}")
    else:
        raise AttributeError(f"module 'scvae' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
