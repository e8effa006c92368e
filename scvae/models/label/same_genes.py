"""A reference as a query sees it: embedded by the genes that the query has, with its counts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scvae.data.hold.cells import Cells, Dataset
from scvae.models.fitted import Fitted
from scvae.models.label.components import Components, fit_components
from scvae.models.label.labeller import Labeller, fit_labeller, posterior_of
from scvae.models.label.reference import Reference


def labeller_for(
    model: Fitted, reference: Reference, counts: Dataset, query: Dataset
) -> tuple[Labeller, Tensor]:
    """Return what the cells of a reference teach of the genes of a query, and of the query's cells
    the components of their counts, ``(n, k)``.

    Cells in which half of the genes were not observed lie elsewhere than the same cells with all of
    them; types, distances and bounds are then of the reference's cells with the same genes hidden.

    Parameters
    ----------
    counts
        The cells of the reference with their counts.
    """
    observed = query.observed
    cells = reference.posterior
    if observed is not None:
        counts = with_genes(model, counts, observed)
        cells = posterior_of(model, counts)
    else:
        observed = torch.ones(query.counts.n_genes, dtype=torch.bool, device=query.device)
    components = fit_components(model, counts, observed)
    known = replace(cells, components=_over(model, counts, components))
    labeller = fit_labeller(known, reference.label, reference.batch, len(reference.names))
    return labeller, _over(model, query, components)


def with_genes(model: Fitted, dataset: Dataset, observed: Tensor) -> Dataset:
    """Return the same cells as if the `observed` genes ``(g,)`` alone had been measured."""
    assert model.architecture.rna is not None
    if model.architecture.rna.outside:  # library sizes were counted elsewhere
        return replace(dataset, observed=observed)

    def total(cells: Cells) -> Tensor:
        return torch.where(observed, cells.x, 0.0).sum(1, keepdim=True).clamp(min=1).log()

    log_library = torch.from_numpy(model.over(dataset, total)).to(dataset.device)
    return replace(dataset, observed=observed, log_library=log_library)


def _over(model: Fitted, dataset: Dataset, components: Components) -> Tensor:
    return torch.from_numpy(model.over(dataset, components))
