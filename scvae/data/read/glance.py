"""A compiled look at counts of which nothing is odd: all that `survey` tells of them in one pass.

What numpy and scipy take in some twenty passes over a piece of a matrix takes one here. They are
its oracle, and look at what it leaves to them: values that are no counts, columns out of order.
"""

from __future__ import annotations

import numpy as np

from scvae.data.hold.gather import are_counts, compiled, copy_placed, rises

MOST = 2**31  # what no count may reach here, so that no sum of a row overflows


@compiled
def glance(indptr, indices, data, places, weights, groups, of_rows, of_genes, sums, whole):  # type: ignore[no-untyped-def]
    """Look at rows of CSR; return whether all of them are plain: columns in order, each once, and
    whole numbers from 1 to below `MOST`. If not, what was written means nothing.

    Parameters
    ----------
    indptr, indices, data
        The rows.
    places
        Where each column is among those asked for, int64 ``(c,)``, below zero for the others.
    weights
        A number of every row, int64 ``(n,)``.
    groups
        Group of every row, int64 ``(n,)``, or none, ``(0,)``.
    of_rows
        Is filled with entries, total and common factor of every row, of the columns asked for,
        int64 ``(3, n)``.
    of_genes
        To which is added what is told of every column asked for, int64 ``(5, g)``: the rows that
        have it, its sum weighted by `weights` (modulo 2^64), its sum, and its two largest counts.
    sums
        To which the counts of every group are added, float64 ``(b, g)``.
    whole
        Is filled with the sum of all columns, the greatest number that divides all counts and 0 for
        none, and the largest count of those asked for, int64 ``(3,)``.
    """
    divisor, everything, most = 0, 0, 0
    chosen = np.empty(places.shape[0], np.int64)
    counts = np.empty(places.shape[0], np.int64)
    for n in range(of_rows.shape[1]):
        start, stop = indptr[n], indptr[n + 1]
        index, value = indices[start:stop], data[start:stop]
        if not rises(index, places.shape[0]) or not are_counts(value, MOST - 1):
            return False
        total, least, _ = _summed(value)
        everything += total
        if divisor != 1:
            divisor = 1 if least == 1 else _common(value, divisor)
        kept = copy_placed(index, value, places, chosen, counts)
        at, count = chosen[:kept], counts[:kept]
        total, least, largest = _summed(count)
        most = max(most, largest)
        of_rows[0, n], of_rows[1, n], of_rows[2, n] = kept, total, _factor(count, least, largest)
        _add(at, count, weights[n], of_genes)
        if groups.shape[0]:
            _add_to(at, count, sums[groups[n]])
    whole[0], whole[1], whole[2] = everything, divisor, most
    return True


@compiled
def _summed(value):  # type: ignore[no-untyped-def]
    """Return the sum of some counts, the least of them, and the largest."""
    total, least, largest = np.int64(0), np.int64(MOST), np.int64(0)
    for i in range(value.shape[0]):
        count = np.int64(value[i])
        total += count
        least = min(least, count)
        largest = max(largest, count)
    return total, least, largest


@compiled
def _add(at, count, weight, of_genes):  # type: ignore[no-untyped-def]
    cells, keys, totals = of_genes[0], of_genes[1], of_genes[2]
    for i in range(at.shape[0]):
        place = np.uintp(at[i])
        cells[place] += 1
        keys[place] += weight * count[i]
        totals[place] += count[i]
    first, second = of_genes[3], of_genes[4]
    for i in range(at.shape[0]):
        place = np.uintp(at[i])
        lower = min(first[place], count[i])
        first[place] = max(first[place], count[i])
        second[place] = max(second[place], lower)


@compiled
def _add_to(at, count, sums):  # type: ignore[no-untyped-def]
    for i in range(at.shape[0]):
        sums[np.uintp(at[i])] += count[i]


@compiled
def _factor(count, least, largest):  # type: ignore[no-untyped-def]
    """Return the common factor of a row: 1 where it has a single count, or all are equal."""
    if count.shape[0] == 0 or least == 1:
        return 1
    common = _common(count, 0)
    return common if common < largest else 1


@compiled
def _common(value, known):  # type: ignore[no-untyped-def]
    """Return the greatest number that divides all of some counts and `known`."""
    for i in range(value.shape[0]):
        a, b = known, np.int64(value[i])
        while b:
            a, b = b, a % b
        known = a
    return known
