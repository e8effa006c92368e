"""The files of scvae: safetensors, with everything else as JSON in its header. No pickle.

Knows tensors and JSON and nothing of models, so that models may use it. What it reads, it reads as
if it had been written to do harm: every length is compared with the size of the file before
anything of that length is made, and two checksums tell whether it is what was written. They protect
from accidents; whoever alters a file on purpose can make new ones.

A file carries two numbers: the format of the container, which this module knows, and the format of
the content, which whoever writes it knows. Files that name no second number had one for both.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae._version import __version__
from scvae.errors import FileError
from scvae.io.places import opened, replacing
from scvae.io.strict import parse, shown
from scvae.io.table import DTYPES, Entry, parse_table

if TYPE_CHECKING:
    from torch import Tensor

KEY = "scvae"
HEADER_SUM, TENSORS_SUM = "sha256_header", "sha256_tensors"
FORMAT = 2
UNCHECKED_FORMAT = 1  # had no checksums
LONGEST_HEADER = 2**26  # 64 MiB: a million genes take half of it
KINDS = {
    "model": "Give a file that model.save(path) wrote.",
    "checkpoint": "Remove it, and the fit starts from the beginning.",
}
FOREIGN = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, such as h5ad",
    b"PK\x03\x04": "a zip archive, such as torch.save writes",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip file, to be unpacked first",
    b"version https://git-lfs": "a pointer of Git LFS; git lfs pull fetches the file",
    b"<!DOCTYPE html": "a web page, as a download that failed leaves",
    b"<html": "a web page, as a download that failed leaves",
}

Contents = tuple[dict[str, "Tensor"], dict[str, Any]]
Migration = Callable[[dict[str, "Tensor"], dict[str, Any]], Contents]


# -- writing -----------------------------------------------------------------------------------


def write_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    content: Any,
    kind: str = "model",
    *,
    content_format: int = FORMAT,
) -> None:
    """Write tensors and a JSON description to `path`, whole or not at all.

    The file is written beside its place and moved there; a failure leaves what was there before.

    Parameters
    ----------
    tensors
        Of the types in `scvae.io.table.DTYPES`.
    content
        What JSON can hold.
    kind
        One of `KINDS`.
    content_format
        Number of the format of tensors and content.

    Raises
    ------
    FileError
        If the folder does not exist or cannot be written, or `read_file` could not read it back.
    """
    import torch
    from safetensors.torch import save

    versions = {"scvae": __version__, "torch": str(torch.__version__)}
    fields = {
        **{"format": FORMAT, "kind": kind, "content_format": content_format},
        **{"versions": versions, "content": content},
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    plain = memoryview(save(contiguous))
    begin = 8 + int.from_bytes(plain[:8], "little")
    table, body = json.loads(bytes(plain[8:begin])), plain[begin:]
    header = _sealed(json.dumps(fields), table, hashlib.sha256(body).hexdigest())
    try:
        _parse_header(header, len(body), kind, content_format)
    except ValueError as error:
        raise FileError(f"{path} cannot be written: {error}.") from error
    with replacing(path) as draft:
        draft.write_bytes(b"".join([len(header).to_bytes(8, "little"), header, body]))


def in_the_way(path: str | os.PathLike[str], kind: str = "model") -> str | None:
    """Return what is at `path` if it is a file of something else than this `kind`, for a message.

    None where nothing is lost: no file, an empty one, one of this kind, a pipe or a device."""
    try:
        if not os.path.isfile(path) or not os.path.getsize(path):
            return None
        with open(path, "rb") as file:
            header = _json_object(_read_header(file)[0])
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or not isinstance(text := metadata.get(KEY), str):
            return "it is a safetensors file, but not one of scvae"
        found = _json_object(text).get("kind", kind)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None if found == kind else f"it is a {shown(found)}"


def _sealed(text: str, table: dict[str, Any], tensors_sum: str) -> bytes:
    """Return the header of a file, as long as a multiple of 8, which aligns the tensors."""
    sums = {HEADER_SUM: _header_sum(text, table), TENSORS_SUM: tensors_sum}
    header = json.dumps({"__metadata__": {KEY: text, **sums}, **table}, separators=(",", ":"))
    return header.encode().ljust(-(-len(header) // 8) * 8)


def _header_sum(text: str, table: dict[str, Any]) -> str:
    """Return the checksum of a description and a table, however the table's JSON is spaced."""
    return hashlib.sha256(json.dumps([text, table], sort_keys=True).encode()).hexdigest()


# -- reading -----------------------------------------------------------------------------------


def read_file(
    path: str | os.PathLike[str],
    kind: str = "model",
    migrations: Mapping[int, Migration] | None = None,
    *,
    content_format: int = FORMAT,
) -> Contents:
    """Return the tensors and the description of a file that `write_file` wrote.

    Takes time and memory in proportion to the size of the file, whatever the file says.

    Parameters
    ----------
    kind
        One of `KINDS`.
    migrations
        How contents of an older format become those of the next one, by the older's number.
    content_format
        Number of the format of contents to return.

    Raises
    ------
    FileError
        If the file is missing, damaged, not written by scvae or not of this kind, or by a newer
        scvae.
    """
    source, remedy = Path(path), KINDS[kind]
    try:
        with opened(source, remedy) as file:
            return _read(file, kind, migrations or {}, content_format)
    except _NewerError as error:
        raise FileError(
            f"{source} has file format {error.found}; this scvae reads up to {error.newest}. "
            "Update it: pip install --upgrade scvae-torch"
        ) from error
    except MemoryError as error:
        raise FileError(f"{source} is larger than the memory that is left. {remedy}") from error
    except ValueError as error:
        raise FileError(
            f"{source} is not a {kind} of scvae, or it is damaged: {error}. {remedy}"
        ) from error


class _NewerError(Exception):
    """The file was written by a newer scvae."""

    def __init__(self, found: int, newest: int) -> None:
        super().__init__(found, newest)
        self.found, self.newest = found, newest


@dataclass(frozen=True)
class _Header:
    """What the header of a file says, and that it says it of `entries`."""

    content_format: int
    content: dict[str, Any]
    entries: list[Entry]
    tensors_sum: str | None


def _read(
    file: BufferedReader, kind: str, migrations: Mapping[int, Migration], newest: int
) -> Contents:
    raw, size = _read_header(file)
    header = _parse_header(raw, size, kind, newest)
    tensors, content = _read_tensors(file, header), header.content
    for version in range(header.content_format, newest):
        if version not in migrations:
            raise ValueError(f"it was written in format {version}, which is no longer read")
        try:
            tensors, content = migrations[version](tensors, content)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"it is not what format {version} was ({error!r:.99})") from error
    return tensors, content


def _read_header(file: BufferedReader) -> tuple[bytes, int]:
    """Return the header, and the number of bytes after it."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise ValueError(f"it has {len(start)} bytes" if start else "it is empty")
    if not 2 <= length <= min(size - 8, LONGEST_HEADER):
        foreign = (what for magic, what in FOREIGN.items() if start.startswith(magic))
        default = f"its header would have {length} bytes, but it has {size}"
        raise ValueError(next((f"it begins like {what}" for what in foreign), default))
    return file.read(length), size - 8 - length


def _parse_header(header: bytes, size: int, kind: str, newest: int) -> _Header:
    """Return what a header says of the `size` bytes after it, if its content is no newer."""
    if len(header) > LONGEST_HEADER:
        raise ValueError(f"its header has {len(header)} bytes, more than {LONGEST_HEADER}")
    table = _json_object(header)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not isinstance(text := metadata.get(KEY), str):
        raise ValueError("it is a safetensors file, but not one of scvae")
    fields = _json_object(text)
    version = _number(fields.pop("format", None), "format", FORMAT)
    entries = parse_table(table, size)
    if version == UNCHECKED_FORMAT:
        return _Header(version, fields, entries, None)
    if metadata.get(HEADER_SUM) != _header_sum(text, table):
        raise ValueError("its header was altered: the checksum is another")
    if fields.get("kind") != kind:
        raise ValueError(f"it is a {shown(fields.get('kind'))}")
    number = _number(fields.get("content_format", version), "content_format", newest)
    if not isinstance(content := fields.get("content"), dict):
        raise ValueError("its header describes nothing")
    return _Header(number, content, entries, str(metadata.get(TENSORS_SUM)))


def _number(value: Any, name: str, newest: int) -> int:
    """Return the number of a format, before anything is read that a newer one may do otherwise."""
    if type(value) is not int or value < UNCHECKED_FORMAT:
        raise ValueError(f"its header has {name} {shown(value)}")
    if value > newest:
        raise _NewerError(value, newest)
    return value


def _json_object(text: bytes | str) -> dict[str, Any]:
    try:
        value = parse(text)
    except ValueError as error:
        raise ValueError(f"its header is damaged ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("its header is not a JSON object")
    return value


def _read_tensors(file: BufferedReader, header: _Header) -> dict[str, Tensor]:
    """Return the tensors; the entries are in the order of the bytes, and fill the file."""
    import torch

    total, tensors = hashlib.sha256(), {}
    for entry in header.entries:
        memory = bytearray(entry.stop - entry.start)
        if file.readinto(memory) < len(memory):
            raise ValueError("it was cut short while it was read")
        total.update(memory)
        dtype = getattr(torch, DTYPES[entry.dtype])
        flat = torch.frombuffer(memory, dtype=dtype) if memory else torch.empty(0, dtype=dtype)
        tensors[entry.name] = flat.view(entry.shape)
    if header.tensors_sum not in (None, total.hexdigest()):
        raise ValueError("its tensors were altered: their checksum is another")
    return tensors
