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
SHADES, GREYS = (1.0, 0.75, 0.5, 0.25), 32  # of every colour towards white; from black to white
MOST_IN_LEGEND, LONGEST_NAME = 60, 100
GREY = "#d9d9d9"


def picture(draw: Callable[[Axes], object], size: tuple[float, float] = SQUARE) -> bytes:
    """Return what `draw` draws on the Axes that it is given, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    draw(figure.subplots())
    whole = BytesIO()
    figure.savefig(whole, format="png")
    return _packed(whole)


def _packed(png: BytesIO) -> bytes:
    """Return a PNG in the colours that we draw with, and shades of them: a byte a pixel.

    So a page of noise has less than 5 MB, and the few cells of a rare type keep their colour."""
    from PIL import Image

    packed, ours = BytesIO(), Image.new("P", (1, 1))
    ours.putpalette(_colours().tobytes())
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(palette=ours, dither=Image.Dither.NONE)
        few.save(packed, format="png", optimize=True)
    return packed.getvalue()


def _colours() -> np.ndarray:
    """Return 256 colours of our pictures, bytes ``(256, 3)``; the last are white again."""
    full = np.array([[int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in PALETTE])
    shades = [255 - share * (255 - full) for share in SHADES]
    greys = np.repeat(np.linspace(0, 255, GREYS)[:, None], 3, axis=1)
    found = np.round(np.concatenate([*shades, greys])).astype(np.uint8)
    rest = np.full((256 - len(found), 3), 255, dtype=np.uint8)
    return np.concatenate([found, rest])


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
