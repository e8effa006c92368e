"""Embed one set with one method: `python benchmarks/methods.py SET METHOD [SEED]`.

Writes work/SET.METHOD.SEED.npy (embedding) and .json (seconds, held-out ELBO). The peers need an
environment with `pip install ".[bench]"`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
from sets import WORK, batch_column, held_out, load

Result = tuple[np.ndarray, dict[str, Any]]


def scvae_fit(name: str, adata: anndata.AnnData, seed: int, **options: Any) -> Result:
    """Fit with the defaults, holding out the same cells as the peer."""
    import scvae

    rows = held_out(name, adata.n_obs)
    adata.obs["held_out"] = np.isin(np.arange(adata.n_obs), rows)
    start = time.perf_counter()
    model = scvae.fit(
        adata,
        batch=batch_column(adata),
        seed=seed,
        validation="held_out",
        progress=False,
        **options,
    )
    seconds = time.perf_counter() - start
    negative_elbo = -float(model.elbo(adata[rows], samples=10).mean())
    history = model.record.history
    curve = {"step": history.step, "nelbo": [-elbo for elbo in history.validation]}
    measured = {"seconds": seconds, "nelbo": negative_elbo, "steps": curve["step"][-1]}
    return adata.obsm["X_scvae"], measured | {"curve": curve}


def scvi_train(name: str, adata: anndata.AnnData, seed: int, **options: Any) -> Result:
    """Train scvi-tools with its defaults; its held-out ELBO is read every tenth epoch."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch_column(adata))
    model = scvi.model.SCVI(adata, **options)
    start = time.perf_counter()
    model.train(accelerator="auto", enable_progress_bar=False, check_val_every_n_epoch=10)
    seconds = time.perf_counter() - start
    if seed == 0:
        np.save(WORK / f"{name}.held_out.npy", model.validation_indices)
    curve = [float(value) for value in model.history["elbo_validation"].to_numpy().ravel()]
    measured = {"seconds": seconds, "nelbo": min(curve), "nelbo_last": curve[-1]}
    return np.asarray(model.get_latent_representation()), measured


def pca(name: str, adata: anndata.AnnData, seed: int) -> Result:
    """Thirty principal components of scaled log-normalised counts."""
    from scvae.analysis.baselines import principal_components

    start = time.perf_counter()
    components = principal_components(adata.X, seed)
    return components, {"seconds": time.perf_counter() - start}


def harmony(name: str, adata: anndata.AnnData, seed: int) -> Result:
    """Harmony on those components."""
    from scvae.analysis.baselines import harmonise

    start = time.perf_counter()
    components, _ = pca(name, adata, seed)
    corrected = harmonise(components, adata.obs["batch"], seed)
    return corrected, {"seconds": time.perf_counter() - start}


METHODS: dict[str, Callable[..., Result]] = {
    "scvae": scvae_fit,
    "scvae_unaligned": lambda *given: scvae_fit(*given, align=False),
    "scvae_zinb": lambda *given: scvae_fit(*given, likelihood="zinb"),
    "scvae_normal": lambda *given: scvae_fit(*given, prior="normal"),
    "scvi": scvi_train,
    "scvi_recommended": lambda *given: scvi_train(
        *given, gene_likelihood="nb", n_layers=2, n_latent=30
    ),
    "pca": pca,
    "harmony": harmony,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    embedding, measured = METHODS[given.method](given.set, load(given.set), given.seed)
    stem = WORK / f"{given.set}.{given.method}.{given.seed}"
    np.save(f"{stem}.npy", np.asarray(embedding, dtype=np.float32))
    stem.with_name(stem.name + ".json").write_text(json.dumps(measured))
    measured.pop("curve", None)
    print(given.set, given.method, given.seed, measured, flush=True)


if __name__ == "__main__":
    main()
