"""The linear decoder: its loadings are exact, and orthogonal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

import scvae
from scvae.analysis import interpret, loadings
from scvae.cli import main
from scvae.modalities.rna import Rna
from scvae.models.embedding import EmbeddingSpec
from scvae.models.keep.description import Description, describe, read_description
from scvae.models.keep.weights import EMBEDDING, check_model
from scvae.models.network import Architecture, blank_vae


@pytest.fixture(scope="module")
def linear() -> tuple[AnnData, scvae.Model]:
    adata = scvae.simulate(600, 60, n_batches=2, n_latent=3, seed=2)
    options = {"n_latent": 5, "n_hidden": 32, "max_steps": 400, "progress": False, "seed": 1}
    return adata, scvae.fit(adata, batch="batch", decoder="linear", align=False, **options)


def log_shares(model: scvae.Model, z: torch.Tensor, batch: int = 0) -> np.ndarray:
    s = torch.eye(2)[[batch]]
    with torch.no_grad():
        return np.log(model.decoder.double().expression(z.double(), s.double()).numpy())


def test_log_shares_are_linear_but_for_their_sum(linear: tuple[AnnData, scvae.Model]) -> None:
    model = linear[1]
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3
    logs = log_shares(model, torch.cat([z, z.mean(0, keepdim=True)]))
    model.decoder.float()
    centred = logs - logs.mean(1, keepdims=True)
    assert centred[3] == pytest.approx(centred[:3].mean(0), abs=1e-6)
    assert np.ptp(logs[3] - logs[:3].mean(0)) < 1e-5  # what is left is one number for all genes


def test_coordinates_are_the_weighted_sums_of_log_shares(
    linear: tuple[AnnData, scvae.Model],
) -> None:
    adata, model = linear
    axes, weights = model.embedding.coordinates, loadings(model)
    assert list(weights.index) == list(adata.var_names)
    assert weights.sum().to_numpy() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        z = model.vae.encode(model.read(adata).cells(torch.arange(600))).mean
    far = torch.cat([z[:40], 4 * z[:10]])
    batch = int(axes.covariates.argmax())
    made = log_shares(model, far, batch) @ weights.to_numpy()
    model.decoder.float()
    with torch.no_grad():
        found = axes(model.views, far).numpy()
    assert found - made == pytest.approx(np.tile((found - made)[:1], (50, 1)), abs=1e-4)
    assert found.mean(0) - axes(model.views, far.mean(0, keepdim=True)).detach().numpy()[
        0
    ] == pytest.approx(0, abs=1e-4)  # linear in z


def test_axes_are_orthogonal_and_fall(linear: tuple[AnnData, scvae.Model]) -> None:
    adata, model = linear
    train = model.embed(adata)
    covariance = np.cov(train, rowvar=False)
    deviation = np.sqrt(np.diag(covariance))
    assert (np.diff(deviation) < 0.05 * deviation[0]).all()
    correlation = covariance / np.outer(deviation, deviation)
    strong = deviation > 0.1 * deviation[0]
    assert np.abs(correlation - np.eye(5))[np.ix_(strong, strong)].max() < 0.15  # held-out cells
    explained = interpret(model)["explained"]
    assert explained.sum() == pytest.approx(1)
    assert explained.iloc[0] == explained.max()


def test_the_true_axes_are_found(linear: tuple[AnnData, scvae.Model]) -> None:
    adata, model = linear
    x = np.column_stack([model.embed(adata), np.ones(adata.n_obs)])
    z = adata.obsm["z"]
    left = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
    assert (left.var(0) / z.var(0)).max() < 0.1


@pytest.mark.parametrize(
    ("likelihood", "dispersion"), [("zinb", "gene-cell"), ("poisson", "gene"), ("nb", "gene-batch")]
)
def test_files_hold_it_whatever_the_law(
    likelihood: str, dispersion: str, tmp_path: Path, simulated: AnnData
) -> None:
    options = {"likelihood": likelihood, "dispersion": dispersion, "n_layers": 3, "n_hidden": 8}
    model = scvae.fit(
        simulated.copy(), batch="batch", decoder="linear", max_steps=3, progress=False, **options
    )
    model.save(tmp_path / "m.scvae")
    again = scvae.load(tmp_path / "m.scvae")
    assert again.architecture == model.architecture
    assert np.array_equal(again.embed(simulated), model.embed(simulated))
    assert "linear" in str(model.summary())


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_a_header_cannot_ask_for_more_than_the_file_holds(n_layers: int, likelihood: str) -> None:
    rna = Rna(11, likelihood=likelihood, linear=True)
    a = Architecture({"rna": rna}, 2, 4, n_latent=3, n_hidden=5, n_layers=n_layers)
    tensors = dict(blank_vae(a, torch.Generator()).state_dict())
    tensors["prior.library_scale"] += 1
    axes = {f"{EMBEDDING}coordinates.axes": torch.eye(3)}
    check_model(tensors | axes, a, EmbeddingSpec("latent", 0, 0))
    network = dataclasses.replace(a, parts={"rna": dataclasses.replace(rna, linear=False)})
    with pytest.raises(ValueError, match=r"lacks the tensor|layers would need"):
        check_model(tensors | axes, network, EmbeddingSpec("latent", 0, 0))


def test_files_of_networks_are_as_they_were(trained: tuple[AnnData, scvae.Model]) -> None:
    model = trained[1]
    parts = Description(
        model.architecture, model.embedding.spec, model.origin, dataclasses.replace(model.record)
    )
    fields = describe(parts)
    rna = fields["architecture"]["parts"]["rna"]
    assert "linear" not in rna
    assert read_description(fields).architecture == model.architecture
    for wrong in ("lin", 1, None):
        parts = {"rna": {**rna, "linear": wrong}}
        bad = {**fields, "architecture": {**fields["architecture"], "parts": parts}}
        with pytest.raises(ValueError, match="linear"):
            read_description(bad)


def test_the_command_line_takes_it(simulated: AnnData, tmp_path: Path) -> None:
    simulated.write_h5ad(tmp_path / "a.h5ad")
    arguments = [str(tmp_path / "a.h5ad"), "-o", str(tmp_path / "b.h5ad"), "--max-steps", "3"]
    model = tmp_path / "m.scvae"
    assert main(["fit", *arguments, "--decoder", "linear", "--model", str(model)]) == 0
    assert scvae.load(model).architecture.rna.linear
    with pytest.raises(scvae.ConfigError, match="decoder='linaer'"):
        scvae.fit(simulated, decoder="linaer")
