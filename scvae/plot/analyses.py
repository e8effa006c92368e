"""Pictures of analyses: effects with their intervals, what drives an axis, scores of doublets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvae.arguments import check_name, check_whole, shown
from scvae.errors import ConfigError
from scvae.plot.figures import PALETTE, check_axes, own_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scvae.analysis import Comparison, Doublets

GREY = "#b0b0b0"
FOUND = 0.05  # false discovery rate
LEAST_P = 1e-300
UNBOUNDED = 12.0  # log2 fold changes above are of genes that one arm lacks


def volcano(
    compared: Comparison, group: str | None = None, *, n_names: int = 10, ax: Axes | None = None
) -> Axes:
    r"""Draw :math:`-\log_{10} p` by fold change, with the interval of every gene that was found.

    Parameters
    ----------
    compared
        What `scvae.analysis.compare` returned, with p.
    group
        Which group; None takes the only one.
    n_names
        Genes to name, those of least p.
    ax
        Axes to draw on; None makes some.

    Raises
    ------
    ConfigError
        If there is no such group, or it has no p.

    Examples
    --------
    >>> import numpy as np
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=400, n_genes=50)
    >>> adata.obs["donor"] = np.arange(400) % 8
    >>> adata.obs["drug"] = np.where(adata.obs["donor"] < 4, "yes", "no")
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> found = scvae.analysis.compare(model, adata, "drug", replicate="donor")
    >>> scvae.plot.volcano(found).get_title()
    'all'
    """
    table, name = _group_of(compared, group)
    ax = _axes(ax)
    x, y = table["lfc"].to_numpy(), -np.log10(table["p"].clip(lower=LEAST_P).to_numpy())
    found = table["fdr"].to_numpy() < FOUND
    # A gene that one arm lacks has a fold change without bound: it is drawn at the edge.
    edge = 1.1 * float(np.abs(x[np.abs(x) < UNBOUNDED]).max(initial=0.5))
    x = np.clip(x, -edge, edge)
    ax.scatter(x[~found], y[~found], s=6, c=GREY, linewidths=0, rasterized=True)
    reach = np.abs([table["lfc"] - table["lfc_low"], table["lfc_high"] - table["lfc"]])
    how: dict[str, Any] = {"fmt": "o", "ms": 3, "elinewidth": 0.6, "alpha": 0.6}
    for up, color in ((True, PALETTE[1]), (False, PALETTE[0])):
        own = found & ((x > 0) == up)
        ax.errorbar(x[own], y[own], xerr=reach[:, own], color=color, **how)
    for i in range(min(check_whole("n_names", n_names, 10, least=0), int(found.sum()))):
        ax.annotate(
            table["gene"].iloc[i],
            (x[i], y[i]),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
        )
    ax.set(xlim=(-edge, edge), ylim=(0, None), title=name)
    ax.set(xlabel="log$_2$ fold change, 95 % interval", ylabel="$-\\log_{10}$ p")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _group_of(compared: Comparison, group: str | None) -> tuple[pd.DataFrame, str]:
    """Return the rows of one group that have a p, and its name."""
    from scvae.analysis import Comparison

    if not isinstance(compared, Comparison):
        raise ConfigError(
            f"compared={shown(compared)}, but it must be what scvae.analysis.compare returned."
        )
    known = list(dict.fromkeys(compared.table["group"]))
    group = check_name("group", group, known[0], or_none=True)
    if (group is None and len(known) > 1) or (group is not None and group not in known):
        raise ConfigError(f"group={shown(group)} is not one of {known[:9]}: group={known[0]!r}")
    name = known[0] if group is None else group
    table = compared.table[(compared.table["group"] == name) & compared.table["p"].notna()]
    if not len(table):
        raise ConfigError(
            f"group={name!r} has no p to draw: {'; '.join(compared.notes) or 'no gene was tested'}"
        )
    return table.sort_values("p", kind="stable"), name


def axis_loadings(
    weights: pd.DataFrame, axis: str = "1", *, n_genes: int = 10, ax: Axes | None = None
) -> Axes:
    """Draw the genes of largest weight at either end of an axis of the embedding.

    Parameters
    ----------
    weights
        What `scvae.analysis.loadings` returned.
    axis
        One of its columns.
    n_genes
        Genes at either end.
    ax
        Axes to draw on; None makes some.

    Raises
    ------
    ConfigError
        If there is no such axis.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> weights = scvae.analysis.loadings(model)
    >>> len(scvae.plot.axis_loadings(weights, "1", n_genes=5).patches)
    10
    """
    if not isinstance(weights, pd.DataFrame) or not len(weights.columns):
        raise ConfigError(
            f"weights={shown(weights)}, but it must be what scvae.analysis.loadings returned."
        )
    if check_name("axis", axis, "1") not in weights:
        raise ConfigError(f"axis={shown(axis)} is none of {list(weights)[:9]}, those of weights.")
    n = min(check_whole("n_genes", n_genes, 10), len(weights) // 2)
    ordered = weights[axis].sort_values(kind="stable")
    chosen = pd.concat([ordered.head(n), ordered.tail(n)])
    ax = _axes(ax)
    colors = [PALETTE[1] if value > 0 else PALETTE[0] for value in chosen]
    ax.barh(np.arange(len(chosen)), chosen.to_numpy(), color=colors)
    ax.set_yticks(np.arange(len(chosen)), chosen.index.tolist(), fontsize=7)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set(xlabel="loading", title=f"axis {axis}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def doublet_scores(found: Doublets, *, ax: Axes | None = None) -> Axes:
    """Draw the scores of cells and of the doublets that were made, and where cells are called.

    Parameters
    ----------
    found
        What `scvae.analysis.doublets` returned.
    ax
        Axes to draw on; None makes some.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=300, n_genes=50)
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> scvae.plot.doublet_scores(scvae.analysis.doublets(model, adata)).get_xlabel()
    'doublet score'
    """
    from scvae.analysis import Doublets

    if not isinstance(found, Doublets):
        raise ConfigError(
            f"found={shown(found)}, but it must be what scvae.analysis.doublets returned."
        )
    ax = _axes(ax)
    bins = np.linspace(0, 1, 51)
    parts = (
        ("cells", found.table["score"].to_numpy(), PALETTE[0]),
        ("sums of two", found.simulated, PALETTE[1]),
    )
    for label, scores, color in parts:
        how: dict[str, Any] = {
            "bins": bins,
            "density": True,
            "histtype": "stepfilled",
            "alpha": 0.5,
        }
        ax.hist(scores, label=label, color=color, **how)
    called = f"called ({found.table['is_doublet'].mean():.1%} of cells)"
    ax.axvline(min(found.threshold, 1), color="black", linestyle="--", linewidth=1, label=called)
    ax.set(xlabel="doublet score", ylabel="density", xlim=(0, 1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is None:
        made: Axes = own_axes((5, 4), 1)[0]
        return made
    check_axes("ax", ax)
    return ax
