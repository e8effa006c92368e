"""What a file records of a fit: any JSON object, but what scvae reads of it must be of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Kind = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return type(value) is int  # True is an int, too


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _distance(value: Any) -> bool:
    return _number(value) and 0 <= value < math.inf


def _text(value: Any) -> bool:
    """Return whether `value` is text that a terminal shows and does not obey."""
    return isinstance(value, str) and value.isprintable()


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _whole_or_none(value: Any) -> bool:
    return value is None or _whole(value)


def _all(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _each(kind: Kind) -> Kind:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


CURVES: dict[str, Kind] = {
    "step": _all(_whole),
    "train": _all(_number),
    "validation": _all(_number),
    "beta": _all(_number),
}
HISTORY: dict[str, Kind] = {
    **CURVES,
    "best_step": _whole,
    "stopped_early": _flag,
    "interrupted": _flag,
    "rollbacks": _all(_whole),
}
HELD_OUT: dict[str, Kind] = {"reconstruction": _number, "kl": _number, "active": _whole_or_none}
RECORD: dict[str, Kind] = {
    "seed": _whole,
    "batch_size": _whole,
    "schedule": _each(_number),
    "n_train": _whole,
    "n_held_out": _whole,
    "final_beta": _number,
    "elbo_held_out": _number,
    "device": _text,
    "counts": _text,
    "digest": _text,
    "align": _share,
    "moved": _all(_distance),
    "warnings": _all(_text),
    "versions": _each(_text),
}


def check_record(record: Any) -> dict[str, Any]:
    """Return `record`, if it is one.

    Fields may be missing, as a model may come without a record of its fit; but a history or the
    terms on the held-out cells are there as a whole or not at all.

    Raises
    ------
    ValueError
        If a field is not of its kind, or the parts of the history contradict each other.
    """
    if not isinstance(record, dict):
        raise ValueError("its record is not an object")
    for name, kind in RECORD.items():
        if name in record and not kind(record[name]):
            raise ValueError(f"its record has a {name} of the wrong kind")
    _check_whole(record.get("held_out", {}), HELD_OUT, "held_out")
    history = record.get("history", {})
    _check_whole(history, HISTORY, "history")
    if history:
        _check_history(history)
    return record


def _check_whole(fields: Any, kinds: dict[str, Kind], where: str) -> None:
    """Raise ValueError unless `fields` is empty or has everything in `kinds`."""
    if not isinstance(fields, dict):
        raise ValueError(f"its record has a {where} that is not an object")
    for name, kind in kinds.items() if fields else ():
        if name not in fields or not kind(fields[name]):
            raise ValueError(f"its record has a {where} without {name}, or of the wrong kind")


def _check_history(history: dict[str, Any]) -> None:
    step = history["step"]
    if len({len(history[name]) for name in CURVES}) > 1:
        raise ValueError("its record has a history of unequal lengths")
    if step and history["best_step"] not in step:
        raise ValueError("its record has a history without its best step")
