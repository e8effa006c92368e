"""Pictures of an embedding and of a fit, each a matplotlib Figure of its own, or in your own Axes.

Figures are made without pyplot: no window opens, no backend is chosen, and there is no figure that
somebody has to close. In a notebook a Figure shows itself when it is the last line of a cell, and
so do the Axes that are returned here.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvae.arguments import (
    check_choice,
    check_name,
    check_names,
    check_path,
    check_seed,
    check_switch,
    refuse,
    shown,
)
from scvae.data.read.genes import check_unique
from scvae.errors import ConfigError, DataError
from scvae.io import replacing
from scvae.models.keep.record import Record

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvae.models.model import Model
    from scvae.train.history import History

__all__ = ["fit_check", "history", "neighbors", "scatter", "umap"]

Legend = Literal["auto", "beside", "on"]
LEGENDS: tuple[Legend, ...] = ("auto", "beside", "on")

# Okabe and Ito's eight colours (grey for their black), then sixteen that were each chosen to lie as
# far as possible from all before, as seen with normal vision, without red and without green cones.
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#7a7a7a"),
    *("#552400", "#242479", "#79e7ce", "#0000ff", "#245561", "#6186ff", "#86490c", "#4924b6"),
    *("#31ce86", "#313149", "#92ceff", "#006de7", "#9ee792", "#aa1886", "#00cec2", "#613d31"),
)
MISSING = "#d9d9d9"
DPI = 150
PANEL = (5.2, 3.9)  # inches; two panels side by side are 1,560 pixels wide
MOST_COLUMNS = 2
LEGEND_ROWS, MOST_IN_LEGEND = 18, 54
SHORT_LABEL, LONGEST_LABEL = 3, 28
# Columns of a predictive check, in the order of the panels; what they are called; on a log scale?
CHECKED = (
    ("mean", "mean", True),
    ("variance", "variance", True),
    ("zeros", "share of zeros", False),
)


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
        "beside" the panel, "on" the clusters, or "auto": on the clusters if no label is longer
        than three characters, as the numbers of Leiden clusters.
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
    check_unique(adata)
    names = check_names("color", color, "batch")
    check_columns(adata, names, "color")
    key = check_name("key", key, "X_scvae")
    legend = check_choice("legend", legend, LEGENDS)
    recompute, seed = check_switch("recompute", recompute, True), check_seed(seed)
    if path is not None:
        check_picture(path)
    points = _layout(adata, key, recompute, seed)
    figure, axes = _panels(max(1, len(names)))
    if not names:
        scatter(axes[0], points, title=f"UMAP of {key}")
    for ax, name in zip(axes, names, strict=False):
        scatter(ax, points, adata.obs[name], title=name, legend=legend)
    _save(figure, path)
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
    _check_axes("ax", ax)
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
        _draw(ax, points, np.full(len(points), PALETTE[0]))
        return ax
    if _is_number(series):
        _draw_numbers(ax, points, series.to_numpy(dtype=np.float64, na_value=np.nan))
    else:
        _draw_categories(ax, points, _categorical(series), legend)
    return ax


def history(
    model: Model, *, ax: Axes | None = None, path: str | os.PathLike[str] | None = None
) -> Axes:
    """Draw the ELBO of training and held-out cells against the step, and mark the kept weights.

    Parameters
    ----------
    model
        A fitted or loaded model.
    ax
        Axes to draw on; None makes a Figure.
    path
        File to save the Figure to, whole or not at all; the suffix chooses the format.

    Returns
    -------
    matplotlib.axes.Axes
        `ax`, or Axes that a notebook shows. Its ``figure`` is the Figure.

    Raises
    ------
    DataError
        If the model does not know how it was trained.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=100, n_genes=30)
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> scvae.plot.history(model).get_xlabel()
    'training step'
    """
    if path is not None:
        check_picture(path)
    held = _history_of(_check_model(model))
    if ax is not None:
        _check_axes("ax", ax)
    panel = _own_axes((6.4, 4.0), 1)[0] if ax is None else ax
    _draw_history(panel, held)
    _save(_figure_of(panel), path)
    return panel


def fit_check(
    model: Model,
    adata: AnnData,
    *,
    layer: str | None = None,
    samples: int = 1,
    max_cells: int = 5_000,
    seed: int = 0,
    axes: Sequence[Axes] | np.ndarray | None = None,
    path: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Draw what the model predicts of every gene against what was counted: a posterior predictive
    check.

    Three panels, a point a gene: mean and variance over cells, on logarithmic scales, and the share
    of cells without a count. A model of the right law has its points about the line of identity.
    The titles tell the correlation, on the panel's scale, and the median of predicted over
    observed, of the genes where both are above zero.

    Parameters
    ----------
    model
        A fitted or loaded model.
    adata
        Cells with raw counts of its genes; best such as were not trained on.
    layer, samples, max_cells, seed
        As in `Model.predictive_check`, whose table is drawn.
    axes
        Three Axes to draw on; None makes a Figure.
    path
        File to save the Figure to, whole or not at all; the suffix chooses the format.

    Returns
    -------
    numpy.ndarray
        The three Axes, ``(3,)``: mean, variance, zeros. ``axes[0].figure`` is the Figure.

    Raises
    ------
    ConfigError
        If there are not three Axes.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=100, n_genes=30)
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> [ax.get_xlabel() for ax in scvae.plot.fit_check(model, adata)]
    ['observed mean', 'observed variance', 'observed share of zeros']
    """
    if path is not None:
        check_picture(path)
    given = None if axes is None else _object_array(np.ravel(np.asarray(axes, dtype=object)))
    for ax in () if given is None else given:
        _check_axes("axes", ax, "1, 3")
    if given is not None and len(given) != len(CHECKED):
        raise ConfigError(f"axes holds {len(given)} Axes, but {len(CHECKED)} are drawn on.")
    table = _check_model(model).predictive_table(
        adata, layer, samples, max_cells, seed, call="scvae.plot.fit_check(model, adata"
    )
    panels = _own_axes((12.0, 4.3), len(CHECKED)) if given is None else given
    for ax, (name, label, is_log) in zip(panels, CHECKED, strict=True):
        observed, predicted = (table[f"{which}_{name}"] for which in ("observed", "predicted"))
        _draw_check(ax, observed.to_numpy(), predicted.to_numpy(), label, is_log)
    _save(_figure_of(panels[0]), path)
    return panels


def neighbors(adata: AnnData, key: str = "X_scvae", *, seed: int = 0) -> AnnData:
    """Return a copy of ``obs`` and ``obsm[key]`` alone, with the neighbour graph of the embedding.

    For `sc.tl.umap` and `sc.tl.leiden` without a trace in `adata`, whose counts are not copied.

    Parameters
    ----------
    adata
        Cells with the embedding in ``obsm[key]``.
    key
        Slot of the embedding.
    seed
        Of the neighbour search.

    Raises
    ------
    DataError
        If there is no such embedding.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=100, n_genes=30)
    >>> scvae.plot.neighbors(adata, "z").obsp["connectivities"].shape
    (100, 100)
    """
    check_unique(adata)
    key, seed = check_name("key", key, "X_scvae"), check_seed(seed)
    if key not in adata.obsm:
        held = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise DataError(
            f"adata.obsm has no {key!r} (given as key); it holds: {held}. scvae.fit(adata) writes "
            "'X_scvae'."
        )
    import scanpy as sc
    from anndata import AnnData

    light = AnnData(obs=adata.obs.copy(), obsm={key: np.array(adata.obsm[key])})
    sc.pp.neighbors(light, use_rep=key, n_neighbors=min(15, light.n_obs - 1), random_state=seed)
    return light


# -- what is asked -----------------------------------------------------------------------------


def _check_axes(name: str, ax: Any, grid: str = "") -> None:
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise ConfigError(
            f"{name}={shown(ax)}, but it must be matplotlib's Axes: "
            f"{name}=matplotlib.figure.Figure().subplots({grid})"
        )


def _check_model(model: Any) -> Any:
    if not isinstance(getattr(model, "record", None), Record):
        raise ConfigError(f"model={shown(model)}, but it must be a model: model = scvae.fit(adata)")
    return model


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


# -- what is drawn -----------------------------------------------------------------------------


def check_columns(adata: AnnData, names: Sequence[str], role: str) -> None:
    """Raise a DataError for the first name that is not a column of adata.obs."""
    held = [str(name) for name in adata.obs.columns]
    for name in names:
        if name not in held:
            near = get_close_matches(name, held, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it holds: {', '.join(held)}."
            raise DataError(f"adata.obs has no column {name!r} (given as {role}); {hint}")


def _layout(adata: AnnData, key: str, recompute: bool, seed: int) -> np.ndarray:
    """Return the positions to draw, ``(n, 2)``."""
    if recompute or not _has_umap_of(adata, key):
        adata = lay_out(neighbors(adata, key, seed=seed), seed=seed)
    return np.asarray(adata.obsm["X_umap"])[:, :2]


def lay_out(graph: AnnData, *, seed: int = 0) -> AnnData:
    """Write ``obsm["X_umap"]`` to what `neighbors` returned, and return it."""
    import scanpy as sc

    # The spectral start needs more cells than it has dimensions, by some margin.
    start = "spectral" if graph.n_obs > 15 else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn: a seed means one thread, which is meant
        sc.tl.umap(graph, init_pos=start, random_state=seed)
    return graph


def _has_umap_of(adata: AnnData, key: str) -> bool:
    if "X_umap" not in adata.obsm:
        return False
    made = adata.uns.get("neighbors")
    return made is None or made.get("params", {}).get("use_rep") == key


def _is_number(values: pd.Series) -> bool:
    types = pd.api.types
    return types.is_numeric_dtype(values) and not types.is_bool_dtype(values)


def _categorical(values: pd.Series) -> pd.Categorical:
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


def _draw(ax: Axes, points: np.ndarray, colors: np.ndarray, **how: Any) -> Any:
    order = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(18_000 / max(1, len(points)), 0.5, 40))
    x, y = points[order, 0], points[order, 1]
    return ax.scatter(x, y, s=size, c=colors[order], linewidths=0, rasterized=True, **how)


def _draw_numbers(ax: Axes, points: np.ndarray, values: np.ndarray) -> None:
    from matplotlib import colormaps

    how = {"cmap": colormaps["viridis"].with_extremes(bad=MISSING), "plotnonfinite": True}
    drawn = _draw(ax, points, np.ma.masked_invalid(values), **how)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0.2, 0.035, 0.6)))
    bar.outline.set_visible(False)


def _draw_categories(ax: Axes, points: np.ndarray, values: pd.Categorical, legend: Legend) -> None:
    labels = list(values.categories)
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(labels))]
    _draw(ax, points, np.array([*colors, MISSING])[values.codes])  # code -1 takes the last
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


def _history_of(model: Model) -> History:
    held: History | None = model.record.history
    if held is None or not held.step:
        raise DataError("This model holds no training history; scvae.fit records one.")
    return held


def _draw_history(ax: Axes, held: History) -> None:
    step, kept = held.step, held.best_step
    best = held.validation[step.index(kept)]
    ax.plot(step, held.train, color=PALETTE[4], label="training cells")
    ax.plot(step, held.validation, color=PALETTE[0], linewidth=2, label="held-out cells")
    ax.axvline(kept, color=PALETTE[7], linewidth=0.8, linestyle=":")
    kept_label = f"kept: step {kept:,}, {best:,.1f}".replace("-", "−")
    ax.plot(kept, best, "o", color=PALETTE[1], label=kept_label)
    ax.set(xlabel="training step", ylabel="ELBO (nats per cell)", ylim=_window(held))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right", framealpha=1, edgecolor="none")


def _window(held: History) -> tuple[float, float]:
    """Return limits of the ELBO that show the later, flat part: the first climb would hide it."""
    both = np.array([held.train, held.validation])
    after = both[:, both.shape[1] // 10 :]
    margin = 0.08 * max(float(np.ptp(after)), 1e-3)
    return float(after.min()) - margin, float(both.max()) + margin


def _draw_check(
    ax: Axes, observed: np.ndarray, predicted: np.ndarray, label: str, is_log: bool
) -> None:
    """Draw a point a gene, and the line of identity."""
    above = (observed > 0) & (predicted > 0)
    correlation, ratio = _agreement(observed[above], predicted[above], is_log)
    title = f"{label}\ncorrelation {correlation:.3f}, median ratio {ratio:.3f}"
    low, high = _square_limits(np.concatenate([observed, predicted]), is_log)
    off = int(((observed <= 0) | (predicted <= 0)).sum()) if is_log else 0
    if off:
        title += f"\n{off:,} {'gene' if off == 1 else 'genes'} at zero, on the edge"
    # A logarithmic scale has no zero: those genes go to its lower edge, and the title counts them.
    x, y = (np.clip(values, low, None) if is_log else values for values in (observed, predicted))
    ax.plot((low, high), (low, high), color=PALETTE[7], linewidth=1, linestyle="--", zorder=3)
    _draw(ax, np.column_stack([x, y]), np.full(len(x), PALETTE[0]), alpha=0.5, clip_on=False)
    if is_log:
        ax.set(xscale="log", yscale="log")
    ax.set(xlabel=f"observed {label}", ylabel=f"predicted {label}", title=title)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_box_aspect(1)
    ax.spines[["top", "right"]].set_visible(False)


def _agreement(observed: np.ndarray, predicted: np.ndarray, is_log: bool) -> tuple[float, float]:
    """Return Pearson's correlation on the panel's scale, and the median of predicted / observed."""
    if len(observed) == 0:
        return math.nan, math.nan
    scaled = np.log([observed, predicted]) if is_log else np.array([observed, predicted])
    varies = len(observed) > 1 and (scaled.std(axis=1) > 0).all()
    correlation = float(np.corrcoef(scaled)[0, 1]) if varies else math.nan
    return correlation, float(np.median(predicted / observed))


def _square_limits(values: np.ndarray, is_log: bool) -> tuple[float, float]:
    """Return limits, the same of both axes, with room around all values that can be drawn."""
    if not is_log:
        return -0.02, 1.02
    above = values[np.isfinite(values) & (values > 0)]
    if len(above) == 0:
        return 0.1, 1.0
    return float(above.min()) / 1.6, float(above.max()) * 1.6


# -- figures -------------------------------------------------------------------------------------


class _Panels(np.ndarray):
    """Axes of one Figure, which a notebook shows as that Figure."""

    def _repr_png_(self) -> bytes | None:
        return _png(self.flat[0]) if self.size else None


def _object_array(axes: Sequence[Axes] | np.ndarray) -> np.ndarray:
    array = np.empty(len(axes), dtype=object)
    array[:] = list(axes)
    return array


def _own_axes(size: tuple[float, float], n: int) -> np.ndarray:
    """Return `n` Axes side by side in a new Figure; a notebook shows them, and each of them.

    It shows the figures of pyplot, of which this is none, and what has a ``_repr_png_``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = _object_array(figure.subplots(1, n, squeeze=False)[0])
    for ax in axes:
        ax._repr_png_ = partial(_png, ax)
    return axes.view(_Panels)


def _figure_of(ax: Axes) -> Figure:
    """Return the Figure that `ax` is in, at any depth of subfigures."""
    figure: Figure = ax.figure.figure
    return figure


def _png(ax: Axes) -> bytes:
    """Return the Figure of `ax` as a PNG."""
    file = BytesIO()
    _figure_of(ax).savefig(file, format="png", bbox_inches="tight", pad_inches=0.1)
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


def _save(figure: Figure, path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    with replacing(path) as draft:
        kind = Path(path).suffix.lower().lstrip(".")
        figure.savefig(draft, format=kind, dpi=DPI, bbox_inches="tight", pad_inches=0.1)
