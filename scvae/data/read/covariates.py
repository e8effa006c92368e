"""What is known of a cell besides its counts: batch, categories, numbers; and their encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from scvae.arguments import check_names, shown
from scvae.errors import DataError


def column(obs: pd.DataFrame, name: str, role: str) -> pd.Series:
    """Return adata.obs[name] without missing values, or say what is there instead."""
    if not isinstance(name, str):
        raise DataError(f"{role}={shown(name)} must be the name of one column of adata.obs.")
    if name not in obs:
        near = get_close_matches(str(name), [str(c) for c in obs.columns], n=1)
        hint = f"did you mean {role}={near[0]!r}?" if near else f"it holds: {list(obs.columns)}."
        raise DataError(f"adata.obs has no column {name!r} (given as {role}); {hint}")
    values = obs[name]
    if isinstance(values, pd.DataFrame):
        raise DataError(f"adata.obs has several columns named {name!r}; rename all but one.")
    missing = int(values.isna().sum())
    if missing:
        first = obs.index[values.isna().to_numpy()][0]
        raise DataError(
            f"adata.obs[{name!r}] (given as {role}) is missing for {missing} of {len(obs)} cells "
            f"(first: {first!r}). Every cell needs a value: "
            f"adata = adata[adata.obs[{name!r}].notna()].copy()"
        )
    return values


def _names(values: pd.Series) -> pd.Series:
    """Return categories as strings; whole floats as whole numbers, which they are elsewhere."""
    if pd.api.types.is_float_dtype(values.dtype) and (values == values.round()).all():
        values = values.astype(np.int64)
    return values.astype(str)


def _codes(values: pd.Series, categories: Sequence[str], name: str) -> np.ndarray:
    codes = pd.Categorical(_names(values), categories=list(categories)).codes
    if (codes < 0).any():
        unknown = sorted(set(_names(values)) - set(categories))
        raise DataError(
            f"adata.obs[{name!r}] has {len(unknown)} categories that the model was not fitted on: "
            f"{unknown[:5]}. It knows {list(categories)[:10]}. Map them to known ones, "
            "or fit a model on these cells, too."
        )
    return codes.astype(np.int64)


@dataclass(frozen=True)
class Covariates:
    """The columns of adata.obs that a model conditions on, and how they become numbers.

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

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the batch code of every cell, ``(n,)``; zeros without batches."""
        if self.batch is None:
            return np.zeros(len(obs), dtype=np.int64)
        return _codes(column(obs, self.batch, "batch"), self.batches, self.batch)

    def design(self, obs: pd.DataFrame) -> np.ndarray:
        """Return one-hot categories, then standardised numbers, float32 ``(n, width)``."""
        blocks = [np.empty((len(obs), 0), dtype=np.float32)]
        for name, categories in self.categories.items():
            role = "batch" if name == self.batch else "covariate"
            codes = _codes(column(obs, name, role), categories, name)
            blocks.append(np.eye(len(categories), dtype=np.float32)[codes])
        for name, (mean, std) in self.numbers.items():
            values = _finite(column(obs, name, "covariate"), name)
            blocks.append(((values - mean) / std).astype(np.float32)[:, None])
        return np.hstack(blocks)

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


def _finite(values: pd.Series, name: str) -> np.ndarray:
    try:
        numbers = values.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"adata.obs[{name!r}] must be numbers, as it was in the fit ({error})."
        ) from error
    if not np.isfinite(numbers).all():
        first = values.index[~np.isfinite(numbers)][0]
        raise DataError(
            f"adata.obs[{name!r}] is infinite at cell {first!r}; covariates are finite."
        )
    return numbers


def _categories(values: pd.Series, name: str, role: str) -> list[str]:
    present = _names(values)
    if isinstance(values.dtype, pd.CategoricalDtype):
        ordered = _names(pd.Series(values.cat.categories))
        categories = [name for name in dict.fromkeys(ordered) if (present == name).any()]
    else:
        categories = sorted(present.unique())
    if len(categories) < 2:
        raise DataError(
            f"adata.obs[{name!r}] (given as {role}) has one category, {categories[0]!r}; "
            f"there is nothing to correct for. Leave it out: scvae.fit(adata)."
        )
    return categories


def _check_batch_sizes(values: pd.Series, name: str) -> None:
    sizes = _names(values).value_counts()
    single = sorted(sizes.index[sizes == 1])
    if single:
        one = values[_names(values) == single[0]].tolist()[0]
        raise DataError(
            f"adata.obs[{name!r}] has {len(single)} batches with one cell (first: {single[0]!r}); "
            "a batch effect cannot be learned from one cell. Merge or drop them: "
            f"adata = adata[adata.obs[{name!r}] != {one!r}].copy()"
        )


def learn_covariates(
    obs: pd.DataFrame, batch: str | None, covariates: str | Sequence[str] | None
) -> Covariates:
    """Return the encoding of the named columns of `obs`; numeric covariates are standardised.

    Raises
    ------
    DataError
        If a column is absent, has missing values, one category or no spread, or if a batch has
        one cell.
    """
    names = check_names("covariates", covariates, ["donor"])
    categories: dict[str, list[str]] = {}
    numbers: dict[str, tuple[float, float]] = {}
    if batch is not None:
        values = column(obs, batch, "batch")
        categories[batch] = _categories(values, batch, "batch")
        _check_batch_sizes(values, batch)
    for name in names:
        values = column(obs, name, "covariates")
        if name == batch or name in categories or name in numbers:
            raise DataError(f"{name!r} is given twice as batch or covariate; give it once.")
        if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values):
            numbers[name] = _standardiser(values, name)
        else:
            categories[name] = _categories(values, name, "covariates")
    return Covariates(batch, categories, numbers)


def _standardiser(values: pd.Series, name: str) -> tuple[float, float]:
    finite = _finite(values, name)
    mean, std = float(finite.mean()), float(finite.std())
    if std <= 1e-12 * max(1.0, abs(mean)):
        raise DataError(
            f"adata.obs[{name!r}] (given as covariates) is {mean:g} for every cell; "
            "there is nothing to correct for. Leave it out."
        )
    return mean, std
