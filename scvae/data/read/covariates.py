"""What is known of a cell besides its counts: batch, categories, numbers; and their encoding."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from scvae.arguments import check_names, shown
from scvae.data.read.amounts import finite, standardiser, warn_if_far
from scvae.errors import DataError


def column(obs: pd.DataFrame, name: str, role: str) -> pd.Series:
    """Return adata.obs[name] without missing values, or say what is there instead."""
    if not isinstance(name, str):
        meant = _meant(obs, role, name)
        raise DataError(f"{role}={shown(name)} must be the name of one column of adata.obs{meant}")
    if name not in obs:
        if name in map(str, obs.columns):
            raise DataError(
                f"adata.obs has a column {name} whose name is no text; names of columns are: "
                "adata.obs.columns = adata.obs.columns.astype(str)"
            )
        near = _near(str(name), [str(c) for c in obs.columns])
        hint = f"did you mean {role}={near!r}?" if near else f"it holds: {list(obs.columns)}."
        raise DataError(f"adata.obs has no column {name!r} (given as {role}); {hint}")
    values = native(obs[name])
    if isinstance(values, pd.DataFrame):
        raise DataError(f"adata.obs has several columns named {name!r}; rename all but one.")
    missing = int(values.isna().sum())
    if missing:
        first = obs.index[values.isna().to_numpy()][0]
        kept = f"Every cell needs a value: adata = adata[adata.obs[{name!r}].notna()].copy()"
        remedy = kept if missing < len(obs) else "It says nothing: leave it out."
        raise DataError(
            f"adata.obs[{name!r}] (given as {role}) is missing for {missing} of {len(obs)} cells "
            f"(first: {first!r}). {remedy}"
        )
    return values


def _near(name: str, columns: list[str]) -> str | list[str] | None:
    """Return the column that a name is meant to be, or the columns, if it is several."""
    several = [part.strip() for part in name.split(",")]
    if len(several) > 1 and set(several) <= set(columns):
        return several
    same = [known for known in columns if known.lower() == name.lower()]
    return next(iter(same or get_close_matches(name, columns, n=1)), None)


def native(values: Any) -> Any:
    """Return a column, or columns, with numbers in the byte order of this machine."""
    if isinstance(values, pd.DataFrame):
        foreign = [i for i, dtype in enumerate(values.dtypes) if not _is_native(dtype)]
        values = values.copy() if foreign else values
        for i in foreign:
            values.isetitem(i, native(values.iloc[:, i]))
        return values
    if _is_native(values.dtype):
        return values
    swapped = values.to_numpy().astype(values.dtype.newbyteorder("="))
    return pd.Series(swapped, values.index, name=values.name)


def _is_native(dtype: Any) -> bool:
    return not isinstance(dtype, np.dtype) or dtype.isnative


def _meant(obs: pd.DataFrame, role: str, given: Any) -> str:
    """Return what is to be given instead of a column itself, or of several."""
    names = [given.name] if isinstance(given, pd.Series) else given
    if (
        not isinstance(names, list | tuple)
        or not names
        or any(not isinstance(name, str) or name not in obs for name in names)
    ):
        return "."
    others = f", covariates={list(names[1:])!r}" if len(names) > 1 and role == "batch" else ""
    return f": {role}={names[0]!r}{others}"


def _names(values: pd.Series) -> pd.Series:
    """Return categories as strings; whole floats as whole numbers, which they are elsewhere."""
    if pd.api.types.is_float_dtype(values.dtype) and (values == values.round()).all():
        values = values.astype(np.int64)
    return values.astype(str)


def _grouped(values: pd.Series) -> tuple[list[str], np.ndarray]:
    """Return the names of the categories that are there, and the position of every cell's, int64.

    Categories of pandas keep their order, others are sorted by name."""
    is_categorical = isinstance(values.dtype, pd.CategoricalDtype)
    if is_categorical:
        codes, levels = values.cat.codes.to_numpy(), values.cat.categories
    else:
        # Objects that are equal may have several names: 1, 1.0 and True.
        is_mixed = values.dtype == object and pd.api.types.infer_dtype(values) != "string"
        codes, levels = pd.factorize(values.astype(str) if is_mixed else values)
    there = np.flatnonzero(np.bincount(codes, minlength=len(levels)))
    of_levels = _names(pd.Series(levels)[there])
    names = list(dict.fromkeys(of_levels) if is_categorical else sorted(set(of_levels)))
    names = list(map(str, names))  # those of numpy print as such
    positions = np.zeros(len(levels), dtype=np.int64)
    positions[there] = _positions(of_levels, names)
    return names, positions[codes]


def names_of_cells(values: pd.Series) -> pd.Series:
    """Return the name of every cell's category."""
    names, positions = _grouped(values)
    return pd.Series(names, dtype=object).take(positions).reset_index(drop=True)


def _positions(names: Iterable[str], of: Sequence[str]) -> np.ndarray:
    """Return the position of every name among others, int64."""
    position = {name: i for i, name in enumerate(of)}
    return np.array([position[name] for name in names], dtype=np.int64)


@dataclass(frozen=True)
class Covariates:
    """The columns of adata.obs that a model conditions on, and how they become numbers.

    A row of the design is one-hot in every category, the batch first, then come the standardised
    numbers; this is where that layout is known.

    Attributes
    ----------
    batch
        Name of the batch column, or None.
    categories
        Categories of the batch (first, if there is one) and of every categorical covariate.
    numbers
        Mean and standard deviation of every continuous covariate.
    """

    batch: str | None = None
    categories: Mapping[str, list[str]] = field(default_factory=dict)
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def n_batches(self) -> int:
        return len(self.batches) if self.batch is not None else 1

    @property
    def batches(self) -> list[str]:
        """Names of the batches, in the order of their codes."""
        return self.categories[self.batch] if self.batch is not None else []

    @property
    def others(self) -> list[str]:
        """Names of the covariates besides the batch, categories first."""
        return [name for name in (*self.categories, *self.numbers) if name != self.batch]

    @property
    def width(self) -> int:
        """Width of the design matrix."""
        return sum(map(len, self.categories.values())) + len(self.numbers)

    def read(self, obs: pd.DataFrame) -> Encoded:
        """Return what the covariates are of the cells in `obs`.

        Raises
        ------
        DataError
            If a column is absent or incomplete, or has an unknown category.
        """
        columns = []
        for name, categories in self.categories.items():
            values = self._batch_of(obs) if name == self.batch else self._covariate_of(obs, name)
            columns.append(_known(values, categories, name))
        for name in self.numbers:
            columns.append(finite(self._covariate_of(obs, name), name))
            warn_if_far(columns[-1], name, *self.numbers[name])
        return self._encoded(len(obs), columns)

    def _covariate_of(self, obs: pd.DataFrame, name: str) -> pd.Series:
        """Return a column that the model needs, or say what stands for one that is not known."""
        if name in obs and not (len(obs) and obs[[name]].isna().all(axis=None)):
            return column(obs, name, "covariate")
        state = "has no values in" if name in obs else "has no"
        typical: Any = f"{self.numbers[name][0]:.6g}" if name in self.numbers else None
        what = "its mean in the fit" if typical else f"one of {self.categories[name][:10]}"
        if not typical:
            typical = repr(self.categories[name][0])
        raise DataError(
            f"adata.obs {state} column {name!r}, a covariate of the model; it holds: "
            f"{list(obs.columns)[:10]}. Name the column so, or, where it is not known, give all "
            f"cells {what}: adata.obs[{name!r}] = {typical}"
        )

    def _batch_of(self, obs: pd.DataFrame) -> pd.Series:
        assert self.batch is not None
        try:
            return column(obs, self.batch, "batch")
        except DataError as error:
            if self.batch in obs:
                raise
            raise DataError(
                f"{error} Name the column so, or embed these cells as of a batch that was never "
                "seen: model.embed(adata, batch='new')"
            ) from error

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Return the design of cells of the given batches, ``(n, width)``: all other categories
        are their first, numbers their mean."""
        first = np.zeros_like(codes)
        columns = [codes if name == self.batch else first for name in self.categories]
        means = [np.full(len(codes), mean) for mean, _ in self.numbers.values()]
        return self._encoded(len(codes), [*columns, *means]).design

    def _encoded(self, n: int, columns: Sequence[np.ndarray]) -> Encoded:
        """Return what is read of `n` cells, given positions of categories, and numbers, of each."""
        parts = [np.empty((n, 0), dtype=np.float32)]
        codes = np.zeros(n, dtype=np.int64) if self.batch is None else columns[0]
        positions, numbers = columns[: len(self.categories)], columns[len(self.categories) :]
        for categories, position in zip(self.categories.values(), positions, strict=True):
            parts.append(np.eye(len(categories), dtype=np.float32)[position])
        for (mean, std), values in zip(self.numbers.values(), numbers, strict=True):
            parts.append(((values - mean) / std).astype(np.float32)[:, None])
        return Encoded(self, np.hstack(parts), codes)

    def typical(self, mean: np.ndarray) -> np.ndarray:
        """Return the row of a design of the most common categories and the mean of every number,
        float32 ``(width,)``, given the mean row of the design."""
        row, start = np.zeros(self.width), 0
        for categories in self.categories.values():
            row[start + mean[start : start + len(categories)].argmax()] = 1.0
            start += len(categories)
        return row.astype(np.float32)  # numbers are standardised: their mean is 0

    def to_json(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "categories": {name: list(values) for name, values in self.categories.items()},
            "numbers": {name: list(values) for name, values in self.numbers.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Covariates:
        numbers = {name: (pair[0], pair[1]) for name, pair in fields["numbers"].items()}
        return cls(fields["batch"], dict(fields["categories"]), numbers)


@dataclass(frozen=True)
class Encoded:
    """What covariates are of n cells, as numbers.

    Attributes
    ----------
    covariates
        The columns.
    design
        One-hot categories, then standardised numbers, float32 ``(n, width)``.
    codes
        Batch of every cell, int64 ``(n,)``; zeros without batches.
    """

    covariates: Covariates
    design: np.ndarray
    codes: np.ndarray


def _known(values: pd.Series, categories: Sequence[str], name: str) -> np.ndarray:
    """Return the position of every cell's category among known ones."""
    names, positions = _grouped(values)
    unknown = sorted(set(names) - set(categories))
    if unknown:
        raise DataError(
            f"adata.obs[{name!r}] has {len(unknown)} categories that the model was not fitted on: "
            f"{unknown[:5]}. It knows {list(categories)[:10]}. "
            + _mapping(name, unknown, categories)
        )
    return _positions(names, categories)[positions]


def _mapping(name: str, unknown: Sequence[str], known: Sequence[str]) -> str:
    """Return the call that maps names that differ in spaces, case or a decimal point alone, or
    what else there is to do."""
    alike = {plain(category): category for category in known}
    same = {each: alike[plain(each)] for each in unknown if plain(each) in alike}
    where = f"adata.obs[{name!r}]"
    if same:
        call = f"{where} = {where}.astype(str).replace({same})"
        return f"They are the same but for spaces, case, a decimal point or zeros before: {call}"
    return (
        "Map them to known ones, embed these cells as of a batch that was never seen, "
        "model.embed(adata, batch='new'), or let the model learn them: model.extend(adata)"
    )


def plain(name: str) -> str:
    """Return a category without what files and tables change in it: spaces, signs that are not
    seen, the form of letters with marks, case, a decimal point, zeros before a number."""
    form = unicodedata.normalize("NFKC", name)
    seen = "".join(letter for letter in form if unicodedata.category(letter) != "Cf")
    text = " ".join(seen.split()).casefold().removesuffix(".0")
    return text.lstrip("0") or "0" if text.isdigit() else text


def _several(values: pd.Series, name: str, role: str) -> tuple[list[str], np.ndarray]:
    """Return two categories or more, and the position of every cell's."""
    names, positions = _grouped(values)
    if len(names) == 1:
        raise DataError(
            f"adata.obs[{name!r}] (given as {role}) has one category, {names[0]!r}; "
            f"there is nothing to correct for. Leave it out: scvae.fit(adata)."
        )
    return names, positions


def _check_batch_sizes(values: pd.Series, names: list[str], codes: np.ndarray) -> None:
    single = np.flatnonzero(np.bincount(codes, minlength=len(names)) == 1)
    if len(single):
        first = min(single, key=lambda code: names[code])
        where, n_left = f"adata.obs[{values.name!r}]", len(names) - len(single)
        problem = (
            f"{where} has {len(single)} batches with one cell (first: {names[first]!r}); a batch "
            "effect cannot be learned from one cell."
        )
        drop = f"adata = adata[{where}.map({where}.value_counts()).astype(int) > 1].copy()"
        if n_left == 0:
            raise DataError(
                f"{problem} It names cells, not batches: leave it out, scvae.fit(adata)"
            )
        if n_left == 1:
            raise DataError(
                f"{problem} Without them one batch is left, with nothing to correct for: merge "
                f"them, {where} = {where}.astype(str).where({where}.map({where}.value_counts())"
                ".astype(int) > 1, 'others'), or leave it out, scvae.fit(adata)"
            )
        raise DataError(f"{problem} Merge or drop them: {drop}")


def learn_covariates(
    obs: pd.DataFrame, batch: str | None, covariates: str | Sequence[str] | None
) -> Encoded:
    """Return the encoding of the named columns of `obs`; numeric covariates are standardised.

    Raises
    ------
    DataError
        If a column is absent, has missing values, one category or no spread, or if a batch has
        one cell.
    """
    if isinstance(covariates, pd.Series):
        raise DataError(
            f"covariates={shown(covariates)} is a column itself; names of columns of adata.obs are "
            f"needed{_meant(obs, 'covariates', covariates)}"
        )
    names = check_names("covariates", covariates, ["donor"])
    categories: dict[str, list[str]] = {}
    numbers: dict[str, tuple[float, float]] = {}
    positions, amounts = [], []
    if batch is not None:
        values = column(obs, batch, "batch")
        categories[batch], codes = _several(values, batch, "batch")
        _check_batch_sizes(values, categories[batch], codes)
        positions.append(codes)
    for name in names:
        values = column(obs, name, "covariates")
        if name == batch or name in categories or name in numbers:
            raise DataError(_twice(name, batch, names))
        if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values):
            amounts.append(finite(values, name))
            numbers[name] = standardiser(amounts[-1], name)
        else:
            categories[name], codes = _several(values, name, "covariates")
            positions.append(codes)
    return Covariates(batch, categories, numbers)._encoded(len(obs), [*positions, *amounts])


def _twice(name: str, batch: str | None, names: Sequence[str]) -> str:
    """Return the error of a column that is given twice, with the call that gives it once."""
    once = [each for each in dict.fromkeys(names) if each != batch]
    given = [f"batch={batch!r}"] if batch is not None else []
    given += [f"covariates={once!r}"] if once else []
    return (
        f"{name!r} is given twice as batch or covariate; give it once: "
        f"scvae.fit(adata, {', '.join(given)})"
    )
