"""What the header of a model's file says besides the tensors, checked before any of it is used.

Nothing of the size that the header names is made here; every function raises ValueError.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from scvae.choices import COUNTS
from scvae.data.read.covariates import Covariates
from scvae.data.read.library import FROM_COUNTS
from scvae.io import shown
from scvae.modalities.chromatin import Chromatin
from scvae.modalities.kinds import KINDS
from scvae.modalities.protein import Protein
from scvae.modalities.rna import Rna
from scvae.models.embedding import EmbeddingSpec
from scvae.models.keep.origin import Origin, PartOrigin
from scvae.models.keep.record import Record
from scvae.models.network import Architecture

Spec = TypeVar("Spec", bound=EmbeddingSpec | Rna | Protein | Chromatin)
LARGEST_SIZE = 2**28  # the bytes of a weight with two such sides can be counted in 64 bits
MAY_BE_ZERO = ("n_covariates", "genes", "clusters", "patterns", "n_labels")
# Fields that files of before them lack; where they are so, they are not written.
SINCE = {"linear": False, "patterns": 0, "measured": None, "n_labels": 0}
LEAST_DEVIATION = 1e-12  # of a covariate, as a share of its mean; a fit takes no less


class Description(NamedTuple):
    """All of a model but its tensors."""

    architecture: Architecture
    embedding: EmbeddingSpec
    origin: Origin
    record: Record


def describe(description: Description) -> dict[str, Any]:
    """Return a description as JSON holds it."""
    architecture, embedding, origin, record = description
    of_network = dataclasses.asdict(architecture)
    of_data = dataclasses.asdict(origin)
    for whole in (of_network, of_data):
        whole["parts"] = {kind: _told(part) for kind, part in whole["parts"].items()}
    return {
        "architecture": _told(of_network),
        "embedding": _told(dataclasses.asdict(embedding)),
        "origin": {**of_data, "covariates": origin.covariates.to_json()},
        "record": record.to_json(),
    }


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if SINCE.get(name, ...) != value}


def read_description(content: Any) -> Description:
    """Return what `describe` was given, if everything in `content` could be so and agrees."""
    fields = _exactly(content, Description._fields, "its header")
    architecture = _architecture(fields["architecture"])
    embedding = _spec(EmbeddingSpec, fields["embedding"], "embedding")
    origin = _origin(fields["origin"])
    _check_agreement(architecture, origin)
    return Description(architecture, embedding, origin, Record.from_json(fields["record"]))


def _exactly(fields: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is {shown(fields)}, not an object")
    for name in names:
        if name not in fields:
            raise ValueError(f"{where} has no {name!r}")
    for name in fields:
        if name not in names:
            raise ValueError(f"{where} has an unknown {shown(name)}")
    return fields


# -- architecture and embedding ----------------------------------------------------------------


def _architecture(fields: Any) -> Architecture:
    """Return the architecture of these fields, and of the kinds of measurement in them."""
    kinds = get_type_hints(Architecture)
    values = dict(_exactly(_since(kinds, fields), tuple(kinds), "architecture"))
    parts = _parts_of(values.pop("parts"), "architecture")
    _check_values({name: kinds[name] for name in values}, values, "architecture")
    found = {k: _spec(KINDS[k], part, f"architecture.parts.{k}") for k, part in parts.items()}
    return Architecture(parts=found, **values)


def _parts_of(parts: Any, where: str) -> dict[str, Any]:
    """Return what is said of every kind, in the one order of kinds."""
    if not isinstance(parts, dict) or not parts or not parts.keys() <= KINDS.keys():
        raise ValueError(f"{where}.parts is {shown(parts)}, not an object of {list(KINDS)}")
    return {kind: parts[kind] for kind in KINDS if kind in parts}


def _spec(spec: type[Spec], fields: Any, where: str) -> Spec:
    """Return the dataclass of whole numbers, flags and choices that `fields` describe."""
    kinds = get_type_hints(spec)
    values = _exactly(_since(kinds, fields), tuple(kinds), where)
    _check_values(kinds, values, where)
    return spec(**values)


def _since(kinds: dict[str, Any], fields: Any) -> Any:
    """Return the fields with those that files of before them lack."""
    since = {name: value for name, value in SINCE.items() if name in kinds}
    return since | fields if isinstance(fields, dict) else fields


def _check_values(kinds: dict[str, Any], values: dict[str, Any], where: str) -> None:
    for name, kind in kinds.items():
        if not _is_of(kind, values[name], 0 if name in MAY_BE_ZERO else 1):
            raise ValueError(f"{where} has {name}={shown(values[name])}")


def _is_of(kind: Any, value: Any, least: int) -> bool:
    if kind is int:
        return type(value) is int and least <= value <= LARGEST_SIZE  # True is an int, too
    if kind is bool:
        return isinstance(value, bool)
    return isinstance(value, str) and value in get_args(kind)


# -- origin ------------------------------------------------------------------------------------


def _origin(fields: Any) -> Origin:
    values = _exactly(fields, ("parts", "covariates", "batch_shares", "counts"), "origin")
    parts = _parts_of(values["parts"], "origin")
    shares = values["batch_shares"]
    if not isinstance(shares, list) or not all(_is_number(share, 0) for share in shares):
        raise ValueError("origin.batch_shares are not numbers of 0 or more")
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"origin.batch_shares add up to {sum(shares)}")
    if values["counts"] not in COUNTS:
        raise ValueError(f"origin has counts={shown(values['counts'])}")
    read = {kind: _part_origin(part, f"origin.parts.{kind}") for kind, part in parts.items()}
    return Origin(read, _covariates(values["covariates"]), shares, values["counts"])


def _part_origin(fields: Any, where: str) -> PartOrigin:
    known = tuple(at.name for at in dataclasses.fields(PartOrigin))
    since = {"measured": SINCE["measured"]}
    values = _exactly(since | fields if isinstance(fields, dict) else fields, known, where)
    names, layer, size = values["names"], values["layer"], values["library_size"]
    if not _are_names(names):
        raise ValueError(f"{where}.names are not names, each once")
    if not isinstance(layer, str | None) or not isinstance(size, str):
        raise ValueError(f"{where}.layer or {where}.library_size is not a name")
    for name in ("place", "measured"):
        if not isinstance(values[name], str | None):
            raise ValueError(f"{where}.{name} is not a name")
    return PartOrigin(names, layer, size, values["place"], values["measured"])


def _covariates(fields: Any) -> Covariates:
    values = _exactly(fields, ("batch", "categories", "numbers"), "covariates")
    batch, categories, numbers = values["batch"], values["categories"], values["numbers"]
    if not isinstance(categories, dict) or not isinstance(numbers, dict):
        raise ValueError("covariates.categories or covariates.numbers is not an object")
    for name, known in categories.items():
        if not _are_names(known):
            raise ValueError(f"covariates.categories[{shown(name)}] are not names, each once")
    for name, pair in numbers.items():
        if name in categories or not _are_mean_and_deviation(pair):
            raise ValueError(f"covariates.numbers[{shown(name)}] is {shown(pair)}")
    if batch is not None and next(iter(categories), None) != batch:
        raise ValueError(f"covariates.batch={shown(batch)} is not the first of the categories")
    return Covariates.from_json(values)


def _are_names(names: Any) -> bool:
    """Return whether `names` is a list of strings, at least one, and each once."""
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return is_list and 0 < len(names) == len(set(names))


def _are_mean_and_deviation(pair: Any) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        return False
    mean, deviation = pair
    return deviation > LEAST_DEVIATION * max(1.0, abs(mean))


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= least


def _check_agreement(a: Architecture, origin: Origin) -> None:
    """Raise ValueError if the network is not one for these genes and covariates."""
    covariates = origin.covariates
    if a.parts.keys() != origin.parts.keys():
        raise ValueError(f"it was fitted on {[*origin.parts]}, but has networks of {[*a.parts]}")
    pairs: dict[str, tuple[Any, Any]] = {
        "n_covariates": (a.n_covariates, covariates.width),
        "n_batches": (a.n_batches, covariates.n_batches),
        "number of batch_shares": (len(origin.batch_shares), covariates.n_batches),
    }
    for kind, part in a.parts.items():
        known = origin.parts[kind]
        pairs[f"number of features of {kind}"] = (part.n_features, len(known.names))
        if isinstance(part, Rna):
            pairs["latent_library"] = (part.latent_library, known.library_size == "latent")
            pairs["outside"] = (part.outside, known.library_size not in FROM_COUNTS)
    if a.n_labels == 1 or (a.n_labels and (a.prior != "mixture" or len(a.parts) > 1)):
        raise ValueError(f"it has n_labels={a.n_labels}, which no such model has")
    if a.latent_library and len(a.parts) > 1:
        raise ValueError("latent_library is True beside other kinds of measurement")
    for name, (is_so, should_be) in pairs.items():
        if is_so != should_be:
            raise ValueError(f"{name} is {is_so}, but by the rest of the header {should_be}")
