"""Pictures of cells: points in two dimensions, coloured by categories or numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvae.arguments import (
    check_choice,
    check_name,
    check_names,
    check_seed,
    check_switch,
    refuse,
    shown,
)
from scvae.errors import DataError
from scvae.plot.figures import DPI, PALETTE, check_axes, check_picture, draw, save

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Legend = Literal["auto", "beside", "on", "none"]
LEGENDS: tuple[Legend, ...] = ("auto", "beside", "on", "none")

MISSING = "#d9d9d9"
PANEL = (5.2, 3.9)  # inches; two panels side by side are 1,560 pixels wide
MOST_COLUMNS = 2
LEGEND_ROWS, MOST_IN_LEGEND = 18, 54
SHORT_LABEL, LONGEST_LABEL = 3, 28


def umap(
    adata: AnnData,
    color: str | Sequence[str] | None = None,
    *,
    key: str = "X_scvae",
    legend: Legend = "auto",
    recompute: bool = False,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw the UMAP of an embedding, one panel per colour; nothing is written to `adata`.

    ``obsm["X_umap"]`` is drawn where there is one, unless ``uns["neighbors"]`` says that it was
    made from something else than `key`: a UMAP of principal components must not pass for one of
    the embedding. Otherwise neighbours and UMAP are computed here.

    Parameters
    ----------
    adata
        Cells with the embedding in ``obsm[key]``.
    color
        Columns of ``adata.obs``: categories or numbers. None draws all cells in one colour.
    key
        Slot of the embedding.
    legend
        "beside" the panel, "on" the clusters, "none", or "auto": on the clusters if no label is
        longer than three characters, as the numbers of Leiden clusters.
    recompute
        Compute neighbours and UMAP even if ``obsm["X_umap"]`` could be drawn.
    seed
        Of the neighbours and the UMAP.
    path
        File to save to, whole or not at all; the suffix chooses the format.

    Returns
    -------
    matplotlib.figure.Figure
        Its ``axes`` are the panels, in the order of `color`.

    Raises
    ------
    DataError
        If a column or the embedding is missing.
    ConfigError
        If the suffix of `path` is not a format that matplotlib writes.
    FileError
        If `path` cannot be written.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=100, n_genes=30)
    >>> adata.obsm["X_umap"] = adata.obsm["z"][:, :2]
    >>> figure = scvae.plot.umap(adata, ["cell_type", "batch"])
    >>> [ax.get_title() for ax in figure.axes]
    ['cell_type', 'batch']
    """
    from scvae.data.read.genes import check_unique  # not above: it needs torch

    check_unique(adata)
    names = check_names("color", color, "batch")
    check_columns(adata, names, "color")
    key = check_name("key", key, "X_scvae")
    legend = check_choice("legend", legend, LEGENDS)
    recompute, seed = check_switch("recompute", recompute, True), check_seed(seed)
    if path is not None:
        check_picture(path)
    from scvae.analysis.neighbours import layout

    points = layout(adata, key, recompute, seed)
    figure, axes = _panels(max(1, len(names)))
    if not names:
        scatter(axes[0], points, title=f"UMAP of {key}")
    for ax, name in zip(axes, names, strict=False):
        scatter(ax, points, adata.obs[name], title=name, legend=legend)
    save(figure, path)
    return figure


def scatter(
    ax: Axes,
    points: np.ndarray,
    values: pd.Series | np.ndarray | None = None,
    *,
    title: str = "",
    legend: Legend = "auto",
) -> Axes:
    """Draw cells as points on `ax`, coloured by categories or numbers.

    Points are drawn in random order, so that no category hides another by being drawn last.

    Parameters
    ----------
    ax
        Axes to draw on.
    points
        Positions, ``(n, 2)``.
    values
        A category (strings, booleans, categorical) or a number per cell; missing ones are grey.
    title
        Written above.
    legend
        As in `umap`.

    Returns
    -------
    matplotlib.axes.Axes
        The same axes.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from scvae import plot
    >>> ax = plot.scatter(Figure().subplots(), np.eye(3, 2), np.array(["a", "b", "a"]))
    >>> [text.get_text() for text in ax.texts]
    ['a', 'b']
    """
    check_axes("ax", ax)
    legend = check_choice("legend", legend, LEGENDS)
    if not isinstance(title, str):
        raise refuse("title", title, "a string", "")
    points = _positions(points)
    series = None if values is None else _one_a_cell(values, len(points))
    ax.set(title=title, xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_box_aspect(1)
    ax.spines[:].set_color(MISSING)
    if series is None:
        draw(ax, points, np.full(len(points), PALETTE[0]))
        return ax
    if _is_number(series):
        _draw_numbers(ax, points, series.to_numpy(dtype=np.float64, na_value=np.nan))
    else:
        _draw_categories(ax, points, categorical(series), legend)
    return ax


def check_columns(adata: AnnData, names: Sequence[str], role: str) -> None:
    """Raise a DataError for the first name that is not a column of adata.obs."""
    held = [str(name) for name in adata.obs.columns]
    for name in names:
        if name not in held:
            near = get_close_matches(name, held, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it holds: {', '.join(held)}."
            raise DataError(f"adata.obs has no column {name!r} (given as {role}); {hint}")


# -- what is asked -----------------------------------------------------------------------------


def _positions(points: Any) -> np.ndarray:
    """Return positions as an array of numbers, ``(n, 2)``."""
    try:
        found = np.asarray(points)
        found = found if found.dtype.kind in "biuf" else np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    if found.ndim != 2 or found.shape[1] != 2:
        raise DataError(
            f"points={shown(points)}, but they must be two numbers a cell: "
            "points=adata.obsm['X_umap'][:, :2]"
        )
    return found


def _one_a_cell(values: Any, n: int) -> pd.Series:
    """Return the values to colour by, one for every cell."""
    try:
        series = pd.Series(values)
    except (TypeError, ValueError, OverflowError):
        series = None
    if series is None or len(series) != n or series.dtype.kind == "c":
        raise DataError(
            f"values={shown(values)}, but they must be one category or number for each of {n} "
            "cells: values=adata.obs['batch']"
        )
    return series


def _is_number(values: pd.Series) -> bool:
    types = pd.api.types
    return types.is_numeric_dtype(values) and not types.is_bool_dtype(values)


def categorical(values: pd.Series) -> pd.Categorical:
    """Return categories as strings, those without cells left out, in the order they came in."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(str).where(values.notna()).astype("category")
    used = values.cat.remove_unused_categories()
    return pd.Categorical(used.cat.rename_categories(str))


# -- how it is drawn -----------------------------------------------------------------------------


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(n, MOST_COLUMNS)
    rows = math.ceil(n / columns)
    size = (PANEL[0] * columns, PANEL[1] * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[n:]:
        unused.remove()
    return figure, axes[:n]


def _draw_numbers(ax: Axes, points: np.ndarray, values: np.ndarray) -> None:
    from matplotlib import colormaps

    how = {"cmap": colormaps["viridis"].with_extremes(bad=MISSING), "plotnonfinite": True}
    drawn = draw(ax, points, np.ma.masked_invalid(values), **how)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0.2, 0.035, 0.6)))
    bar.outline.set_visible(False)


def _draw_categories(ax: Axes, points: np.ndarray, values: pd.Categorical, legend: Legend) -> None:
    labels = list(values.categories)
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(labels))]
    draw(ax, points, np.array([*colors, MISSING])[values.codes])  # code -1 takes the last
    if legend == "none":
        return
    if (values.codes < 0).any():
        labels, colors = [*labels, "missing"], [*colors, MISSING]
    short = max(map(len, labels), default=0) <= SHORT_LABEL
    if legend == "on" or (legend == "auto" and short):
        _label_clusters(ax, points, values)
    elif len(labels) <= MOST_IN_LEGEND:
        _legend_beside(ax, labels, colors)
    else:
        ax.set_title(f"{ax.get_title()} ({len(labels)} categories)")


def _label_clusters(ax: Axes, points: np.ndarray, values: pd.Categorical) -> None:
    """Write every category over its middle cell (the mean may lie outside of a bow)."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.5, foreground="white", alpha=0.9)]
    for code, label in enumerate(values.categories):
        own = points[values.codes == code]
        middle = own[((own - np.median(own, axis=0)) ** 2).sum(axis=1).argmin()]
        bulk = np.subtract(*np.percentile(own, (90, 10), axis=0)).max()
        hidden = bulk < 0.04 * np.ptp(points, axis=0).max()
        ax.annotate(
            label,
            (middle[0], middle[1]),
            xytext=(0, 9 if hidden else 0),  # a label as large as its cells goes above them
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9 if len(label) <= SHORT_LABEL else 7,
            fontweight="bold",
            path_effects=outline,
        )


def _legend_beside(ax: Axes, labels: list[str], colors: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=6, color=color, label=_short(label))
        for label, color in zip(labels, colors, strict=True)
    ]
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        ncols=math.ceil(len(labels) / LEGEND_ROWS),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=0.8,
        borderaxespad=0.2,
    )


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
