"""Files of models: what a header may say, which tensors must be there, and older formats."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import FILES, architecture_of_rna, fitted_cells
from container import Container
from safetensors.torch import load_file
from torch import Generator, Tensor

import scvae
from scvae import FileError, cli
from scvae.core.vae import VAE
from scvae.io import files
from scvae.modalities.rna import Decoder
from scvae.models.embedding import Embedding, EmbeddingSpec
from scvae.models.keep.description import LARGEST_SIZE
from scvae.models.keep.migrations import FORMAT, MIGRATIONS, migrate_3_to_4, migrate_5_to_6
from scvae.models.keep.record import Record
from scvae.models.keep.weights import (
    EMBEDDING,
    GENES,
    LARGEST,
    OF_A_LAYER,
    expected_shapes,
    weight_shapes,
)
from scvae.models.network import Architecture, blank_vae, views_of

FORMATS = range(1, FORMAT + 1)
RECENT = FILES / f"format_{FORMAT}.scvae"

# -- older formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", FORMATS)
def test_a_model_of_every_format_embeds_as_it_did(version: int) -> None:
    model = scvae.load(FILES / f"format_{version}.scvae")
    expected = np.load(FILES / f"format_{version}.npy")
    np.testing.assert_allclose(model.embed(fitted_cells()), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(0).max() > 0.05  # else this says nothing


@pytest.mark.parametrize("version", FORMATS)
def test_a_migrated_model_is_whole(version: int, tmp_path: Path) -> None:
    model = scvae.load(FILES / f"format_{version}.scvae")
    assert model.record.seed == 0
    assert "held-out ELBO" in str(model.summary())
    model.save(tmp_path / "again")
    again, cells = scvae.load(tmp_path / "again"), fitted_cells()
    np.testing.assert_array_equal(again.embed(cells), model.embed(cells))
    assert (again.architecture, again.origin) == (model.architecture, model.origin)
    assert again.record == model.record


def test_every_format_has_a_migration_to_the_next() -> None:
    assert [*MIGRATIONS] == [*FORMATS][:-1]


@pytest.mark.parametrize("version", FORMATS)
def test_the_container_and_its_content_are_numbered_apart_since_format_3(version: int) -> None:
    described = Container.of((FILES / f"format_{version}.scvae").read_bytes()).description
    assert described["format"] == min(version, 2)
    assert described.get("content_format") == (None if version < 3 else version)


def test_a_model_of_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    files.write_file(tmp_path / "model", {}, {}, content_format=FORMAT + 1)
    with pytest.raises(
        FileError, match=f"format {FORMAT + 1}; this scvae reads up to {FORMAT}. Up"
    ):
        scvae.load(tmp_path / "model")


@pytest.mark.parametrize("outside", [False, True])
def test_what_format_3_decoded_of_all_genes_is_decoded_still(outside: bool) -> None:
    a = architecture_of_rna(7, n_latent=3, n_hidden=4, outside=outside)
    (view,) = views_of(blank_vae(a, Generator().manual_seed(0)).eval(), a)
    decoder, draw = view.decoder, Generator().manual_seed(1)
    assert isinstance(decoder, Decoder)
    loadings, z = torch.randn(7, 3, generator=draw), torch.randn(9, 3, generator=draw)
    rest = {"centre": torch.zeros(3), "covariates": torch.zeros(0)}
    tensors = {f"{EMBEDDING}coordinates.{name}": t for name, t in rest.items()}
    tensors[f"{EMBEDDING}coordinates.loadings"] = loadings
    content = {
        "architecture": {"outside": outside},
        "embedding": {"coordinates": "expression", "clusters": 0},
    }
    tensors, content = migrate_5_to_6(*migrate_3_to_4(tensors, content))
    assert content["embedding"]["genes"] == 7 + outside
    assert content["embedding"]["coordinates"] == "logs"
    found = Embedding.of("logs", {n.removeprefix(EMBEDDING): t for n, t in tensors.items()})
    with torch.no_grad():
        expected = torch.log1p(1e4 * decoder.expression(z, torch.zeros(9, 0))) @ loadings
    torch.testing.assert_close(found.mean([view], z, torch.zeros(9, dtype=torch.long)), expected)


def test_the_first_format_is_of_its_time() -> None:
    file = Container.of((FILES / "format_1.scvae").read_bytes())
    assert set(file.metadata) == {"scvae"}
    assert {"format", "summary"} < file.description.keys()
    assert file.table["posterior.hidden.layers.0.weight"]["shape"] == [8, 33]


def test_the_earliest_files_had_no_prior_but_the_normal_one(tmp_path: Path) -> None:
    file = Container.of((FILES / "format_1.scvae").read_bytes())
    described = file.description
    del described["architecture"]["prior"], described["summary"]
    file.description = described
    (tmp_path / "model").write_bytes(file.data())
    model = scvae.load(tmp_path / "model")
    assert model.architecture.prior == "normal"
    assert model.record == Record()


def test_a_field_of_today_is_never_filled_in(tmp_path: Path) -> None:
    for name in ("prior", "encode_covariates", "n_layers"):
        with pytest.raises(FileError, match=f"architecture has no '{name}'"):
            load_changed(tmp_path, lambda said, name=name: said["architecture"].pop(name))


# -- tensors that follow from the architecture -----------------------------------------------------

CHOICES: dict[str, tuple[Any, ...]] = {
    "likelihood": ("nb", "zinb", "poisson"),
    "dispersion": ("gene", "gene-batch", "gene-cell"),
    "latent_library": (False, True),
    "outside": (False, True),
    "encode_covariates": (False, True),
    "prior": ("normal", "mixture"),
    "n_layers": (1, 3),
}


@pytest.mark.parametrize("n_covariates", [0, 2])
@pytest.mark.parametrize("encode_covariates", [False, True])
def test_a_migration_to_3_takes_the_weights_of_covariates_apart(
    n_covariates: int, encode_covariates: bool
) -> None:
    a = architecture_of_rna(
        5,
        n_covariates=n_covariates,
        n_layers=2,
        encode_covariates=encode_covariates,
        prior="mixture",
    )
    today = dict(blank_vae(a, Generator()).state_dict())
    before = dict(today)
    for name in today:
        if name.endswith("covariate_weight"):
            v, whole = before.pop(name), name.replace("covariate_weight", "weight")
            in_rows = whole == "posterior.hidden.layers.0.weight"
            before[whole] = torch.cat([today[whole], v if in_rows else v.t()], 0 if in_rows else 1)
    axes = torch.eye(a.n_latent)
    found, _ = MIGRATIONS[2](before | {"axes": axes}, {"architecture": dataclasses.asdict(a)})
    assert torch.equal(found.pop(f"{EMBEDDING}coordinates.axes"), axes)
    assert found.keys() == today.keys()
    assert all(torch.equal(found[name], today[name]) for name in today)


@pytest.mark.parametrize("n_batches", [1, 2])
def test_expected_shapes_are_those_of_the_network(n_batches: int) -> None:
    for chosen in itertools.product(*CHOICES.values()):
        variant = dict(zip(CHOICES, chosen, strict=True))
        sizes = {"n_batches": n_batches, "n_covariates": n_batches + 2}
        a = architecture_of_rna(11, n_latent=3, n_hidden=5, **sizes, **variant)
        tensors = blank_vae(a, Generator()).state_dict()
        built = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        axes = {f"{EMBEDDING}coordinates.axes": (3, 3)}
        assert expected_shapes(a, EmbeddingSpec("latent", 0, 0)) == {**axes, **built}
        assert len(built) >= OF_A_LAYER * a.n_layers


def test_the_tensors_of_a_network_by_hand() -> None:
    """Other names or shapes than these need a new format."""
    sizes = {"n_batches": 2, "n_covariates": 4, "n_latent": 3, "n_hidden": 5, "n_layers": 2}
    a = architecture_of_rna(11, **sizes, likelihood="zinb", outside=True)
    norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (5,))
    layers = {
        f"{part}.hidden.{name}": shape
        for part, first in (("posterior", (11, 5)), ("likelihood", (5, 3)))
        for name, shape in {
            **{"layers.0.weight": first, "layers.0.bias": (5,), "layers.1.weight": (5, 5)},
            **{"layers.1.bias": (5,), "layers.0.covariate_weight": (4, 5)},
            **{"layers.1.covariate_weight": (4, 5)},
            **{f"norms.{i}.{name}": shape for i in (0, 1) for name, shape in norm.items()},
            **{f"norms.{i}.num_batches_tracked": () for i in (0, 1)},
        }.items()
    }
    assert weight_shapes(a) == {
        **layers,
        "prior.library_loc": (2,),
        "prior.library_scale": (2,),
        "posterior.log_target": (),
        "posterior.head.linear.weight": (6, 5),
        "posterior.head.linear.bias": (6,),
        "likelihood.share.weight": (12, 5),
        "likelihood.share.bias": (12,),
        "likelihood.dropout.weight": (11, 5),
        "likelihood.dropout.bias": (11,),
        "likelihood.log_inverse_dispersion": (1, 11),
    }


def test_shapes_take_no_memory() -> None:
    sizes = {"n_latent": LARGEST_SIZE, "n_hidden": LARGEST_SIZE, "n_layers": 2}
    a = architecture_of_rna(LARGEST_SIZE, **sizes, outside=True, latent_library=True)
    shapes = weight_shapes(a)
    assert shapes["posterior.head.linear.weight"] == (2 * LARGEST_SIZE + 2, LARGEST_SIZE)


@pytest.mark.parametrize("align", [True, False])
def test_expected_shapes_are_those_of_the_embedding(align: bool) -> None:
    model = scvae.fit(fitted_cells(), batch="batch", align=align, max_steps=1, progress=False)
    built = {EMBEDDING + name: tuple(t.shape) for name, t in model.embedding.tensors().items()}
    expected = expected_shapes(model.architecture, model.embedding.spec)
    assert {name: expected[name] for name in expected if name.startswith(EMBEDDING)} == built
    assert bool(model.embedding.spec.clusters) is align


# -- headers that lie ------------------------------------------------------------------------------


def load_changed(
    folder: Path,
    of_content: Callable[[Any], Any] = lambda content: None,
    of_tensors: Callable[[dict[str, Tensor]], Any] = lambda tensors: None,
) -> scvae.Model:
    """Load the recent model after changes, with checksums that agree with them."""
    described = copy.deepcopy(Container.of(RECENT.read_bytes()).description["content"])
    tensors = load_file(RECENT)
    of_content(described)
    of_tensors(tensors)
    files.write_file(folder / "changed", tensors, described, content_format=FORMAT)
    return scvae.load(folder / "changed")


def test_a_change_of_nothing_loads(tmp_path: Path) -> None:
    model = load_changed(tmp_path)
    np.testing.assert_array_equal(
        model.embed(fitted_cells()), scvae.load(RECENT).embed(fitted_cells())
    )


def at(*place: str | int, value: Any) -> Callable[[Any], None]:
    """Return a function that puts `value` in its place."""

    def change(content: Any) -> None:
        for step in place[:-1]:
            content = content[step]
        content[place[-1]] = value

    return change


def without(*place: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for step in place[:-1]:
            content = content[step]
        del content[place[-1]]

    return change


def of_rna(*place: str, value: Any) -> Callable[[Any], None]:
    return at("architecture", "parts", "rna", *place, value=value)


SIZES = (10**9, 2**28, 2**62, 2**64, -1, 0, True, 8.0, "8", None, [8])
NETWORK = ("n_batches", "n_covariates", "n_latent", "n_hidden", "n_layers")
HUGE = [
    (at("architecture", name, value=value), f"{name}|has shape|layers would need more")
    for name in NETWORK
    for value in SIZES
] + [(of_rna("n_genes", value=value), "n_genes|has shape|number of features") for value in SIZES]
LIES: list[tuple[Callable[[Any], Any], str]] = [
    *HUGE,
    (of_rna("likelihood", value="gauss"), "likelihood='gauss'"),
    (of_rna("likelihood", value=["nb"]), r"likelihood=\['nb'\]"),
    (of_rna("likelihood", value="zinb"), "lacks the tensor likelihood.dropout"),
    (of_rna("likelihood", value="poisson"), "unknown tensor"),
    (of_rna("dispersion", value="gene-batch"), "log_inverse_dispersion has shape"),
    (of_rna("dispersion", value="gene-cell"), "lacks the tensor likelihood.log"),
    (at("architecture", "prior", value="vamp"), "prior='vamp'"),
    (at("architecture", "prior", value="normal"), "unknown tensor 'prior.of_z"),
    (of_rna("latent_library", value=0), "latent_library=0"),
    (of_rna("latent_library", value=True), "latent_library is True, but"),
    (of_rna("outside", value=True), "outside is True, but"),
    (at("architecture", "encode_covariates", value=False), "unknown tensor 'post"),
    (at("architecture", "dropout", value=0.1), "unknown 'dropout'"),
    (at("architecture", value=[]), "architecture is .*not an object"),
    (at("embedding", value=[]), "embedding is .*not an object"),
    (without("embedding"), "no 'embedding'"),
    (without("embedding", "clusters"), "embedding has no 'clusters'"),
    (at("embedding", "coordinates", value="latent"), "lacks the tensor embedding.coordinates.axes"),
    (at("embedding", "coordinates", value="pickle"), "coordinates='pickle'"),
    (at("embedding", "coordinates", value=["latent"]), "coordinates="),
    *(
        (at("embedding", "clusters", value=value), "clusters|has shape")
        for value in (10**9, 2**28, 2**62, 2**64, -1, True, 3.0, "3", None)
    ),
    (at("embedding", "clusters", value=0), "unknown tensor 'embedding.al"),
    (at("extra", value=1), "unknown 'extra'"),
    (without("record"), "no 'record'"),
    (without("origin", "parts", "rna", "layer"), "origin.parts.rna has no 'layer'"),
    (at("origin", "parts", "rna", "names", value=["a"] * 30), "names are not names, each once"),
    (at("origin", "parts", "rna", "names", 0, value=7), "names are not names"),
    (at("origin", "parts", "rna", "names", value="a" * 30), "names are not names"),
    (at("origin", "parts", "rna", "names", value={}), "names are not names"),
    (at("origin", "parts", "rna", "names", value=["a"]), "number of features of rna is 30, but"),
    (at("origin", "parts", "rna", "layer", value=3), "rna.layer"),
    (at("origin", "parts", "rna", "library_size", value=None), "rna.library_size"),
    (at("origin", "parts", "rna", "library_size", value="latent"), "latent_library is False, but"),
    (at("origin", "parts", "rna", "library_size", value="total"), "outside is False, but"),
    (at("origin", "parts", "rna", "place", value=3), "rna.place"),
    (at("origin", "parts", value={}), "origin.parts is"),
    (at("origin", "parts", value={"guides": {}}), "origin.parts is"),
    (at("architecture", "parts", value={"guides": {}}), "architecture.parts is"),
    (at("architecture", "parts", value=[]), "architecture.parts is"),
    (at("architecture", "parts", value={"protein": {"n_proteins": 30}}), "networks of"),
    (at("architecture", "fusion", value="sum"), "fusion='sum'"),
    (at("record", "alone", value=-1.0), "a alone of the wrong kind"),
    (at("origin", "batch_shares", value=[1.0]), "number of batch_shares is 1"),
    (at("origin", "batch_shares", value=[2.0, -1.0]), "batch_shares are not numbers"),
    (at("origin", "batch_shares", value=[0.0, 0.0]), "batch_shares add up to 0"),
    (at("origin", "batch_shares", value=[float("nan"), 1.0]), "batch_shares are not numbers"),
    (at("origin", "batch_shares", value=["1", "0"]), "batch_shares are not numbers"),
    (at("origin", "batch_shares", value={"a": 1}), "batch_shares are not numbers"),
    (at("origin", "covariates", value=None), "covariates is None"),
    (at("origin", "covariates", "batch", value="donor"), "batch='donor' is not the first"),
    (at("origin", "covariates", "batch", value=["batch"]), "is not the first"),
    (at("origin", "covariates", "batch", value=None), "n_batches is 2, but"),
    (at("origin", "covariates", "categories", value=[]), "is not an object"),
    (at("origin", "covariates", "categories", "batch", value=["a", "a"]), "each once"),
    (at("origin", "covariates", "categories", "batch", value=["a", 1]), "each once"),
    (at("origin", "covariates", "categories", "batch", value=[]), "each once"),
    (at("origin", "covariates", "categories", "batch", value=["a", "b", "c"]), "n_covariates"),
    (at("origin", "covariates", "numbers", value=[]), "is not an object"),
    (at("origin", "covariates", "numbers", "batch", value=[0.0, 1.0]), "numbers"),
    *(
        (at("origin", "covariates", "numbers", "library_size", value=pair), "numbers")
        for pair in ([1], [1, 0], [1, -1], [0, float("inf")], [float("nan"), 1], [1e30, 1], "12")
    ),
    (at("record", value=[]), "record is not an object"),
    (at("record", "seed", value="0"), "a seed of the wrong kind"),
    (at("record", "versions", value=[1]), "versions of the wrong kind"),
    (at("record", "versions", "scvae", value=1), "versions of the wrong kind"),
    (at("record", "schedule", "steps", value=None), "schedule of the wrong kind"),
    *(
        (at("record", "align", value=v), "a align of the wrong kind")
        for v in (-5, 1e308, float("nan"), "1")
    ),
    (at("record", "moved", value=[-1.0]), "a moved of the wrong kind"),
    (at("record", "history", value=[1]), "history that is not an object"),
    (without("record", "history", "beta"), "history without beta"),
    (at("record", "history", "train", value=[]), "history of unequal lengths"),
    (at("record", "history", "train", 0, value="1"), "history without train"),
    (at("record", "history", "best_step", value=10**9), "history without its best step"),
    (at("record", "held_out", value={"kl": 1.0}), "held_out without reconstruction"),
]


@pytest.fixture(scope="module")
def imported() -> None:
    """Import what a load imports, which takes memory."""
    scvae.load(RECENT)


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("number", range(len(LIES)))
def test_a_header_that_lies_is_refused_before_a_network_is_built(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a network was built")

    def shape_alone(a: Architecture) -> VAE:
        vae = blank_vae(a)
        assert all(tensor.is_meta for tensor in (*vae.parameters(), *vae.buffers()))
        return vae

    monkeypatch.setattr("scvae.models.keep.files.blank_vae", refuse)
    monkeypatch.setattr("scvae.models.keep.weights.blank_vae", shape_alone)
    change, reason = LIES[number]
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=reason) as caught:
            load_changed(tmp_path, change)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert str(tmp_path / "changed") in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_names_cannot_command_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bell = "\x1b[2J\x07\u202e"
    load_changed(tmp_path, at("origin", "covariates", "categories", "batch", value=[bell, "b"]))
    assert cli.main(["info", str(tmp_path / "changed")]) == 0
    load_fails = ["info", str(tmp_path / bell)]
    assert cli.main(load_fails) == 1
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert r"\x1b[2J\x07\u202e" in text
        assert all(c.isprintable() for c in text.replace("\n", ""))
    with pytest.raises(FileError, match="device of the wrong kind"):
        load_changed(tmp_path, at("record", "device", value=bell))


def test_the_record_may_be_empty_or_hold_more(tmp_path: Path) -> None:
    assert load_changed(tmp_path, at("record", value={})).record == Record()
    model = load_changed(tmp_path, at("record", "note", value=[None, {"deep": [1]}]))
    assert model.record.other["note"] == [None, {"deep": [1]}]
    assert "verdict" in str(model.summary())


# -- tensors that are not the network's ------------------------------------------------------------

WEIGHT = "likelihood.share.weight"
LOADINGS = f"{EMBEDDING}coordinates.loadings"


def filled(name: str, value: float) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda tensors: tensors.pop(WEIGHT), f"lacks the tensor {WEIGHT}"),
    "too many": (lambda tensors: tensors.update(w=torch.ones(1)), "unknown tensor 'w'"),
    "without loadings": (lambda tensors: tensors.pop(LOADINGS), f"lacks the tensor {LOADINGS}"),
    "turned": (lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].t()}), "has shape"),
    "gene beyond": (lambda tensors: tensors[GENES].add_(1), "number 30, but there are 30 features"),
    "gene below": (lambda tensors: tensors[GENES].sub_(1), "not finite, or outside 0"),
    "double": (lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].double()}), "float64"),
    "whole": (lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].long()}), "int64"),
    "NaN": (filled(WEIGHT, float("nan")), "not finite"),
    "infinite": (filled(WEIGHT, float("inf")), "not finite"),
    "NaN loadings": (filled(LOADINGS, float("nan")), "loadings has values that are not finite"),
    "no variance": (filled(f"{EMBEDDING}alignment.variance", 0.0), "outside"),
    "more than all": (filled(f"{EMBEDDING}alignment.strength", 1.5), "outside 0 to 1"),
    "huge": (filled(WEIGHT, 2 * LARGEST), "outside -1e[+]07 to 1e[+]07"),
    "variance": (filled("posterior.hidden.norms.0.running_var", -1e-6), "outside 0 to"),
    "deviation": (filled("prior.library_scale", 0.0), "outside"),
    "library": (filled("posterior.log_target", 61.0), "outside -60 to 60"),
    "counter": (filled("likelihood.hidden.norms.0.num_batches_tracked", -1), "outside 0 to"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_tensors_than_the_networks_are_refused(kind: str, tmp_path: Path) -> None:
    change, reason = WRONG[kind]
    with pytest.raises(FileError, match=reason):
        load_changed(tmp_path, of_tensors=change)


# -- what is saved can be loaded -------------------------------------------------------------------


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    model = scvae.load(RECENT)
    (tmp_path / "model").write_text("before")
    with torch.no_grad():
        next(model.vae.parameters()).fill_(float("nan"))
    with pytest.raises(FileError, match=r"was not written.*not finite"):
        model.save(tmp_path / "model")
    model = scvae.load(RECENT)
    model.record = dataclasses.replace(model.record, seed="none")  # type: ignore[arg-type]
    with pytest.raises(FileError, match=r"was not written.*seed"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "before"


def test_data_are_not_overwritten_by_a_model_unless_told(tmp_path: Path) -> None:
    model, path = scvae.load(RECENT), tmp_path / "cells.h5ad"
    fitted_cells().write_h5ad(path)
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"no model of scvae: it begins like an HDF5.*overwrite="):
        model.save(path)
    assert path.read_bytes() == before
    model.save(path, overwrite=True)
    model.save(path)  # a model may take the place of one
    assert scvae.load(path).record == model.record


def test_loading_executes_nothing_and_leaves_random_states_alone() -> None:
    before = torch.get_rng_state()
    scvae.load(RECENT)
    assert torch.equal(torch.get_rng_state(), before)
