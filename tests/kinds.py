"""The cells that the models of several kinds in tests/files were fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from cells import FILES

KINDS = ("rna", "protein", "chromatin")


def fitted_kinds() -> Any:
    """Return 48 cells of 10 genes, 4 proteins and 16 regions in two batches, of which each lacks
    some, as the layer "seen" says of single proteins."""
    import mudata

    parts = {}
    with np.load(FILES / "kinds.npz") as held:
        for kind in KINDS:
            names = [f"{kind}_{i}" for i in range(held[kind].shape[1])]
            obs = pd.DataFrame(index=[f"cell_{i}" for i in held[f"{kind}_rows"]])
            parts[kind] = AnnData(held[kind].astype(np.float32), obs, pd.DataFrame(index=names))
        parts["protein"].layers["seen"] = held["seen"]
        batch = {f"cell_{i}": name for i, name in enumerate(held["batch"])}
    mdata = mudata.MuData(parts)
    mdata.obs["batch"] = [batch[name] for name in mdata.obs_names]
    return mdata


def answers(model: Any, mdata: Any) -> dict[str, np.ndarray]:
    """Return what is asked of a model: where cells lie, by all and by proteins alone; what is
    imputed; what is foreground; and what every kind says of a cell. Rows are in the order of the
    cells' numbers."""
    order = np.argsort([int(name.removeprefix("cell_")) for name in mdata.obs_names])
    found = {
        "embedding": model.embed(mdata),
        "by_protein": model.embed(mdata, modality="protein"),
        **{kind: model.normalized(mdata, modality=kind) for kind in KINDS},
        "contributions": model.contributions(mdata),
    }
    return {name: np.asarray(values, dtype=np.float32)[order] for name, values in found.items()}
