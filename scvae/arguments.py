"""What a public function demands of its arguments, each refused in one sentence with its remedy.

A number of numpy's is as good as one of Python's; True and False are no numbers. What is returned
is Python's own, which torch, JSON and every file format take.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from scvae.errors import ConfigError

T = TypeVar("T", bound=str)

LARGEST = 2**31 - 1  # of whole numbers: what every library below takes
SEEDS = 2**32  # of torch and scanpy
SHOWN = 60  # characters of a value in a message


def shown(value: Any) -> str:
    """Return a value as one line of a message holds it."""
    if isinstance(value, Real) and not is_switch(value):
        text = str(value)
    else:
        text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def encodable(text: str) -> str:
    """Return `text` with escapes for the characters that standard output cannot take.

    Names of batches and genes are in any alphabet; printing them is to end no script."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def is_switch(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def refuse(name: str, value: Any, rule: str, remedy: Any) -> ConfigError:
    """Return the error of an argument that breaks `rule`; `remedy` is a value that does not."""
    return refuse_for(name, value, rule, repr(remedy))


def refuse_for(name: str, value: Any, rule: str, code: str) -> ConfigError:
    """Do as `refuse`, with the remedy as one writes it in code."""
    return ConfigError(f"{name}={shown(value)}, but it must be {rule}: {name}={code}")


def check_whole(name: str, value: Any, remedy: int, *, least: int | None = 1) -> int:
    """Return a whole number of at least `least`."""
    try:
        whole = None if is_switch(value) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None:
        raise refuse(name, value, "a whole number", remedy)
    if least is not None and whole < least:
        raise refuse(name, value, f"at least {least}", remedy)
    if abs(whole) > LARGEST:
        raise refuse(name, value, f"at most {LARGEST}", remedy)
    return whole


def check_seed(seed: Any) -> int:
    """Return a seed that every later step takes."""
    try:
        whole = None if is_switch(seed) else operator.index(seed)
    except TypeError:
        whole = None
    if whole is None:
        raise refuse("seed", seed, "a whole number", 0)
    if not 0 <= whole < SEEDS:
        raise refuse("seed", seed, "between 0 and 2**32 - 1", 0)
    return whole


def is_number(value: Any) -> bool:
    """Return whether `value` is a number that a float holds; NaN and infinity are."""
    if not isinstance(value, Real) or is_switch(value):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def check_positive(name: str, value: Any, code: str) -> float:
    """Return a finite number above zero; `code` writes one."""
    if not is_number(value):
        raise refuse_for(name, value, "a number", code)
    if not 0 < float(value) < math.inf:
        raise refuse_for(name, value, "positive and finite", code)
    return float(value)


def check_share(name: str, value: Any, remedy: float) -> float:
    """Return a number between 0 and 1, neither of them."""
    if not is_number(value) or not 0 < float(value) < 1:
        raise refuse(name, value, "a share between 0 and 1", remedy)
    return float(value)


def check_switch(name: str, value: Any, remedy: bool, *, or_none: bool = False) -> Any:
    """Return True or False, or None where `or_none`."""
    if is_switch(value):
        return bool(value)
    if value is None and or_none:
        return None
    raise refuse(name, value, "True, False or None" if or_none else "True or False", remedy)


def check_choice(name: str, value: Any, allowed: Sequence[T]) -> T:
    """Return one of the strings `allowed`."""
    for known in allowed:
        if isinstance(value, str) and value == known:
            return known
    raise ConfigError(
        f"{name}={shown(value)} is not known; give one of {', '.join(map(repr, allowed))}."
    )


def check_name(name: str, value: Any, remedy: str, *, or_none: bool = False) -> Any:
    """Return a string that is not empty, or None where `or_none`."""
    if value is None and or_none:
        return None
    if not isinstance(value, str) or not value:
        raise refuse(name, value, "a name or None" if or_none else "a name", remedy)
    return str(value)


def check_names(name: str, value: Any, remedy: Any) -> list[str]:
    """Return one name, or several of any sequence, as a list; None as an empty one."""
    if value is None:
        return []
    if isinstance(value, str):
        return [str(value)]
    given: list[Any] = []
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        try:
            given = list(value)
        except TypeError:  # an array without dimensions
            given = [None]
        if isinstance(value, set | frozenset):  # which Python puts in another order every time
            given = sorted(given, key=str)
        if all(isinstance(item, str) for item in given):
            return [str(item) for item in given]
    raise refuse(name, value, "a name or a list of names", remedy)


def check_path(name: str, value: Any, remedy: str) -> str:
    """Return a path as a string."""
    try:
        path = os.fspath(value)
        if isinstance(path, str) and path and "\0" not in path:
            os.fsencode(path)
            return path
    except (TypeError, UnicodeEncodeError):
        pass
    raise refuse(name, value, "a path", remedy)
