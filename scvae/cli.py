"""The command line: `scvae fit`, `scvae embed` and `scvae info`.

Nothing heavy is imported before a command needs it, so that help and usage errors come at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from scvae._version import __version__
from scvae.errors import ConfigError, FileError, ScvaeError

if TYPE_CHECKING:
    from anndata import AnnData

    from scvae.models.model import Model

__all__ = ["main"]

KEY = "X_scvae"
# As in modalities/rna.py and models/network.py, which would bring torch; a test compares them.
LIKELIHOODS = ("nb", "zinb", "poisson")
DISPERSIONS = ("gene", "gene-batch", "gene-cell")
PRIORS = ("normal", "mixture")
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv
        Arguments without the name of the program; None takes those of the process.

    Returns
    -------
    int
        0 on success, 1 for an error of data, options or files, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With code 2 for wrong usage, with code 0 after `--help` and `--version`.
    """
    arguments = _parser().parse_args(argv)
    with _warnings_as_lines(arguments.debug):
        try:
            arguments.run(arguments)
        except KeyboardInterrupt:
            _say("interrupted")
            return INTERRUPTED
        except (ScvaeError, OSError, MemoryError) as error:
            if arguments.debug:
                traceback.print_exc()
            _say(f"error: {str(error) or type(error).__name__}")
            return 1
    return 0


# -- commands ----------------------------------------------------------------------------------


def _fit(a: argparse.Namespace) -> None:
    """Fit a model and write what was asked for, the model first: it took longest to get."""
    _check_fit(a)
    adata = _read(a.input)
    colors = _colors(a, adata)
    from scvae.models.fit import fit

    options = {name: value for name, value in vars(a).items() if name in _fit_defaults()}
    model = fit(adata, key_added=KEY, progress=_is_watched(a.quiet), **options)
    if a.model:
        model.save(a.model)
    graph = _analyse(a, adata)
    _write(adata, a.output)
    if a.umap:
        _draw(graph, colors, a.umap)
    _tell(a.quiet, _outcome(a.output, adata, model))


def _embed(a: argparse.Namespace) -> None:
    _check_outputs([a.output], [a.model])
    _check_input(a.model)
    adata = _read(a.input)
    from scvae.models.load import load

    model = load(a.model, device=getattr(a, "device", None))
    adata.obsm[a.key] = model.embed(adata)
    _write(adata, a.output)
    n, d = adata.obsm[a.key].shape
    _tell(a.quiet, f"{a.output}: {n:,} cells, {d} latents in obsm[{a.key!r}]")


def _info(a: argparse.Namespace) -> None:
    from scvae.models.load import load

    facts = _facts(load(a.model, device="cpu"))
    print(json.dumps(facts, indent=2) if a.json else _table(facts))


# -- fit: before and after ---------------------------------------------------------------------


def _check_fit(a: argparse.Namespace) -> None:
    """Find out before training whether everything can be written."""
    if a.color and not a.umap:
        a.usage_error("--color needs a picture: --umap umap.png")
    outputs = [path for path in (a.output, a.model, a.umap) if path]
    _check_outputs(outputs, [])
    for path in outputs[1:]:
        if _same(path, a.input):
            raise ConfigError(f"{path} is the input; only -o/--output may replace it.")
    if a.umap:
        from scvae.plot.figures import check_picture

        check_picture(a.umap, "--umap")


def _colors(a: argparse.Namespace, adata: AnnData) -> list[str]:
    """Return the columns to colour the picture by: those asked for, or batch and clusters."""
    from scvae.plot.cells import check_columns

    asked: list[str] = a.color
    check_columns(adata, [name for name in asked if not (a.leiden and name == "leiden")], "--color")
    batch = [a.batch] if hasattr(a, "batch") else []
    return asked or batch + ["leiden"] * a.leiden


def _analyse(a: argparse.Namespace, adata: AnnData) -> AnnData | None:
    """Write clusters and UMAP to `adata`; return the neighbour graph that both came from."""
    if not (a.leiden or a.umap):
        return None
    from scvae.analysis import lay_out, neighbors

    seed = getattr(a, "seed", 0)
    graph = neighbors(adata, KEY, seed=seed)
    if a.leiden:
        import scanpy as sc

        sc.tl.leiden(graph, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        adata.obs["leiden"] = graph.obs["leiden"]
    if a.umap:
        adata.obsm["X_umap"] = lay_out(graph, seed=seed).obsm["X_umap"]
    return graph


def _draw(graph: AnnData | None, colors: list[str], path: Path) -> None:
    from scvae.plot import umap

    umap(graph, colors, key=KEY, path=path)


def _outcome(output: Path, adata: AnnData, model: Model) -> str:
    n, d = adata.obsm[KEY].shape
    record, history = model.record, model.record.history
    assert history is not None  # this is a model that was just fitted
    return (
        f"{output}: {n:,} cells, {d} latents in obsm[{KEY!r}]; held-out ELBO "
        f"{record.elbo_held_out:,.1f} nats per cell at step "
        f"{history.best_step:,} ({history.seconds:.0f} s)"
    )


# -- info --------------------------------------------------------------------------------------


def _facts(model: Model) -> dict[str, Any]:
    """Return what `scvae info` tells; None where the file does not say."""
    a, origin, record = model.architecture, model.origin, model.record
    history, held_out = record.history, record.held_out
    summary = model.summary()
    return {
        "genes": a.n_genes,
        "latents": a.n_latent,
        "hidden_layers": a.n_layers,
        "hidden_width": a.n_hidden,
        "likelihood": a.likelihood,
        "dispersion": a.dispersion,
        "prior": a.prior,
        "library_size": origin.library_size,
        "layer": origin.layer or "X",
        "batch_column": origin.covariates.batch,
        "batches": origin.covariates.batches,
        "covariates": origin.covariates.others,
        "training_cells": record.n_train,
        "held_out_cells": record.n_held_out,
        "held_out_elbo": record.elbo_held_out,
        "reconstruction": held_out and held_out.reconstruction,
        "kl": held_out and held_out.kl,
        "active_latents": held_out and held_out.active,
        "steps": history.step[-1] if history and history.step else None,
        "kept_step": history and history.best_step,
        "convergence": summary.convergence.text,
        "seed": record.seed,
        "versions": record.versions or {},
        "warnings": list(summary.warnings),
    }


def _table(facts: dict[str, Any]) -> str:
    width = max(map(len, facts)) + 2
    lines = (f"{_label(name):<{width}}{_shown(name, facts[name])}" for name in facts)
    return "\n".join(map(_printable, lines))


def _label(name: str) -> str:
    for word, written in (("held_out", "held-out"), ("_", " "), ("elbo", "ELBO"), ("kl", "KL")):
        name = name.replace(word, written)
    return name


def _shown(name: str, value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, list):
        return f"{len(value)}: {', '.join(value[:8])}{', ...' if len(value) > 8 else ''}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if name in ("held_out_elbo", "reconstruction", "kl"):
        return f"{value:,.2f} nats per cell"
    if name == "warnings":
        return " ".join(value)
    return f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)


# -- files -------------------------------------------------------------------------------------


def _read(path: Path) -> AnnData:
    """Read a whole h5ad file."""
    _check_input(path)
    from anndata import read_h5ad

    try:
        return read_h5ad(path)
    except MemoryError as error:
        raise FileError(f"{path} needs more memory than there is. {error}") from error
    except Exception as error:  # a damaged file can make h5py and anndata raise anything
        raise FileError(f"{path} cannot be read as an h5ad file: {error}") from error


def _write(adata: AnnData, path: Path) -> None:
    """Write an h5ad file, whole or not at all; `path` may be where `adata` was read from."""
    from scvae.io import replacing

    with replacing(path) as draft:
        try:
            adata.write_h5ad(draft)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # what anndata raises depends on what the slot holds
            raise FileError(f"{path} cannot be written: {error}") from error


def _check_input(path: Path) -> None:
    if not path.exists():
        raise FileError(f"{path} is not there.")
    if not path.is_file():
        raise FileError(f"{path} is not a file.")
    if not os.access(path, os.R_OK):
        raise FileError(f"{path} cannot be read: permission denied.")


def _check_outputs(paths: Sequence[Path], kept: Sequence[Path]) -> None:
    """Raise before the work if its results could not be written, or would replace one of `kept`."""
    for i, path in enumerate(paths):
        folder = path.resolve().parent
        if not folder.is_dir():
            raise FileError(f"{path} cannot be written: there is no folder {folder}.")
        if path.is_dir():
            raise FileError(f"{path} is a folder; give the name of a file to write.")
        if not os.access(folder, os.W_OK):
            raise FileError(f"{path} cannot be written: permission denied in {folder}.")
        for other in (*paths[:i], *kept):
            if _same(path, other):
                raise ConfigError(f"{path} is given twice; give every file a name of its own.")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


# -- what is told ------------------------------------------------------------------------------


def _say(text: str) -> None:
    """Print one line to stderr, whatever line breaks `text` has."""
    print("scvae:", _printable(" ".join(text.split())), file=sys.stderr)


def _printable(text: str) -> str:
    """Return `text` with escapes for characters that a terminal would obey: names are of files."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _tell(quiet: bool, text: str) -> None:
    if not quiet:
        print(text)


def _is_watched(quiet: bool) -> bool:
    """Return whether a progress bar is wanted: it would only litter a log file."""
    return not quiet and sys.stderr.isatty()


@contextlib.contextmanager
def _warnings_as_lines(debug: bool) -> Iterator[None]:
    """Show the warnings of scvae as lines, and those of other packages only to debug."""
    own = os.path.dirname(os.path.abspath(__file__))

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if debug or (issubclass(category, UserWarning) and filename.startswith(own)):
            _say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


# -- arguments ---------------------------------------------------------------------------------

ABOUT = "Learn what each cell is from its counts: a variational autoencoder for h5ad files."
EXAMPLES = """\
examples:
  scvae fit in.h5ad -o out.h5ad --batch donor --model model.scvae
  scvae embed model.scvae new.h5ad -o new-embedded.h5ad
  scvae info model.scvae
"""
FIT_EXAMPLE = """\
example:
  scvae fit in.h5ad -o out.h5ad --batch donor --genes highly_variable --leiden --umap umap.png

out.h5ad is in.h5ad with the embedding in obsm["X_scvae"] and the description of the fit in
uns["scvae"]; with --leiden also obs["leiden"], with --umap also obsm["X_umap"].
"""
EMBED_EXAMPLE = """\
example:
  scvae embed model.scvae new.h5ad -o new-embedded.h5ad

new.h5ad must hold raw counts of the genes of the model, in any order, and its batch column.
"""
INFO_EXAMPLE = """\
example:
  scvae info model.scvae --json
"""


class _Parser(argparse.ArgumentParser):
    """Takes options by their full names alone; shows defaults that are looked up for its help."""

    look_up: Callable[[], dict[str, Any]] = dict

    def __init__(self, **settings: Any) -> None:
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=shape, **settings)

    def format_help(self) -> str:
        defaults = self.look_up()
        for action in self._actions:
            default = defaults.get(action.dest)
            if default is not None and not str(action.help).endswith(f"(default: {default})"):
                action.help = f"{action.help} (default: {default})"
        return super().format_help()


def _fit_defaults() -> dict[str, Any]:
    """Return the defaults of scvae.fit, which are the defaults of `scvae fit`."""
    from scvae.models.fit import fit

    parameters = inspect.signature(fit).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "adata"}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="scvae", description=ABOUT, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"scvae {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, add, about, example, run in (
        ("fit", _add_fit, "fit a model and embed its cells", FIT_EXAMPLE, _fit),
        ("embed", _add_embed, "embed other cells with a fitted model", EMBED_EXAMPLE, _embed),
        ("info", _add_info, "tell what a model is", INFO_EXAMPLE, _info),
    ):
        about_it = f"{about[0].upper()}{about[1:]}."
        command = commands.add_parser(name, help=about, description=about_it, epilog=example)
        add(command)
        command.add_argument("--debug", action="store_true", help="show traceback and all warnings")
        command.set_defaults(run=run, usage_error=command.error)
    return parser


def _add_fit(parser: _Parser) -> None:
    parser.look_up = _fit_defaults
    _add_input_and_output(parser)
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))
    _add_results(parser.add_argument_group("further results"))


def _add_input_and_output(parser: _Parser) -> None:
    parser.add_argument("input", type=Path, metavar="in.h5ad", help="cells with raw counts")
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="out.h5ad",
        help="file to write, whole or not at all; may be the input",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no closing line")


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--batch", metavar="COLUMN", help="column of obs with the batch to correct for")
    add("--covariates", nargs="+", metavar="COLUMN", help="further columns of obs to correct for")
    add("--layer", help="layer with raw counts; X if left out")
    add("--genes", metavar="COLUMN", help="boolean column of var, such as highly_variable")
    add(
        "--library-size",
        metavar="SIZE",
        help="observed, latent, or the column of obs with total counts over all genes",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--likelihood", choices=LIKELIHOODS, help="law of the counts")
    add("--dispersion", choices=DISPERSIONS, help="what has a dispersion of its own")
    add("--prior", choices=PRIORS, help="of the latent space")
    add("--n-latent", type=int, metavar="N", help="latent dimensions")
    add("--n-hidden", type=int, metavar="N", help="width of the hidden layers")
    add("--n-layers", type=int, metavar="N", help="number of hidden layers")


def _add_training(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--max-steps", type=int, metavar="N", help="training steps at most; by cells if left out")
    add("--batch-size", type=int, metavar="N", help="cells of a minibatch; by cells if left out")
    add("--seed", type=_seed, metavar="N", help="of everything random")
    _add_device(group)


def _seed(text: str) -> int:
    """Return a seed that every step takes: torch, neighbours, clusters and UMAP."""
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{seed} is not between 0 and {2**32 - 1}")
    return seed


def _add_device(group: argparse._ActionsContainer) -> None:
    _adder(group)("--device", help="cpu or cuda; the GPU if there is one, if left out")


def _add_results(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", type=Path, metavar="model.scvae", help="file to save the model to")
    add("--leiden", action="store_true", help='cluster the embedding into obs["leiden"]')
    add("--umap", type=Path, metavar="umap.png", help="picture to draw: .png, .pdf, .svg or .jpg")
    add(
        "--color",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of obs to colour it by; batch and clusters if left out",
    )


def _add_embed(parser: _Parser) -> None:
    parser.add_argument("model", type=Path, metavar="model.scvae", help="a fitted model")
    _add_input_and_output(parser)
    parser.add_argument(
        "--key", default=KEY, help="slot of obsm for the embedding (default: %(default)s)"
    )
    _add_device(parser)


def _add_info(parser: _Parser) -> None:
    parser.add_argument("model", type=Path, metavar="model.scvae", help="a fitted model")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _adder(group: argparse._ActionsContainer) -> Callable[..., Any]:
    """Return `add_argument` of options that are absent unless given: scvae.fit has the defaults."""
    return functools.partial(group.add_argument, default=argparse.SUPPRESS)


if __name__ == "__main__":
    sys.exit(main())
