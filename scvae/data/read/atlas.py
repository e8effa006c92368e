"""Cells in files, seen as an AnnData is: names and columns in memory, counts where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scvae.data.read.frames import check_frame, column_in
from scvae.data.read.stored import IN_MEMORY, Rows, Stored, StoredMatrix, format_of
from scvae.errors import DataError, FileError, warn

if TYPE_CHECKING:
    from anndata import AnnData

Join = Literal["inner", "outer"]
JOINS: tuple[Join, ...] = ("inner", "outer")
FILE = "file"  # column of obs with the name of every cell's file, where there are several
MOST_NAMES = 2**21  # cells that are called by their names, which take memory


class OnDisk:
    """Cells x genes in one file or in several, one after another; made by `scvae.on_disk`.

    It has what the verbs of scvae ask of an AnnData, and none of its matrices is in memory.

    Attributes
    ----------
    obs, var
        What is known of the cells and of the genes.
    X, layers, raw
        Matrices, as in an AnnData: what is in all files.
    """

    isbacked, is_view = True, False

    def __init__(self, files: Sequence[Stored], memory: int, join: Join = "inner") -> None:
        self.files, self.memory, self.join = list(files), memory, join
        frames = [_frame(file, "var") for file in self.files]
        self.var = _joined_genes(self.files, frames, join)
        self._places = _places(frames, self.var.index)
        self.sizes = [_number_of_rows(file) for file in self.files]
        self.obs = _joined_cells(self.files, self.sizes)

    @property
    def var_names(self) -> pd.Index:
        return self.var.index

    @property
    def obs_names(self) -> pd.Index:
        return self.obs.index

    @property
    def n_obs(self) -> int:
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        return len(self.var)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_obs, self.n_vars

    @cached_property
    def X(self) -> Any:
        return self._matrix("X", self._places, self.n_vars)

    @cached_property
    def layers(self) -> Mapping[str, Any]:
        held = [set(file.root["layers"]) if "layers" in file.root else set() for file in self.files]
        first = self.files[0].root["layers"] if held[0] else ()
        names = [name for name in first if all(name in one for one in held)]
        return Lazy(names, lambda name: self._matrix(f"layers/{name}", self._places, self.n_vars))

    @cached_property
    def raw(self) -> Raw | None:
        if not all("raw/X" in file.root for file in self.files):
            return None
        frames = [_frame(file, "raw/var") for file in self.files]
        var = _joined_genes(self.files, frames, self.join)
        return Raw(var, lambda: self._matrix("raw/X", _places(frames, var.index), len(var)))

    def names(self) -> np.ndarray:
        """Return the names of all cells, however many they are."""
        if self.n_obs <= MOST_NAMES:
            return np.asarray(self.obs.index, dtype=object)
        return np.concatenate([_names(file) for file in self.files])

    def file_of(self, row: int) -> str | None:
        """Return the file of a cell, None where there is one alone."""
        if len(self.files) == 1:
            return None
        return str(self.files[int(np.searchsorted(np.cumsum(self.sizes), row, side="right"))].path)

    def __getitem__(self, rows: Any) -> AnnData:
        """Return some of the cells in memory, by their numbers, a mask or a slice."""
        from anndata import AnnData

        chosen = np.arange(self.n_obs)[rows]
        x = None if self.X is None else _rows(self.X, chosen)
        layers = {name: _rows(self.layers[name], chosen) for name in self.layers}
        return AnnData(x, self.obs.iloc[chosen], self.var, layers=layers)

    def __repr__(self) -> str:
        where = ", ".join(str(file.path) for file in self.files[:3])
        more = f", and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        return f"scvae.OnDisk({self.n_obs:,} cells x {self.n_vars:,} genes in {where}{more})"

    def _matrix(self, name: str, places: Sequence[np.ndarray | None], n_columns: int) -> Any:
        """Return a matrix of all files, or None if one of them has none of that name."""
        if not all(name in file.root for file in self.files):
            return None
        groups = [file.root[name] for file in self.files]
        kinds = [format_of(group) for group in groups]
        if len(groups) == 1 and kinds != ["csr"]:
            return self._other(self.files[0], groups[0], name, kinds[0])
        for file, kind in zip(self.files, kinds, strict=True):
            if kind != "csr":
                raise _no_rows(file, name, kind)
        found = [
            Rows(file, group, place, n_columns)
            for file, group, place in zip(self.files, groups, places, strict=True)
        ]
        for file, part, n, place in zip(self.files, found, self.sizes, places, strict=True):
            _check_shape(
                file, name, (part.n, part.g), n, n_columns if place is None else len(place)
            )
        return StoredMatrix(found, self.memory)

    def _other(self, file: Stored, group: Any, name: str, kind: str) -> Any:
        """Return a matrix that is no CSR, if memory holds it."""
        shape = getattr(group, "shape", group.attrs.get("shape", self.shape))
        if kind == "dense":
            needed = int(np.prod(group.shape)) * group.dtype.itemsize
        elif kind == "csc":
            needed = IN_MEMORY * group["data"].shape[0]
        else:
            raise _no_rows(file, name, kind)
        if needed > self.memory:
            raise _no_rows(file, name, kind)
        _check_shape(file, name, tuple(shape), *self.shape if name != "raw/X" else shape)
        if kind == "dense":
            return group
        from anndata.io import read_elem

        with file.named():
            return read_elem(group)


def _check_shape(file: Stored, name: str, shape: tuple[int, ...], n: int, g: int) -> None:
    if shape != (n, g):
        raise FileError(
            f"{file.path} is damaged: its {name} is {' x '.join(map(str, shape))}, but it names "
            f"{n} cells and {g} genes. Write the file again."
        )


def _rows(matrix: Any, rows: np.ndarray) -> Any:
    """Return some rows of a matrix in memory or in a file, in their order."""
    if isinstance(matrix, StoredMatrix):
        return matrix.take(rows)
    held: Any = matrix if sparse.issparse(matrix) else matrix[:]
    return held[rows]


def _no_rows(file: Stored, name: str, kind: str) -> DataError:
    """Return the error of a matrix that cannot be read by rows."""
    place = {"X": "adata.X", "raw/X": "adata.raw.X"}.get(
        name, f"adata.layers[{name.removeprefix('layers/')!r}]"
    )
    ending = "zarr" if file.path.is_dir() else "h5ad"
    new = file.path.with_name(f"{file.path.stem}-csr.{ending}")
    return DataError(
        f"{file.path}: {place} is {kind.upper() if kind == 'csc' else kind}; cells are read from "
        "disk by rows of a CSR matrix. Convert it once, where memory holds it: "
        f"adata = anndata.read_{ending}({str(file.path)!r}); "
        f"{place} = scipy.sparse.csr_matrix({place}); adata.write_{ending}({str(new)!r})"
    )


@dataclass(frozen=True)
class Raw:
    """Genes and counts of adata.raw."""

    var: pd.DataFrame
    find: Callable[[], Any]

    @property
    def X(self) -> Any:
        return self.find()

    @property
    def var_names(self) -> pd.Index:
        return self.var.index


class Lazy(Mapping[str, Any]):
    """A mapping whose values are made when they are asked for."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Any]) -> None:
        self._names, self._make = list(names), make

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


# -- genes -------------------------------------------------------------------------------------


def _joined_genes(files: Sequence[Stored], frames: list[pd.DataFrame], join: Join) -> pd.DataFrame:
    """Return the genes of all files by name, in the order of the first; columns that agree."""
    first = frames[0]
    if len(frames) == 1:
        return first
    for file, frame in zip(files, frames, strict=True):
        if not frame.index.is_unique:
            repeated = frame.index[frame.index.duplicated()]
            raise DataError(
                f"{file.path} has {len(repeated)} duplicated genes (first: {repeated[0]!r}); genes "
                "of several files are joined by name: adata.var_names_make_unique(), and write it"
            )
    names = first.index
    for frame in frames[1:]:
        names = (
            names.union(frame.index, sort=False)
            if join == "outer"
            else names[names.isin(frame.index)]
        )
    _tell(files, frames, names, join)
    kept = [name for name in first if all(_agrees(first, frame, names, name) for frame in frames)]
    return first.reindex(names)[kept]


def _agrees(one: pd.DataFrame, other: pd.DataFrame, names: pd.Index, column: Any) -> bool:
    """Return whether two files say the same of all joined genes in a column."""
    if column not in other or not (names.isin(one.index) & names.isin(other.index)).all():
        return False
    pair = [list(frame[column].reindex(names).astype(object)) for frame in (one, other)]
    return pair[0] == pair[1]


def _tell(files: Sequence[Stored], frames: list[pd.DataFrame], names: pd.Index, join: Join) -> None:
    """Say which genes are taken where files have others, and refuse where hardly any meet."""
    sizes = [len(frame) for frame in frames]
    if not len(names):
        raise DataError(
            f"The {len(files)} files share no gene by name: {files[0].path} has "
            f"{list(frames[0].index[:3])}, {files[-1].path} has {list(frames[-1].index[:3])}. Give "
            "genes the same kind of names in all: adata.var_names = adata.var['gene_ids']"
        )
    if min(sizes) == max(sizes) == len(names):
        return
    if join == "outer":
        text = (
            f"The {len(files)} files have {min(sizes):,} to {max(sizes):,} genes, {len(names):,} "
            "together; a gene that a file has not counts as zero there, which passes for a batch "
            "effect. To take those that all have: scvae.on_disk(paths, join='inner')"
        )
    else:
        text = (
            f"The {len(files)} files have {min(sizes):,} to {max(sizes):,} genes, and share "
            f"{len(names):,}, which are taken."
        )
    warn(text)


def _places(frames: list[pd.DataFrame], names: pd.Index) -> list[np.ndarray | None]:
    """Return, for every file, the place of each of its genes among the joined ones, or None where
    they are the same."""
    if len(frames) == 1:
        return [None]
    return [
        None if frame.index.equals(names) else names.get_indexer(frame.index) for frame in frames
    ]


# -- cells -------------------------------------------------------------------------------------


def _joined_cells(files: Sequence[Stored], n: list[int]) -> pd.DataFrame:
    """Return the columns of all cells, one file after another."""
    frames = [_cells(file, named=sum(n) <= MOST_NAMES) for file in files]
    if len(frames) == 1:
        return frames[0]
    columns = list(dict.fromkeys(name for frame in frames for name in frame))
    joined = pd.DataFrame({name: _stacked(frames, name) for name in columns})
    if sum(n) <= MOST_NAMES:
        joined.index = _index(np.concatenate([frame.index for frame in frames]))
    if FILE not in joined:
        joined[FILE] = pd.Categorical.from_codes(
            np.repeat(np.arange(len(n)), n), pd.Index(_short(files))
        )
    return joined


def _short(files: Sequence[Stored]) -> list[str]:
    """Return a name for every file, without its folder where those are different."""
    stems = list(dict.fromkeys(file.path.stem for file in files))
    return stems if len(stems) == len(files) else [str(file.path) for file in files]


def _stacked(frames: list[pd.DataFrame], name: Any) -> Any:
    """Return a column of all frames; missing where a frame has none."""
    parts = [
        frame[name] if name in frame else pd.Series(np.full(len(frame), np.nan), dtype=object)
        for frame in frames
    ]
    if all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
        if len({part.dtype for part in parts}) == 1:
            return pd.concat(parts, ignore_index=True)
        names = list(dict.fromkeys(level for part in parts for level in part.cat.categories))
        alike = [
            part.cat.set_categories(names, ordered=False).reset_index(drop=True) for part in parts
        ]
        return pd.concat(alike, ignore_index=True)
    plain = [
        part.astype(object) if isinstance(part.dtype, pd.CategoricalDtype) else part
        for part in parts
    ]
    return pd.concat(plain, ignore_index=True)


def _frame(file: Stored, name: str) -> pd.DataFrame:
    from anndata.io import read_elem

    with file.named():
        if name not in file.root:
            raise FileError(f"{file.path} has no {name!r}; it is no file that AnnData writes.")
        check_frame(file.root[name], file.path)
        frame = read_elem(file.root[name])
        frame.index = _index(frame.index)
        return frame


def _number_of_rows(file: Stored) -> int:
    with file.named():
        return _rows_of(file.root["obs"])


def _rows_of(obs: Any) -> int:
    names = obs[_index_of(obs)]
    # Strings that may be missing, as pandas 3 has them, are values beside a mask.
    return int((names if hasattr(names, "shape") else names["values"]).shape[0])


def _names(file: Stored) -> np.ndarray:
    from anndata.io import read_elem

    with file.named():
        obs = file.root["obs"]
        return np.asarray(read_elem(obs[_index_of(obs)]), dtype=object)


def _index(names: Any) -> pd.Index:
    """Return names as pandas holds those that are made in memory."""
    return pd.Index(list(names))


def _index_of(obs: Any) -> str:
    name = obs.attrs["_index"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _cells(file: Stored, *, named: bool) -> pd.DataFrame:
    """Return what a file says of its cells, text with few different values as categories."""
    from anndata.io import read_elem

    with file.named():
        obs = file.root["obs"]
        index, n = _index_of(obs), _rows_of(obs)
        columns = {}
        for name in map(str, obs.attrs["column-order"]):
            values = column_in(obs, name)
            if values is not None:
                columns[name] = values
        names = _index(read_elem(obs[index])) if named else pd.RangeIndex(n)
        return pd.DataFrame(columns, index=names)
