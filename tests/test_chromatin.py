"""Chromatin: shares of the fragments are found, reads become fragments, depth does not matter."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from torch import Generator, Tensor

from scvae.choices import ChromatinLikelihood
from scvae.core.objectives import elbo
from scvae.core.priors import StandardNormal
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells
from scvae.errors import ScvaeWarning
from scvae.modalities.chromatin import (
    Chromatin,
    Statistics,
    are_reads,
    reads_to_fragments,
)
from scvae.modalities.modality import Shape

N, G, D = 500, 60, 2
CALL = "scvae.fit(adata"
both = pytest.mark.parametrize("likelihood", ["poisson", "bernoulli"])


def fragments(n: int = N, seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Return fragments of two kinds of cells, depths, and the true shares."""
    rng = np.random.default_rng(seed)
    factor, effect = rng.normal(size=G), rng.normal(size=(2, G))
    share = np.exp(factor + effect)
    share /= share.sum(1, keepdims=True)
    kind = rng.integers(2, size=n)
    depth = np.exp(rng.normal(np.log(12), 0.3, size=n))
    f = rng.poisson(depth[:, None] * share[kind]).astype(np.float32)
    f[f.sum(1) == 0, 0] = 1
    return sparse.csr_matrix(f), f.sum(1).astype(np.float64), share[kind]


def build(
    f: sparse.csr_matrix, depth: np.ndarray, likelihood: ChromatinLikelihood = "poisson"
) -> tuple[Chromatin, VAE]:
    chromatin = Chromatin(f.shape[1], likelihood)
    shape = Shape(D, 16, 1, 1, 0, encode_covariates=True)
    facts, generator = Statistics.of(f, depth), Generator().manual_seed(0)
    encoder = chromatin.encoder(shape, facts, generator)
    vae = VAE(StandardNormal(D), encoder, chromatin.decoder(shape, facts, generator))
    return chromatin, vae


def cells_of(f: sparse.csr_matrix, depth: np.ndarray, likelihood: str = "poisson") -> Cells:
    n = f.shape[0]
    x = torch.from_numpy(f.toarray())
    x = x.clamp(max=1) if likelihood == "bernoulli" else x
    log_depth = torch.from_numpy(np.log(depth)).float()[:, None]
    return Cells(
        x, torch.zeros(n, 0), batch=torch.zeros(n, dtype=torch.int64), log_library=log_depth
    )


def train(vae: VAE, cells: Cells, steps: int) -> None:
    optimizer = torch.optim.Adam(vae.parameters(), 0.02)
    generator = Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        (-elbo(vae.terms(cells, generator=generator)).mean()).backward()
        optimizer.step()


@both
def test_true_shares_and_mean_counts_are_found(likelihood: ChromatinLikelihood) -> None:
    f, depth, truth = fragments()
    chromatin, vae = build(f, depth, likelihood)
    cells = cells_of(f, depth, likelihood)
    train(vae, cells, 200)
    vae.eval()
    with torch.no_grad():
        z = vae.encode(cells).mean
        share, p = chromatin.amount(vae.likelihood, z, cells.s), vae.decode(z, cells)
    torch.testing.assert_close(share.sum(-1), torch.ones(N))
    flat = np.abs(truth.mean(0) - truth).mean()
    assert np.abs(share.numpy() - truth).mean() < 0.5 * flat
    torch.testing.assert_close(p.mean.mean(0), cells.x.mean(0), rtol=0.25, atol=0.03)


def test_the_untrained_model_has_the_shares_of_the_data() -> None:
    f, depth, _ = fragments()
    _, vae = build(f, depth)
    with torch.no_grad():
        vae.likelihood.share.weight.zero_()  # type: ignore[union-attr,operator]
        vae.eval()
        p = vae.decode(torch.zeros(N, D), cells_of(f, depth))
    np.testing.assert_allclose(p.mean.sum(0), np.asarray(f.sum(0)).ravel(), rtol=0.02, atol=0.6)


def test_depth_moves_means_but_not_accessibility() -> None:
    f, depth, _ = fragments(20)
    chromatin, vae = build(f, depth)
    cells, z = cells_of(f, depth), torch.randn(20, D, generator=Generator().manual_seed(0))
    vae.eval()
    deep = dataclasses.replace(cells, log_library=cells.log_library + np.log(3))
    torch.testing.assert_close(vae.decode(z, deep).mean, 3 * vae.decode(z, cells).mean)
    torch.testing.assert_close(
        vae.encode(dataclasses.replace(deep, x=3 * cells.x)).loc, vae.encode(cells).loc
    )
    assert chromatin.amount(vae.likelihood, z, cells.s).shape == (20, G)


@both
def test_gradients_of_the_bound_are_numerical_ones(likelihood: ChromatinLikelihood) -> None:
    f, depth, _ = fragments(6)
    _, vae = build(f, depth, likelihood)
    vae = vae.eval().double()
    cells = cells_of(f, depth, likelihood)
    cells = dataclasses.replace(
        cells, x=cells.x.double(), s=cells.s.double(), log_library=cells.log_library.double()
    )
    z = torch.randn(1, 6, D, dtype=torch.float64, generator=Generator().manual_seed(0))
    bias: Tensor = vae.likelihood.share.bias  # type: ignore[assignment,union-attr]
    assert torch.autograd.gradcheck(lambda _: vae.log_likelihood(z, cells), [bias])


@both
def test_what_was_not_measured_is_not_seen(likelihood: ChromatinLikelihood) -> None:
    f, depth, _ = fragments(20)
    _, vae = build(f, depth, likelihood)
    vae.eval()
    cells = cells_of(f, depth, likelihood)
    observed = torch.rand(20, G, generator=Generator().manual_seed(0)) < 0.7
    observed[0] = False
    found = []
    for garbage in (0.0, torch.nan):
        x = torch.where(observed, cells.x, garbage)
        some = dataclasses.replace(cells, x=x, observed=observed)
        found.append(elbo(vae.terms(some, generator=Generator().manual_seed(0))))
    assert found[0].isfinite().all()
    assert torch.equal(*found)


# -- reads ----------------------------------------------------------------------------------------


def reads(n: int = 300) -> np.ndarray:
    """Fragments of which one end in ten lies outside the region."""
    rng = np.random.default_rng(0)
    whole = rng.poisson(0.5, size=(n, G))
    return (2 * whole - rng.binomial(whole, 0.1)).astype(np.float32)


@pytest.mark.parametrize("mean", [0.01, 0.5, 2.0, 5.0])
def test_reads_are_told_from_fragments(mean: float) -> None:
    counts = np.random.default_rng(0).poisson(mean, size=100_000)
    assert not are_reads(counts[counts > 0])
    assert are_reads(reads()[reads() > 0])
    assert not are_reads(np.array([]))


def test_reads_become_fragments_and_it_is_told() -> None:
    x = reads()
    np.testing.assert_array_equal(
        reads_to_fragments(sparse.csr_matrix(np.arange(7.0))).toarray(), [[0, 1, 1, 2, 2, 3, 3]]
    )
    with pytest.warns(ScvaeWarning, match="are reads"):
        part = Chromatin(G).read(AnnData(x), list(map(str, range(G))), None, "observed", call=CALL)
    np.testing.assert_array_equal(part.counts.toarray(), np.ceil(x / 2))
    np.testing.assert_array_equal(part.size, np.ceil(x / 2).sum(1))


def test_fragments_are_read_as_they_are() -> None:
    f, depth, _ = fragments()
    names = list(map(str, range(G)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = Chromatin(G).read(AnnData(f), names, None, "observed", call=CALL)
        ones = Chromatin(G, "bernoulli").read(AnnData(f), names, None, "observed", call=CALL)
    np.testing.assert_array_equal(part.counts.toarray(), f.toarray())
    np.testing.assert_array_equal(ones.counts.toarray(), f.toarray() > 0)
    np.testing.assert_array_equal(ones.size, depth)


def test_zeros_and_ones_where_fragments_are_asked_for_are_told() -> None:
    f, *_ = fragments()
    with pytest.warns(ScvaeWarning, match="bernoulli"):
        Chromatin(G).read(
            AnnData(f.minimum(1)), list(map(str, range(G))), None, "observed", call=CALL
        )
