"""A picture of how far a query lies from its reference, neighbourhood by neighbourhood."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvae.arguments import shown
from scvae.errors import ConfigError
from scvae.plot.figures import PALETTE, check_axes, own_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scvae.analysis import MappingCheck

GREY = "#b0b0b0"
HEIGHT = 0.25  # inches a neighbourhood


def mapping_check(found: MappingCheck, *, ax: Axes | None = None) -> Axes:
    """Draw the distance of a query's samples in units of the reference's, by neighbourhood.

    Grey are the samples of the reference, each against the others; coloured are those of the query,
    filled where they are called far.

    Parameters
    ----------
    found
        What `scvae.analysis.mapping_check` returned.
    ax
        Axes to draw on; None makes some.

    Raises
    ------
    ConfigError
        If no sample could be judged.

    Examples
    --------
    >>> import numpy as np
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=600, n_genes=50)
    >>> adata.obs["donor"] = np.arange(600) % 5
    >>> reference, query = adata[adata.obs["donor"] != 4].copy(), adata[adata.obs["donor"] == 4]
    >>> model = scvae.fit(reference, batch="donor", max_steps=50, progress=False)
    >>> found = scvae.analysis.mapping_check(model, query, reference, batch="new")
    >>> scvae.plot.mapping_check(found).get_yticklabels()[0].get_text()
    'all'
    """
    from scvae.analysis import MappingCheck

    if not isinstance(found, MappingCheck):
        raise ConfigError(
            f"found={shown(found)}, but it must be what scvae.analysis.mapping_check returned."
        )
    if ax is not None:
        check_axes("ax", ax)
    table, own = found.table.dropna(subset="p"), found.own.dropna(subset="ratio")
    if not len(table):
        raise ConfigError(f"found has no ratio to draw: {found}")
    names = list(dict.fromkeys(table["neighbourhood"]))
    if ax is None:
        ax = own_axes((6, 1.5 + HEIGHT * len(names)), 1)[0]
    height = pd.Series(np.arange(len(names), dtype=float), names)
    own = own[own["neighbourhood"].isin(names)]
    ax.scatter(own["ratio"], height[own["neighbourhood"]], s=18, c=GREY, label="reference")
    for i, (sample, rows) in enumerate(table.groupby("sample", sort=False)):
        color, y = PALETTE[(i + 1) % len(PALETTE)], height[rows["neighbourhood"]]
        face = [color if is_far else "none" for is_far in rows["is_far"]]
        ax.scatter(rows["ratio"], y, facecolors=face, edgecolors=color, s=36, zorder=4)
        ax.scatter([], [], c=color, s=36, label=str(sample))
    ax.axvline(1, color="black", linewidth=0.6)
    ax.set_yticks(height.to_numpy(), names, fontsize=7)
    ax.set(xscale="log", ylim=(len(names) - 0.5, -0.5))
    ax.set_xlabel("distance to the other samples (reference: 1)", fontsize=8)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="x", which="both", labelsize=8, length=3, pad=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
