"""`scvae completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse

from scvae.cli.options import Command, Parser
from scvae.errors import ConfigError

EXAMPLE = """\
example:
  scvae completion bash > ~/.local/share/bash-completion/completions/scvae
"""


def run(a: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(
            "completion needs the package shtab: pip install 'scvae-torch[completion]'"
        ) from error
    print(shtab.complete(a.whole, shell=a.shell_name))


def add_options(parser: Parser) -> None:
    parser.add_argument("shell_name", choices=("bash", "zsh", "tcsh"), metavar="SHELL", help="bash")


COMPLETION = Command("completion", "completion for a shell", EXAMPLE, add_options, run)
