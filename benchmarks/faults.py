"""Plant faults, and write down what scvae and scvi-tools do with each.

    python benchmarks/faults.py [--peer-python PYTHON]

Every fault meets each package in a process of its own, with defaults and the shortest training.
Prints one line a fault: the error that the user sees (its first line), or what came of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from scipy import sparse

N, G = 260, 50
LIMIT = 150


def clean(n: int = N) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.poisson(rng.gamma(1.0, 2.0, (n, G))).astype(np.float32))
    adata = anndata.AnnData(x)
    adata.obs_names = [f"cell_{i}" for i in range(n)]
    adata.var_names = [f"gene_{j}" for j in range(G)]
    adata.obs["batch"] = np.where(np.arange(n) % 2, "a", "b")
    return adata


def with_value(value: float) -> anndata.AnnData:
    adata = clean()
    adata.X.data[1234] = value
    return adata


def log_normalised() -> anndata.AnnData:
    adata = clean()
    total = np.asarray(adata.X.sum(1)).ravel()
    adata.X = sparse.csr_matrix(adata.X.multiply(1e4 / total[:, None])).log1p()
    return adata


def with_empty_cell() -> anndata.AnnData:
    adata = clean()
    x = adata.X.tolil()
    x[5] = 0
    adata.X = x.tocsr()
    return adata


def with_duplicated_genes() -> anndata.AnnData:
    adata = clean()
    adata.var_names = [f"gene_{j // 2}" for j in range(G)]
    return adata


def with_missing_batch() -> anndata.AnnData:
    adata = clean()
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(N) != 7)
    return adata


def with_view() -> anndata.AnnData:
    return clean()[:200]


DATA: dict[str, Callable[[], anndata.AnnData]] = {
    "one NaN": lambda: with_value(np.nan),
    "one infinity": lambda: with_value(np.inf),
    "one negative value": lambda: with_value(-3.0),
    "one non-integer": lambda: with_value(1.5),
    "log-normalised counts": log_normalised,
    "an empty cell": with_empty_cell,
    "duplicated gene names": with_duplicated_genes,
    "a missing batch label": with_missing_batch,
    "a last minibatch of one cell": lambda: clean(257),
    "a view": with_view,
}


# -- the two packages ------------------------------------------------------------------------------


def ours(adata: anndata.AnnData) -> Any:
    import scvae

    model = scvae.fit(adata, batch="batch", max_steps=30, n_latent=4, progress=False)
    return model, adata.obsm["X_scvae"]


def theirs(adata: anndata.AnnData) -> Any:
    import scvi

    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, n_latent=4)
    # 257 cells, all trained on, are two minibatches of 128 and one of a single cell.
    size = 1.0 if adata.n_obs == 257 else None
    model.train(max_epochs=2, train_size=size, accelerator="cpu", enable_progress_bar=False)
    return model, model.get_latent_representation()


FIT = {"scvae": ours, "scvi": theirs}


def load(who: str, path: Path) -> Any:
    if who == "scvae":
        import scvae

        return scvae.load(path / "model")
    import scvi

    return scvi.model.SCVI.load(path, adata=clean())


def save(who: str, model: Any, path: Path) -> Path:
    path.mkdir()
    if who == "scvae":
        model.save(path / "model")
        return path / "model"
    model.save(path, overwrite=True)
    return path / "model.pt"


# -- faults besides the data -----------------------------------------------------------------------


def twice(who: str, folder: Path) -> str:
    first, second = (FIT[who](clean())[1] for _ in range(2))
    return "the same embedding" if np.array_equal(first, second) else "another embedding"


def global_state(who: str, folder: Path) -> str:
    import torch

    before = torch.get_rng_state()
    FIT[who](clean())
    return "untouched" if torch.equal(before, torch.get_rng_state()) else "changed"


def truncated(who: str, folder: Path) -> str:
    path = save(who, FIT[who](clean())[0], folder / "m")
    path.write_bytes(path.read_bytes()[:-500])
    load(who, folder / "m")
    return "loaded"


def flipped(who: str, folder: Path) -> str:
    path = save(who, FIT[who](clean())[0], folder / "m")
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 0x40
    path.write_bytes(bytes(data))
    load(who, folder / "m")
    return "loaded"


class Hostile:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(tempfile.gettempdir()) / "scvae_was_here",))


def hostile(who: str, folder: Path) -> str:
    import torch

    trace = Path(tempfile.gettempdir()) / "scvae_was_here"
    trace.unlink(missing_ok=True)
    path = save(who, FIT[who](clean())[0], folder / "m")
    if who == "scvi":
        held = torch.load(path, weights_only=False)
        held["hostile"] = Hostile()
        torch.save(held, path)
    else:
        torch.save(Hostile(), path)
    try:
        load(who, folder / "m")
        outcome = "loaded"
    except Exception as error:  # what the user sees is the result
        outcome = first_line(error)
    return ("its code was run; " if trace.exists() else "nothing was run; ") + outcome


def untouched(who: str, folder: Path) -> str:
    adata = clean()
    before = set(adata.obs) | set(adata.uns) | set(adata.obsm)
    FIT[who](adata)
    added = sorted((set(adata.obs) | set(adata.uns) | set(adata.obsm)) - before)
    return "adds " + (", ".join(added) or "nothing")


OTHER: dict[str, Callable[[str, Path], str]] = {
    "the same call twice": twice,
    "torch's global random state": global_state,
    "a truncated model file": truncated,
    "a flipped bit in the weights": flipped,
    "a model file that holds code": hostile,
    "slots of the AnnData": untouched,
}


# -- running ---------------------------------------------------------------------------------------


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def outcome(who: str, fault: str) -> str:
    with warnings.catch_warnings(record=True) as seen, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        try:
            if fault in OTHER:
                return OTHER[fault](who, Path(folder))
            _, embedding = FIT[who](DATA[fault]())
        except Exception as error:  # what the user sees is the result
            return first_line(error)
    told = [
        str(w.message).strip().splitlines()[0]
        for w in seen
        if any(word in str(w.message) for word in ("count", "cell"))
    ]
    finite = "finite" if np.isfinite(embedding).all() else "non-finite"
    return f"trains, {finite} embedding" + (f"; warns: {told[0]}" if told else "; no warning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", nargs=2, metavar=("WHO", "FAULT"), help="in this process")
    given = parser.parse_args()
    if given.only:
        print("RESULT " + outcome(*given.only))
        return
    print("| fault | scvi-tools 1.4.2 | scvae |\n|---|---|---|")
    for fault in (*DATA, *OTHER):
        found = []
        for python, who in ((given.peer_python, "scvi"), (sys.executable, "scvae")):
            command = [python, __file__, "--only", who, fault]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            text = lines[-1].removeprefix("RESULT ") if lines else "the process ended"
            found.append(text[:LIMIT].replace("|", "\\|"))
        print(f"| {fault} | {found[0]} | {found[1]} |", flush=True)


if __name__ == "__main__":
    main()
