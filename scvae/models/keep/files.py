"""The file of a model: what is written, and what is checked before a network is built of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from torch import Generator

from scvae.core.vae import VAE
from scvae.errors import FileError
from scvae.io import in_the_way, read_file, write_file
from scvae.models.embedding import Embedding
from scvae.models.keep.description import Description, describe, read_description
from scvae.models.keep.migrations import FORMAT, MIGRATIONS
from scvae.models.keep.minified import (
    SECTION,
    describe_reference,
    read_reference,
    reference_tensors,
    take_reference,
)
from scvae.models.keep.origin import Origin
from scvae.models.keep.record import Record
from scvae.models.keep.weights import EMBEDDING, check_model
from scvae.models.label.reference import Reference
from scvae.models.network import Architecture, blank_vae


@dataclass(frozen=True)
class Parts:
    """What a model is made of; as in `scvae.models.model.Model`."""

    vae: VAE
    embedding: Embedding
    architecture: Architecture
    origin: Origin
    record: Record
    reference: Reference | None = None


def write_model(path: str | os.PathLike[str], parts: Parts, *, overwrite: bool = False) -> None:
    """Write a model to `path`, whole or not at all, if `read_model` could read it.

    It takes the place of a model; of any other file only to `overwrite` it.

    Raises
    ------
    FileError
        If it cannot be written; what was there before is left as it was.
    """
    embedding = {EMBEDDING + name: value for name, value in parts.embedding.tensors().items()}
    tensors = {**parts.vae.state_dict(), **embedding}
    record, spec = parts.record.without_times(), parts.embedding.spec
    content = describe(Description(parts.architecture, spec, parts.origin, record))
    section = {} if parts.reference is None else reference_tensors(parts.reference)
    described = None if parts.reference is None else describe_reference(parts.reference)
    try:
        read_description(json.loads(json.dumps(content)))
        check_model(tensors, parts.architecture, spec)
        take_from = {name.partition(".")[2]: value for name, value in section.items()}
        read_reference(take_from, described, parts.architecture)
    except ValueError as error:
        raise FileError(
            f"{path} was not written, as no model could be read from it again: {error}."
        ) from error
    if not overwrite and (what := in_the_way(path)) is not None:
        raise FileError(
            f"{path} is there and is no model of scvae: {what}. Give another name, or "
            f"model.save({os.fspath(path)!r}, overwrite=True)"
        )
    if described is not None:
        tensors, content = {**tensors, **section}, {**content, SECTION: described}
    write_file(path, tensors, content, content_format=FORMAT)


def read_model(path: str | os.PathLike[str]) -> Parts:
    """Return the parts of the model in a file, on the CPU. Nothing is built before it is checked.

    Raises
    ------
    FileError
        If the file is missing, damaged, or not a model of scvae.
    """
    tensors, content = read_file(path, migrations=MIGRATIONS, content_format=FORMAT)
    section, described = take_reference(tensors, content)
    try:
        architecture, spec, origin, record = read_description(content)
        check_model(tensors, architecture, spec)
        reference = read_reference(section, described, architecture)
    except ValueError as error:
        raise FileError(
            f"{path} is damaged: {error}. Give a file that model.save(path) wrote."
        ) from error
    vae = blank_vae(architecture, Generator())
    names = [name for name in tensors if name.startswith(EMBEDDING)]
    of_embedding = {name.removeprefix(EMBEDDING): tensors.pop(name) for name in names}
    vae.load_state_dict(tensors)
    embedding = Embedding.of(spec.coordinates, of_embedding)
    return Parts(vae.eval(), embedding, architecture, origin, record, reference)
