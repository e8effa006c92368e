"""What a correction does where there is nothing to correct: cells split at random into two."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvae.analysis.baselines import harmonise, has_harmony, principal_components
from scvae.analysis.judging import NEIGHBOURS, kept
from scvae.analysis.samples import csr
from scvae.arguments import SEEDS, check_seed, check_whole
from scvae.errors import DataError
from scvae.models.budget import usual_run
from scvae.models.fit import fit
from scvae.models.model import Model
from scvae.models.query import some_rows

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 100
FAKE = "scvae_null_batch"


@dataclass(frozen=True)
class NullBatch:
    """What `null_batch` found: shares of 30 nearest neighbours; it prints itself.

    Attributes
    ----------
    kept
        Kept by scvae when it corrects for the split.
    by_chance
        Kept by scvae without the split, at another seed: what no correction at all changes.
    kept_by_harmony
        Kept by Harmony of its own principal components; None without harmonypy.
    n_cells
        Number of cells.

    Examples
    --------
    >>> import scvae
    >>> print(scvae.analysis.NullBatch(0.71, by_chance=0.70, kept_by_harmony=None, n_cells=300))
    300 cells of one batch, split at random: correcting for the split keeps 71% of the 30 nearest
    neighbours; another seed without any correction keeps 70%.
    """

    kept: float
    by_chance: float
    kept_by_harmony: float | None
    n_cells: int

    def __str__(self) -> str:
        harmony = self.kept_by_harmony
        more = (
            "" if harmony is None else f" Harmony keeps {harmony:.0%} of those of its components."
        )
        return (
            f"{self.n_cells:,} cells of one batch, split at random: correcting for the split keeps "
            f"{self.kept:.0%} of the {NEIGHBOURS} nearest neighbours; another seed without any "
            f"correction keeps {self.by_chance:.0%}.{more}"
        )


def null_batch(
    model: Model,
    adata: AnnData,
    *,
    layer: str | None = None,
    max_cells: int = 5_000,
    seed: int = 0,
) -> NullBatch:
    """Return what correcting changes between two halves of one batch, drawn at random.

    Three models like `model` are fitted to cells of the largest batch: without the split, with the
    split as batch, and without it at another seed. A correction should change no more than the
    other seed does. It takes three times as long as a fit of so many cells.

    Parameters
    ----------
    model
        A fitted model, whose genes, counts, network and alignment the three take over, and no
        covariates; they take its number of steps, or fewer if so few cells usually do.
    adata
        Cells with raw counts of its genes.
    layer
        Where the counts are; as for `Model.embed`.
    max_cells
        Of more cells, take so many at random.
    seed
        Of the split, the cells taken, and the fits.

    Raises
    ------
    DataError
        If no batch has 100 cells.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=300, n_genes=50)
    >>> model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
    >>> found = scvae.analysis.null_batch(model, adata)
    >>> 0 < found.kept < 1
    True
    """
    max_cells, seed = (
        check_whole("max_cells", max_cells, 5_000, least=FEWEST_CELLS),
        check_seed(seed),
    )
    rows = _one_batch(model, adata, max_cells, seed)
    counts = csr(model.read_rna(adata[rows], layer)).astype(np.float32)
    is_second = np.random.default_rng(seed).random(len(rows)) < 0.5
    fake = np.where(is_second, "b", "a")
    cells = _bare(model, counts, adata.obs.iloc[rows], fake)
    options = _options(model, len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say of the cells was said at the fit
        for key, batch, other in (("plain", None, 0), ("given", FAKE, 0), ("other", None, 1)):
            own = (seed + other) % SEEDS
            fit(cells, batch=batch, seed=own, key_added=key, progress=False, **options)
    plain = cells.obsm["plain"]
    return NullBatch(
        kept(plain, cells.obsm["given"]),
        kept(plain, cells.obsm["other"]),
        _of_harmony(counts, fake, seed),
        len(rows),
    )


def largest_batch(model: Model, obs: pd.DataFrame) -> np.ndarray:
    """Return the rows of the cells of the model's largest batch."""
    batch = model.origin.covariates.batch
    if batch is None:
        return np.arange(len(obs))
    names = obs[batch].astype(str).to_numpy()
    found, sizes = np.unique(names, return_counts=True)
    return np.flatnonzero(names == found[sizes.argmax()])


def _one_batch(model: Model, adata: AnnData, max_cells: int, seed: int) -> np.ndarray:
    """Return rows of the largest batch, in order."""
    rows = largest_batch(model, adata.obs)
    if len(rows) < FEWEST_CELLS:
        raise DataError(
            f"The largest batch has {len(rows)} cells; the null-batch test needs {FEWEST_CELLS}."
        )
    return some_rows(rows, max_cells, seed)


def _bare(model: Model, counts: Any, obs: pd.DataFrame, fake: np.ndarray) -> AnnData:
    """Return an AnnData of counts alone, with the split and what the library size is read from."""
    from anndata import AnnData

    size = model.origin.library_size
    held = pd.DataFrame({FAKE: pd.Categorical(fake)}, index=[f"cell_{i}" for i in range(len(obs))])
    if size in obs:
        held[size] = obs[size].to_numpy()
    return AnnData(counts, held, pd.DataFrame(index=model.origin.genes))


def _options(model: Model, n_cells: int) -> dict[str, Any]:
    """Return the arguments of `scvae.fit` that make a model like this one."""
    a, rna, record = model.architecture, model.architecture.rna, model.record
    assert rna is not None
    names = ("n_latent", "n_hidden", "n_layers", "encode_covariates", "prior")
    options = {name: getattr(a, name) for name in names}
    steps = int((record.schedule or {}).get("steps", usual_run(n_cells).steps))
    return options | {
        "likelihood": rna.likelihood,
        "dispersion": rna.dispersion,
        "library_size": model.origin.library_size,
        "align": 1.0 if record.align is None else record.align,
        "max_steps": min(steps, usual_run(n_cells).steps),
        "device": str(model.device),
    }


def _of_harmony(counts: Any, fake: np.ndarray, seed: int) -> float | None:
    if not has_harmony():
        return None
    components = principal_components(counts, seed)
    return kept(components, harmonise(components, fake, seed))
