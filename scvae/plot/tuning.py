"""A picture of a search of arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvae.arguments import shown
from scvae.errors import ConfigError
from scvae.plot.figures import PALETTE, check_axes, own_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scvae.models.tune import Tuning


def tune(found: Tuning, *, ax: Axes | None = None) -> Axes:
    """Draw how much more than the defaults every candidate says of held-out cells.

    A line a candidate from round to round, with its standard error; the best of the last round in
    colour, the defaults at 0.

    Parameters
    ----------
    found
        What `scvae.tune` returned.
    ax
        Axes to draw on; None makes some.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> found = scvae.tune(adata, n_candidates=2, max_steps=20, progress=False)
    >>> scvae.plot.tune(found).get_xlabel()
    'round'
    """
    from scvae.models.tune import SHARES, Tuning

    if not isinstance(found, Tuning):
        raise ConfigError(f"found={shown(found)}, but it must be what scvae.tune returned.")
    if ax is not None:
        check_axes("ax", ax)
    panel: Axes = own_axes((5, 4), 1)[0] if ax is None else ax
    others = found.table[found.table["candidate"] != 0]
    last = others["candidate"].iloc[0]  # the table has the last round first
    for candidate, rows in others.sort_values("round").groupby("candidate"):
        best = candidate == last
        panel.errorbar(
            rows["round"],
            rows["gain"],
            rows["error"],
            color=PALETTE[1] if best else "0.7",
            label=_label(found, int(last)) if best else None,
            zorder=3 if best else 2,
            capsize=2,
        )
    panel.axhline(0, color=PALETTE[0], label="defaults")
    labels = [f"{share:.0%} of the steps" for share in SHARES]
    panel.set_xticks(range(len(SHARES)), labels)
    panel.set(xlabel="round", ylabel="held-out log-likelihood over the defaults, nats per cell")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    return panel


def _label(found: Tuning, candidate: int) -> str:
    """Return what a candidate is, where it is not as the defaults."""
    table = found.table.drop(columns=["round", "log_likelihood", "gain", "error", "seconds"])
    last = table.drop_duplicates("candidate").set_index("candidate").to_dict("index")
    return ", ".join(f"{k}={v}" for k, v in last[candidate].items() if v != last[0][k])
