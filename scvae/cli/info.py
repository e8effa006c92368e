"""`scvae info`: tell what a model is."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from scvae.cli.console import printable, tell
from scvae.cli.options import Command, Parser, add_model

if TYPE_CHECKING:
    from scvae.models.model import Model

EXAMPLE = """\
example:
  scvae info model.scvae --json
"""


def run(a: argparse.Namespace) -> None:
    from scvae.models.load import load

    facts = facts_of(load(a.model, device="cpu"))
    tell(False, json.dumps(facts, indent=2) if a.json else table_of(facts))


def facts_of(model: Model) -> dict[str, Any]:
    """Return what `scvae info` tells; None where the file does not say."""
    from scvae.models.judge.words import FEATURES, laws

    a, origin, record = model.architecture, model.origin, model.record
    history, held_out = record.history, record.held_out
    summary = model.summary()
    return {
        **{FEATURES[kind]: part.n_features for kind, part in a.parts.items()},
        "latents": a.n_latent,
        "hidden_layers": a.n_layers,
        "hidden_width": a.n_hidden,
        "likelihood": ", ".join(laws(a).values()),
        "dispersion": None if a.rna is None else a.rna.dispersion,
        "prior": a.prior,
        "decoder": "linear" if a.rna is not None and a.rna.linear else "network",
        "library_size": origin.library_size,
        "layer": origin.layer or "X",
        "batch_column": origin.covariates.batch,
        "batches": origin.covariates.batches,
        "covariates": origin.covariates.others,
        "label_column": record.labels,
        "training_cells": record.n_train,
        "held_out_cells": record.n_held_out,
        "held_out_elbo": record.elbo_held_out,
        "reconstruction": held_out and held_out.reconstruction,
        "kl": held_out and held_out.kl,
        "active_latents": held_out and held_out.active,
        "steps": history.step[-1] if history and history.step else None,
        "kept_step": history and history.best_step,
        "convergence": summary.convergence.text,
        "seed": record.seed,
        "versions": record.versions or {},
        "warnings": list(summary.warnings),
    }


def table_of(facts: dict[str, Any]) -> str:
    width = max(map(len, facts)) + 2
    lines = (f"{_label(name):<{width}}{_shown(name, facts[name])}" for name in facts)
    return "\n".join(map(printable, lines))


def _label(name: str) -> str:
    for word, written in (("held_out", "held-out"), ("_", " "), ("elbo", "ELBO"), ("kl", "KL")):
        name = name.replace(word, written)
    return name


def _shown(name: str, value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, list):
        return f"{len(value)}: {', '.join(value[:8])}{', ...' if len(value) > 8 else ''}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if name in ("held_out_elbo", "reconstruction", "kl"):
        return f"{value:,.2f} nats per cell"
    if name == "warnings":
        return " ".join(value)
    return f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)


def add_options(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


INFO = Command("info", "tell what a model is", EXAMPLE, add_options, run)
