"""The file of a model: safetensors, with everything else as JSON in its header. No pickle.

Knows tensors and JSON and nothing of models, so that models may use it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor

KEY = "scvae"
FORMAT = 1


def write_file(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Any) -> None:
    """Write tensors and a JSON header to `path`, whole or not at all.

    The file is written beside its place and moved there; a failure leaves what was there before.

    Raises
    ------
    FileError
        If the folder does not exist or cannot be written.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(contiguous, metadata={KEY: json.dumps({**header, "format": FORMAT})})
    with replacing(path) as draft:
        draft.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there takes its place, or is gone on failure.

    Raises
    ------
    FileError
        If nothing can be written there.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(target)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON header of a file that `write_file` wrote.

    Raises
    ------
    FileError
        If the file is missing, damaged, not written by scvae, or by a newer one.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise FileError(f"{source} is not there. Give the path that model.save(path) was given.")
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(
            f"{source} is not a model of scvae, or it is damaged ({error}). "
            "Give a file that model.save(path) wrote."
        ) from error
    return tensors, _header(metadata, source)


def _header(metadata: Mapping[str, str], source: Path) -> dict[str, Any]:
    if KEY not in metadata:
        raise FileError(
            f"{source} is a safetensors file, but not a model of scvae. "
            "Give a file that model.save(path) wrote."
        )
    try:
        header: dict[str, Any] = json.loads(metadata[KEY])
        version = int(header.pop("format"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"The header of {source} is damaged ({error}).") from error
    if version > FORMAT:
        raise FileError(
            f"{source} has file format {version}; this scvae reads up to {FORMAT}. "
            "Update it: pip install --upgrade scvae-torch"
        )
    return header
