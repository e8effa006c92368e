"""Options, and those that several commands share."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scvae.choices import COUNTS, MODALITIES

KEY = "X_scvae"


@dataclass(frozen=True)
class Command:
    """A word after `scvae`, and what it does."""

    name: str
    about: str
    example: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """Takes options by their full names alone; shows defaults that are looked up for its help."""

    look_up: Callable[[], dict[str, Any]] = dict

    def __init__(self, **settings: Any) -> None:
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=shape, **settings)

    @property
    def options(self) -> dict[str, str]:
        """The option of every argument, by the argument's name in Python."""
        named = [action for action in self._actions if action.option_strings]
        return {action.dest: action.option_strings[-1] for action in reversed(named)}

    def format_help(self) -> str:
        defaults = self.look_up()
        for action in self._actions:
            default = defaults.get(action.dest)
            if default is not None and not str(action.help).endswith(f"(default: {default})"):
                action.help = f"{action.help} (default: {default})"
        return super().format_help()


def add_model(parser: Parser, metavar: str = "model.scvae", about: str = "a fitted model") -> None:
    parser.add_argument("model", type=Path, metavar=metavar, help=about)


def add_input(parser: Parser) -> None:
    parser.add_argument(
        "input",
        type=Path,
        metavar="in.h5ad",
        help="cells with raw counts: .h5ad, .h5 of Cell Ranger, .zarr, .loom, .h5mu, mtx folder",
    )
    parser.add_argument("--modality", metavar="NAME", help="of .h5mu: the one of the genes")


def add_data(group: argparse._ArgumentGroup) -> None:
    add = adder(group)
    add("--batch", metavar="COLUMN", help="column of obs with the batch to correct for")
    add("--covariates", nargs="+", metavar="COLUMN", help="further columns of obs to correct for")
    add(
        "--modalities",
        nargs="+",
        type=_place,
        metavar="KIND=NAME",
        help="which kind is where, such as rna=gex protein=ADT chromatin=peaks; or the only kind",
    )
    add_layer(group)
    add(
        "--genes",
        nargs="+",
        metavar="GENES",
        help="boolean column of var, such as highly_variable; a file of names; or names",
    )
    add(
        "--library-size",
        metavar="SIZE",
        help="observed, latent, or the column of obs with total counts over all genes",
    )
    add("--counts", choices=COUNTS, help="whole; or rounded, for estimates that are fractions")


def add_labels(group: argparse._ActionsContainer) -> None:
    add = adder(group)
    add("--labels", metavar="COLUMN", help="column of obs with types to learn; cells may lack one")
    add("--unlabelled", metavar="VALUE", help="value of that column that is no type: Unknown")


def add_validation(group: argparse._ActionsContainer) -> None:
    add = adder(group)
    add("--validation", type=share, metavar="SHARE", help="cells held out, or a column of obs")


def share(text: str) -> float | str:
    """Return a number, or the name of a column."""
    try:
        return float(text)
    except ValueError:
        return text


def _place(text: str) -> tuple[str, str]:
    """Return a kind of measurement and what it is called: nothing, where it is all there is."""
    kind, is_there, name = text.partition("=")
    if not kind or bool(is_there) != bool(name) or (not is_there and kind not in MODALITIES):
        raise argparse.ArgumentTypeError(f"{text!r} is not like rna=gex")
    return kind, name


def add_layer(group: argparse._ActionsContainer) -> None:
    add = adder(group)
    add("--layer", help="layer with raw counts; X if left out")
    add("--raw", dest="layer", action="store_const", const="raw", help="counts of raw: --layer raw")


def add_output(parser: Parser) -> None:
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="out.h5ad",
        help="file to write, whole or not at all; may be the input",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no closing line")
    parser.add_argument(
        "--overwrite", action="store_true", help="also replace files that hold something else"
    )


def add_key(parser: Parser) -> None:
    parser.add_argument(
        "--key", default=KEY, help="slot of obsm for the embedding (default: %(default)s)"
    )


def add_device(group: argparse._ActionsContainer) -> None:
    adder(group)("--device", help="cpu or cuda; the GPU if there is one, if left out")


def given(a: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """Return the arguments of these names that were given, as the functions of scvae take them."""
    found = {name: value for name, value in vars(a).items() if name in names}
    if "modalities" in found:
        places = found["modalities"]
        found["modalities"] = dict(places) if places[0][1] else places[0][0]
    return found


def adder(group: argparse._ActionsContainer) -> Callable[..., Any]:
    """Return `add_argument` of options that are absent unless given: scvae.fit has the defaults."""
    return functools.partial(group.add_argument, default=argparse.SUPPRESS)
