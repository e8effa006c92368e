"""The remedies of errors and warnings, which are written for Python, as options of the shell."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CALL = re.compile(r"(?:scvae\.(fit|check)|model\.(embed))\(adata")
VALUE = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|-?\w[-+.\w]*"
MODEL = re.compile(r"\bmodel\.\w+")
PYTHON = re.compile(r"adata(?:\.\w+|\[[^\]]*\])* = |\bsc\.\w+\.|adata\.\w+\(")


@dataclass(frozen=True)
class Shell:
    """What a user of the shell can write.

    Attributes
    ----------
    verb
        The command that was given.
    options
        Option of every argument, of every command: ``{"fit": {"n_latent": "--n-latent"}}``.
    files
        The words before the options, of every command.
    cells
        The file with the cells.
    reader
        Returns the function that reads it in Python.
    model
        The file with the model.
    genes
        The genes that were given, as one writes them in Python; None if they are a column.
    """

    verb: str
    options: Mapping[str, Mapping[str, str]]
    files: Mapping[str, str]
    cells: str
    reader: Callable[[], str] = lambda: "anndata.read_h5ad"
    model: str = "model.scvae"
    genes: str | None = None


def as_options(text: str, shell: Shell) -> str:
    """Return `text` with calls and arguments of Python as a user of the shell writes them."""
    text, options = _calls(text, shell), shell.options[shell.verb]
    if names := "|".join(sorted(options, key=len, reverse=True)):
        argument = re.compile(rf"(?<![\w.(-])({names})=({VALUE})")
        text = argument.sub(lambda m: _option(options[m[1]], _value(m[2])), text)
        text = re.sub(rf"\(given as ({names})\)", lambda m: f"(given as {options[m[1]]})", text)
    if shell.genes is not None:
        text = text.replace("list(genes)", shell.genes)
    if PYTHON.search(text) or MODEL.search(text):
        model = f"model = scvae.load({shell.model!r}), " if MODEL.search(text) else ""
        text += (
            f" (In Python, between {model}adata = {shell.reader()}({shell.cells!r}) and "
            "adata.write_h5ad('mended.h5ad').)"
        )
    return text


def _calls(text: str, shell: Shell) -> str:
    """Return `text` with its calls as options; as whole commands, where they have none."""
    done = ""
    while (found := CALL.search(text)) is not None:
        verb, (end, call) = found[1] or found[2], _parsed(text, found.start())
        options = shell.options.get(verb, {})
        if call is None or any(word.arg not in options for word in call.keywords):
            done, text = done + text[: found.end()], text[found.end() :]
            continue
        words = [_option(options[str(word.arg)], _constant(word.value)) for word in call.keywords]
        if verb != shell.verb or not words:
            words.insert(0, shell.files[verb])
        done, text = done + text[: found.start()] + " ".join(words), text[end:]
    return done + text


def _parsed(text: str, start: int) -> tuple[int, ast.Call | None]:
    """Return where the call that begins at `start` ends, and the call."""
    for close in re.finditer(r"\)", text[start:]):
        end = start + close.end()
        try:
            call = ast.parse(text[start:end], mode="eval").body
        except SyntaxError:
            continue
        return end, call if isinstance(call, ast.Call) else None
    return start, None


def _value(text: str) -> Any:
    try:
        return _constant(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return text


def _constant(node: ast.expr) -> Any:
    """Return a value that is written out, or a placeholder for one that is not."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node) if isinstance(node, ast.Name) else ...


def _option(option: str, value: Any) -> str:
    if value is None or value is False:
        return f"no {option}"
    if value is True:
        return option
    if value is ...:
        return f"{option} NAME"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([option, *(shlex.quote(str(item)) for item in values)])
