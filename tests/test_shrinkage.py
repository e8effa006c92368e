"""Priors on weights: their density and its gradient, once for all cells."""

from __future__ import annotations

import pytest
import torch
from torch import Generator
from torch.distributions import Normal

import scvae
from scvae.core.batch import Batch
from scvae.core.heads import GAUSSIAN, Decoder, Encoder, Head
from scvae.core.networks import MLP
from scvae.core.priors import StandardNormal
from scvae.core.shrinkage import ShrunkLinear, shrunk_layers
from scvae.core.vae import VAE
from scvae.modalities import chromatin
from scvae.train.loop import one_bound, with_weight_priors


@pytest.mark.parametrize("scale", [0.05, 2.0])
def test_the_prior_is_a_gaussian_of_every_weight(scale: float) -> None:
    layer = ShrunkLinear(4, 9, scale, Generator().manual_seed(0))
    at = Normal(0.0, scale).log_prob(layer.weight).sum()
    at_zero = 36 * Normal(0.0, scale).log_prob(torch.zeros(()))
    torch.testing.assert_close(layer.log_prior(), at - at_zero)
    (slope,) = torch.autograd.grad(layer.log_prior(), layer.weight)
    torch.testing.assert_close(slope, -layer.weight / scale**2)


def test_what_is_climbed_has_one_part_in_n_of_the_prior_and_the_bound_none() -> None:
    draw = Generator().manual_seed(0)
    head = Head(6, 5, GAUSSIAN, draw)
    vae = VAE(
        StandardNormal(2),
        Encoder(MLP(5, 6, generator=draw), Head(6, 2, GAUSSIAN, draw)),
        Decoder(MLP(2, 6, generator=draw), head),
    )
    vae.layer = ShrunkLinear(3, 4, 0.5, draw)
    minibatch = Batch(torch.randn(7, 5, generator=draw))
    plain = one_bound(vae, minibatch, Generator().manual_seed(1), 0.3)
    terms, bound, climbed = with_weight_priors(
        vae,
        minibatch,
        Generator().manual_seed(1),
        0.3,
        objective=one_bound,
        layers=[vae.layer],
        cells=200,
    )
    assert bound == plain[1]
    torch.testing.assert_close(climbed, bound + vae.layer.log_prior() / 200)
    climbed.backward()
    torch.testing.assert_close(vae.layer.weight.grad, -vae.layer.weight / (0.25 * 200))
    torch.testing.assert_close(terms.log_px, plain[0].log_px)


def test_regions_of_few_fragments_are_held_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mdata = scvae.simulate(n_cells=120, n_genes=30, modalities=("chromatin",))
    widths = []
    for scale in (chromatin.WEIGHT_SCALE, 1e-3):
        monkeypatch.setattr(chromatin, "WEIGHT_SCALE", scale)
        model = scvae.fit(mdata.copy(), max_steps=60, progress=False)
        (layer,) = shrunk_layers(model.vae)
        widths.append(float(layer.weight.detach().square().mean()))
    assert widths[1] < widths[0] / 2


def test_the_summary_tells_of_it() -> None:
    mdata = scvae.simulate(n_cells=60, n_genes=20, modalities=("rna", "chromatin"), n_regions=50)
    summary = scvae.fit(mdata, max_steps=2, progress=False).summary()
    assert ("weights of regions", "N(0, 0.1^2) beforehand") in summary.sections["Objective"]
