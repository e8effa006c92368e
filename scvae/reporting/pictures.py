"""Pictures of a report: small files of few colours, so that all of them have room in one page."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.plot import history, scatter
from scvae.plot.cells import Legend, categorical
from scvae.plot.figures import PALETTE
from scvae.plot.fits import CHECKED, draw_check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scvae.models.model import Model

SQUARE, WIDE = (4.0, 4.0), (6.4, 3.8)  # inches
DPI = 130
COLOURS = 128  # of a picture: seven bits a pixel, so that a page of noise has less than 5 MB
MOST_IN_LEGEND, LONGEST_NAME = 60, 100
GREY = "#d9d9d9"


def picture(draw: Callable[[Axes], object], size: tuple[float, float] = SQUARE) -> bytes:
    """Return what `draw` draws on the Axes that it is given, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    draw(figure.subplots())
    whole = BytesIO()
    figure.savefig(whole, format="png")
    return _packed(whole)


def _packed(png: BytesIO) -> bytes:
    """Return a PNG in few colours."""
    from PIL import Image

    packed = BytesIO()
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
        few.save(packed, format="png", optimize=True)
    return packed.getvalue()


def cells(points: np.ndarray, values: pd.Series, legend: Legend = "none") -> bytes:
    """Return cells as points ``(n, 2)``, coloured by categories."""
    return picture(lambda ax: scatter(ax, points, values, legend=legend))


def colours(values: pd.Series) -> list[tuple[str, str]]:
    """Return the colours in which `cells` draws, and what they stand for, with numbers of cells."""
    found = categorical(values)
    sizes = np.bincount(found.codes[found.codes >= 0], minlength=len(found.categories))
    named = [
        (PALETTE[i % len(PALETTE)], f"{_short(name)} ({size:,})")
        for i, (name, size) in enumerate(zip(found.categories, sizes, strict=True))
    ]
    more = len(named) - MOST_IN_LEGEND
    named = [*named[:MOST_IN_LEGEND], (GREY, f"and {more} more")] if more > 0 else named
    missing = int((found.codes < 0).sum())
    return [*named, (GREY, f"missing ({missing:,})")] if missing else named


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def training(model: Model) -> bytes:
    """Return the curve of training."""
    return picture(lambda ax: history(model, ax=ax), WIDE)


def predictions(table: pd.DataFrame) -> dict[str, bytes]:
    """Return pictures of a predictive check, a point a gene, by what they show."""
    drawn = {}
    for name, label, is_log in CHECKED:
        columns = (table[f"{which}_{name}"].to_numpy() for which in ("observed", "predicted"))
        observed, predicted = columns

        def panel(
            ax: Axes,
            observed: np.ndarray = observed,
            predicted: np.ndarray = predicted,
            label: str = label,
            is_log: bool = is_log,
        ) -> None:
            draw_check(ax, observed, predicted, label, is_log)
            ax.set_title("")  # it is said below, in letters that scale

        drawn[label] = picture(panel)
    return drawn
