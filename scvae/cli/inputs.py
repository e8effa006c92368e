"""What a command reads: the cells, and which columns of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae.cli.console import say
from scvae.cli.formats import kind_of, read_cells
from scvae.cli.readers import read_h5mu
from scvae.errors import FileError, ScvaeError

if TYPE_CHECKING:
    from anndata import AnnData

    from scvae.models.model import Model


def read(path: Path | str, modality: str | None = None, *, whole: bool = False) -> AnnData:
    """Read all cells of a file or folder, of whatever kind it is by its content.

    Of .h5mu, one modality, or with `whole` all of them, as MuData."""
    path = Path(path)
    check_input(path, folders=True)
    kind = "cells"
    try:
        kind = kind_of(path)
        if whole and kind == "h5mu" and modality is None:
            return read_h5mu(path)
        return read_cells(path, kind, modality)
    except ScvaeError:
        raise
    except MemoryError as error:
        raise FileError(f"{path} needs more memory than there is. {error}") from error
    except Exception as error:  # a damaged file can make h5py and anndata raise anything
        raise FileError(f"{path} is damaged: it cannot be read as {kind}: {error}") from error


def fitted(a: argparse.Namespace) -> Model:
    """Return the model that was named, on the device that was asked for."""
    from scvae.models.load import load

    return load(a.model, device=getattr(a, "device", None))


def check_input(path: Path, *, folders: bool = False) -> None:
    if not path.exists():
        raise FileError(f"{path} is not there.")
    if not (path.is_file() or (folders and path.is_dir())):
        raise FileError(f"{path} is not a file.")
    if not os.access(path, os.R_OK):
        raise FileError(f"{path} cannot be read: permission denied.")


def of_data(a: argparse.Namespace, adata: Any) -> dict[str, Any]:
    """Return arguments that depend on the cells: genes, and columns with several categories.

    A pipeline gives every sample the same options; a column that says the same of all cells is
    left out, with a warning."""
    options: dict[str, Any] = {}
    if hasattr(a, "genes"):
        options["genes"] = _genes(a.genes, adata)
    if hasattr(a, "batch") and _is_constant(adata, a.batch, "--batch"):
        options["batch"] = None
    if hasattr(a, "covariates"):
        constant = [name for name in a.covariates if _is_constant(adata, name, "--covariates")]
        options["covariates"] = [name for name in a.covariates if name not in constant]
    return options


def _genes(given: list[str], adata: AnnData) -> str | list[str]:
    """Return the name of a column, or names of genes: as given, or the lines of a file."""
    if len(given) > 1:
        return given
    (one,) = given
    if one not in adata.var and one in adata.var_names:
        return given
    if one in adata.var or not Path(one).is_file():
        return one
    return genes_given(given)


def genes_given(given: list[str]) -> list[str]:
    """Return names of genes as given, or the lines of a file."""
    if len(given) > 1 or not Path(given[0]).is_file():
        return given
    lines = Path(given[0]).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _is_constant(adata: AnnData, name: str, option: str) -> bool:
    if name not in adata.obs:
        return False
    values = adata.obs[name]
    if values.isna().any() or values.nunique() != 1:
        return False
    say(
        f"warning: column {name!r} says {str(values.iloc[0])!r} of every cell: {option} {name} is "
        "left out."
    )
    return True
