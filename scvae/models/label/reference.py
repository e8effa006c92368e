"""A reference without its counts: what is needed to label other cells by it, and to draw it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scvae.data.hold.cells import Cells, Dataset
from scvae.data.read.forms import check_anndata
from scvae.data.read.labels import labels_of
from scvae.errors import DataError
from scvae.models.fitted import Fitted
from scvae.models.label.labeller import Labeller, Posterior, fit_labeller, posterior_of

if TYPE_CHECKING:
    from anndata import AnnData

HEX = "0123456789abcdef"


@dataclass(frozen=True)
class Reference:
    """Labelled cells of a reference as a model sees them.

    Attributes
    ----------
    column
        Column of adata.obs with the labels.
    names
        The labels.
    parents
        Coarser label of each, or None.
    colours
        Colour of each as "#rrggbb", or None.
    loc, scale
        Posterior of every cell: mean and standard deviation of z, ``(n, d)``.
    label, batch
        Numbers of every cell's label (-1 without one) and batch, int64 ``(n,)``.
    log_px, log_library
        Evidence lower bound and log library size of every cell, in nats, ``(n,)``.
    expression
        Mean share of the counts of every gene in the cells of each label, ``(t, g)``.
    least_temperature
        Of the probabilities of labels: what cells want that the model has not seen, where it has
        learned from the labels of these.
    """

    column: str
    names: list[str]
    parents: list[str] | None
    colours: list[str] | None
    loc: Tensor
    scale: Tensor
    label: Tensor
    batch: Tensor
    log_px: Tensor
    log_library: Tensor
    expression: Tensor
    least_temperature: float = 0.0

    def __len__(self) -> int:
        return len(self.loc)

    @cached_property
    def labeller(self) -> Labeller:
        """What labels other cells, learned when it is first asked for."""
        n, least = len(self.names), self.least_temperature
        return fit_labeller(self.posterior, self.label, self.batch, n, least)

    @property
    def posterior(self) -> Posterior:
        """What the model says of the cells."""
        return Posterior(self.loc, self.scale, self.log_px, self.log_library)


def make_reference(
    model: Fitted,
    adata: AnnData,
    labels: str,
    *,
    parent: str | None = None,
    layer: str | None = None,
    call: str,
) -> Reference:
    """Return labelled cells as a model sees them, for the user's `call`.

    Parameters
    ----------
    labels
        Column of adata.obs; cells without a value are not labelled.
    parent
        Column with coarser labels, one for each of `labels`.

    Raises
    ------
    DataError
        If there are no labels, one alone, or one with a single cell; or a label has two parents.
    """
    return with_cells(model, adata, labels, parent=parent, layer=layer, call=call)[0]


def with_cells(
    model: Fitted,
    adata: AnnData,
    labels: str,
    *,
    parent: str | None = None,
    layer: str | None = None,
    call: str,
) -> tuple[Reference, Dataset]:
    """Return what `make_reference` does, and the cells themselves, counts and all."""
    check_anndata(adata)
    found = labels_of(adata.obs, labels)
    names, codes = found.names, found.codes
    parents = None if parent is None else _parents(adata.obs, labels, parent, names, codes)
    model.demand_rna()
    dataset = model.read_for(adata, layer, call)
    assert isinstance(dataset, Dataset)
    said = posterior_of(model, dataset)
    label = torch.from_numpy(codes)
    reference = Reference(
        column=labels,
        names=names,
        parents=parents,
        colours=_colours(adata, labels, names),
        label=label,
        batch=dataset.batch.cpu(),
        expression=mean_shares(model, dataset, label, len(names)),
        loc=said.loc,
        scale=said.scale,
        log_px=said.log_px,
        log_library=said.log_library,
    )
    return reference, dataset


def _parents(
    obs: pd.DataFrame, labels: str, parent: str, names: list[str], codes: np.ndarray
) -> list[str]:
    """Return the coarser label of each label."""
    coarser = labels_of(obs, parent)
    coarse, of_cell = coarser.names, coarser.codes
    parents = []
    for number, name in enumerate(names):
        found = np.unique(of_cell[(codes == number) & (of_cell >= 0)])
        if len(found) != 1:
            what = [coarse[code] for code in found] or "none"
            raise DataError(
                f"adata.obs[{labels!r}] has the label {name!r}, of which adata.obs[{parent!r}] "
                f"says {what}; each label must have one parent."
            )
        parents.append(coarse[found[0]])
    return parents


def _colours(adata: AnnData, labels: str, names: list[str]) -> list[str] | None:
    """Return the colours that scanpy drew the labels in, if it did."""
    values = adata.obs[labels]
    if f"{labels}_colors" not in adata.uns or not isinstance(values.dtype, pd.CategoricalDtype):
        return None
    given = list(map(str, adata.uns[f"{labels}_colors"]))
    of = dict(zip(map(str, values.cat.categories), given, strict=False))
    found = [of.get(name, "").lower()[:7] for name in names]
    is_hex = all(len(c) == 7 and c[0] == "#" and set(c[1:]) <= set(HEX) for c in found)
    return found if is_hex else None


def mean_shares(
    model: Fitted, dataset: Dataset, label: Tensor, n_labels: int, rows: Tensor | None = None
) -> Tensor:
    """Return the mean share of the counts of every gene in the cells of each label, ``(t, g)``, of
    all cells or of `rows` ``(n,)``, whose labels are `label` ``(n,)``."""
    sums, ends = torch.zeros(n_labels, dataset.counts.n_genes), [0]

    def add(cells: Cells) -> None:
        ends.append(ends[-1] + len(cells))
        own = label[ends[-2] : ends[-1]]
        shares = (cells.x / cells.x.sum(1, keepdim=True).clamp(min=1)).cpu()
        sums.index_add_(0, own[own >= 0], shares[own >= 0])

    model.over(dataset, add, rows=rows)
    return sums / torch.bincount(label[label >= 0], minlength=n_labels)[:, None]
