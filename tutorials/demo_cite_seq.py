"""RNA and proteins of simulated cells, a third of which lack the proteins, beside what is true."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import mudata
import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae import analysis, plot

warnings.filterwarnings("ignore", "From 0.4", FutureWarning)  # of mudata, about its own future
STEPS = 200  # few, for time


def cite_seq(picture: Path) -> list[str]:
    """Fit cells of both kinds, draw them, and return lines of what was found and what is true."""
    whole = scvae.simulate(
        600, 300, n_types=5, modalities=["rna", "protein"], n_proteins=20, seed=2
    )
    hidden = np.random.default_rng(7).random(whole.n_obs) < 1 / 3
    mdata = mudata.MuData({"rna": whole["rna"], "protein": whole["protein"][~hidden].copy()})
    mdata = mdata[whole.obs_names].copy()
    mdata.obs["batch"] = whole.obs["batch"]
    print(
        f"CITE-seq, simulated: fitting {mdata.n_obs:,} cells, a third without proteins ...",
        flush=True,
    )
    model = scvae.fit(mdata, batch="batch", max_steps=STEPS, progress=sys.stderr.isatty())
    both, rna = mdata.obsm["X_scvae"], model.embed(mdata, modality="rna")
    guess, low, high = model.normalized(
        mdata["rna"][hidden], modality="protein", background=True, return_interval=0.9, samples=50
    )
    protein, types = whole["protein"], whole.obs["cell_type"].to_numpy()
    counts, names = protein.X.toarray(), protein.var_names
    r = correlations(guess.to_numpy(), counts[hidden])
    best = correlations(of_neighbours(whole.obsm["z"], counts, hidden), counts[hidden])
    inside = np.asarray((counts[hidden] >= low) & (counts[hidden] <= high)).mean()
    odds = model.foreground(mdata)[names].to_numpy()[~hidden]
    auc = roc_auc_score(protein.layers["foreground"][~hidden].ravel(), odds.ravel())
    first = names[int(np.argmax(r))]
    draw(picture, both, types, hidden, first, counts[:, names == first], guess[first].to_numpy())
    ari = [adjusted_rand_score(types, clusters(x)) for x in (both, rna)]
    return [
        f"ARI of clusters with the {len(set(types))} true types: {ari[0]:.2f}; by RNA alone "
        f"{ari[1]:.2f}",
        f"Foreground told from background of proteins: area under the curve {auc:.2f}",
        f"Proteins imputed where hidden: correlation with the counts {np.mean(r):.2f} (of means of "
        f"neighbours by the true latents {np.mean(best):.2f}); "
        f"90 % intervals hold {100 * inside:.0f} %",
    ]


def correlations(guess: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of log counts of every protein, ``(g,)``."""
    pairs = zip(np.log1p(guess).T, np.log1p(counts).T, strict=True)
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])


def of_neighbours(z: np.ndarray, counts: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return the mean counts of the 30 nearest cells that were not hidden."""
    near = NearestNeighbors(n_neighbors=30).fit(z[~hidden])
    rows = near.kneighbors(z[hidden], return_distance=False)
    return np.expm1(np.log1p(counts[~hidden])[rows].mean(1))


def clusters(x: np.ndarray) -> np.ndarray:
    """Return Leiden clusters of an embedding, ``(n,)``."""
    graph = analysis.neighbors(AnnData(obsm={"X_scvae": x}), "X_scvae")
    sc.tl.leiden(graph, resolution=0.1, flavor="igraph", n_iterations=2, directed=False)
    return graph.obs["leiden"].to_numpy()


def draw(
    path: Path,
    x: np.ndarray,
    types: np.ndarray,
    hidden: np.ndarray,
    protein: str,
    counts: np.ndarray,
    guess: np.ndarray,
) -> None:
    """Draw cells by type, by what was measured, and by a protein, measured and imputed."""
    points = analysis.lay_out(analysis.neighbors(AnnData(obsm={"X_scvae": x}), "X_scvae"))
    positions = points.obsm["X_umap"]
    kinds = np.where(hidden, "RNA alone", "RNA and proteins")
    figure = Figure(figsize=(10.4, 8.4), dpi=150, layout="compressed")
    one, two, three, four = figure.subplots(2, 2).ravel()
    plot.scatter(one, positions, types, title="simulated CITE-seq, by the true types")
    plot.scatter(two, positions, kinds, title="simulated, by what was measured")
    values = np.log1p(np.where(hidden, 0.0, counts.ravel()))
    values[hidden] = np.log1p(guess)
    for ax, rows, how in ((three, ~hidden, "measured"), (four, hidden, "imputed")):
        title = f"simulated, {protein}: log counts {how}"
        plot.scatter(ax, positions[rows], values[rows], title=title)
        ax.collections[0].set_clim(0, values.max())
    for ax in (one, two, three, four):
        ax.set(xlabel="UMAP 1", ylabel="UMAP 2")
    figure.savefig(path, bbox_inches="tight", pad_inches=0.1)
