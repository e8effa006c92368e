"""Labels of cells by a labelled reference: a table with what is likely, and what is strange."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvae.arguments import check_name, check_seed, check_share, shown
from scvae.data.hold.cells import Dataset
from scvae.errors import ConfigError, warn
from scvae.models.fitted import Fitted
from scvae.models.label.labeller import posterior_of
from scvae.models.label.reference import Reference, make_reference
from scvae.models.label.same_genes import labeller_for
from scvae.models.reading import cells_of

if TYPE_CHECKING:
    from anndata import AnnData

FALSE_ALARMS = 0.05
MANY = 0.9  # of the genes of a model, of which labels are about as good as of all


def demand_reference(reference: Reference | None) -> Reference:
    """Return the reference that a model carries.

    Raises ConfigError if it carries none."""
    if reference is None:
        raise ConfigError(
            "The model carries no labelled cells to predict by. Fit it with labels: "
            "scvae.fit(adata, labels='cell_type'); or give some: "
            "scvae.analysis.labels.transfer(model, reference, query, 'cell_type'); or save and "
            "load it with them: model.save('model.scvae', reference=adata, labels='cell_type')"
        )
    return reference


def reference_of(
    model: Fitted,
    carried: Reference | None,
    adata: AnnData | None,
    labels: str | None,
    parent: str | None,
) -> Reference | None:
    """Return the reference that a model is saved with: a new one, or what it carries."""
    if adata is None:
        if labels is not None or parent is not None:
            raise ConfigError(
                f"labels={shown(labels)}, parent={shown(parent)} are columns of a reference, but "
                "reference=None: model.save('model.scvae', reference=adata, labels='cell_type')"
            )
        return carried
    if labels is None:
        raise ConfigError(
            "reference is carried for its labels, but labels=None: model.save('model.scvae', "
            "reference=adata, labels='cell_type')"
        )
    column = check_name("labels", labels, "cell_type")
    return make_reference(model, adata, column, parent=parent, call="model.save(path, reference")


def predict(
    model: Fitted,
    reference: Reference,
    adata: AnnData,
    batch: str | None,
    layer: str | None,
    false_alarms: float,
    seed: int,
    call: str,
    counts: Dataset | None = None,
) -> pd.DataFrame:
    """Return labels of cells; as `scvae.analysis.labels.transfer` says, for the user's `call`.

    With the `counts` of the reference's cells, these are embedded by the genes that the query has,
    and a second classifier looks at components of log-normalised counts."""
    false_alarms = check_share("false_alarms", false_alarms, FALSE_ALARMS)
    seed = check_seed(seed)
    model.demand_rna()
    query = cells_of(adata)
    dataset = model.read_for(query, layer, call, partial=True, batch=batch)
    assert isinstance(dataset, Dataset)
    cells, is_like = posterior_of(model, dataset, seed), True
    if counts is None:
        labeller, is_like = reference.labeller, dataset.observed is None
        _tell_of_genes(dataset)
    else:
        labeller, components = labeller_for(model, reference, counts, dataset)
        cells = replace(cells, components=components)
    p = labeller.probabilities(cells).numpy()
    strange = labeller.strange(cells, dataset.batch.cpu(), is_like).numpy()
    table = _table(p, reference.names)
    if reference.parents is not None:
        table = table.join(_coarse(p, reference.parents))
    table["strangeness"] = strange
    table["unknown"] = strange > 1 - false_alarms
    return table.set_index(query.obs_names.copy())


def _tell_of_genes(dataset: Dataset) -> None:
    """Say what labels lose by cells that cannot be embedded anew."""
    if dataset.observed is None or dataset.observed.float().mean() >= MANY:
        return
    warn(
        "The reference that the model carries was embedded by all genes of the model, of which "
        f"adata has {dataset.observed.float().mean():.0%}: fewer cells are named rightly, and more "
        "called unknown, than where the reference's cells can be embedded by the same genes, as "
        "scvae.analysis.labels.transfer(model, reference, adata, 'cell_type') does."
    )


def _table(p: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Return the likeliest label and the second, with their probabilities ``(n, t)``."""
    order = np.argsort(-p, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(p, order, axis=1).T
    labels = [pd.Categorical.from_codes(order[:, i], pd.Index(names)) for i in range(2)]
    return pd.DataFrame(
        {
            "label": labels[0],
            "probability": first,
            "second": labels[1],
            "second_probability": second,
        }
    )


def _coarse(p: np.ndarray, parents: list[str]) -> pd.DataFrame:
    """Return the likeliest parent, to which the probabilities of its labels add up."""
    names = sorted(set(parents))
    member = torch.nn.functional.one_hot(torch.tensor([names.index(n) for n in parents]))
    added = p @ member.numpy()
    best = added.argmax(1)
    return pd.DataFrame(
        {
            "parent": pd.Categorical.from_codes(best, pd.Index(names)),
            "parent_probability": added[np.arange(len(best)), best],
        }
    )
