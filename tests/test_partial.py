"""Data that have some of the model's genes: the others are not observed, and how many is told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scvae
from scvae import DataError
from scvae.core.distributions import Gaussian
from scvae.data.hold.cells import Cells
from scvae.data.read.partial import in_their_places, observed_genes

Fitted = tuple[AnnData, scvae.Model]
GONE = ["gene_3", "gene_8", "gene_11"]
pytestmark = pytest.mark.filterwarnings("ignore:.*taken as not observed")


def without(adata: AnnData, genes: list[str]) -> AnnData:
    return adata[:, ~adata.var_names.isin(genes)].copy()


def named(genes: list[str]) -> AnnData:
    counts = np.ones((4, len(genes)), dtype=np.float32)
    return AnnData(counts, var=pd.DataFrame(index=genes))


# -- which genes there are -------------------------------------------------------------------------


def test_how_many_genes_are_there_is_told(fitted: Fitted) -> None:
    adata, model = fitted
    with pytest.warns(scvae.errors.ScvaeWarning, match=r"37 of the model's 40 .* 3 \(first: \['g"):
        model.embed(without(adata, GONE))


def test_fewer_than_half_is_warned_of(fitted: Fitted) -> None:
    adata, model = fitted
    with pytest.warns(scvae.errors.ScvaeWarning, match=r"19 of .*fewer than half.*genes=shared"):
        model.read(adata[:, :19], partial=True)
    with pytest.warns(scvae.errors.ScvaeWarning) as told:
        model.read(adata[:, :20], partial=True)
    assert "half" not in str(told[0].message)


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (["CD3D", "LYZ"], ["ENSG00000167286", "ENSG00000090382"], "adata's are Ensembl ids"),
        (["ENSG00000167286.4"], ["CD3D"], "model's genes are Ensembl ids"),
        (["CD3D", "LYZ"], ["Cd3d", "Lyz2"], "in capitals, as of human.*one capital, as of mouse"),
        (["gene_1"], ["gene_2"], "lacks 1 of the 1 genes of the model"),
    ],
)
def test_no_gene_in_common_is_an_error(model: list[str], data: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        observed_genes(named(data), model, None)


def test_genes_under_other_names_are_not_taken_for_absent_ones() -> None:
    model = [f"CD{i}" for i in range(10)]
    with pytest.raises(DataError, match=r"8 of them are there in another case"):
        observed_genes(named([*model[:2], *map(str.lower, model[2:])]), model, None)


def test_counts_go_to_their_places() -> None:
    counts = sparse.random_array((5, 3), density=0.6, rng=np.random.default_rng(0), format="csr")
    whole = in_their_places(sparse.csr_matrix(counts), np.array([False, True, True, False, True]))
    expected = np.zeros((5, 5))
    expected[:, [1, 2, 4]] = counts.toarray()
    np.testing.assert_array_equal(whole.toarray(), expected)
    assert whole.has_canonical_format


# -- what is made of them --------------------------------------------------------------------------


def cells_of(model: scvae.Model, adata: AnnData) -> Cells:
    dataset = model.read(adata, partial=True)
    return dataset.cells(torch.arange(len(dataset)))


def test_genes_in_excess_and_their_order_change_nothing(fitted: Fitted) -> None:
    adata, model = fitted
    part = without(adata, GONE)
    extra = AnnData(
        sparse.hstack([part.X, part.X], format="csr"),
        obs=adata.obs,
        var=pd.DataFrame(index=[*part.var_names, *(f"x{i}" for i in range(37))]),
    )
    expected = model.embed(part)
    assert not np.allclose(expected, model.embed(adata), atol=1e-3)
    np.testing.assert_array_equal(model.embed(extra), expected)
    np.testing.assert_array_equal(model.embed(extra[:, ::-1]), expected)


def test_what_stands_at_unobserved_genes_touches_nothing(fitted: Fitted) -> None:
    adata, model = fitted
    cells = cells_of(model, without(adata, GONE))
    assert cells.observed is not None
    assert cells.observed.sum(1).unique().tolist() == [37]
    broken = torch.where(cells.observed, cells.x, torch.nan)
    other = Cells(broken, cells.s, cells.observed, batch=cells.batch, log_library=cells.log_library)
    with torch.no_grad():
        one, two = (model.vae.terms(c, 1, torch.Generator().manual_seed(0)) for c in (cells, other))
    assert torch.equal(one.z, two.z)
    assert torch.equal(one.log_px, two.log_px)


def test_no_gene_missing_is_no_mask(fitted: Fitted) -> None:
    adata, model = fitted
    assert model.read(adata, partial=True).observed is None


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_the_total_of_the_observed_genes_is_theirs_alone(
    simulated: AnnData, likelihood: str
) -> None:
    """The means of the observed genes add up to what was counted in them."""
    adata = simulated.copy()
    model = scvae.fit(adata, likelihood=likelihood, max_steps=3, n_latent=3, progress=False)
    cells = cells_of(model, without(adata, GONE))
    with torch.no_grad():
        p = model.vae.decode(model.vae.encode(cells).mean, cells)
        counts = p.base if likelihood == "zinb" else p
    means = counts.log_mean.exp()
    assert cells.observed is not None
    torch.testing.assert_close(means.sum(1), cells.x.sum(1), rtol=1e-4, atol=1e-4)
    assert means[~cells.observed].max() == 0


def test_a_total_over_all_genes_stays_what_it_was(simulated: AnnData) -> None:
    adata = simulated.copy()
    adata.obs["total"] = 2.0 * np.asarray(adata.X.sum(1)).ravel()
    model = scvae.fit(adata, library_size="total", max_steps=3, n_latent=3, progress=False)
    part, whole = (cells_of(model, data) for data in (without(adata, GONE), adata))
    z = torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (model.vae.decode(z, cells).mean for cells in (part, whole))
    torch.testing.assert_close(found, expected)


def test_evidence_of_a_part_is_that_of_a_model_of_the_part(simulated: AnnData) -> None:
    """log p of the observed genes is that of independent counts whose shares are theirs."""
    adata = simulated.copy()
    model = scvae.fit(adata, max_steps=3, n_latent=3, progress=False)
    cells = cells_of(model, without(adata, GONE))
    z = model.vae.encode(cells).mean
    with torch.no_grad():
        found = model.vae.log_likelihood(z, cells)
        rho = model.decoder.expression(z, cells.s)[:, cells.observed[0]]
        mean = rho / rho.sum(1, keepdim=True) * cells.x.sum(1, keepdim=True)
        r = (10 * model.decoder.log_inverse_dispersion[0]).exp()[cells.observed[0]]
    from scipy import stats

    x = cells.x[:, cells.observed[0]].numpy()
    log_p = stats.nbinom.logpmf(x, r.double().numpy(), (r / (r + mean)).double().numpy())
    np.testing.assert_allclose(found.numpy(), log_p.sum(1), rtol=1e-4)
    assert isinstance(model.vae.encode(cells), Gaussian)
