"""What is written down of a fit, and how it is read from a file that anyone may have written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scvae.train.history import History, all_are, is_whole

Kind = Callable[[Any], bool]


@dataclass(frozen=True)
class HeldOut:
    """The terms of the ELBO of the held-out cells, means over cells in nats.

    Attributes
    ----------
    reconstruction
        E_q[log p(x | z)].
    kl
        KL(q(z | x) || p(z)), which counts an inferred library size, too.
    active
        Latent dimensions that tell cells apart; None for fewer than two cells.
    """

    reconstruction: float
    kl: float
    active: int | None


@dataclass(frozen=True)
class Record:
    """What is written down of a fit; None where a model does not say.

    Attributes
    ----------
    seed, batch_size
        As given to `scvae.fit`, or as it chose.
    schedule
        Numbers of the schedule, by name: "steps", "peak_rate" and others.
    n_train, n_held_out
        Number of cells trained on and held out.
    final_beta
        KL weight of the last step.
    elbo_held_out
        ELBO of the held-out cells at the weights kept, in nats per cell.
    held_out
        Its terms.
    history
        What was measured while training.
    device, counts
        Where training happened, and where the counts were meanwhile.
    digest
        SHA-256 of all that the run depended on.
    warnings
        What `scvae.check` said of the data.
    versions
        Version of everything that mattered, by name.
    align
        Share of what the network left of the batches that the embedding is rid of.
    moved
        How far the cells of every batch were moved for it, in distances between two cells.
    alone
        Weight of the bounds of single kinds of measurement beside that of all.
    weights
        Of the log-likelihoods of kinds while training, where they were given.
    imputed
        Of proteins, the levels whose intervals held shares of the counts of held-out cells, a list
        a protein (`scvae.models.judge.imputed`).
    labels, n_labelled
        Column with the labels that were learned from, and how many cells have one.
    other
        Whatever else a file says, by name.
    """

    seed: int | None = None
    batch_size: int | None = None
    schedule: dict[str, float] | None = None
    n_train: int | None = None
    n_held_out: int | None = None
    final_beta: float | None = None
    elbo_held_out: float | None = None
    held_out: HeldOut | None = None
    history: History | None = None
    device: str | None = None
    counts: str | None = None
    digest: str | None = None
    warnings: list[str] | None = None
    versions: dict[str, str] | None = None
    align: float | None = None
    moved: list[float] | None = None
    alone: float | None = None
    weights: dict[str, float] | None = None
    imputed: dict[str, list[list[float]]] | None = None
    labels: str | None = None
    n_labelled: int | None = None
    other: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything that is known, as JSON holds it."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found |= found.pop("other")
        if self.held_out is not None:
            found["held_out"] = dataclasses.asdict(self.held_out)
        if self.history is not None:
            found["history"] = self.history.to_json()
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_json(cls, fields: Any) -> Record:
        """Return the record that `to_json` told.

        Fields may be missing, as a model may come without a record of its fit; but a history or the
        terms on the held-out cells are there as a whole or not at all.

        Raises
        ------
        ValueError
            If a field is not of its kind, or the parts of the history contradict each other.
        """
        if not isinstance(fields, dict):
            raise ValueError("its record is not an object")
        for name, is_so in KINDS.items():
            if name in fields and not is_so(fields[name]):
                raise ValueError(f"its record has a {name} of the wrong kind")
        known = {name: fields[name] for name in KINDS if name in fields}
        if held_out := fields.get("held_out", {}):
            known["held_out"] = _held_out(held_out)
        if history := fields.get("history", {}):
            known["history"] = History.from_json(history)
        more = fields.keys() - KINDS.keys() - {"held_out", "history"}
        return cls(**known, other={name: fields[name] for name in fields if name in more})

    def without_times(self) -> Record:
        """Return this without what a clock measured: the same fit writes the same file."""
        if self.history is None:
            return self
        timeless = dataclasses.replace(self.history, seconds=0.0, cells_per_second=0.0)
        return dataclasses.replace(self, history=timeless)


def _held_out(fields: Any) -> HeldOut:
    if not isinstance(fields, dict):
        raise ValueError("its record has a held_out that is not an object")
    for name, is_so in HELD_OUT.items():
        if name not in fields or not is_so(fields[name]):
            raise ValueError(f"its record has a held_out without {name}, or of the wrong kind")
    return HeldOut(**{name: fields[name] for name in HELD_OUT})


# -- kinds -------------------------------------------------------------------------------------


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _distance(value: Any) -> bool:
    return _number(value) and 0 <= value < math.inf


def _text(value: Any) -> bool:
    """Return whether `value` is text that a terminal shows and does not obey."""
    return isinstance(value, str) and value.isprintable()


def _whole_or_none(value: Any) -> bool:
    return value is None or is_whole(value)


def _levels(value: Any) -> bool:
    """Return whether these are the levels of shares 0 to 1."""
    return isinstance(value, list) and len(value) > 1 and all(map(_share, value))


def _each(is_so: Kind) -> Kind:
    return lambda value: isinstance(value, dict) and all(map(is_so, value.values()))


HELD_OUT: dict[str, Kind] = {"reconstruction": _number, "kl": _number, "active": _whole_or_none}
KINDS: dict[str, Kind] = {
    "seed": is_whole,
    "batch_size": is_whole,
    "schedule": _each(_number),
    "n_train": is_whole,
    "n_held_out": is_whole,
    "final_beta": _number,
    "elbo_held_out": _number,
    "device": _text,
    "counts": _text,
    "digest": _text,
    "align": _share,
    "moved": all_are(_distance),
    "alone": _distance,
    "weights": _each(_distance),
    "imputed": _each(all_are(_levels)),
    "labels": _text,
    "n_labelled": is_whole,
    "warnings": all_are(_text),
    "versions": _each(_text),
}
