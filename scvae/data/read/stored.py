"""Matrices in h5ad and zarr files, read as consecutive rows of CSR, of one file or of several."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from scvae.data.hold.counts import Arrays
from scvae.data.hold.shards import Range
from scvae.data.read.pieces import decoded_together, is_whole, member, read_pieces
from scvae.data.read.structure import check_structure
from scvae.errors import DataError, FileError

IN_MEMORY = 16  # bytes that a non-zero takes at most while a matrix is read into memory
NEAR = 32  # rows: fewer between two that are asked for are read with them
STAMPED = ("", "zarr.json", ".zattrs", "X", "X/data", "X/data/zarr.json")  # of a zarr store


class Stored:
    """A file or store of cells, open for reading, that must stay what it was when it was opened.

    Attributes
    ----------
    path
        Where it is.
    root
        Its group, of h5py or zarr; opened if it is not given.
    """

    def __init__(self, path: str | os.PathLike[str], root: Any = None) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileError(f"{self.path} is not there.")
        self.stamp = self._stamp()
        self.root = self._opened() if root is None else root

    def _opened(self) -> Any:
        try:
            if self.path.is_dir():
                import zarr

                return zarr.open_group(str(self.path), mode="r")
            import h5py

            return h5py.File(self.path, "r")
        except BlockingIOError as error:
            raise FileError(
                f"{self.path} is locked: another process is writing to it. Wait for it, or copy "
                "the file."
            ) from error
        except Exception as error:  # of h5py and zarr, of any kind
            raise FileError(
                f"{self.path} cannot be read as h5ad or zarr, or was cut short: {error}"
            ) from error

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return sizes, times of the last change, and numbers of files, as the system knows them"""
        places = [self.path]
        if self.path.is_dir():
            places = [place for name in STAMPED if (place := self.path / name).exists()]
        found = [os.stat(place) for place in places]
        return tuple((one.st_size, one.st_mtime_ns, one.st_ino) for one in found)

    def check_unchanged(self) -> None:
        """Raise FileError if it is no longer what it was when it was opened."""
        with self.named():
            if self._stamp() == self.stamp:
                return
        raise FileError(
            f"{self.path} was changed while it was read; what was seen of it holds no more. "
            "Nothing was written. Start again once nothing writes to it."
        )

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Turn the error of a broken or vanished file into one that names it."""
        try:
            yield
        except (FileError, DataError, MemoryError):
            raise
        except Exception as error:  # of h5py and zarr, of any kind
            raise FileError(
                f"{self.path} is damaged, or was cut short or taken away: {error}"
            ) from error


def in_file(matrix: Any, path: str | os.PathLike[str], memory: int) -> Any:
    """Return the matrix of an AnnData in backed mode as one that is read by rows, where it is CSR;
    any other as it is."""
    group = getattr(matrix, "group", None)
    if sparse.issparse(matrix) or getattr(matrix, "format", None) != "csr" or group is None:
        return matrix
    return StoredMatrix([Rows(Stored(path, group), group)], memory)


def format_of(group: Any) -> str:
    """Return "csr", "csc" or "dense", by what a group or array of h5ad and zarr says it is."""
    said = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", ""))
    said = said.decode() if isinstance(said, bytes) else str(said)
    kind = said[:3]
    if kind in ("csr", "csc"):
        return kind
    return "dense" if hasattr(group, "shape") else said or "unknown"


class Rows:
    """Consecutive rows of one CSR matrix in a file.

    Parameters
    ----------
    file
        The file.
    group
        The matrix, in it.
    places
        Column of the result of every column, -1 for none, ``(g,)``; None for the same.
    n_columns
        Columns of the result; None for as many as there are.
    """

    def __init__(
        self,
        file: Stored,
        group: Any,
        places: np.ndarray | None = None,
        n_columns: int | None = None,
    ) -> None:
        self.file, self.places = file, places
        with file.named():
            shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
            self.n, self.g = (int(size) for size in shape)
            self.indptr = np.asarray(group["indptr"][:], dtype=np.int64)
            self.data, self.indices = member(group, "data"), member(group, "indices")
            self.dtype = np.dtype(self.data.dtype)
        self.n_columns = self.g if n_columns is None else n_columns
        self._check()

    def _check(self) -> None:
        """Raise unless the parts of the matrix fit together; the indices are looked at later."""
        indptr, stored = self.indptr, self.data.shape[0]
        ends = len(indptr) == self.n + 1 and indptr[0] == 0 and indptr[-1] == stored
        if not ends or (np.diff(indptr) < 0).any() or self.indices.shape[0] != stored:
            raise FileError(
                f"{self.file.path} is damaged: a sparse matrix of {self.n} rows in it has parts "
                "that contradict each other. Write the file again."
            )
        # Zarr writes no chunk that is all zeros; of indices, and of counts, there is none unless no
        # row has more than the first gene.
        whole = is_whole(self.data) and is_whole(self.indices)
        if not whole and np.diff(indptr).max(initial=0) > 1:
            raise FileError(
                f"{self.file.path} is damaged: chunks of a sparse matrix in it are missing, as if "
                "it was not copied to the end. Copy or write it again."
            )

    @property
    def entries(self) -> int:
        """Values that are stored."""
        return int(self.indptr[-1])

    @property
    def chunk(self) -> int:
        """Values that are decoded to read one of them."""
        return max(decoded_together(array) for array in (self.data, self.indices))

    def arrays(self, ranges: Sequence[Range]) -> list[Arrays]:
        """Return data, indices and indptr of each of some ranges of rows, unseen."""
        self.file.check_unchanged()
        ends = [self.indptr[start : stop + 1] for start, stop in ranges]
        pieces = [slice(int(each[0]), int(each[-1])) for each in ends]
        with self.file.named():
            data, indices = read_pieces(self.data, pieces), read_pieces(self.indices, pieces)
        return [(d, i, each - each[0]) for d, i, each in zip(data, indices, ends, strict=True)]

    def matrix(self, arrays: Arrays) -> sparse.csr_matrix:
        """Return the rows that such arrays are, each column where it belongs."""
        rows = _csr(*arrays, self.g)
        check_structure(rows)
        return rows if self.places is None else _placed(rows, self.places, self.n_columns)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return the rows from `start` to before `stop`, as they are stored."""
        return self.matrix(self.arrays([(start, stop)])[0])

    def places_of(self, columns: np.ndarray | None) -> np.ndarray | None:
        """Return which of the chosen columns of the result every stored column is, ``(g,)``, -1 for
        none; None where that would change their order."""
        places = np.arange(self.g) if self.places is None else self.places
        if columns is not None:
            position = np.full(self.n_columns + 1, -1)  # the last is that of what has no place
            position[columns] = np.arange(len(columns))
            places = position[places]
        rising = bool((np.diff(places[places >= 0]) > 0).all())
        return places.astype(np.int64) if rising else None


def _csr(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, g: int) -> sparse.csr_matrix:
    """Return a CSR matrix of these parts, which are not looked at, in types that scipy knows."""
    if data.dtype == np.float16:
        data = data.astype(np.float32)
    if indices.dtype not in (np.int32, np.int64):
        indices = indices.astype(np.int64)
    rows = sparse.csr_matrix((len(indptr) - 1, g), dtype=data.dtype.newbyteorder("="))
    rows.data, rows.indices = data.astype(rows.dtype, copy=False), indices
    rows.indptr = indptr.astype(indices.dtype)
    return rows


def _placed(rows: sparse.csr_matrix, places: np.ndarray, n_columns: int) -> sparse.csr_matrix:
    """Return the same rows with every column where it belongs, or left out."""
    columns = places[rows.indices]
    kept = columns >= 0
    ends = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
    dtype = rows.indices.dtype
    return _csr(rows.data[kept], columns[kept].astype(dtype), ends, n_columns)


@dataclass(frozen=True)
class StoredMatrix:
    """A cells x genes matrix whose rows lie in one file or in several, one after another.

    Attributes
    ----------
    parts
        Rows of every file.
    memory
        Bytes that counts may take in memory.
    """

    parts: Sequence[Rows]
    memory: int
    format: str = "csr"

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.n for part in self.parts), self.parts[0].n_columns

    @property
    def dtype(self) -> np.dtype:
        """Type of the values; the parts may have different ones."""
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def entries(self) -> int:
        """Values that are stored."""
        return sum(part.entries for part in self.parts)

    @property
    def chunk(self) -> int:
        """Values that are decoded to read one of them, at most."""
        return max(part.chunk for part in self.parts)

    @property
    def stays(self) -> bool:
        """Whether the matrix is too large to be read into memory."""
        return self.entries * IN_MEMORY > self.memory

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """Return consecutive rows."""
        start, stop, _ = rows.indices(self.shape[0])
        found, first = [], 0
        for part in self.parts:
            begin, end = max(start - first, 0), min(stop - first, part.n)
            if begin < end:
                found.append(part.read(begin, end))
            first += part.n
        if not found:
            return sparse.csr_matrix((0, self.shape[1]), dtype=self.dtype)
        return found[0] if len(found) == 1 else sparse.vstack(found, format="csr")

    def take(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return the given rows, in their order; those that lie near each other by one call."""
        order = np.argsort(rows, kind="stable")
        runs = np.split(rows[order], np.flatnonzero(np.diff(rows[order]) > NEAR) + 1)
        parts = [self[run[0] : run[-1] + 1][run - run[0]] for run in runs if len(run)]
        if not parts:
            return self[:0]
        return sparse.vstack(parts, format="csr")[np.argsort(order)]
