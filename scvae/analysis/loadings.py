"""What drives an axis of the embedding: the weight of every gene, and of sets of genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from scvae.arguments import check_names, check_whole, shown
from scvae.errors import ConfigError
from scvae.models.coordinates import Coordinates
from scvae.models.model import Model
from scvae.models.older_coordinates import LinearCoordinates, LogCoordinates

DRAWN = 1_000  # cells of the model, of which the variance along axes is taken
FEWEST_OF_SET = 3  # genes of which the ranks of a set are compared


def loadings(model: Model) -> pd.DataFrame:
    r"""Return the weight of genes in every axis of the embedding, signs as there.

    The axes are principal components of decoded expression (see `scvae.models.coordinates`):

    .. math:: c_k(z) = \sum_g L_{gk} x_g(z) / |x(z)|^{1/2} + \mathrm{const}

    with :math:`x_g` the root of the share of gene g, in units of its deviation in the data. Along
    axis k a cell moves by :math:`L_{gk}` for a unit of gene g, in units of the root of the length
    of its profile, apart from what the alignment of batches adds. Genes that the axes do not see
    are not listed. Models of files up to format 5 have :math:`\log(1 + 10^4 \rho_g)` in place of
    the profile.

    Of a linear decoder (``scvae.fit(decoder="linear")``) the sum is of :math:`\log \rho_g`, and is
    exact: axes are orthogonal directions of the decoder's own weights.

    Parameters
    ----------
    model
        A fitted model.

    Returns
    -------
    pandas.DataFrame
        A row a gene, a column an axis, "1" to "d".

    Raises
    ------
    ConfigError
        If the model is of an older file, whose axes are of latent vectors.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> model = scvae.fit(adata, n_latent=4, max_steps=20, progress=False)
    >>> scvae.analysis.loadings(model).shape
    (50, 4)
    """
    axes = _coordinates(model)
    weights = axes.loadings.cpu().numpy().astype(float)
    names = [*model.origin.genes, "(other genes)"]
    index = pd.Index([names[i] for i in axes.genes.tolist()], name="gene")
    return pd.DataFrame(weights, index, [str(k + 1) for k in range(weights.shape[1])])


def interpret(
    model: Model,
    gene_sets: Mapping[str, Sequence[str]] | None = None,
    *,
    n_genes: int = 5,
) -> pd.DataFrame:
    """Return what every axis of the embedding rises and falls with.

    Parameters
    ----------
    model
        A fitted model.
    gene_sets
        Names of sets, and their genes; those that the axes do not see are left out.
    n_genes
        Genes to name at either end.

    Returns
    -------
    pandas.DataFrame
        A row an axis: ``rises_with`` and ``falls_with`` (genes of the largest weights, strongest
        first), ``explained`` (share of the axes' variance over cells that the model draws; with a
        linear decoder, of all that it decodes). With `gene_sets` also ``set_rising`` and
        ``set_falling``, whose genes lie furthest to that end among all, and ``auc_rising`` and
        ``auc_falling``: the chance that a gene of the set has a larger (a smaller) weight than
        another gene; 0.5 is none. They order sets; as genes go together they are no test.

    Raises
    ------
    ConfigError
        If a set has fewer than three genes that the axes see.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> model = scvae.fit(adata, n_latent=4, max_steps=20, progress=False)
    >>> list(scvae.analysis.interpret(model, n_genes=3).columns)
    ['rises_with', 'falls_with', 'explained']
    """
    weights, n = loadings(model), check_whole("n_genes", n_genes, 5)
    rows: dict[str, Any] = {}
    sets = _known_sets(gene_sets, weights.index)
    variance = model.sample(DRAWN).obsm["X_scvae"].astype(float).var(axis=0)
    explained = dict(zip(weights, variance / variance.sum(), strict=True))
    for axis in weights:
        ordered = weights[axis].sort_values(ascending=False, kind="stable")
        up, down = ordered[ordered > 0].index[:n], ordered[ordered < 0].index[::-1][:n]
        rows[str(axis)] = {"rises_with": ", ".join(up), "falls_with": ", ".join(down)}
        rows[str(axis)]["explained"] = explained[axis]
        if sets:
            rows[str(axis)] |= _scored(weights[axis].to_numpy(), sets)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("axis")


def _coordinates(model: Model) -> Coordinates | LogCoordinates:
    axes = model.embedding.coordinates
    if isinstance(axes, LinearCoordinates):
        raise ConfigError(
            "The model is of an older file: its axes are of latent vectors, which no gene drives "
            "by itself. Fit it again: scvae.fit(adata)"
        )
    return axes


def _known_sets(
    gene_sets: Mapping[str, Sequence[str]] | None, genes: pd.Index
) -> dict[str, np.ndarray]:
    """Return where the genes of every set are among `genes`, a mask ``(k,)`` each."""
    if gene_sets is None:
        return {}
    if not isinstance(gene_sets, Mapping):
        raise ConfigError(
            f"gene_sets={shown(gene_sets)}, but it must be names and genes of sets: "
            "gene_sets={'interferon': ['ISG15', 'IFIT1', 'MX1']}"
        )
    found = {}
    for name, given in gene_sets.items():
        inside = genes.isin(check_names(f"gene_sets[{name!r}]", given, ["ISG15"]))
        if not FEWEST_OF_SET <= inside.sum() < len(genes):
            raise ConfigError(
                f"gene_sets[{name!r}] has {inside.sum()} genes of the {len(genes)} that the axes "
                f"see; at least {FEWEST_OF_SET} are needed, and not all. "
                "scvae.analysis.loadings(model).index lists those there are."
            )
        found[str(name)] = inside
    return found


def _scored(weights: np.ndarray, sets: dict[str, np.ndarray]) -> dict[str, Any]:
    r"""Return the sets furthest to either end: AUC = U / (n_1 n_2), U of Mann and Whitney."""
    auc = {}
    for name, inside in sets.items():
        u = stats.mannwhitneyu(weights[inside], weights[~inside]).statistic
        auc[name] = float(u / (inside.sum() * (~inside).sum()))
    top, low = max(auc, key=lambda name: auc[name]), min(auc, key=lambda name: auc[name])
    ends = {"set_rising": top, "auc_rising": auc[top]}
    return ends | {"set_falling": low, "auc_falling": 1 - auc[low]}
