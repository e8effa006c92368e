"""The command line: what it writes, how it fails, and that it fails before the work is done."""

import inspect
import json
import os
import subprocess
import sys
import warnings

import anndata
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.image import imread

import scvae
from scvae import cli
from scvae.models.keep.record import Record

STEPS = ("--max-steps", "20")


@pytest.fixture(scope="module")
def cells():
    """Return cells with raw counts in X and in a layer."""
    adata = scvae.simulate(n_cells=120, n_genes=30, n_types=3)
    adata.layers["counts"] = adata.X.copy()
    adata.var["highly_variable"] = np.arange(30) < 20
    return adata


@pytest.fixture
def folder(cells, tmp_path, monkeypatch):
    """Return a working directory with in.h5ad."""
    cells.write_h5ad(tmp_path / "in.h5ad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def fitted(cells, tmp_path_factory):
    """Return the path of a saved model, and the model."""
    path = tmp_path_factory.mktemp("models") / "model.scvae"
    model = scvae.fit(
        cells, batch="batch", layer="counts", n_latent=4, max_steps=20, progress=False
    )
    model.save(path)
    return path, model


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def refuse(*args, **kwargs):
    raise AssertionError("the work was begun")


def read(path):
    return anndata.read_h5ad(path)


# -- fit -----------------------------------------------------------------------------------------


def test_fit_adds_the_embedding_and_keeps_the_rest(folder, cells, capsys):
    assert run("fit", "in.h5ad", "-o", "out.h5ad", "--batch", "batch", *STEPS) == 0
    out = read("out.h5ad")
    assert out.obsm["X_scvae"].shape == (120, 30)
    assert np.isfinite(out.obsm["X_scvae"]).all()
    assert out.uns["scvae"]["batch"] == "batch"
    assert out.uns["scvae"]["history"]["step"][-1] == 20
    assert (out.X != cells.X).nnz == 0
    assert list(out.obs) == list(cells.obs)
    assert set(out.obsm) == {"z", "X_scvae"}
    assert sorted(os.listdir()) == ["in.h5ad", "out.h5ad"]
    told = capsys.readouterr()
    assert told.out.startswith("out.h5ad: 120 cells, 30 latents in obsm['X_scvae']; held-out ELBO")
    assert told.err == ""


def test_fit_is_scvae_fit_with_its_own_defaults(folder, cells):
    run("fit", "in.h5ad", "-o", "out.h5ad", "--batch", "batch", "--seed", "3", *STEPS)
    same = cells.copy()
    scvae.fit(same, batch="batch", seed=3, max_steps=20, progress=False)
    np.testing.assert_allclose(read("out.h5ad").obsm["X_scvae"], same.obsm["X_scvae"], atol=1e-4)


def test_every_option_reaches_the_fit(folder, monkeypatch):
    given = {}

    def fit(adata, **options):
        given.update(options)
        raise scvae.DataError("enough")

    line = (
        "fit in.h5ad -o out.h5ad --batch batch --covariates library_size cell_type --layer counts "
        "--genes highly_variable --library-size latent --likelihood zinb --dispersion gene-batch "
        "--prior normal --decoder linear --n-latent 5 --n-hidden 6 --n-layers 2 --max-steps 7 "
        "--batch-size 8 --seed 9 --device cpu --learning-rate 0.01 --validation held "
        "--align 0.5 --checkpoint c"
    )
    defaults = cli.fit.defaults()
    monkeypatch.setattr("scvae.models.fit.fit", fit)
    monkeypatch.setattr("scvae.cli.fit.defaults", lambda: defaults)
    assert run(*line.split()) == 1
    assert given == {
        "batch": "batch",
        "covariates": ["library_size", "cell_type"],
        "layer": "counts",
        "genes": "highly_variable",
        "library_size": "latent",
        "likelihood": "zinb",
        "dispersion": "gene-batch",
        "prior": "normal",
        "decoder": "linear",
        "n_latent": 5,
        "n_hidden": 6,
        "n_layers": 2,
        "max_steps": 7,
        "batch_size": 8,
        "seed": 9,
        "device": "cpu",
        "learning_rate": 0.01,
        "validation": "held",
        "align": 0.5,
        "checkpoint": "c",
        "key_added": "X_scvae",
        "progress": True,
    }


def test_fit_writes_all_that_is_asked_for(folder, cells, capsys):
    line = (
        "fit in.h5ad -o out.h5ad --batch batch --genes highly_variable --n-latent 4 --leiden "
        "--umap umap.png --model model.scvae --quiet"
    )
    assert run(*line.split(), *STEPS) == 0
    out = read("out.h5ad")
    assert out.obsm["X_umap"].shape == (120, 2)
    assert out.obs["leiden"].dtype == "category"
    assert out.obs["leiden"].nunique() >= 2
    assert set(out.obsp) == set()
    model = scvae.load("model.scvae")
    assert model.architecture.n_genes == 20
    np.testing.assert_allclose(model.embed(out), out.obsm["X_scvae"], atol=1e-5)
    assert imread("umap.png")[..., :3].std() > 0.05
    assert sorted(os.listdir()) == ["in.h5ad", "model.scvae", "out.h5ad", "umap.png"]
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


@pytest.mark.parametrize(("asked", "resolution"), [("", 0.25), ("--resolution 2.5", 2.5)])
def test_clusters_are_those_of_a_resolution(folder, cells, asked, resolution):
    line = f"fit in.h5ad -o out.h5ad --batch batch --n-latent 4 --leiden {asked} --quiet"
    assert run(*line.split(), *STEPS) == 0
    out = read("out.h5ad")
    graph = scvae.analysis.neighbors(out, "X_scvae", seed=0)
    options = {"flavor": "igraph", "n_iterations": 2, "directed": False, "random_state": 0}
    sc.tl.leiden(graph, resolution=resolution, **options)
    assert list(out.obs["leiden"]) == list(graph.obs["leiden"])


@pytest.mark.parametrize("asked", ["--leiden --resolution 0", "--leiden --resolution x"])
def test_a_resolution_is_a_positive_number(folder, cells, capsys, asked):
    with pytest.raises(SystemExit):
        run("fit", "in.h5ad", "-o", "out.h5ad", *asked.split())
    assert "--resolution" in capsys.readouterr().err


def test_a_resolution_without_clusters_is_told(folder, cells, capsys):
    with pytest.raises(SystemExit):
        run("fit", "in.h5ad", "-o", "out.h5ad", "--resolution", "1")
    assert "--resolution needs clusters: --leiden" in capsys.readouterr().err


def test_the_picture_has_the_columns_asked_for(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr("scvae.plot.umap", lambda adata, color, **how: drawn.append(color))
    monkeypatch.setattr("scvae.analysis.lay_out", lambda graph, seed: graph)
    monkeypatch.setattr(AnnData, "write_h5ad", lambda self, path: path.write_bytes(b""))

    def neighbors(adata, key, seed):
        adata.obsm["X_umap"] = adata.obsm[key][:, :2]
        return adata

    monkeypatch.setattr("scvae.analysis.neighbors", neighbors)
    fit = ("fit", "in.h5ad", "-o", "out.h5ad", "--umap", "u.png", *STEPS)
    run(*fit, "--color", "cell_type", "library_size")
    run(*fit, "--batch", "batch")
    run(*fit)
    assert drawn == [["cell_type", "library_size"], ["batch"], []]


def test_the_input_may_be_the_output(folder):
    assert run("fit", "in.h5ad", "-o", "in.h5ad", *STEPS) == 0
    assert read("in.h5ad").obsm["X_scvae"].shape == (120, 30)
    assert os.listdir() == ["in.h5ad"]


# -- embed and info ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["X_scvae", "X_other"])
def test_embed_is_the_embedding_of_the_model(folder, fitted, cells, key, capsys):
    path, model = fitted
    cells[60:, ::-1].copy().write_h5ad("new.h5ad")
    assert run("embed", path, "new.h5ad", "-o", "out.h5ad", "--key", key) == 0
    np.testing.assert_allclose(read("out.h5ad").obsm[key], model.embed(cells)[60:], atol=1e-5)
    assert capsys.readouterr().out == f"out.h5ad: 60 cells, 4 latents in obsm[{key!r}]\n"


def test_info_is_a_table(fitted, capsys):
    path, model = fitted
    assert run("info", path) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    told = dict(rows)
    assert told["genes"] == "30"
    assert told["latents"] == "4"
    assert told["layer"] == "counts"
    assert told["batches"] == "2: batch_0, batch_1"
    assert told["covariates"] == "-"
    elbo = f"ELBO   {model.record.elbo_held_out:,.2f} nats per cell"
    assert told["held-out"].replace(" ", "") == elbo.replace(" ", "")
    assert f"scvae {scvae.__version__}, torch" in told["versions"]


def test_info_is_json(fitted, capsys):
    path, model = fitted
    assert run("info", path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["batches"] == ["batch_0", "batch_1"]
    assert facts["batch_column"] == "batch"
    assert facts["training_cells"] + facts["held_out_cells"] == 120
    assert facts["held_out_elbo"] == model.record.elbo_held_out
    assert facts["steps"] == 20
    assert facts["versions"] == model.record.versions


def test_info_of_a_model_that_says_little(fitted, tmp_path, capsys):
    bare = scvae.load(fitted[0])
    bare.record = Record()
    bare.save(tmp_path / "bare.scvae")
    assert run("info", tmp_path / "bare.scvae") == 0
    assert "kept step" in capsys.readouterr().out


# -- errors --------------------------------------------------------------------------------------

FAILURES = {
    "no input": ("fit absent.h5ad -o out.h5ad", "absent.h5ad is not there."),
    "a folder as input": ("fit . -o out.h5ad", ". holds cells further below: in.h5ad, text.h5ad."),
    "no h5ad file": (
        "fit text.h5ad -o out.h5ad",
        "text.h5ad cannot be read as cells",
    ),
    "no folder": ("fit in.h5ad -o absent/out.h5ad", "there is no folder"),
    "no folder of the model": ("fit in.h5ad -o out.h5ad --model a/m", "a/m cannot be written"),
    "a folder as output": ("fit in.h5ad -o .", "is a folder; give the name of a file"),
    "the cells as model": ("fit in.h5ad -o out.h5ad --model text.h5ad", "no model of scvae"),
    "a text as output": ("fit in.h5ad -o text.h5ad", "is no h5ad file"),
    "no picture": ("fit in.h5ad -o out.h5ad --umap u.txt", "u.txt is not the name of a picture"),
    "no colour": (
        "fit in.h5ad -o out.h5ad --umap u.png --color cell_typ",
        "adata.obs has no column 'cell_typ' (given as --color); did you mean 'cell_type'?",
    ),
    "no batch": ("fit in.h5ad -o out.h5ad --batch donor", "adata.obs has no column 'donor'"),
    "one file twice": ("fit in.h5ad -o out.h5ad --model out.h5ad", "out.h5ad is given twice"),
    "the input as model": ("fit in.h5ad -o out.h5ad --model in.h5ad", "in.h5ad is the input"),
    "a wrong number": ("fit in.h5ad -o out.h5ad --n-latent 0", "--n-latent 0"),
    "a wrong device": ("fit in.h5ad -o out.h5ad --device abacus", "--device abacus"),
    "no model": ("embed absent.scvae in.h5ad -o out.h5ad", "absent.scvae is not there."),
    "a wrong model": ("embed text.h5ad in.h5ad -o out.h5ad", "text.h5ad is not a model of scvae"),
    "the model as output": ("embed text.h5ad in.h5ad -o text.h5ad", "text.h5ad is given twice"),
    "info of no model": ("info absent.scvae", "absent.scvae is not there."),
    "info of a wrong model": ("info in.h5ad", "in.h5ad is not a model of scvae"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_are_one_line_and_leave_nothing(folder, monkeypatch, capsys, case):
    line, message = FAILURES[case]
    (folder / "text.h5ad").write_text("no HDF5 here")
    monkeypatch.setattr("scvae.models.plan.train", refuse)
    before = (folder / "in.h5ad").read_bytes()
    assert run(*line.split()) == 1
    told = capsys.readouterr()
    assert told.err.startswith("scvae: error: ")
    assert told.err.count("\n") == 1
    assert message in told.err
    assert told.out == ""
    assert sorted(os.listdir()) == ["in.h5ad", "text.h5ad"]
    assert (folder / "in.h5ad").read_bytes() == before


def test_data_that_are_no_counts_are_refused(folder, cells, capsys):
    logs = AnnData(np.log1p(cells.X), obs=cells.obs)
    logs.write_h5ad("logs.h5ad")
    assert run("fit", "logs.h5ad", "-o", "out.h5ad", *STEPS) == 1
    assert "adata.X has non-integer values" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["in.h5ad", "logs.h5ad"]


def test_debug_shows_where(folder, capsys):
    assert run("fit", "absent.h5ad", "-o", "out.h5ad", "--debug") == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert told.splitlines()[-1] == "scvae: error: absent.h5ad is not there."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device."),
        (TypeError("no such type\n  in two lines"), "no such type in two lines"),
    ],
)
def test_a_write_that_fails_half_way_leaves_the_old_file(
    folder, monkeypatch, capsys, error, reason
):
    AnnData(np.ones((2, 2))).write_h5ad("out.h5ad")
    before = (folder / "out.h5ad").read_bytes()

    def write(self, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(AnnData, "write_h5ad", write)
    assert run("fit", "in.h5ad", "-o", "out.h5ad", *STEPS) == 1
    told = capsys.readouterr().err
    assert told.endswith(f"scvae: error: out.h5ad cannot be written: {reason}\n")
    assert (folder / "out.h5ad").read_bytes() == before
    saved = ["out.X_scvae.npy", "out.X_scvae.txt"]
    assert sorted(os.listdir()) == ["in.h5ad", *saved, "out.h5ad"]


def test_what_was_learned_outlives_a_write_that_fails(folder, monkeypatch):
    monkeypatch.setattr(AnnData, "write_h5ad", refuse)
    assert run("fit", "in.h5ad", "-o", "out.h5ad", "--model", "model.scvae", *STEPS) == 1
    assert scvae.load("model.scvae").architecture.n_genes == 30


def test_an_interrupt_ends_quietly(folder, monkeypatch, capsys):
    def train(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("scvae.models.plan.train", train)
    assert run("fit", "in.h5ad", "-o", "out.h5ad") == 130
    assert capsys.readouterr().err == "scvae: interrupted\n"
    assert os.listdir() == ["in.h5ad"]


def test_an_error_of_the_program_is_not_hidden(folder, monkeypatch):
    monkeypatch.setattr("scvae.models.plan.train", refuse)
    with pytest.raises(AssertionError, match="the work was begun"):
        run("fit", "in.h5ad", "-o", "out.h5ad")
    assert os.listdir() == ["in.h5ad"]


# -- warnings ------------------------------------------------------------------------------------


def test_warnings_are_lines(folder, cells, capsys):
    silent = cells.copy()
    silent.X = silent.X.multiply(np.arange(30) != 7).tocsr()
    silent.write_h5ad("silent.h5ad")
    assert run("fit", "silent.h5ad", "-o", "out.h5ad", *STEPS) == 0
    told = capsys.readouterr().err
    assert told.startswith("scvae: warning: 1 genes have no counts (first: 'gene_7')")
    assert told.count("\n") == 1


@pytest.mark.parametrize("debug", [False, True])
def test_warnings_of_others_are_shown_to_debug(folder, fitted, monkeypatch, capsys, debug):
    def foreign(*args, **kwargs):
        warnings.warn_explicit("something old", FutureWarning, "/elsewhere/other.py", 1)
        return fitted[1]

    monkeypatch.setattr("scvae.models.load.load", foreign)
    assert run("info", fitted[0], *["--debug"] * debug) == 0
    assert ("scvae: warning: something old" in capsys.readouterr().err) is debug


# -- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "",
        "train in.h5ad",
        "fit in.h5ad",
        "fit -o out.h5ad",
        "fit in.h5ad -o out.h5ad --likelihood gaussian",
        "fit in.h5ad -o out.h5ad --n-latent many",
        "fit in.h5ad -o out.h5ad --max 20",
        "fit in.h5ad -o out.h5ad --seed -1",
        "fit in.h5ad -o out.h5ad --seed x",
        "fit in.h5ad -o out.h5ad --color cell_type",
        "embed model.scvae in.h5ad",
        "info",
    ],
)
def test_wrong_usage_ends_with_2(folder, monkeypatch, capsys, line):
    monkeypatch.setattr("scvae.models.fit.fit", refuse)
    with pytest.raises(SystemExit) as stop:
        run(*line.split())
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert os.listdir() == ["in.h5ad"]


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"scvae {scvae.__version__}\n"


def test_help_of_fit_shows_the_defaults_of_scvae_fit(capsys):
    with pytest.raises(SystemExit):
        run("fit", "--help")
    told = " ".join(capsys.readouterr().out.split())
    defaults = inspect.signature(scvae.fit).parameters
    for name, about in (
        ("likelihood", "law of the counts"),
        ("n_latent", "latent dimensions"),
        ("n_hidden", "width of the hidden layers"),
        ("seed", "of everything random"),
    ):
        assert f"{about} (default: {defaults[name].default})" in told
    assert "(default: None)" not in told


@pytest.mark.parametrize("line", ["--help", "embed --help", "info --help", "check --help"])
def test_help_needs_no_torch(line):
    command = [sys.executable, "-X", "importtime", "-m", "scvae.cli", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: scvae")
    assert "example" in done.stdout
    imported = {row.rsplit("|")[-1].strip() for row in done.stderr.splitlines()}
    assert "scvae.errors" in imported
    assert not {"torch", "numpy", "anndata", "scanpy", "matplotlib"} & imported
