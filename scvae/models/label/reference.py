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
from scvae.data.read.covariates import names_of_cells
from scvae.data.read.forms import check_anndata
from scvae.errors import DataError
from scvae.models.fitted import Fitted
from scvae.models.label.labeller import Labeller, Posterior, fit_labeller, posterior_of

if TYPE_CHECKING:
    from anndata import AnnData

UNLABELLED = -1
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

    def __len__(self) -> int:
        return len(self.loc)

    @cached_property
    def labeller(self) -> Labeller:
        """What labels other cells, learned when it is first asked for."""
        return fit_labeller(self.posterior, self.label, self.batch, len(self.names))

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
    names, codes = labels_of(adata.obs, labels)
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
        expression=_expression(model, dataset, label, len(names)),
        loc=said.loc,
        scale=said.scale,
        log_px=said.log_px,
        log_library=said.log_library,
    )
    return reference, dataset


def labels_of(obs: pd.DataFrame, name: str) -> tuple[list[str], np.ndarray]:
    """Return the labels in a column, sorted, and the number of every cell's, -1 without one."""
    if not isinstance(name, str) or name not in obs:
        raise DataError(
            f"adata.obs has no column {name!r} of labels; it holds {list(obs.columns)}."
        )
    values = obs[name]
    codes = np.full(len(values), UNLABELLED, dtype=np.int64)
    there = np.flatnonzero(values.notna())
    if not len(there):
        raise DataError(f"adata.obs[{name!r}] has no labels: every cell is without a value.")
    numbers, names = pd.factorize(names_of_cells(values.iloc[there]), sort=True)
    codes[there] = numbers
    if len(names) < 2:
        raise DataError(
            f"adata.obs[{name!r}] has one label alone, {names[0]!r}; there is nothing to tell "
            "cells apart by. Give a column with several."
        )
    single = np.flatnonzero(np.bincount(numbers) == 1)
    if len(single):
        raise DataError(
            f"adata.obs[{name!r}] has {len(single)} labels of one cell (first: "
            f"{names[single[0]]!r}), from which none can be learned. Leave it out: "
            f"adata.obs.loc[adata.obs[{name!r}] == {names[single[0]]!r}, {name!r}] = None"
        )
    return list(map(str, names)), codes


def _parents(
    obs: pd.DataFrame, labels: str, parent: str, names: list[str], codes: np.ndarray
) -> list[str]:
    """Return the coarser label of each label."""
    coarse, of_cell = labels_of(obs, parent)
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


def _expression(model: Fitted, dataset: Dataset, label: Tensor, n_labels: int) -> Tensor:
    """Return the mean share of the counts of every gene in the cells of each label, ``(t, g)``."""
    sums = torch.zeros(n_labels, dataset.counts.n_genes)

    def add(cells: Cells) -> None:
        assert cells.rows is not None  # as `over` hands them on
        own = label[cells.rows.cpu()]
        shares = (cells.x / cells.x.sum(1, keepdim=True).clamp(min=1)).cpu()
        sums.index_add_(0, own[own >= 0], shares[own >= 0])

    model.over(dataset, add)
    return sums / torch.bincount(label[label >= 0], minlength=n_labels)[:, None]
