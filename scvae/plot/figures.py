"""Figures: made without pyplot, shown by a notebook, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae.arguments import check_path, shown
from scvae.errors import ConfigError
from scvae.io import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's eight colours (grey for their black), then sixteen that were each chosen to lie as
# far as possible from all before, as seen with normal vision, without red and without green cones.
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#7a7a7a"),
    *("#552400", "#242479", "#79e7ce", "#0000ff", "#245561", "#6186ff", "#86490c", "#4924b6"),
    *("#31ce86", "#313149", "#92ceff", "#006de7", "#9ee792", "#aa1886", "#00cec2", "#613d31"),
)
DPI = 150


def check_axes(name: str, ax: Any, grid: str = "") -> None:
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise ConfigError(
            f"{name}={shown(ax)}, but it must be matplotlib's Axes: "
            f"{name}=matplotlib.figure.Figure().subplots({grid})"
        )


def draw(ax: Axes, points: np.ndarray, colors: np.ndarray, **how: Any) -> Any:
    """Draw cells or genes as points, in random order: none is hidden for being drawn first."""
    order = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(18_000 / max(1, len(points)), 0.5, 40))
    x, y = points[order, 0], points[order, 1]
    return ax.scatter(x, y, s=size, c=colors[order], linewidths=0, rasterized=True, **how)


# -- figures -------------------------------------------------------------------------------------


class Panels(np.ndarray):
    """Axes of one Figure, which a notebook shows as that Figure."""

    def _repr_png_(self) -> bytes | None:
        return _png(self.flat[0]) if self.size else None


def array_of(axes: Sequence[Axes] | np.ndarray) -> np.ndarray:
    array = np.empty(len(axes), dtype=object)
    array[:] = list(axes)
    return array


def own_axes(size: tuple[float, float], n: int) -> np.ndarray:
    """Return `n` Axes side by side in a new Figure; a notebook shows them, and each of them.

    It shows the figures of pyplot, of which this is none, and what has a ``_repr_png_``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    axes = array_of(figure.subplots(1, n, squeeze=False)[0])
    for ax in axes:
        ax._repr_png_ = partial(_png, ax)
    return axes.view(Panels)


def figure_of(ax: Axes) -> Figure:
    """Return the Figure that `ax` is in, at any depth of subfigures."""
    figure: Figure = ax.figure.figure
    return figure


def _png(ax: Axes) -> bytes:
    """Return the Figure of `ax` as a PNG."""
    file = BytesIO()
    figure_of(ax).savefig(file, format="png", bbox_inches="tight", pad_inches=0.1)
    return file.getvalue()


# -- files ---------------------------------------------------------------------------------------


def check_picture(path: str | os.PathLike[str], role: str = "path") -> None:
    """Raise a ConfigError if matplotlib writes no pictures with the suffix of `path`."""
    from matplotlib.backend_bases import FigureCanvasBase

    path = check_path("path", path, "umap.png")
    known = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.lower().lstrip(".") not in known:
        raise ConfigError(
            f"{path} is not the name of a picture (given as {role}); end it with .png, .pdf, "
            ".svg or .jpg."
        )


def save(figure: Figure, path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    with replacing(path) as draft:
        kind = Path(path).suffix.lower().lstrip(".")
        figure.savefig(draft, format=kind, dpi=DPI, bbox_inches="tight", pad_inches=0.1)
