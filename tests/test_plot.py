"""Pictures: what is drawn is what was given, nothing else is touched, files are whole or absent."""

import os
import stat
import subprocess
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread

import scvae
from scvae import plot
from scvae.errors import ConfigError, DataError, FileError
from scvae.io import replacing
from scvae.models.keep.record import Record
from scvae.plot import figures, fits
from scvae.plot.cells import MISSING
from scvae.plot.figures import PALETTE
from scvae.train.history import History

HISTORY = History(
    step=[10, 20, 30, 40],
    train=[-90.0, -60.0, -50.0, -45.0],
    validation=[-95.0, -70.0, -62.0, -63.0],
    best_step=30,
)


@pytest.fixture
def adata():
    """Return cells with an embedding and a UMAP that are easy to tell from computed ones."""
    adata = scvae.simulate(n_cells=120, n_genes=20, n_types=3)
    adata.obsm["X_scvae"] = adata.obsm["z"]
    adata.obsm["X_umap"] = adata.obsm["z"][:, :2] * 100
    return adata


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.mark.parametrize("size", [(12.0, 4.3), (4.4, 4.0)])
def test_a_figure_that_is_saved_plainly_is_not_cut(size):
    panels = figures.own_axes(size, 3 if size[0] > 10 else 1)
    means = np.random.default_rng(0).lognormal(-2, 2, 500)
    for ax, label in zip(panels, ("mean", "variance", "share of zeros"), strict=False):
        fits.draw_check(ax, means, np.where(means < 0.05, 0.0, means), label, True)
    figure = panels[0].figure
    figure.savefig(BytesIO())  # without bbox_inches="tight", as readers do
    for ax in panels:
        bounds = ax.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
        assert (bounds.min >= 0).all(), bounds
        assert (bounds.max <= figure.bbox.size).all(), bounds


def drawn(axes):
    """Return positions and colours of the points, in the order in which they are drawn."""
    points = axes.collections[0]
    offsets = points.get_offsets()
    assert not np.ma.getmaskarray(offsets).any()  # a masked point is not drawn
    return np.asarray(offsets), points.get_facecolors()


def in_order_of(points, axes):
    """Return the colour of every given point."""
    offsets, colors = drawn(axes)
    nearest = ((points[:, None] - offsets[None]) ** 2).sum(-1).argmin(1)
    assert np.allclose(offsets[nearest], points)
    assert sorted(nearest) == list(range(len(points)))
    return colors[nearest]


# -- umap ----------------------------------------------------------------------------------------


def test_umap_has_one_titled_panel_a_colour(adata):
    figure = plot.umap(adata, ["cell_type", "library_size", "batch"])
    assert isinstance(figure, Figure)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["cell_type", "library_size", "batch"]
    for axes in panels:
        assert isinstance(axes, Axes)
        assert axes.get_aspect() == 1.0
        assert not len(axes.get_xticks())
        assert not len(axes.get_yticks())


def test_umap_draws_what_is_there(adata):
    axes = plot.umap(adata, "batch").axes[0]
    in_order_of(adata.obsm["X_umap"], axes)


def test_umap_without_a_colour_draws_every_cell(adata):
    (axes,) = plot.umap(adata).axes
    assert len(drawn(axes)[0]) == adata.n_obs
    assert axes.get_title() == "UMAP of X_scvae"


@pytest.mark.parametrize("reason", ["absent", "of another embedding", "asked for"])
def test_umap_computes_without_a_trace(adata, reason):
    if reason == "absent":
        del adata.obsm["X_umap"]
    if reason == "of another embedding":  # scanpy leaves use_rep out where it took X_pca
        adata.uns["neighbors"] = {"params": {"n_neighbors": 15}}
    before = adata.copy()
    figure = plot.umap(adata, "cell_type", recompute=reason == "asked for")
    offsets, _ = drawn(figure.axes[0])
    assert offsets.shape == (120, 2)
    assert np.ptp(offsets) < 80  # the stored layout is over 300 wide
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    for slot in ("obsm", "obsp", "uns", "layers", "varm"):
        assert sorted(getattr(adata, slot)) == sorted(getattr(before, slot))


def test_umap_of_the_embedding_is_not_computed_again(adata, monkeypatch):
    adata.uns["neighbors"] = {"params": {"use_rep": "X_scvae"}}
    monkeypatch.setattr("scvae.analysis.neighbours.neighbors", None)
    in_order_of(adata.obsm["X_umap"], plot.umap(adata, "batch").axes[0])


def test_umap_of_few_cells(adata):
    few = adata[:10].copy()
    del few.obsm["X_umap"]
    offsets, _ = drawn(plot.umap(few, "batch").axes[0])
    assert np.isfinite(offsets).all()
    assert offsets.shape == (10, 2)


def test_umap_writes_a_picture(adata, tmp_path):
    path = tmp_path / "cells.png"
    plot.umap(adata, ["cell_type", "library_size"], path=path)
    pixels = imread(path)[..., :3]
    assert 1_000 < pixels.shape[1] <= 1_600
    colours = np.unique((pixels.reshape(-1, 3) * 255).astype(int), axis=0)
    assert len(colours) > 100  # an anti-aliased picture of three types and a colour scale
    assert (pixels < 0.9).any(axis=-1).mean() > 0.01
    assert os.listdir(tmp_path) == ["cells.png"]


@pytest.mark.parametrize("suffix", ["pdf", "svg", "jpg"])
def test_umap_writes_other_formats(adata, tmp_path, suffix):
    start = {"pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8"}[suffix]
    path = tmp_path / f"cells.{suffix}"
    plot.umap(adata, "batch", path=path)
    assert path.read_bytes().startswith(start)


def test_errors_come_before_the_work(adata, tmp_path, monkeypatch):
    del adata.obsm["X_umap"]
    monkeypatch.setattr("scvae.analysis.neighbours.neighbors", None)
    with pytest.raises(DataError, match=r"no column 'cell_typ' .*did you mean 'cell_type'\?"):
        plot.umap(adata, "cell_typ")
    with pytest.raises(ConfigError, match=r"cells\.h5ad is not the name of a picture"):
        plot.umap(adata, "batch", path=tmp_path / "cells.h5ad")


def test_a_missing_embedding_is_named(adata):
    del adata.obsm["X_umap"]
    with pytest.raises(
        DataError, match=r"no 'X_other' \(given as key\); it holds: 'z', 'X_scvae'\."
    ):
        plot.umap(adata, "batch", key="X_other")


def test_nothing_is_left_where_a_picture_cannot_be_written(adata, tmp_path):
    with pytest.raises(FileError, match="cannot be written"):
        plot.umap(adata, "batch", path=tmp_path / "absent" / "cells.png")
    assert os.listdir(tmp_path) == []


# -- scatter -------------------------------------------------------------------------------------


def test_every_point_has_the_colour_of_its_category(ax):
    points = np.random.default_rng(0).normal(size=(200, 2))
    labels = np.array(["long name", "other name", "third name"])[np.arange(200) % 3]
    assert plot.scatter(ax, points, labels) is ax
    expected = [to_rgba(PALETTE[i % 3]) for i in range(200)]
    np.testing.assert_allclose(in_order_of(points, ax), expected)
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == sorted(set(labels))
    handles = [to_rgba(handle.get_color()) for handle in legend.legend_handles]
    assert handles == [to_rgba(color) for color in PALETTE[:3]]


def test_points_are_not_drawn_category_by_category(ax):
    points = np.random.default_rng(0).normal(size=(400, 2))
    plot.scatter(ax, points, np.repeat(["a", "b"], 200))
    _, colors = drawn(ax)
    changes = (colors[1:] != colors[:-1]).any(axis=1).sum()
    assert changes > 100  # 1 if drawn in order, 200 expected in random order


def test_categories_keep_their_order_and_drop_the_unused(ax):
    values = pd.Categorical(["low", "high"], categories=["low", "middle", "high"])
    plot.scatter(ax, np.eye(2), pd.Series(values), legend="beside")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["low", "high"]


def test_missing_categories_are_grey_and_named(ax):
    plot.scatter(ax, np.eye(3, 2), pd.Series(["type one", None, "type one"]))
    colors = in_order_of(np.eye(3, 2), ax)
    np.testing.assert_allclose(colors[1], to_rgba(MISSING))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["type one", "missing"]


def test_numbers_have_a_scale_and_missing_ones_are_grey(ax):
    plot.scatter(ax, np.eye(3, 2), np.array([1.0, np.nan, 5.0]))
    ax.collections[0].update_scalarmappable()  # what a renderer asks for
    assert ax.collections[0].get_clim() == (1.0, 5.0)
    assert len(ax.child_axes) == 1
    np.testing.assert_allclose(in_order_of(np.eye(3, 2), ax)[1], to_rgba(MISSING))


def test_booleans_are_categories(ax):
    plot.scatter(ax, np.eye(2), np.array([True, False]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["False", "True"]


def test_short_labels_are_written_on_a_cell_of_theirs(ax):
    angle = np.linspace(0, np.pi, 50)
    bow = np.column_stack([np.cos(angle), np.sin(angle)])
    points = np.vstack([bow, bow + 5])
    plot.scatter(ax, points, np.repeat(["0", "1"], 50))
    assert ax.get_legend() is None
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    assert (np.abs(bow - np.array(ax.texts[0].xy)).sum(axis=1) < 1e-9).any()


def test_labels_go_where_they_are_asked_to(ax):
    plot.scatter(ax, np.eye(2), np.array(["a long name", "b"]), legend="on")
    assert ax.get_legend() is None
    assert len(ax.texts) == 2


def test_no_legend_leaves_the_colours_alone() -> None:
    ax, bare = (Figure().subplots() for _ in range(2))
    for axes, legend in ((ax, "beside"), (bare, "none")):
        plot.scatter(axes, np.eye(2), np.array(["a long name", "b"]), legend=legend)
    assert bare.get_legend() is None
    assert not bare.texts
    colours = [axes.collections[0].get_facecolors() for axes in (ax, bare)]
    np.testing.assert_array_equal(*colours)


def test_many_categories_are_counted_instead_of_listed(ax):
    labels = np.array([f"sample {i}" for i in range(200)])
    plot.scatter(ax, np.random.default_rng(0).normal(size=(200, 2)), labels, title="sample")
    assert ax.get_legend() is None
    assert ax.get_title() == "sample (200 categories)"


def test_points_shrink_with_their_number():
    sizes = []
    for n in (100, 5_000, 100_000):
        ax = Figure().subplots()
        plot.scatter(ax, np.zeros((n, 2)))
        sizes.append(ax.collections[0].get_sizes()[0])
    assert sizes[0] > sizes[1] > sizes[2] >= 0.5


def test_colours_are_distinct():
    assert len(set(PALETTE)) == len(PALETTE) == 24
    assert MISSING not in PALETTE


# -- history -------------------------------------------------------------------------------------


def test_history_shows_both_curves_and_the_kept_step(tmp_path):
    path = tmp_path / "history.png"
    axes = plot.history(SimpleNamespace(record=Record(history=HISTORY)), path=path)
    assert isinstance(axes, Axes)
    assert isinstance(axes.figure, Figure)
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["training cells"][:, 1], HISTORY.train)
    np.testing.assert_array_equal(lines["held-out cells"][:, 0], HISTORY.step)
    np.testing.assert_array_equal(lines["held-out cells"][:, 1], HISTORY.validation)
    np.testing.assert_array_equal(lines["kept: step 30, −62.0"], [[30, -62.0]])
    assert axes.get_ylabel() == "ELBO (nats per cell)"
    assert axes.get_xlabel() == "training step"
    assert imread(path).std() > 0.05


def test_history_of_a_fit_and_of_the_same_model_loaded(adata, tmp_path):
    model = scvae.fit(adata, max_steps=20, progress=False)
    model.save(tmp_path / "m.scvae")
    for one in (model, scvae.load(tmp_path / "m.scvae")):
        axes = plot.history(one)
        kept = axes.lines[-1].get_xydata()[0]
        assert kept[1] == pytest.approx(model.record.elbo_held_out)
        low, high = axes.get_ylim()
        assert low < kept[1] < high


def test_a_model_without_history_says_so():
    with pytest.raises(DataError, match="no training history"):
        plot.history(SimpleNamespace(record=Record()))


def test_history_goes_where_it_is_asked_to(tmp_path):
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    other, ax = left.subplots(), right.subplots()
    model = SimpleNamespace(record=Record(history=HISTORY))
    assert plot.history(model, ax=ax, path=tmp_path / "both.png") is ax
    assert len(ax.lines) == 4
    assert len(other.lines) == 0
    assert imread(tmp_path / "both.png").std() > 0.01


# -- fit_check -----------------------------------------------------------------------------------


@pytest.fixture
def model(adata):
    return scvae.fit(adata, max_steps=20, progress=False)


class Known:
    """A model whose check is a given table."""

    def __init__(self, table):
        self.table, self.record = pd.DataFrame(table), Record()

    def kind_of(self, modality):
        return "rna" if modality is None else modality

    def predictive_table(self, *given, modality, call):
        self.given, self.modality = given, modality
        return self.table


TABLE = {
    "observed_mean": [1.0, 10.0, 100.0, 0.0],
    "predicted_mean": [2.0, 20.0, 200.0, 0.5],
    "observed_variance": [3.0, 3.0, 30.0, 0.0],
    "predicted_variance": [3.0, 6.0, 15.0, 0.7],
    "observed_zeros": [0.5, 0.25, 0.0, 1.0],
    "predicted_zeros": [0.6, 0.2, 0.1, 0.9],
}


def points_of(axes):
    """Return the points in the order of the genes; they are drawn in random order."""
    offsets, _ = drawn(axes)
    order = np.random.default_rng(0).permutation(len(offsets))
    return offsets[np.argsort(order)]


def test_fit_check_draws_the_table_of_the_model(adata, model, tmp_path):
    axes = plot.fit_check(model, adata, samples=2, max_cells=50, seed=3, path=tmp_path / "c.png")
    table = model.predictive_check(adata, samples=2, max_cells=50, seed=3)
    assert axes.shape == (3,)
    assert all(isinstance(ax, Axes) and ax.figure is axes[0].figure for ax in axes)
    assert isinstance(axes[0].figure, Figure)
    for ax, name in zip(axes, ["mean", "variance", "zeros"], strict=True):
        expected = table[[f"observed_{name}", f"predicted_{name}"]].to_numpy()
        np.testing.assert_allclose(points_of(ax), expected)
        low, high = ax.get_xlim()
        assert ax.get_ylim() == (low, high)
        assert low < expected.min()
        assert expected.max() < high
        assert ax.get_xscale() == ax.get_yscale() == ("linear" if name == "zeros" else "log")
        x, y = ax.lines[0].get_xydata().T
        np.testing.assert_array_equal(x, y)  # the line of identity, from edge to edge
        np.testing.assert_array_equal(x, (low, high))
    assert imread(tmp_path / "c.png").std() > 0.05


def test_fit_check_tells_correlation_and_ratio_of_genes_above_zero(adata):
    mean, variance, zeros = (ax.get_title() for ax in plot.fit_check(Known(TABLE), adata))
    assert "correlation 1.000, median ratio 2.000" in mean
    r = np.corrcoef(np.log([[3, 3, 30], [3, 6, 15]]))[0, 1]
    assert f"correlation {r:.3f}, median ratio 1.000" in variance
    r = np.corrcoef([[0.5, 0.25, 1.0], [0.6, 0.2, 0.9]])[0, 1]
    assert f"correlation {r:.3f}, median ratio 0.900" in zeros
    assert "1 gene at zero, on the edge" in mean
    assert "edge" not in zeros


def test_genes_at_zero_lie_on_the_edge_of_a_logarithmic_panel(adata):
    mean, variance, zeros = plot.fit_check(Known(TABLE), adata)
    np.testing.assert_allclose(points_of(mean)[3], [mean.get_xlim()[0], 0.5])
    np.testing.assert_allclose(points_of(variance)[3], [variance.get_xlim()[0], 0.7])
    np.testing.assert_array_equal(points_of(zeros)[2], [0.0, 0.1])


@pytest.mark.parametrize("n", [1, 2])
def test_fit_check_of_what_has_no_correlation(adata, n):
    flat = {name: [0.0 if "mean" in name else 0.5] * n for name in TABLE}
    flat |= {"observed_variance": [np.nan] * n, "predicted_variance": [np.nan] * n}
    axes = plot.fit_check(Known(flat), adata)
    assert "none above zero" in axes[0].get_title()
    assert "correlation nan, median ratio 1.000" in axes[2].get_title()
    axes[0].figure.draw_without_rendering()


def test_fit_check_goes_where_it_is_asked_to(adata):
    figure = Figure()
    grid = figure.subplots(2, 3)
    axes = plot.fit_check(Known(TABLE), adata, axes=grid[1])
    assert isinstance(axes, np.ndarray)
    assert list(axes) == list(grid[1])
    assert all(len(ax.collections) == 1 for ax in grid[1])
    assert not any(ax.collections for ax in grid[0])
    assert list(plot.fit_check(Known(TABLE), adata, axes=list(grid[0]))) == list(grid[0])


def test_fit_check_passes_on_what_it_is_given(adata):
    known = Known(TABLE)
    asked = {"layer": "counts", "samples": 7, "max_cells": 9, "seed": 2}
    plot.fit_check(known, adata, modality="protein", **asked)
    assert known.given == (adata, "counts", 7, 9, 2)
    assert known.modality == "protein"


def test_fit_check_names_the_features_of_the_kind(adata):
    for kind, features in {"rna": "genes", "protein": "proteins", "chromatin": "regions"}.items():
        mean = plot.fit_check(Known(TABLE), adata, modality=kind)[0].get_title()
        assert mean.startswith(f"mean, 4 {features}\n")
        assert f"1 {features[:-1]} at zero" in mean


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.9, 1.0), (0.7, 0.94), (0.0, 0.3)])
def test_shares_of_zeros_that_hardly_differ_fill_their_panel(adata, low, high):
    shares = {name: np.linspace(low, high, 4) for name in TABLE}
    ax = plot.fit_check(Known(shares), adata)[2]
    left, right = ax.get_xlim()
    assert ax.get_ylim() == (left, right)
    assert left < low <= high < right
    assert left >= -0.02
    assert right <= 1.02
    assert right - left < (1.05 if high - low > 0.25 else 0.27)


def test_errors_of_fit_check_come_before_the_work(adata, tmp_path):
    with pytest.raises(ConfigError, match="axes holds 2 Axes, but 3"):
        plot.fit_check(None, adata, axes=Figure().subplots(1, 2))
    with pytest.raises(ConfigError, match=r"c\.h5ad is not the name of a picture"):
        plot.fit_check(None, adata, path=tmp_path / "c.h5ad")


def test_a_notebook_shows_axes_as_their_figure(adata):
    """It asks an object for its PNG; the figures of pyplot, which it shows too, are not these."""
    one = plot.history(SimpleNamespace(record=Record(history=HISTORY)))
    three = plot.fit_check(Known(TABLE), adata)
    for shown in (one, three, three[1]):
        pixels = imread(BytesIO(shown._repr_png_()))
        assert pixels[..., :3].std() > 0.05
        assert pixels.shape[1] > 800
    own = Figure().subplots()  # shown by whoever made it, and not twice
    assert not hasattr(
        plot.history(SimpleNamespace(record=Record(history=HISTORY)), ax=own), "_repr_png_"
    )


# -- files and state -----------------------------------------------------------------------------


def test_pyplot_learns_of_no_figure(adata):
    plot.umap(adata, "batch")
    plot.history(SimpleNamespace(record=Record(history=HISTORY)))
    plot.fit_check(Known(TABLE), adata)
    assert pyplot.get_fignums() == []


def test_importing_and_drawing_need_no_pyplot():
    code = (
        "import sys, numpy; from scvae import plot\n"
        "assert not {'matplotlib', 'scanpy', 'torch'} & set(sys.modules)\n"
        "from matplotlib.figure import Figure\n"
        "plot.scatter(Figure().subplots(), numpy.eye(2), numpy.array(['a', 'b']))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_draft_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with replacing(path) as draft:
            draft.write_text("half of the ne")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
def test_a_finished_draft_takes_the_place_of_what_a_link_names(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with replacing(tmp_path / "link") as draft:
        draft.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
