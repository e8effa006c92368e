"""Pieces of one-dimensional arrays in h5ad and zarr files, many at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


def decoded_together(array: Any) -> int:
    """Return how many entries of an array in a file are decoded to read one of them."""
    if not array.chunks:
        return 1
    if hasattr(array, "async_array") or not hasattr(array, "id"):  # of zarr
        return int(array.chunks[0])
    return int(array.chunks[0]) if array.id.get_create_plist().get_nfilters() else 1


def read_pieces(array: Any, pieces: Sequence[slice]) -> list[np.ndarray]:
    """Return pieces of an array in a file, in order; of zarr by one call for all of them."""
    if len(pieces) == 1 or not hasattr(array, "async_array"):
        return [array[piece] for piece in pieces]
    from zarr.core.sync import sync

    whole = sync(_selected(array.async_array, pieces))
    ends = np.cumsum([piece.stop - piece.start for piece in pieces])
    return np.split(whole, ends[:-1])


async def _selected(array: Any, pieces: Sequence[slice]) -> np.ndarray:
    """Return pieces of an array of zarr, one after another.

    Its own ways to ask for more than one slice take every entry by its number. One call for each
    piece would look up the chunks of a shard anew each time."""
    from zarr.core.buffer import default_buffer_prototype

    selection = _Slices(pieces, array.shape, array.metadata.chunk_grid)
    found = await array._get_selection(selection, prototype=default_buffer_prototype())
    return np.asarray(found)


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
    """

    pieces: Sequence[slice]
    of: tuple[int, ...]
    grid: Any
    drop_axes: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (sum(piece.stop - piece.start for piece in self.pieces),)

    def __iter__(self) -> Iterator[Any]:
        """Yield what is taken from every chunk, and where it goes."""
        from zarr.core.indexing import BasicIndexer

        first = 0
        for piece in self.pieces:
            if piece.start == piece.stop:
                continue
            for part in BasicIndexer((piece,), self.of, self.grid):
                taken: Any = part
                (to,) = taken.out_selection
                yield taken._replace(out_selection=(slice(first + to.start, first + to.stop),))
            first += piece.stop - piece.start
