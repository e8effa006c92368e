"""Counts from the model itself, with the truth kept beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.arguments import check_seed, check_whole, is_number, refuse
from scvae.errors import ConfigError
from scvae.keywords import named
from scvae.simulation_kinds import check_kinds, measured

# Sizes of what is drawn, and usual values of them.
SIZES = {"n_cells": 1000, "n_genes": 500, "n_types": 4, "n_batches": 2, "n_latent": 4}
SIZES_OF_OTHERS = {"n_proteins": 20, "n_regions": 500}
MAY_BE_ZERO = ("library_spread", "batch_effect", "dropout", "seed")
OF_MEANS = ("library_size", "library_spread", "batch_effect", "inverse_dispersion")
NOT_OF_RNA = ("AnnData", "modalities", "missing", *SIZES_OF_OTHERS)
LARGEST_COUNT = 2**24  # up to which float32 knows every whole number


@named("scvae.simulate")
def simulate(
    n_cells: int = 1000,
    n_genes: int = 500,
    *,
    n_types: int = 4,
    n_batches: int = 2,
    n_latent: int = 4,
    library_size: float = 2000.0,
    library_spread: float = 0.3,
    batch_effect: float = 0.3,
    inverse_dispersion: float = 2.0,
    dropout: float = 0.0,
    modalities: str | Sequence[str] | None = None,
    n_proteins: int = 20,
    n_regions: int = 500,
    missing: float = 0.0,
    seed: int = 0,
) -> Any:
    r"""Draw counts of known cell types, batches and library sizes from the model's own law.

    .. math::
        z_n &\sim N(c_{t(n)}, 0.3^2 I), \quad \log l_n \sim N(\log L, \sigma^2), \quad
        \rho_n = \mathrm{softmax}(a + W z_n + B_{s(n)}) \\
        x_{ng} &\sim ZINB(\text{mean } l_n \rho_{ng}, \text{inverse dispersion } r_g, \pi)

    Types have different sizes, with shares proportional to 1, 1/2, 1/3, ...; every type is in every
    batch.

    Parameters
    ----------
    n_cells, n_genes
        Size of the matrix.
    n_types, n_batches, n_latent
        Cell types, batches, and dimensions of the true latent space.
    library_size, library_spread
        Median L of the library size, in counts, and the deviation of its logarithm.
    batch_effect
        Standard deviation of the batches' log fold changes B.
    inverse_dispersion
        Median of r; its logarithm has deviation 0.5 over the genes.
    dropout
        Probability :math:`\pi` of a count replaced by zero.
    modalities
        Some of "rna", "protein", "chromatin", of the same latent vectors: the cells are then a
        MuData. Proteins are of a background or, by the latent vector, of a foreground; fragments
        of regions are Poisson.
    n_proteins, n_regions
        Of other kinds.
    missing
        Share of the cells that were not measured in a kind, for each; none lacks all.
    seed
        Of all draws.

    Returns
    -------
    AnnData or MuData
        X: counts, CSR float32. ``obs``: cell_type, batch, library_size. ``var``:
        inverse_dispersion. ``obsm["z"]``: latent vectors. ``layers["expression"]``: the true
        shares :math:`\rho` (float32). ``uns["truth"]``: the arguments. Of proteins,
        ``layers["foreground"]`` and ``layers["mean"]``, ``var``: log background and log fold of
        the foreground; of chromatin, ``layers["accessibility"]``, the true shares.

    Raises
    ------
    ConfigError
        If a size is not positive, `dropout` not in [0, 1), or a count too large for float32.

    Examples
    --------
    >>> import scvae
    >>> scvae.simulate(n_cells=100, n_genes=30).shape
    (100, 30)
    """
    from anndata import AnnData

    given = {name: value for name, value in locals().items() if name not in NOT_OF_RNA}
    sizes = {"n_proteins": n_proteins, "n_regions": n_regions}
    sizes = {name: check_whole(name, n, SIZES_OF_OTHERS[name]) for name, n in sizes.items()}
    kinds, missing = check_kinds("rna" if modalities is None else modalities, missing)
    arguments = _checked(given)
    n_cells, n_genes, n_types, n_batches, n_latent = (arguments[name] for name in SIZES)
    library_size, library_spread, batch_effect = (arguments[name] for name in OF_MEANS[:3])
    inverse_dispersion, dropout = (arguments[name] for name in ("inverse_dispersion", "dropout"))
    rng = np.random.default_rng(arguments["seed"])
    types = _labels(rng, n_cells, n_types)
    batches = rng.integers(n_batches, size=n_cells)
    centres = rng.normal(size=(n_types, n_latent)) * 1.5
    z = centres[types] + 0.3 * rng.normal(size=(n_cells, n_latent))
    with np.errstate(all="ignore"):  # what overflows is refused
        library = np.exp(np.log(library_size) + library_spread * rng.normal(size=n_cells))
        rho = _shares(rng, z, batches, n_genes, n_batches, batch_effect)
        r = inverse_dispersion * np.exp(0.5 * rng.normal(size=n_genes))
        counts = _draw_counts(rng, library[:, None] * rho, r, arguments)
    counts *= rng.random(counts.shape) >= dropout
    _fill_empty(counts, rho)
    made = AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type_{t}" for t in types]),
                "batch": pd.Categorical([f"batch_{b}" for b in batches]),
                "library_size": library,
            },
            index=[f"cell_{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame({"inverse_dispersion": r}, index=[f"gene_{g}" for g in range(n_genes)]),
        obsm={"z": z.astype(np.float32)},
        layers={"expression": rho.astype(np.float32)},
        uns={"truth": arguments},
    )
    if modalities is None:
        return made
    return measured(made, kinds, sizes["n_proteins"], sizes["n_regions"], missing, seed)


def _checked(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as numbers of Python's, if they are such as the law takes."""
    checked: dict[str, Any] = {"seed": check_seed(arguments["seed"])}
    for name, value in arguments.items():
        if name in SIZES:
            checked[name] = check_whole(name, value, SIZES[name], least=None)
        elif name != "seed":
            if not is_number(value) or value == math.inf:
                raise refuse(name, value, "a finite number", 0.3)
            checked[name] = float(value)
        if not checked[name] >= 0 or (checked[name] == 0 and name not in MAY_BE_ZERO):  # NaN, too
            raise ConfigError(f"{name}={value}, but it must be positive.")
    if checked["dropout"] >= 1:
        raise ConfigError(f"dropout={arguments['dropout']}, but it is a probability below 1.")
    return {name: checked[name] for name in arguments}


def _draw_counts(
    rng: np.random.Generator, means: np.ndarray, r: np.ndarray, arguments: dict[str, Any]
) -> np.ndarray:
    """Return negative binomial counts of these means and inverse dispersions, ``(n, g)``."""
    sound = np.isfinite(means).all() and np.isfinite(r).all() and (r > 0).all()
    rates = rng.gamma(r, means / r) if sound else means
    if not np.isfinite(rates).all() or rates.max() > LARGEST_COUNT:
        given = ", ".join(f"{name}={arguments[name]}" for name in OF_MEANS)
        raise ConfigError(
            f"{given} give counts above {LARGEST_COUNT:,}, which float32 does not hold one by "
            "one. Give smaller spreads and effects: scvae.simulate(library_size=2000.0)"
        )
    return rng.poisson(rates)


def _labels(rng: np.random.Generator, n: int, kinds: int) -> np.ndarray:
    """Return labels with shares 1, 1/2, 1/3, ..., each at least once where n allows."""
    shares = 1 / np.arange(1, kinds + 1)
    labels = rng.choice(kinds, size=n, p=shares / shares.sum())
    labels[: min(n, kinds)] = np.arange(min(n, kinds))
    return labels


def _shares(
    rng: np.random.Generator,
    z: np.ndarray,
    batches: np.ndarray,
    n_genes: int,
    n_batches: int,
    batch_effect: float,
) -> np.ndarray:
    """Return every gene's share of every cell's counts, ``(n, g)``."""
    offset = rng.normal(size=n_genes)
    loadings = rng.normal(size=(z.shape[1], n_genes)) * 0.7
    effects = batch_effect * rng.normal(size=(n_batches, n_genes))
    logits = offset + z @ loadings + effects[batches]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return normalised


def _fill_empty(counts: np.ndarray, rho: np.ndarray) -> None:
    """Give a cell without counts one count of its likeliest gene: no method takes empty cells."""
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    counts[empty, rho[empty].argmax(axis=1)] = 1
