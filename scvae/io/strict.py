"""JSON that nobody vouches for: of bounded depth and size, every key once, numbers that fit."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from typing import Any

DEEPEST = 32
MOST_CONTAINERS = 2**18  # objects and lists; an empty one takes 2 bytes of JSON and 64 of memory
MOST_DIGITS = 20  # of a whole number: 64 bits
LONGEST_SHOWN = 80


def parse(text: bytes | str) -> Any:
    """Return what `text`, in UTF-8, says.

    Raises
    ------
    ValueError
        If it is not JSON, or is more than a description needs.
    """
    whole = text.decode("utf-8") if isinstance(text, bytes) else text
    if whole.count("{") + whole.count("[") > MOST_CONTAINERS:
        raise ValueError("its JSON holds too many objects and lists")
    try:
        value = json.loads(whole, object_pairs_hook=_each_once, parse_int=_whole)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    _check(value)
    return value


def shown(value: Any) -> str:
    """Return `value` as an error message can show it, whatever its length."""
    text = reprlib.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("its JSON names a field twice")
    return fields


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError("its JSON has a whole number of more than 64 bits")
    return int(digits)


def _check(value: Any) -> None:
    """Raise ValueError if `value` is nested too deeply or holds half of a character."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError("its JSON is nested too deeply")


def _inside(value: Any) -> Sequence[Any]:
    if isinstance(value, str) and not value.isascii():
        value.encode("utf-8")  # UnicodeEncodeError, a ValueError, at a lone surrogate
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else ()
