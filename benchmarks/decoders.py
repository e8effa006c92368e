"""What a linear decoder costs: `python benchmarks/decoders.py [SET ...]`.

Held-out ELBO in nats per cell, and biology and mixing of the embedding (`scvae.analysis.judge`), of
`fit(decoder="network")` and `fit(decoder="linear")`, medians of three seeds. The table is kept in
results/decoders.json.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
from results import TABLES
from sets import SETS, batch_column, load

import scvae

SEEDS = (0, 1, 2)


def scores(name: str, decoder: str, seed: int) -> list[float]:
    """Return held-out ELBO, biology and mixing of one fit; NaN of mixing where one batch is."""
    adata = load(name)
    batch = batch_column(adata)
    model = scvae.fit(adata, batch=batch, decoder=decoder, seed=seed, progress=False)
    types = adata.obs["cell_type"].astype(str).to_numpy()
    batches = None if batch is None else adata.obs[batch].astype(str).to_numpy()
    found = scvae.analysis.judge(adata.obsm["X_scvae"], types, batches)
    return [model.record.elbo_held_out, found["biology"], found.get("mixing", np.nan)]


def main() -> None:
    warnings.filterwarnings("ignore")
    rows = []
    for name in sys.argv[1:] or SETS:
        found = np.array(
            [[scores(name, decoder, seed) for seed in SEEDS] for decoder in ("network", "linear")]
        )
        gap = found[1, :, 0] - found[0, :, 0]
        (_, biology, mixing), (_, biology_linear, mixing_linear) = np.median(found, axis=1)
        rows.append(
            [name, f"{np.median(gap):.1f} ({np.ptp(gap):.1f})"]
            + [f"{value:.3f}".lstrip("0") for value in (biology, biology_linear)]
            + ["" if np.isnan(m) else f"{m:.3f}".lstrip("0") for m in (mixing, mixing_linear)]
        )
        print(rows[-1], flush=True)
    columns = ["set", "held-out ELBO, linear less network", "biology: network", "linear"]
    table = {"columns": [*columns, "mixing: network", "linear"], "rows": rows}
    (TABLES / "decoders.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
