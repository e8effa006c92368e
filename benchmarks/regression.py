"""Fail if scvae lost speed: `python benchmarks/regression.py [--write]`.

A ratio, not a time: cells per second of training over those of a plain float32 step of torch with
the same matrix products and an elementwise likelihood, in one process, interleaved. The ratio kept
in regression.json was measured the same way; one below `SLACK` of it fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
from sets import HERE
from step import prepared
from torch import Tensor, nn

from scvae.core.numerics import nb_log_mass, zero_inflate
from scvae.data.hold.cells import Cells
from scvae.train.loop import Step
from scvae.train.optimizer import optimizer_of

KEPT, SLACK, GENES, ROUNDS = HERE / "regression.json", 0.75, 2_000, 60


class Plain(nn.Module):
    """The products of the same architecture, and nothing clever."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.latent = nn.Linear(GENES, 128), nn.Linear(128, 10)
        self.decoder = nn.Linear(10, 128)
        self.share, self.dropout = nn.Linear(128, GENES), nn.Linear(128, GENES)
        self.log_r = nn.Parameter(torch.zeros(GENES))

    def forward(self, x: Tensor, log_library: Tensor) -> Tensor:
        h = torch.relu(self.encoder(torch.log1p(x)))
        h = torch.relu(self.decoder(self.latent(h)))
        log_mean = torch.log_softmax(self.share(h), -1) + log_library
        mass = nb_log_mass(x, log_mean, self.log_r.expand_as(x))
        return zero_inflate(mass, self.dropout(h), x == 0).sum(-1).mean()


def ratio() -> float:
    """Return the time of a plain step over the time of ours, medians of interleaved steps."""
    vae, dataset = prepared(GENES)
    generator = torch.Generator().manual_seed(0)
    step, plain = Step(vae, optimizer_of(vae), 0.01, generator), Plain()
    optimizer = torch.optim.AdamW(plain.parameters(), fused=True)
    rows = torch.arange(len(dataset))

    def plainly(cells: Cells) -> None:
        (-plain(cells.x, cells.log_library)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for i in range(ROUNDS):
        cells = dataset.cells(rows[torch.randperm(len(rows), generator=generator)[:128]])
        for name, take in (("ours", lambda c: step(c, 1e-3, 1.0)), ("plain", plainly)):
            start = time.perf_counter()
            take(cells)
            if i >= 5:
                times[name].append(time.perf_counter() - start)
    return statistics.median(times["plain"]) / statistics.median(times["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the ratio found")
    given = parser.parse_args()
    found = statistics.median(ratio() for _ in range(3))
    if given.write:
        KEPT.write_text(json.dumps({"plain step / step": round(found, 2)}) + "\n")
    kept = json.loads(KEPT.read_text())["plain step / step"]
    print(f"{found:.2f} times as fast as a plain step; kept: {kept}")
    if found < SLACK * kept:
        sys.exit(f"slower than {SLACK} of what was kept")


if __name__ == "__main__":
    main()
