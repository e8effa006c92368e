"""Count how far a reader has to travel: `python benchmarks/structure.py`.

Prints, for the package as it is: the files that one training step enters and how many calls of the
package's own functions (generator frames apart) it makes; the files that the data pass on their way
through `fit`, in order, and how often the way returns to a file that it had left; the lines, the
largest file, and the longest function without its docstring.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
import types
from pathlib import Path

import anndata

import scvae

PACKAGE = Path(scvae.__file__).parent
STEP = 12  # one past the compilation of kernels


def own_file(frame: types.FrameType) -> str | None:
    """Return the file of the package that a frame runs in."""
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None


class OfOneStep:
    """What a profiler sees of one training step, from one call of `Run.step` to the next."""

    def __init__(self) -> None:
        self.steps = 0
        self.calls: list[tuple[str, str, bool]] = []

    def __call__(self, frame: types.FrameType, event: str, argument: object) -> None:
        if event != "call" or (path := own_file(frame)) is None:
            return
        code = frame.f_code
        if path == "core/vae.py" and code.co_name == "terms":
            self.steps += 1
        if self.steps == STEP:
            generator = bool(code.co_flags & inspect.CO_GENERATOR)
            self.calls.append((path, code.co_qualname, generator))


class WayOfTheData:
    """The files in which an AnnData is a local of a running function, in order of entry."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, frame: types.FrameType, event: str, argument: object) -> None:
        if event != "call" or (path := own_file(frame)) is None:
            return
        holds = any(isinstance(value, anndata.AnnData) for value in frame.f_locals.values())
        if holds and self.files[-1:] != [path]:
            self.files.append(path)


def watched(profiler: object, adata: anndata.AnnData, **options: object) -> None:
    """Fit under a profiler."""
    sys.setprofile(profiler)  # type: ignore[arg-type]
    try:
        scvae.fit(adata, progress=False, **options)  # type: ignore[arg-type]
    finally:
        sys.setprofile(None)


def lengths() -> list[tuple[int, str]]:
    """Return the lines of every function without its docstring, the longest first."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1  # type: ignore[operator]
                if ast.get_docstring(node) is not None:
                    first = node.body[0]
                    lines -= first.end_lineno - first.lineno + 1  # type: ignore[operator]
                found.append((lines, f"{path.relative_to(PACKAGE)}:{node.name}"))
    return sorted(found, reverse=True)


def main() -> None:
    adata = scvae.simulate(400, 60, n_batches=2, seed=0)
    scvae.fit(adata, batch="batch", max_steps=2, progress=False)  # kernels are compiled
    step = OfOneStep()
    watched(step, adata.copy(), batch="batch", max_steps=STEP + 2)
    files = {path for path, _, _ in step.calls}
    frames = sum(generator for _, _, generator in step.calls)
    print(f"a training step: {len(files)} files, {len(step.calls) - frames} calls", end=" ")
    print(f"and {frames} generator frames of the package's own")
    print("  " + ", ".join(sorted(files)))
    calls = sorted((name, path) for path, name, _ in step.calls)
    counted = [(len(list(group)), key) for key, group in itertools.groupby(calls)]
    for count, (name, path) in sorted(counted, reverse=True)[:12]:
        print(f"  {count:4} {path}:{name}")
    way = WayOfTheData()
    watched(way, adata.copy(), batch="batch", max_steps=2)
    returns = len(way.files) - len(set(way.files))
    print(f"the way of adata through fit: {len(set(way.files))} files, {returns} returns")
    print("  " + " > ".join(way.files))
    sizes = sorted((len(p.read_text().splitlines()), p) for p in PACKAGE.rglob("*.py"))
    print(f"{sum(size for size, _ in sizes):,} lines; largest files:", end=" ")
    print(", ".join(f"{p.relative_to(PACKAGE)} {size}" for size, p in sizes[:-4:-1]))
    print("longest functions:", ", ".join(f"{name} {lines}" for lines, name in lengths()[:4]))


if __name__ == "__main__":
    main()
