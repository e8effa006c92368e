"""Held-out log p(x) of handwritten digits: the VAE beside factor analysis and PPCA.

    python benchmarks/digits.py [--seeds 3] [--latents 2 10 20]

Data: scikit-learn's 1,797 digits of 8 x 8 pixels, 0 to 16. The Bernoulli version is 1 from 8 on;
the Gaussian version adds uniform noise of one grey level, so that a density exists even at pixels
that are always 0. The VAE's log p(x) is importance-sampled (k = 1000), that of the linear models is
exact. The last fifth is the test set; the VAE keeps the weights that are best on 200 of the rest,
the linear models are fitted to all of it. Nats per image, on the same test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from torch import Generator, Tensor

from scvae.core import (
    BERNOULLI,
    GAUSSIAN,
    MLP,
    VAE,
    Batch,
    Decoder,
    Encoder,
    Family,
    Head,
    MixtureOfGaussians,
    StandardNormal,
    factor_analysis,
    log_evidence,
    ppca,
)
from scvae.train.loop import Schedule, train

N_TEST, N_VALIDATION, N_HIDDEN = 360, 200, 256


def digits(version: str) -> Tensor:
    """Return the images ``(1797, 64)``, in an order drawn once and for all."""
    rng = np.random.default_rng(0)
    grey = load_digits().data[rng.permutation(1797)]
    pixels = (grey + rng.random(grey.shape)) / 17 if version == "gaussian" else grey >= 8
    return torch.tensor(pixels, dtype=torch.float32)


def vae_of(family: Family, n_latent: int, prior: str, seed: int) -> VAE:
    """Return an untrained VAE of two hidden layers each way."""
    generator = Generator().manual_seed(seed)
    encoder = MLP(64, N_HIDDEN, 2, generator=generator)
    decoder = MLP(n_latent, N_HIDDEN, 2, generator=generator)
    return VAE(
        StandardNormal(n_latent)
        if prior == "normal"
        else MixtureOfGaussians(n_latent, 50, generator=generator),
        Encoder(encoder, Head(N_HIDDEN, n_latent, GAUSSIAN, generator)),
        Decoder(decoder, Head(N_HIDDEN, 64, family, generator)),
    )


def fit(vae: VAE, x: Tensor, held_out: Tensor, seed: int, steps: int) -> VAE:
    """Train on minibatches of 128 and keep the weights of the best ELBO on `held_out`."""

    def epoch(order: Generator) -> Iterator[Batch]:
        for rows in torch.randperm(len(x), generator=order).split(128):
            yield Batch(x[rows])

    schedule = Schedule(steps, patience=steps)  # to the end
    order, noise = (Generator().manual_seed(2 * seed + i) for i in range(2))
    train(vae, epoch, lambda: [Batch(held_out)], schedule, order, noise)
    return vae


def score(vae: VAE, x: Tensor) -> float:
    """Return the mean importance-sampled log p(x)."""
    return log_evidence(vae, Batch(x), 1000, Generator().manual_seed(0)).value.mean().item()


def linear(x: Tensor, test: Tensor, n_latent: int) -> dict[str, float]:
    """Return the exact test log p(x) of the linear models, ours and scikit-learn's."""
    peers = {
        "sklearn FactorAnalysis": FactorAnalysis(n_latent, tol=1e-6, max_iter=20_000),
        "sklearn PCA.score (PPCA)": PCA(n_latent, svd_solver="full"),
    }
    scores = {name: peer.fit(x.numpy()).score(test.numpy()) for name, peer in peers.items()}
    for name, method in (("factor_analysis", factor_analysis), ("ppca", ppca)):
        scores[name] = method(x.double(), n_latent).log_prob(test.double()).mean().item()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 10, 20])
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    print("version    latents  model                      log p(x) of every seed")
    for version, family in (("bernoulli", BERNOULLI), ("gaussian", GAUSSIAN)):
        x = digits(version)
        rest, test = x[:-N_TEST], x[-N_TEST:]
        for n_latent in arguments.latents:
            results: dict[str, list[float]] = {}
            if version == "gaussian":
                results |= {k: [v] for k, v in linear(rest, test, n_latent).items()}
            for prior in ("normal", "mixture"):
                results[f"VAE, {prior} prior"] = [
                    score(
                        fit(
                            vae_of(family, n_latent, prior, seed),
                            rest[:-N_VALIDATION],
                            rest[-N_VALIDATION:],
                            seed,
                            arguments.steps,
                        ),
                        test,
                    )
                    for seed in range(arguments.seeds)
                ]
            for name, values in results.items():
                numbers = "  ".join(f"{value:8.2f}" for value in values)
                print(f"{version:10} {n_latent:7}  {name:25} {numbers}", flush=True)


if __name__ == "__main__":
    main()
