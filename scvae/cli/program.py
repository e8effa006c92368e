"""The program: its commands, its exit codes, and what it says when one fails."""

from __future__ import annotations

import argparse
import shlex
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from scvae._version import __version__
from scvae.cli.check import CHECK
from scvae.cli.completion import COMPLETION
from scvae.cli.console import say, warnings_as_lines
from scvae.cli.embed import EMBED
from scvae.cli.fit import FIT
from scvae.cli.info import INFO
from scvae.cli.map import MAP
from scvae.cli.normalize import NORMALIZE
from scvae.cli.options import Parser
from scvae.cli.remedies import Shell, as_options
from scvae.cli.report import REPORT
from scvae.cli.tune import TUNE
from scvae.errors import ScvaeError

ABOUT = "Learn what each cell is from its counts: a variational autoencoder for h5ad files."
EXAMPLES = """\
examples:
  scvae fit in.h5ad -o out.h5ad --batch donor --model model.scvae
  scvae check in.h5ad --batch donor
  scvae embed model.scvae new.h5ad -o new-embedded.h5ad
  scvae report model.scvae in.h5ad -o report.html --labels cell_type
  scvae normalize model.scvae in.h5ad -o denoised.zarr
  scvae map reference.scvae new.h5ad -o new-mapped.h5ad --labels labels.csv
  scvae info model.scvae
"""
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
    arguments, unknown = parser().parse_known_args(argv)
    if unknown:
        arguments.usage_error(_unknown(unknown, arguments.options[arguments.name]))
    arguments.shell = shell = shell_of(arguments)

    def worded(text: str) -> str:
        return as_options(text, shell)

    with warnings_as_lines(arguments.debug, worded):
        try:
            arguments.run(arguments)
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except (ScvaeError, OSError, MemoryError) as error:
            if arguments.debug:
                traceback.print_exc()
            say(f"error: {worded(str(error)) or type(error).__name__}")
            return 1
    return 0


def _unknown(words: Sequence[str], options: Mapping[str, str]) -> str:
    """Return the error of words that no option takes, with the option that may be meant."""
    text = f"unrecognized arguments: {' '.join(words)}"
    if not words[0].startswith("--"):
        return text
    from scvae.keywords import meant

    name = words[0].partition("=")[0].lstrip("-").replace("-", "_")
    right = meant(name, list(options))
    return text if right is None else f"{text}; did you mean {options[right]}?"


def shell_of(a: argparse.Namespace) -> Shell:
    """Return what the user can write, with the files that were given."""
    cells, model = getattr(a, "input", "in.h5ad"), getattr(a, "model", None) or "model.scvae"
    cells, output = shlex.quote(str(cells)), f"-o {getattr(a, 'output', 'out.h5ad')}"
    files = {
        "fit": f"scvae fit {cells} {output}",
        "check": f"scvae check {cells}",
        "tune": f"scvae tune {cells}",
        "embed": f"scvae embed {model} {cells} {output}",
        "report": f"scvae report {model} {cells} {output}",
        "normalize": f"scvae normalize {model} {cells} {output}",
        "map": f"scvae map {model} {cells} {output}",
    }
    return Shell(a.name, a.options, files, cells, lambda: _reader(a), str(model), _genes(a))


def _genes(a: argparse.Namespace) -> str | None:
    """Return genes that were given as names or as a file of them, as one writes them in Python."""
    given = getattr(a, "genes", None) or []
    if len(given) > 1:
        return repr(given)
    is_file = len(given) == 1 and Path(given[0]).is_file()
    return f"open({given[0]!r}).read().split()" if is_file else None


def _reader(a: argparse.Namespace) -> str:
    """Return the function that reads the input; its kind is looked up where a remedy needs it."""
    from scvae.cli.formats import reader_in_python

    return reader_in_python(a.input) if hasattr(a, "input") else "anndata.read_h5ad"


def parser() -> Parser:
    whole = Parser(prog="scvae", description=ABOUT, epilog=EXAMPLES)
    whole.add_argument("--version", action="version", version=f"scvae {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    options: dict[str, dict[str, str]] = {}
    for command in (FIT, CHECK, EMBED, MAP, NORMALIZE, REPORT, INFO, TUNE, COMPLETION):
        about = f"{command.about[0].upper()}{command.about[1:]}."
        own = commands.add_parser(
            command.name, help=command.about, description=about, epilog=command.example
        )
        command.add_options(own)
        own.add_argument("--debug", action="store_true", help="show traceback and all warnings")
        options[command.name] = own.options
        own.set_defaults(run=command.run, name=command.name, options=options, usage_error=own.error)
        own.set_defaults(whole=whole)
    return whole
