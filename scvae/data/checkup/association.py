"""How much one way to group cells tells of another."""

from __future__ import annotations

import numpy as np


def cramers_v(one: np.ndarray, other: np.ndarray) -> float:
    r"""Return Cramér's V of two groupings, corrected for its bias in small samples.

    .. math::
        V = \sqrt{\frac{\max(0, \phi^2 - (k-1)(r-1)/(n-1))}{\min(\tilde k, \tilde r) - 1}},
        \quad \tilde k = k - \frac{(k-1)^2}{n-1}

    It is 1 where each grouping tells the other, and about 0 where they are independent, at any
    number of groups; without the correction, many small groups go together by chance.

    Parameters
    ----------
    one, other
        Group of every cell, whole numbers, ``(n,)``.

    Returns
    -------
    float
        Between 0 and 1; 0 where one of them has a single group, or a group for every cell.

    References
    ----------
    Bergsma. A bias-correction for Cramér's V and Tschuprow's T. Journal of the Korean Statistical
    Society, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> donor = np.array([0, 0, 1, 1, 2, 2])
    >>> round(cramers_v(donor, 2 - donor), 3)
    1.0
    """
    n = len(one)
    if n < 2:
        return 0.0
    rows, columns, cells = _table(one, other)
    k, r = len(rows), len(columns)
    row, column, number = cells
    # chi^2 / n over the cells of the table that are not empty: there are n of them at most.
    phi2 = float((number / rows[row] * (number / columns[column])).sum()) - 1
    corrected = max(0.0, phi2 - (k - 1) * (r - 1) / (n - 1))
    width = min(k - (k - 1) ** 2 / (n - 1), r - (r - 1) ** 2 / (n - 1)) - 1
    return min(1.0, (corrected / width) ** 0.5) if width > 1e-9 else 0.0


def name_the_same_groups(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether the two groupings are one, under other names."""
    rows, columns, (row, _, _) = _table(one, other)
    return len(rows) == len(columns) == len(row)


def _table(
    one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the margins of the contingency table, and its non-empty cells."""
    _, rows, row_sizes = np.unique(one, return_inverse=True, return_counts=True)
    _, columns, column_sizes = np.unique(other, return_inverse=True, return_counts=True)
    width = len(column_sizes)
    pairs, number = np.unique(rows * width + columns, return_counts=True)
    return row_sizes, column_sizes, (pairs // max(width, 1), pairs % max(width, 1), number)
