"""Which samples are compared with which: pairs, covariates, and what could be permuted."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

MOST_LISTED = 5_000  # permutations that are all looked at; of more, so many are drawn


@dataclass(frozen=True)
class Design:
    """The regression of n samples.

    Attributes
    ----------
    arm
        1 treated, 0 reference, ``(n,)``.
    replicate
        Code of every sample's replicate, ``(n,)``.
    others
        Columns besides the arm: replicates where they are paired, else one for all; covariates.
    paired
        Whether every replicate is in both arms.
    """

    arm: np.ndarray
    replicate: np.ndarray
    others: np.ndarray
    paired: bool

    @property
    def matrix(self) -> np.ndarray:
        """All columns, the arm last, ``(n, p)``."""
        return np.column_stack([self.others, self.arm])

    @property
    def free(self) -> int:
        """Samples less coefficients; below zero where the arm cannot be told from the others."""
        rank = int(np.linalg.matrix_rank(self.matrix))
        return len(self.arm) - rank if rank == self.matrix.shape[1] else -1

    def permuted(self, arm: np.ndarray) -> Design:
        return Design(arm, self.replicate, self.others, self.paired)


def make_design(
    arm: np.ndarray, replicate: np.ndarray, covariates: np.ndarray
) -> tuple[Design, np.ndarray]:
    """Return the design and which samples it takes: pairs alone, where there are any.

    Parameters
    ----------
    arm, replicate
        Of every sample, ``(n,)``; no replicate is twice in an arm.
    covariates
        Columns of numbers, ``(n, c)``; those that the others already tell are left out.
    """
    codes = np.unique(replicate, return_inverse=True)[1]
    both = np.bincount(codes) == 2
    paired = bool(both.any())
    taken = both[codes] if paired else np.ones(len(arm), dtype=bool)
    arm, codes, covariates = (
        arm[taken],
        np.unique(codes[taken], return_inverse=True)[1],
        (covariates[taken]),
    )
    others = np.eye(codes.max() + 1)[codes] if paired else np.ones((len(arm), 1))
    for extra in covariates.T:
        wider = np.column_stack([others, extra])
        if np.linalg.matrix_rank(wider) == wider.shape[1]:
            others = wider
    return Design(arm.astype(float), codes, others, paired), taken


def permutations(design: Design, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return other assignments of the arms, ``(n,)`` each: within pairs, or over replicates.

    Neither the one that is nor its mirror image, and of mirror images one. Those first that hold
    the least of the true one: an effect that is there is then in both arms alike.
    """
    found: dict[tuple[int, ...], float] = {}
    for arm in _assignments(design, rng):
        key = (
            tuple(arm.astype(int))
            if arm[0] == 0 or _is_lopsided(design)
            else tuple((1 - arm).astype(int))
        )
        agreement = abs(float(np.corrcoef(arm, design.arm)[0, 1]))
        if agreement < 1 - 1e-9:
            found[key] = agreement
    chance = rng.random(len(found))
    order = sorted(zip(found.values(), chance, found, strict=True))
    return [np.array(key, dtype=float) for _, _, key in order[:most]]


def _is_lopsided(design: Design) -> bool:
    return 2 * design.arm.sum() != len(design.arm)


def _assignments(design: Design, rng: np.random.Generator) -> list[np.ndarray]:
    n, n_treated = len(design.arm), int(design.arm.sum())
    if design.paired:
        pairs = n // 2
        flips = (
            np.array(list(product((0, 1), repeat=pairs)))
            if 2**pairs <= MOST_LISTED
            else rng.integers(2, size=(MOST_LISTED, pairs))
        )
        return [np.abs(design.arm - flip[design.replicate]) for flip in flips]
    from math import comb

    if comb(n, n_treated) <= MOST_LISTED:
        chosen = [list(c) for c in combinations(range(n), n_treated)]
    else:
        chosen = [list(rng.permutation(n)[:n_treated]) for _ in range(MOST_LISTED)]
    return [np.isin(np.arange(n), c).astype(float) for c in chosen]
