"""Counts that all are multiples of one number: counts times a constant."""

from __future__ import annotations

from scvae.data.read.source import where_named
from scvae.data.read.survey import Survey

ENOUGH = 10  # cells, from where on equal counts or a common divisor are no chance


def told_multiples(seen: Survey, layer: str | None, place: str, then: str) -> str | None:
    """Return what is to be said of counts that all are multiples of one number, if they are.

    Parameters
    ----------
    layer, place
        Where the counts are, None is X; and how the user writes those of the genes asked for.
    then
        What is to be done with the layer "counts".
    """
    k = seen.divisor
    divided = "adata.raw[:, adata.var_names].X" if "adata.raw" in place else where_named(layer)
    if k < 2 or (seen.genes_of_cells > 0).sum() < ENOUGH:
        return None
    return (
        f"All values of {place} are multiples of {k:,}: counts times a constant, or reads that "
        f"were counted {k:,} times, whose noise is not that of counts. Divide: "
        f"adata.layers['counts'] = {divided} / {k}. {then}"
    )
