"""Pictures of a fit: its history, and what it predicts against what was counted."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae.arguments import shown
from scvae.errors import ConfigError, DataError
from scvae.models.keep.record import Record
from scvae.plot.figures import (
    PALETTE,
    array_of,
    check_axes,
    check_picture,
    draw,
    figure_of,
    own_axes,
    save,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scvae.models.model import Model
    from scvae.train.history import History

# Columns of a predictive check, in the order of the panels; what they are called; on a log scale?
CHECKED = (
    ("mean", "mean", True),
    ("variance", "variance", True),
    ("zeros", "share of zeros", False),
)
CLOSE = 0.25  # shares that differ by less are drawn larger


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
        check_axes("ax", ax)
    panel = own_axes((6.4, 4.0), 1)[0] if ax is None else ax
    _draw_history(panel, held)
    save(figure_of(panel), path)
    return panel


def fit_check(
    model: Model,
    adata: AnnData,
    *,
    layer: str | None = None,
    modality: str | None = None,
    samples: int = 1,
    max_cells: int = 5_000,
    seed: int = 0,
    axes: Sequence[Axes] | np.ndarray | None = None,
    path: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Draw what the model predicts of every gene against what was counted: a posterior predictive
    check.

    Three panels, a point a gene, protein or region: mean and variance over cells, on logarithmic
    scales, and the share of cells without a count. A model of the right law has its points about
    the line of identity.
    The titles tell the correlation, on the panel's scale, and the median of predicted over
    observed, of the genes where both are above zero. Cells that were not measured in the modality
    are left out.

    Parameters
    ----------
    model
        A fitted or loaded model.
    adata
        Cells with raw counts of its genes; best such as were not trained on.
    layer, modality, samples, max_cells, seed
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

    Of the proteins of cells that have them:

    >>> mdata = scvae.simulate(n_cells=100, n_genes=30, modalities=["rna", "protein"])
    >>> model = scvae.fit(mdata, max_steps=20, progress=False)
    >>> scvae.plot.fit_check(model, mdata, modality="protein")[0].get_title().splitlines()[0]
    'mean, 20 proteins'
    """
    from scvae.models.judge.words import FEATURES  # not above: pictures need no torch

    if path is not None:
        check_picture(path)
    given = None if axes is None else array_of(np.ravel(np.asarray(axes, dtype=object)))
    for ax in () if given is None else given:
        check_axes("axes", ax, "1, 3")
    if given is not None and len(given) != len(CHECKED):
        raise ConfigError(f"axes holds {len(given)} Axes, but {len(CHECKED)} are drawn on.")
    features = FEATURES[_check_model(model).kind_of(modality)]
    call = "scvae.plot.fit_check(model, adata"
    table = model.predictive_table(
        adata, layer, samples, max_cells, seed, modality=modality, call=call
    )
    panels = own_axes((12.0, 4.3), len(CHECKED)) if given is None else given
    for ax, (name, label, is_log) in zip(panels, CHECKED, strict=True):
        observed, predicted = (table[f"{which}_{name}"] for which in ("observed", "predicted"))
        draw_check(ax, observed.to_numpy(), predicted.to_numpy(), label, is_log, features)
    save(figure_of(panels[0]), path)
    return panels


def _check_model(model: Any) -> Any:
    if not isinstance(getattr(model, "record", None), Record):
        raise ConfigError(f"model={shown(model)}, but it must be a model: model = scvae.fit(adata)")
    return model


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


def draw_check(
    ax: Axes,
    observed: np.ndarray,
    predicted: np.ndarray,
    label: str,
    is_log: bool,
    features: str = "genes",
) -> None:
    """Draw a point a gene (or other feature, as they are called), and the line of identity."""
    above = (observed > 0) & (predicted > 0)
    title = f"{label}, {len(observed):,} {features}\n"
    if above.any():
        correlation, ratio = agreement(observed[above], predicted[above], is_log)
        title += f"correlation {correlation:.3f}, median ratio {ratio:.3f}"
    else:
        title += "none above zero, observed and predicted"
    low, high = _square_limits(np.concatenate([observed, predicted]), is_log)
    off = int(((observed <= 0) | (predicted <= 0)).sum()) if is_log else 0
    if off:
        title += f"\n{off:,} {features[:-1] if off == 1 else features} at zero, on the edge"
    # A logarithmic scale has no zero: those genes go to its lower edge, and the title counts them.
    x, y = (np.clip(values, low, None) if is_log else values for values in (observed, predicted))
    ax.plot((low, high), (low, high), color=PALETTE[7], linewidth=1, linestyle="--", zorder=3)
    draw(ax, np.column_stack([x, y]), np.full(len(x), PALETTE[0]), alpha=0.5, clip_on=False)
    if is_log:
        ax.set(xscale="log", yscale="log")
    ax.set(xlabel=f"observed {label}", ylabel=f"predicted {label}", title=title)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_box_aspect(1)
    ax.spines[["top", "right"]].set_visible(False)


def agreement(observed: np.ndarray, predicted: np.ndarray, is_log: bool) -> tuple[float, float]:
    """Return Pearson's correlation on the panel's scale, and the median of predicted / observed."""
    if len(observed) == 0:
        return math.nan, math.nan
    scaled = np.log([observed, predicted]) if is_log else np.array([observed, predicted])
    varies = len(observed) > 1 and (scaled.std(axis=1) > 0).all()
    correlation = float(np.corrcoef(scaled)[0, 1]) if varies else math.nan
    return correlation, float(np.median(predicted / observed))


def _square_limits(values: np.ndarray, is_log: bool) -> tuple[float, float]:
    """Return limits, the same of both axes, with room around all values that can be drawn."""
    values = values[np.isfinite(values)]
    if not is_log:
        return _window_of_shares(values)
    above = values[values > 0]
    if len(above) == 0:
        return 0.1, 1.0
    return float(above.min()) / 1.6, float(above.max()) * 1.6


def _window_of_shares(values: np.ndarray) -> tuple[float, float]:
    """Return limits from 0 to 1; or, where shares differ by little, about the part that they are
    in: most regions have hardly a fragment, and most proteins one count at least."""
    if len(values) == 0:
        return -0.02, 1.02
    low, high = float(values.min()), float(values.max())
    width = 1.0 if high - low > CLOSE else max(high - low, 0.1)
    start = min(max(0.0, (low + high - width) / 2), 1 - width)
    return start - 0.02 * width, start + 1.02 * width
