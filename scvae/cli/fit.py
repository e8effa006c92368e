"""`scvae fit`: train a model, and write what was asked for."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae.choices import DECODERS, DISPERSIONS, FUSIONS, LIKELIHOODS, PRIORS, RESOLUTION
from scvae.cli.console import tell
from scvae.cli.inputs import check_input, of_data, read
from scvae.cli.large import add_memory, cells_on_disk, copy_with
from scvae.cli.options import (
    KEY,
    Command,
    Parser,
    add_data,
    add_device,
    add_input,
    add_labels,
    add_output,
    add_validation,
    adder,
    given,
    share,
)
from scvae.cli.outputs import (
    check_cells,
    check_model,
    check_outputs,
    check_space,
    is_h5mu,
    rescued,
    same,
    write,
)
from scvae.cli.ranks import is_first
from scvae.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

    from scvae.data.read.atlas import OnDisk
    from scvae.models.model import Model

MOST_RESOLUTION = 100.0  # of Leiden

EXAMPLE = """\
example:
  scvae fit in.h5ad -o out.h5ad --batch donor --genes highly_variable --leiden --umap umap.png

  scvae fit in.h5mu -o out.h5mu --modalities rna=gex protein=ADT

out.h5ad is in.h5ad with the embedding in obsm["X_scvae"] and the description of the fit in
uns["scvae"]; with --leiden also obs["leiden"], with --umap also obsm["X_umap"].
"""


def run(a: argparse.Namespace) -> None:
    """Fit a model and write what was asked for, the model first: it took longest to get."""
    _check_fit(a)
    check_input(a.input, folders=True)
    large = cells_on_disk(a.input, a)
    if large is not None:
        _fit_from_disk(a, large)
        return
    adata = read(a.input, a.modality, whole=is_h5mu(a.output))
    check_space(adata, a.output)
    options = of_data(a, adata)
    colors = _colors(a, adata)
    from scvae.models.fit import fit

    model = fit(adata, key_added=KEY, progress=not a.quiet, **{**given(a, defaults()), **options})
    if not is_first():
        return
    with rescued(adata, KEY, a.output):
        if a.model:
            model.save(a.model, overwrite=a.overwrite)
        graph = _analyse(a, adata)
        write(adata, a.output)
    if a.umap:
        _draw(graph, colors, a.umap)
    tell(a.quiet, _outcome(a.output, adata.obsm[KEY].shape, model))


def _fit_from_disk(a: argparse.Namespace, cells: OnDisk) -> None:
    """Fit a model to cells that stay on disk, and write a copy of their file with the embedding."""
    from scvae.models.fit import fit
    from scvae.models.written import description

    if a.leiden or a.umap:
        raise ConfigError(
            f"{a.input} is larger than --memory, and clusters and UMAP need it in memory: leave "
            "--leiden and --umap out, or give more --memory"
        )
    model = fit(cells, progress=not a.quiet, **{**given(a, defaults()), **of_data(a, cells)})
    first = is_first()
    if a.model and first:
        model.save(a.model, overwrite=a.overwrite)
    embedding = model.embed(cells, distributed=True)
    if not first:
        return
    copy_with(a.input, a.output, {KEY: embedding}, {"scvae": description(model)})
    tell(a.quiet, _outcome(a.output, embedding.shape, model))


# -- before and after ---------------------------------------------------------------------


def _check_fit(a: argparse.Namespace) -> None:
    """Find out before training whether everything can be written."""
    if a.color and not a.umap:
        a.usage_error("--color needs a picture: --umap umap.png")
    if a.resolution and not a.leiden:
        a.usage_error("--resolution needs clusters: --leiden")
    outputs = [path for path in (a.output, a.model, a.umap) if path]
    check_outputs(outputs, [])
    for path in outputs[1:]:
        if same(path, a.input):
            raise ConfigError(f"{path} is the input; only -o/--output may replace it.")
    if not a.overwrite:
        check_cells(a.output, a.input)
        if a.model:
            check_model(a.model)
    if a.umap:
        from scvae.plot.figures import check_picture

        check_picture(a.umap, "--umap")


def _colors(a: argparse.Namespace, adata: AnnData) -> list[str]:
    """Return the columns to colour the picture by: those asked for, or batch and clusters."""
    from scvae.plot.cells import check_columns

    asked: list[str] = a.color
    check_columns(adata, [name for name in asked if not (a.leiden and name == "leiden")], "--color")
    batch = [a.batch] if getattr(a, "batch", None) in adata.obs else []
    return asked or batch + ["leiden"] * a.leiden


def _analyse(a: argparse.Namespace, adata: AnnData) -> AnnData | None:
    """Write clusters and UMAP to `adata`; return the neighbour graph that both came from."""
    if not (a.leiden or a.umap):
        return None
    from scvae.analysis import lay_out, neighbors

    seed = getattr(a, "seed", 0)
    graph = neighbors(_cells_alone(adata), KEY, seed=seed)
    if a.leiden:
        import scanpy as sc

        options = {"flavor": "igraph", "n_iterations": 2, "directed": False, "random_state": seed}
        sc.tl.leiden(graph, resolution=a.resolution or RESOLUTION, **options)
        adata.obs["leiden"] = graph.obs["leiden"]
    if a.umap:
        adata.obsm["X_umap"] = lay_out(graph, seed=seed).obsm["X_umap"]
    return graph


def _cells_alone(adata: AnnData) -> AnnData:
    """Return what is known of cells, whatever was measured of them."""
    from anndata import AnnData

    return AnnData(obs=adata.obs.copy(), obsm={KEY: adata.obsm[KEY]})


def _draw(graph: AnnData | None, colors: list[str], path: Path) -> None:
    from scvae.plot import umap

    umap(graph, colors, key=KEY, path=path)


def _outcome(output: Path, shape: tuple[int, ...], model: Model) -> str:
    n, d = shape
    record, history = model.record, model.record.history
    assert history is not None  # this is a model that was just fitted
    return (
        f"{output}: {n:,} cells, {d} latents in obsm[{KEY!r}]; held-out ELBO "
        f"{record.elbo_held_out:,.1f} nats per cell at step "
        f"{history.best_step:,} ({history.seconds:.0f} s)"
    )


# -- options ------------------------------------------------------------------------------


def defaults() -> dict[str, Any]:
    """Return the defaults of scvae.fit, which are the defaults of `scvae fit`."""
    from scvae.models.fit import fit

    parameters = inspect.signature(fit).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "adata"}


def add_options(parser: Parser) -> None:
    parser.look_up = defaults
    add_input(parser)
    add_output(parser)
    data = parser.add_argument_group("data")
    add_data(data)
    add_labels(data)
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))
    _add_results(parser.add_argument_group("further results"))


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = adder(group)
    add("--likelihood", choices=LIKELIHOODS, help="law of the counts")
    add("--dispersion", choices=DISPERSIONS, help="what has a dispersion of its own")
    add("--prior", choices=PRIORS, help="of the latent space")
    add("--decoder", choices=DECODERS, help="hidden layers, or a linear map with exact loadings")
    add("--fusion", choices=FUSIONS, help="of what several kinds of measurement say of a cell")
    add("--alone", type=float, metavar="WEIGHT", help="of the bounds of single kinds")
    add("--n-latent", type=int, metavar="N", help="latent dimensions")
    add("--n-hidden", type=int, metavar="N", help="width of the hidden layers")
    add("--n-layers", type=int, metavar="N", help="number of hidden layers")


def _add_training(group: argparse._ArgumentGroup) -> None:
    add = adder(group)
    add("--max-steps", type=int, metavar="N", help="training steps at most; by cells if left out")
    add("--batch-size", type=int, metavar="N", help="cells of a minibatch; by cells if left out")
    add("--learning-rate", type=float, metavar="RATE", help="peak of the learning rate")
    add_validation(group)
    add("--align", type=share, metavar="SHARE", help="of the batches' rest to take out, 0 to 1")
    add("--robust", action="store_true", help="hide genes in training; for cells that lack some")
    add("--checkpoint", metavar="FOLDER", help="write down how far it is; the same call goes on")
    add("--seed", type=_seed, metavar="N", help="of everything random")
    add_device(group)
    add_memory(add)


def _seed(text: str) -> int:
    """Return a seed that every step takes: torch, neighbours, clusters and UMAP."""
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{seed} is not between 0 and {2**32 - 1}")
    return seed


def _resolution(text: str) -> float:
    """Return a resolution of Leiden."""
    value = float(text)
    if not 0 < value <= MOST_RESOLUTION:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {MOST_RESOLUTION:g}")
    return value


def _add_results(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", type=Path, metavar="model.scvae", help="file to save the model to")
    add("--leiden", action="store_true", help='cluster the embedding into obs["leiden"]')
    add(
        "--resolution",
        type=_resolution,
        metavar="R",
        help=f"of these clusters: higher makes more of them; {RESOLUTION} if left out, about half "
        "of what principal components take",
    )
    add("--umap", type=Path, metavar="umap.png", help="picture to draw: .png, .pdf, .svg or .jpg")
    add(
        "--color",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of obs to colour it by; batch and clusters if left out",
    )


FIT = Command("fit", "fit a model and embed its cells", EXAMPLE, add_options, run)
