"""A network in few words."""

from __future__ import annotations

from scvae.modalities.rna import Rna
from scvae.models.network import Architecture

FEATURES = {"rna": "genes", "protein": "proteins", "chromatin": "regions"}


def described(a: Architecture) -> str:
    """Return features, latents and likelihoods."""
    each = " + ".join(f"{part.n_features} {FEATURES[kind]}" for kind, part in a.parts.items())
    return f"{each} -> {a.n_latent} latents, {', '.join(laws(a).values())}"


def laws(a: Architecture) -> dict[str, str]:
    """Return the name of the law of the counts of every kind."""
    return {
        kind: getattr(part, "likelihood", "background and foreground")
        for kind, part in a.parts.items()
        if isinstance(part, Rna) or len(a.parts) >= 1
    }
