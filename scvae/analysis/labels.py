"""Labels of new cells by those of a reference, with probabilities that mean what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scvae.arguments import check_name
from scvae.models.label.predict import FALSE_ALARMS, demand_reference, predict
from scvae.models.label.reference import with_cells
from scvae.models.model import Model

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["transfer"]
CALL = "scvae.analysis.labels.transfer(model, reference, query"


def transfer(
    model: Model,
    reference: AnnData | None,
    query: AnnData,
    labels: str | None = None,
    *,
    parent: str | None = None,
    batch: str | None = None,
    layer: str | None = None,
    false_alarms: float = FALSE_ALARMS,
    key_added: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Return the label of every cell of a query, by cells of a reference that have one.

    A softmax regression on the posterior mean of z,

    .. math:: p(t \mid x) = \mathrm{softmax}((W z + b) / T)_t,

    with the temperature T under which the labels of batches that were held out in turn are
    likeliest: of cells of a further batch that are called with probability .9, nine in ten should
    be right. Where `reference` is given, the probability is the mean with that of a second such
    regression, on principal components of log-normalised counts; and if the query lacks genes, the
    reference's cells are embedded by those it has. That speaks of cells of the types that the
    reference has; whether a cell is one of these, `strangeness` tells (see
    `scvae.models.label.strangeness`).

    Parameters
    ----------
    model
        A fitted model, best of the reference; of a batch of the query, `Model.extend` lets it
        learn that first.
    reference
        Cells with labels; None takes those that the model was fitted or saved with, of which counts
        are not known: what needs these is left out.
    query
        Cells with raw counts of the model's genes, or some of them.
    labels
        Column of reference.obs; cells without a value teach nothing.
    parent
        Column of reference.obs with coarser labels, to which probabilities add up.
    batch
        As for `Model.embed`: "new" or "closest" for batches that the model has not seen.
    layer
        Where the counts of both are; as for `Model.embed`.
    false_alarms
        Share of cells of known types that may be called unknown, where batches differ as those of
        the reference do.
    key_added
        Also write label, probability and unknown to ``query.obs[key_added]``,
        ``obs[key_added + "_probability"]`` and ``obs[key_added + "_unknown"]``.
    seed
        Of the draws of z that the likelihood of a cell is estimated by.

    Returns
    -------
    pandas.DataFrame
        A row a cell of the query: ``label``, ``probability``, ``second``, ``second_probability``;
        ``parent`` and ``parent_probability``, if asked for; ``strangeness`` (0 to 1) and
        ``unknown`` (above ``1 - false_alarms``).

    Raises
    ------
    DataError
        If there are no labels, one alone, or one with a single cell, or a label has two parents.
    ConfigError
        If there is neither a reference nor one that the model carries.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=300, n_genes=50)
    >>> model = scvae.fit(adata, batch="batch", max_steps=50, progress=False)
    >>> query = scvae.simulate(n_cells=100, n_genes=50)
    >>> table = scvae.analysis.labels.transfer(model, adata, query, "cell_type", batch="new")
    >>> list(table.columns[:3]), len(table)
    (['label', 'probability', 'second'], 100)
    """
    key_added = check_name("key_added", key_added, "label", or_none=True)
    if reference is None:
        known, counts = demand_reference(model.reference), None
    else:
        column = check_name("labels", labels, "cell_type")
        known, counts = with_cells(model, reference, column, parent=parent, layer=layer, call=CALL)
    table = predict(
        model,
        known,
        query,
        batch=batch,
        layer=layer,
        false_alarms=false_alarms,
        seed=seed,
        call=CALL,
        counts=counts,
    )
    if key_added is not None:
        query.obs[key_added] = table["label"].to_numpy()
        query.obs[f"{key_added}_probability"] = table["probability"].to_numpy()
        query.obs[f"{key_added}_unknown"] = table["unknown"].to_numpy()
    return table
