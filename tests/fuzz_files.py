"""Mutate files of models and checkpoints, and see what becomes of them.

Every case must end as one of `ENDS`, soon and in little memory; anything else is a fault, kept in a
file. Cases are numbered, and a number and a seed give the same case again:

    python tests/fuzz_files.py --cases 100000 --seed 0
    python tests/fuzz_files.py --cases 1 --first 4711 --seed 0

With `--kind checkpoint` the mutated files are checkpoints, and every case is a whole fit.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from cells import FILES, fitted_cells
from container import Container

import scvae
from scvae import FileError, TrainingError
from scvae.cli.info import facts_of, table_of
from scvae.models.keep import checkpoint

if sys.platform != "win32":
    import resource

SECONDS = 5.0  # that a case may take
MEBIBYTES = 256  # that all cases together may add to the memory of the process
ENDS = ("loaded", "refused", "trained", "training failed")

Mutation = Callable[[random.Random, list[bytes]], bytes]

# -- bytes -----------------------------------------------------------------------------------------


def flip_bits(rng: random.Random, bases: list[bytes]) -> bytes:
    data = bytearray(rng.choice(bases))
    for _ in range(rng.choice((1, 1, 1, 2, 16))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(rng: random.Random, bases: list[bytes]) -> bytes:
    data = rng.choice(bases)
    return data[: rng.randrange(len(data))]


def insert(rng: random.Random, bases: list[bytes]) -> bytes:
    data, start = rng.choice(bases), 0
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 8, 1000))) + data[start:]


def remove(rng: random.Random, bases: list[bytes]) -> bytes:
    data = rng.choice(bases)
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 4, 8, 500)) :]


def overwrite(rng: random.Random, bases: list[bytes]) -> bytes:
    data = bytearray(rng.choice(bases))
    start, length = rng.randrange(len(data)), rng.choice((1, 4, 100))
    data[start : start + length] = rng.choice((b"\0", b"\xff", b'"', b"[", b"9")) * length
    return bytes(data)


def splice(rng: random.Random, bases: list[bytes]) -> bytes:
    one, other = rng.choice(bases), rng.choice(bases)
    return one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]


def set_length(rng: random.Random, bases: list[bytes]) -> bytes:
    data = rng.choice(bases)
    right = int.from_bytes(data[:8], "little")
    lengths = (0, 1, 2, right - 1, right + 1, len(data) - 8, len(data), 2**26, 2**31, 2**63, 2**64)
    return min(rng.choice(lengths), 2**64 - 1).to_bytes(8, "little") + data[8:]


def be_foreign(rng: random.Random, bases: list[bytes]) -> bytes:
    start = rng.choice(
        (b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80\x04\x95", b"{}", b"\x1f\x8b")
    )
    return start + rng.randbytes(rng.randrange(3000))


# -- JSON ------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, 8, 30, -1, 10**9, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30),
    *(0.5, 1.0, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
    *(True, False, None, "", "a", "0", "\0", "\ud800", "batch", "nb", "observed", "F32", "latent"),
    *([], {}, [[]], [0], [None], {"": 0}, [0, 4], [1e-12, 1.0]),
)


def places(rng: random.Random, root: Any) -> Iterator[tuple[Any, Any]]:
    """Yield containers and keys, from `root` down to a random leaf."""
    while isinstance(root, dict | list) and root:
        key = rng.choice([*root]) if isinstance(root, dict) else rng.randrange(len(root))
        yield root, key
        root = root[key]


def mutate_json(rng: random.Random, root: Any) -> None:
    """Change one place of `root`, which is not empty."""
    holder, key = rng.choice([*places(rng, root)])
    value = holder[key]
    change = rng.randrange(9)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[rng.choice((f"{key}_", str(key)[:-1], str(key).upper(), ""))] = holder.pop(key)
    elif change == 2:
        other, place = rng.choice([*places(rng, root)])
        holder[key] = copy.deepcopy(other[place])
    elif change == 3:
        for _ in range(rng.choice((1, 5, 40, 100))):
            value = rng.choice(([value], {"a": value}))
        holder[key] = value
    elif change == 4 and isinstance(value, list | str):
        holder[key] = value * rng.choice((0, 2, 50, 1000))
    elif change == 5 and isinstance(value, int | float):
        holder[key] = rng.choice((value + 1, value - 1, -value, value * 1e30, value + 0.5))
    elif change == 6 and isinstance(holder, dict):
        holder[rng.choice(("extra", "__metadata__", "format", ""))] = copy.deepcopy(value)
    elif change == 7 and isinstance(value, dict | list):
        holder[key] = [*value] if isinstance(value, dict) else dict.fromkeys(map(str, value))
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def mutate_table(rng: random.Random, file: Container) -> None:
    for _ in range(rng.choice((1, 1, 2))):
        if file.table:
            mutate_json(rng, file.table)


def mutate_description(rng: random.Random, file: Container) -> None:
    described = file.description
    for _ in range(rng.choice((1, 1, 2, 3))):
        if described:
            mutate_json(rng, described)
    file.description = described


def repeat_a_field(rng: random.Random, file: Container) -> None:
    text = file.metadata["scvae"]
    name = rng.choice([*file.description])
    again = json.dumps(rng.choice(VALUES))
    file.metadata["scvae"] = text[:-1] + f", {json.dumps(name)}: {again}}}"


def break_text(rng: random.Random, file: Container) -> None:
    text = file.metadata["scvae"]
    start = rng.randrange(len(text))
    part = rng.choice(("[" * 5000, "{", "}", ",", '"', "9" * 5000, "NaN", "\\ud800", "", "e999"))
    file.metadata["scvae"] = text[:start] + part + text[start + rng.randrange(3) :]


def mutate_metadata(rng: random.Random, file: Container) -> None:
    file.metadata[rng.choice([*file.metadata])] = rng.choice(VALUES)


def reorder_tensors(rng: random.Random, file: Container) -> None:
    """Give the tensors each other's descriptions."""
    names = [*file.table]
    rng.shuffle(names)
    few = names[: rng.choice((2, 3, len(names)))]
    held = [file.table[name] for name in few]
    file.table.update(zip(few, held[1:] + held[:1], strict=True))


NUMBERS = (*(0.0, -1.0, 1e-30, 1e6, 1e30, 3.4e38, -3.4e38), *map(float, ("nan", "inf", "-inf")))


def mutate_numbers(rng: random.Random, file: Container) -> None:
    body = bytearray(file.body)
    for _ in range(rng.choice((1, 1, 3, 200))):
        start = 4 * rng.randrange(len(body) // 4)
        if rng.random() < 0.5:
            body[start + rng.randrange(4)] ^= 1 << rng.randrange(8)
        else:
            body[start : start + 4] = struct.pack("<f", rng.choice(NUMBERS))
    file.body = bytes(body)


def mutate_a_tensor(rng: random.Random, file: Container) -> None:
    begin, end = rng.choice([*file.table.values()])["data_offsets"]
    body = bytearray(file.body)
    number = struct.pack("<f", rng.choice(NUMBERS))
    body[begin:end] = (number * (end - begin))[: end - begin]
    file.body = bytes(body)


IN_CONTAINER = (
    *(mutate_table, mutate_description, mutate_description, mutate_description, repeat_a_field),
    *(break_text, mutate_metadata, reorder_tensors, mutate_numbers, mutate_a_tensor),
)
RESEALED = 0.9  # share of changes in the container after which the checksums agree again


def change_container(rng: random.Random, bases: list[bytes]) -> bytes:
    file = Container.of(rng.choice(bases))
    rng.choice(IN_CONTAINER)(rng, file)
    had_sums = "sha256_header" in file.metadata
    if had_sums and rng.random() < RESEALED and isinstance(file.metadata["scvae"], str):
        file.sealed()
    return file.data()


IN_BYTES = (flip_bits, truncate, insert, remove, overwrite, splice, set_length, be_foreign)
CONTAINER_SHARE = 0.7


def mutant(seed: int, number: int, bases: list[bytes]) -> bytes:
    """Return the file of a case."""
    rng = random.Random(f"{seed}.{number}")
    if rng.random() < CONTAINER_SHARE:
        return change_container(rng, bases)
    return rng.choice(IN_BYTES)(rng, bases)


# -- models ----------------------------------------------------------------------------------------


def model_bases() -> list[bytes]:
    return [path.read_bytes() for path in sorted(FILES.glob("*.scvae"))]


def cells_for(model: scvae.Model) -> AnnData:
    """Return a few cells that the model says it can embed."""
    origin, covariates = model.origin, model.origin.covariates
    counts = np.random.default_rng(0).poisson(2.0, (5, len(origin.genes))) + 1.0
    columns: dict[str, Any] = {
        name: [known[0]] * 5 for name, known in covariates.categories.items()
    }
    columns |= {name: [mean] * 5 for name, (mean, _) in covariates.numbers.items()}
    if origin.library_size not in ("observed", "latent"):
        columns[origin.library_size] = counts.sum(axis=1) * 2
    obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(5)])
    return AnnData(counts.astype(np.float32), obs, pd.DataFrame(index=origin.genes))


def end_of_model(path: Path) -> str:
    """Load the file and ask the model all that takes no data, and for an embedding."""
    try:
        model = scvae.load(path, device="cpu")
    except FileError as error:
        return _refused(path, error)
    assert repr(model)
    assert str(model.summary())
    assert table_of(facts_of(model))
    assert np.isfinite(model.origin.batch_shares).all()
    embedding = model.embed(cells_for(model))
    assert embedding.shape == (5, model.architecture.n_latent), embedding.shape
    assert np.isfinite(embedding).all(), embedding
    return "loaded"


def _refused(path: Path, error: FileError) -> str:
    message = str(error)
    assert str(path) in message
    assert "memory" not in message, "more memory than there is was asked for"
    assert len(message) < 500 + len(str(path)), f"{len(message)} characters"
    message.encode()
    return "refused"


# -- checkpoints -----------------------------------------------------------------------------------

STEPS = 6
FIT: dict[str, Any] = {
    **{"batch": "batch", "n_hidden": 8, "n_latent": 3, "max_steps": 2 * STEPS, "batch_size": 16},
    **{"progress": False, "device": "cpu"},
}


class _Killed(Exception):
    """The fit that writes the checkpoint ends half way."""


def checkpoint_bases() -> list[bytes]:
    """Return the checkpoint of a fit that was killed half way."""
    kept = checkpoint.Checkpoint.keep

    def keep(self: checkpoint.Checkpoint, run: Any) -> None:
        self.written = -1e9
        kept(self, run)
        if run.taken >= STEPS:
            raise _Killed

    checkpoint.Checkpoint.keep = keep  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            try:
                scvae.fit(fitted_cells(), checkpoint=folder, **FIT)
            except _Killed:
                return [(Path(folder) / checkpoint.NAME).read_bytes()]
    finally:
        checkpoint.Checkpoint.keep = kept  # type: ignore[method-assign]
    raise AssertionError("the fit was not killed")


def end_of_checkpoint(path: Path) -> str:
    """Fit from the checkpoint: it goes on to a model, or says what is wrong."""
    adata = fitted_cells()
    try:
        scvae.fit(adata, checkpoint=path.parent, **FIT)
    except FileError as error:
        return _refused(path, error)
    except TrainingError:
        return "training failed"
    assert adata.obsm["X_scvae"].shape == (adata.n_obs, FIT["n_latent"])
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    return "trained"


KINDS: dict[str, tuple[str, Callable[[], list[bytes]], Callable[[Path], str]]] = {
    "model": ("model.scvae", model_bases, end_of_model),
    "checkpoint": (checkpoint.NAME, checkpoint_bases, end_of_checkpoint),
}

# -- a campaign ------------------------------------------------------------------------------------


class _Slow(BaseException):
    """The case takes too long; no handler of exceptions should catch this."""


def _stop(*args: Any) -> None:
    raise _Slow


def run_case(data: bytes, path: Path, end_of: Callable[[Path], str]) -> str:
    """Return how a case ended; for a fault, its traceback."""
    path.write_bytes(data)
    _set_alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return end_of(path)
    except BaseException:
        return traceback.format_exc()
    finally:
        _set_alarm(0)


def _set_alarm(seconds: float) -> None:
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def campaign(kind: str, seed: int, numbers: range, folder: Path) -> tuple[Counter[str], list[str]]:
    """Run cases; return how many ended how, and the faults, whose files are kept in `folder`."""
    name, make_bases, end_of = KINDS[kind]
    bases, ends, faults = make_bases(), Counter[str](), list[str]()
    for base in bases:
        assert run_case(base, folder / name, end_of) in ("loaded", "trained")
    before = memory()
    for number in numbers:
        data = mutant(seed, number, bases)
        end = run_case(data, folder / name, end_of)
        if end not in ENDS or memory() > before + MEBIBYTES:
            (folder / f"{kind}.{seed}.{number}").write_bytes(data)
            faults.append(f"case {number}, {memory() - before:.0f} MiB more: {end}")
            before = memory()
        ends[end if end in ENDS else "fault"] += 1
    return ends, faults


def memory() -> float:
    """Return the most memory that the process has had, in MiB."""
    if sys.platform == "win32":
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=[*KINDS], default="model")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=Path, help="folder for the files of faults")
    a = parser.parse_args()
    torch.set_num_threads(1)
    folder = a.faults or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    ends, faults = campaign(a.kind, a.seed, range(a.first, a.first + a.cases), folder)
    for fault in faults[:20]:
        print(fault)
    counted = ", ".join(f"{count:,} {end}" for end, count in ends.most_common())
    print(
        f"{a.cases:,} cases of a {a.kind}, seed {a.seed}: {counted}; {len(faults)} faults, "
        f"{time.perf_counter() - start:.0f} s" + (f", kept in {folder}" if faults else "")
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
