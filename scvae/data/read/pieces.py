"""Pieces of one-dimensional arrays in h5ad and zarr files, many at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np


def member(group: Any, name: str) -> Any:
    """Return an array of a group, to be decoded by zarrs where it is installed and knows how:
    counts in many small chunks of zarr come two to three times as fast."""
    array = group[name]
    if not hasattr(array, "async_array") or not array.dtype.isnative:
        return array
    try:
        import zarr

        import_module("zarrs")
    except ImportError:
        return array
    decoder = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
    with zarr.config.set(decoder), warnings.catch_warnings():
        # Where it does not know the codecs, zarr decodes itself.
        warnings.filterwarnings("ignore", "Array is unsupported by ZarrsCodecPipeline")
        return group[name]


def is_whole(array: Any) -> bool:
    """Return whether no chunk of an array is missing, which zarr would take for one of zeros."""
    if not hasattr(array, "async_array"):
        return True
    return bool(array.nchunks_initialized >= array.nchunks)  # those of a shard all count


def decoded_together(array: Any) -> int:
    """Return how many entries of an array in a file are decoded to read one of them."""
    if not array.chunks:
        return 1
    if hasattr(array, "async_array") or not hasattr(array, "id"):  # of zarr
        return int(array.chunks[0])
    return int(array.chunks[0]) if array.id.get_create_plist().get_nfilters() else 1


def read_pieces(array: Any, pieces: Sequence[slice]) -> list[np.ndarray]:
    """Return pieces of an array in a file, in order; of zarr by one call for all of them."""
    selecting = _selecting() if hasattr(array, "async_array") and len(pieces) > 1 else None
    if selecting is None:
        return [array[piece] for piece in pieces]
    ends = np.cumsum([piece.stop - piece.start for piece in pieces])
    return np.split(selecting(array.async_array, pieces), ends[:-1])


@cache
def _selecting() -> Callable[[Any, Sequence[slice]], np.ndarray] | None:
    """Return what reads pieces of an array of zarr, one after another, by one call.

    zarr's own ways to ask for more than one slice take every entry by its number, and one call for
    each piece would look up the chunks of a shard anew each time. What it asks itself by has names
    that it does not promise to keep: None where a version has others."""
    try:
        from zarr import AsyncArray
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.indexing import BasicIndexer
        from zarr.core.sync import sync
    except ImportError:
        return None
    if not hasattr(AsyncArray, "_get_selection"):
        return None

    def selected(array: Any, pieces: Sequence[slice]) -> np.ndarray:
        slices = _Slices(pieces, array.shape, array.metadata.chunk_grid, BasicIndexer)
        asked = array._get_selection(slices, prototype=default_buffer_prototype())
        return np.asarray(sync(asked))

    return selected


@dataclass(frozen=True)
class _Slices:
    """Several slices as one selection, as zarr asks for selections.

    Attributes
    ----------
    pieces
        The slices, with start and stop.
    of
        Shape of the array, ``(n,)``.
    grid
        Its chunks.
    indexer
        zarr's, of one slice.
    """

    pieces: Sequence[slice]
    of: tuple[int, ...]
    grid: Any
    indexer: Callable[..., Any]
    drop_axes: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (sum(piece.stop - piece.start for piece in self.pieces),)

    def __iter__(self) -> Iterator[Any]:
        """Yield what is taken from every chunk, and where it goes."""
        first = 0
        for piece in self.pieces:
            if piece.start == piece.stop:
                continue
            for part in self.indexer((piece,), self.of, self.grid):
                (to,) = part.out_selection
                yield part._replace(out_selection=(slice(first + to.start, first + to.stop),))
            first += piece.stop - piece.start
