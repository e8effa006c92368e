"""Covariates that are amounts: finite, of some spread, in the unit of the fit."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from scvae.errors import DataError, warn

FAR = 5  # standard deviations from the mean of the fit
RESCALED = 20  # times smaller, mean and spread, than one unit allows


def finite(values: pd.Series, name: str) -> np.ndarray:
    """Return the numbers of adata.obs[name], float64, none of which is infinite."""
    if pd.api.types.is_complex_dtype(values.dtype):
        raise DataError(
            f"adata.obs[{name!r}] is complex; covariates are real: adata.obs[{name!r}] = "
            f"np.real(adata.obs[{name!r}])"
        )
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


def warn_if_far(numbers: np.ndarray, name: str, mean: float, std: float) -> None:
    """Say if a number of a query lies where the fit saw none, as in another unit."""
    if not len(numbers):
        return
    middle, spread = float(np.median(numbers)), float(numbers.std())
    is_far = abs(middle - mean) > FAR * std
    is_rescaled = middle > 0 and mean / middle > RESCALED and 0 < spread < std / RESCALED
    if is_far or is_rescaled:
        ratio = mean / middle if middle else 0.0
        text = (
            f"adata.obs[{name!r}] is {middle:.4g} in a median cell; the model was fitted on "
            f"{mean:.4g} with a standard deviation of {std:.4g}."
        )
        if ratio > 0:
            factor = 10.0 ** round(math.log10(ratio))
            text += (
                " If the units differ (fractions and percent, say): "
                f"adata.obs[{name!r}] = adata.obs[{name!r}] * {factor:g}"
            )
        warn(text)


def standardiser(amounts: np.ndarray, name: str) -> tuple[float, float]:
    """Return mean and standard deviation of a number, or raise if it has no spread."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(amounts.mean()), float(amounts.std())
    where, low, high = f"adata.obs[{name!r}]", amounts.min(), amounts.max()
    if low == high:
        raise DataError(
            f"{where} (given as covariates) is {mean:g} for every cell; "
            "there is nothing to correct for. Leave it out."
        )
    if not 1e-12 * max(1.0, abs(mean)) < std < math.inf:
        raise DataError(
            f"{where} (given as covariates) goes from {low:g} to {high:g}, which float32 cannot "
            f"tell apart or hold. Give it in another unit: {where} = ({where} - {where}.median()) "
            f"/ ({where} - {where}.median()).abs().max()"
        )
    return mean, std
