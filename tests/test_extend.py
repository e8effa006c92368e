"""A model extended by new batches: the old are as they were to the bit, the new are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scvae
from scvae import ConfigError, DataError
from scvae.data.read.covariates import Covariates
from scvae.data.read.widening import widen
from scvae.models.alignment import OF_NEW, Alignment, with_new_batches

Fitted = tuple[AnnData, scvae.Model]
KNOWN = Covariates("run", {"run": ["a", "b"], "sex": ["f", "m"]}, {"age": (50.0, 10.0)})


# -- columns ---------------------------------------------------------------------------------------


def test_new_columns_come_after_the_known_of_their_kind_and_start_at_their_mean() -> None:
    obs = pd.DataFrame({"run": ["z", "c", "z", "c"], "sex": ["x", "f", "x", "f"]})
    wide = widen(KNOWN, obs)
    assert wide.covariates.categories == {"run": ["a", "b", "c", "z"], "sex": ["f", "m", "x"]}
    assert wide.n_new_batches == 2
    assert np.flatnonzero(wide.is_new).tolist() == [2, 3, 6]
    expected = np.zeros((8, 5))
    expected[[0, 1, 4, 5, 7], [0, 1, 2, 3, 4]] = 1
    expected[2:4, :2] = expected[6, 2:4] = 0.5
    np.testing.assert_array_equal(wide.start, expected)


def test_known_cells_read_the_same_columns_in_their_new_places() -> None:
    cells = pd.DataFrame({"run": ["b", "a"], "sex": ["m", "f"], "age": [60.0, 45.0]})
    new = pd.DataFrame({"run": ["c", "c"], "sex": ["x", "x"], "age": [50.0, 50.0]})
    wide = widen(KNOWN, new)
    old, now = KNOWN.read(cells), wide.covariates.read(cells)
    np.testing.assert_array_equal(now.design[:, ~wide.is_new], old.design)
    assert not now.design[:, wide.is_new].any()
    assert now.codes.tolist() == old.codes.tolist() == [1, 0]


def test_a_new_batch_of_one_cell_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 new categories with one cell \(first: 'd'\)"):
        widen(KNOWN, pd.DataFrame({"run": ["c", "c", "d"], "sex": "f", "age": 1.0}))


# -- models ----------------------------------------------------------------------------------------


def query_of(adata: AnnData, n: int = 60, name: str = "run_9") -> AnnData:
    query = adata[:n].copy()
    query.obs["batch"] = name
    return query


OPTIONS = [
    {},
    {"dispersion": "gene-batch", "covariates": "library_size"},
    {"library_size": "latent", "encode_covariates": False},
    {"likelihood": "zinb", "n_layers": 2, "covariates": ["library_size", "cell_type"]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_old_batches_are_as_they_were_to_the_bit(
    simulated: AnnData, options: dict[str, Any]
) -> None:
    adata = simulated.copy()
    model = scvae.fit(
        adata, batch="batch", max_steps=25, n_latent=4, n_hidden=16, progress=False, **options
    )
    query = query_of(adata)
    if "covariates" in options:
        query.obs["cell_type"] = "never seen"
    before = {name: t.clone() for name, t in model.vae.state_dict().items()}
    wider = model.extend(query, max_steps=20)
    assert wider.batches == ["batch_0", "batch_1", "run_9"]
    np.testing.assert_array_equal(wider.embed(adata), adata.obsm["X_scvae"])
    np.testing.assert_array_equal(
        wider.normalized(adata, batch="own"), model.normalized(adata, batch="own")
    )
    np.testing.assert_array_equal(wider.elbo(adata, samples=1), model.elbo(adata, samples=1))
    assert all(torch.equal(t, before[name]) for name, t in model.vae.state_dict().items())
    assert all(p.requires_grad for p in wider.vae.parameters())
    assert np.isfinite(wider.embed(query)).all()


def test_the_new_batch_is_learned(trained: Fitted) -> None:
    """Its bound rises above that of the mean over the old batches, and of the likeliest."""
    _, model = trained
    other = scvae.simulate(600, 100, batch_effect=1.0, n_batches=3, seed=1)
    query = other[:300].copy()
    query.obs["batch"] = "run_9"
    wider = model.extend(query, max_steps=200)
    found = wider.elbo(query, samples=3).mean()
    for known in model.batches:
        query.obs["batch"] = known
        assert found > model.elbo(query, samples=3).mean() + 5
    start = model.extend(query_of(other, 300), max_steps=1)
    assert found > start.elbo(query_of(other, 300), samples=3).mean() + 5


def test_one_step_stays_near_the_mean_over_the_old(fitted: Fitted) -> None:
    adata, model = fitted
    query = query_of(adata)
    wider = model.extend(query, max_steps=1)  # whose rate is 0 by then
    rows = wider.vae.posterior.hidden.layers[0].covariate_weight
    torch.testing.assert_close(rows[2], rows[:2].mean(0))
    assert torch.equal(rows[[0, 1, 3]], model.vae.posterior.hidden.layers[0].covariate_weight)


def test_it_is_saved_and_read_and_drawn_from_as_any_other(fitted: Fitted, tmp_path: Path) -> None:
    adata, model = fitted
    query = query_of(adata)
    wider = model.extend(query, max_steps=10)
    wider.save(tmp_path / "wider.scvae")
    again = scvae.load(tmp_path / "wider.scvae")
    np.testing.assert_array_equal(again.embed(query), wider.embed(query))
    shares = np.array(wider.origin.batch_shares)
    assert shares.sum() == pytest.approx(1)
    assert shares[2] == pytest.approx(60 / (60 + model.record.n_train))
    assert set(wider.sample(200).obs["batch"]) == {"batch_0", "batch_1", "run_9"}
    assert len(wider.record.moved) == 3
    twice = wider.extend(query_of(adata, name="run_10"), max_steps=2)
    np.testing.assert_array_equal(twice.embed(query), wider.embed(query))


def test_the_same_seed_gives_the_same_and_genes_may_be_missing(fitted: Fitted) -> None:
    adata, model = fitted
    query = query_of(adata)[:, 5:].copy()
    with pytest.warns(scvae.errors.ScvaeWarning, match="35 of the model's 40"):
        one, two = (model.extend(query, max_steps=15).embed(query) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_what_cannot_be_extended_says_so(fitted: Fitted, simulated: AnnData) -> None:
    adata, model = fitted
    with pytest.raises(ConfigError, match=r"no batch or category .* not know"):
        model.extend(adata)
    with pytest.raises(ConfigError, match=r"batch='donor'.*adata\.obs\['batch'\] = adata\.obs"):
        model.extend(adata, batch="donor")
    with pytest.raises(DataError, match="no column 'batch'"):
        model.extend(AnnData(adata.X, var=adata.var))
    with pytest.raises(DataError, match=r"adata has 3 cells, too few .*batch='new'"):
        model.extend(query_of(adata, 3))
    assert model.extend(query_of(adata, 4), max_steps=2).batches[-1] == "run_9"
    bare = scvae.fit(simulated.copy(), max_steps=2, n_latent=3, progress=False)
    with pytest.raises(ConfigError, match="fitted without batches"):
        bare.extend(adata)


# -- alignment -------------------------------------------------------------------------------------


def clusters(n: int = 200) -> tuple[Alignment, torch.Tensor]:
    """Two clusters far apart, and cells of a batch that lies by one from their centres."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.tensor([[0.0, 0.0], [20.0, 0.0]])
    alignment = Alignment(
        torch.full((2,), 0.5).log(),
        mean[:, None],
        torch.full((2,), 0.3),
        torch.zeros(2, 1, 2),
        torch.ones(()),
    )
    x = mean.repeat_interleave(n, 0) + torch.tensor([0.0, 1.0])
    return alignment, x + 0.5 * torch.randn(2 * n, 2, generator=draw)


def test_offsets_of_a_new_batch_are_found_and_the_old_are_kept() -> None:
    alignment, x = clusters()
    wide = with_new_batches(alignment, x, torch.ones(len(x), dtype=torch.int64), 1)
    expected = OF_NEW * torch.tensor([0.0, 1.0]).expand(2, 2) / 1.05  # by the ridge
    torch.testing.assert_close(wide.offset[:, 1], expected, atol=0.05, rtol=0)
    for name in ("centre", "offset"):
        assert torch.equal(getattr(wide, name)[:, :1], getattr(alignment, name))


def test_a_cluster_in_excess_is_hardly_trusted() -> None:
    """Of a batch that has nine tenths of its cells in one cluster, some may be of another type."""
    alignment, x = clusters()
    some = torch.cat([x[:200], x[200:222]])
    wide = with_new_batches(alignment, some, torch.ones(len(some), dtype=torch.int64), 1)
    trust = (0.5 * 222 / 200) ** 3
    assert wide.offset[0, 1, 1] == pytest.approx(OF_NEW * trust, abs=0.05)
    assert wide.offset[1, 1, 1] > 0.6 * OF_NEW
