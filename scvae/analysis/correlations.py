"""Correlation of genes over cells: of draws from the model, which means inflate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scvae.analysis.samples import csr
from scvae.arguments import check_seed, check_whole
from scvae.data.hold.cells import Cells
from scvae.errors import ConfigError
from scvae.modalities.rna import KIND
from scvae.models.fitted import Fitted
from scvae.models.query import codes_of, draws, positions_of

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 10


def correlations(
    model: Fitted,
    adata: AnnData,
    genes: Sequence[str],
    *,
    layer: str | None = None,
    samples: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Return Pearson correlations of pairs of genes over cells, three ways.

    .. math:: \tilde x_n \sim p(x \mid z_n, l_n, s_n), \quad z_n \sim q(z \mid x_n, s_n)

    of :math:`\log(1 + 10^4 \tilde x / l)`. Denoised means have lost the noise of counting and of
    what the latent space does not hold; what is left moves together, so that genes that have
    nothing in common seem to. Draws have both again.

    Parameters
    ----------
    model
        A fitted model.
    adata
        Cells with raw counts of its genes; of one type, unless types are meant to correlate them.
    genes
        At least two.
    layer
        Where the counts are; as for `Model.embed`.
    samples
        Draws of every cell, of which correlations are averaged.
    seed
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        A row a pair: ``gene``, ``other``, ``predictive`` (of draws), ``raw`` (of counts),
        ``denoised`` (of means: inflated). NaN where a gene does not vary.

    Raises
    ------
    ConfigError
        If there are fewer than two genes, ten cells, or a gene is not the model's.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> found = scvae.analysis.correlations(model, adata, ["gene_0", "gene_1", "gene_2"])
    >>> list(found.columns), len(found)
    (['gene', 'other', 'predictive', 'raw', 'denoised'], 3)
    """
    samples, seed = check_whole("samples", samples, 1), check_seed(seed)
    columns = positions_of("genes", genes, model.origin.genes, model.device)
    if len(columns.unique()) < 2 or len(columns.unique()) < len(columns):
        raise ConfigError("genes must be two different ones at least: genes=['CD3D', 'CD3E']")
    dataset = model.read_rna(adata, layer)
    if len(dataset) < FEWEST_CELLS:
        raise ConfigError(f"adata has {len(dataset)} cells; correlations need {FEWEST_CELLS}.")
    size = dataset.log_library.cpu().numpy().astype(float)
    raw = csr(dataset)[:, columns.cpu().numpy()].toarray() * np.exp(-size)
    k, generator = draws(samples, seed, model.device)
    own = codes_of("own", model.batches)

    def drawn(cells: Cells) -> Tensor:
        q = model.vae.encode(cells)
        x = model.vae.decode(q.sample((k,), generator=generator), cells).sample(generator=generator)
        predicted = x[..., columns] * torch.exp(-cells.log_library)
        means = model.amount_of(q.mean, cells, own, KIND)[None, :, columns]
        return torch.cat([predicted, means]).movedim(0, 1)

    values = model.over(dataset, drawn, samples=k)
    matrices = [_of(values[:, i]) for i in range(k)]
    found = {
        "predictive": np.mean(matrices, axis=0),
        "raw": _of(raw),
        "denoised": _of(values[:, k]),
    }
    rows, others = np.triu_indices(len(columns), 1)
    names = np.array(model.origin.genes, dtype=object)[columns.cpu().numpy()]
    pairs = {"gene": names[rows], "other": names[others]}
    return pd.DataFrame(pairs | {way: matrix[rows, others] for way, matrix in found.items()})


def _of(shares: np.ndarray) -> np.ndarray:
    """Return correlations of log expression, given shares of the library ``(n, g)``."""
    logs = np.log1p(1e4 * shares.astype(float))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.corrcoef(logs, rowvar=False)
    return found
