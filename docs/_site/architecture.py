"""The layers of scvae and the imports between them, as one picture: SVG, drawn from the source.

python docs/_site/architecture.py docs/_static/architecture.svg
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "scvae"
DOORS = ("cli", "plot")  # what users call, beside `import scvae`, which imports from all
EVERYWHERE = ("arguments", "choices", "errors", "keywords")  # small, and under all the rest
WORDS = {
    "analysis": "questions to a fitted model",
    "cli": "the command line",
    "core": "VAE engine, tensors only",
    "data": "AnnData, read and checked",
    "datasets": "small real data",
    "io": "safetensors, whole or not at all",
    "modalities": "likelihoods of counts",
    "models": "fit, query, keep",
    "plot": "pictures",
    "reporting": "one page of a fit",
    "simulation": "cells with known truth",
    "simulation_kinds": "proteins and chromatin",
    "train": "one loop",
}


def layers():
    found = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    found |= {path.stem for path in ROOT.glob("*.py")}
    return sorted(found - {"__init__", "__main__", "_version"})


def arrows():
    """Return what each layer imports of the others."""
    names = layers()
    below = {name: set() for name in names}
    for path in sorted(ROOT.rglob("*.py")):
        layer = path.relative_to(ROOT).with_suffix("").parts[0]
        if layer in below:
            below[layer] |= imported(path.read_text(encoding="utf-8")) & set(names) - {layer}
    return below


def imported(source):
    """Return the layers that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    dotted = [name.split(".") for name in found]
    return {parts[1] for parts in dotted if parts[0] == "scvae" and len(parts) > 1}


def without_shortcuts(below):
    """Return the arrows that no longer way over other layers says, too."""

    def reach(start):
        seen, left = set(), list(below[start])
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += below[name]
        return seen

    return {
        name: {to for to in tos if not any(to in reach(other) for other in tos - {to})}
        for name, tos in below.items()
    }


def heights(below):
    """Return how many layers each stands on, at its longest."""
    height = {}
    for name in TopologicalSorter(below).static_order():
        height[name] = 1 + max((height[other] for other in below[name]), default=-1)
    return height


def places(below):
    """Return the middle of every box: rows by height, each row ordered by what lies under it."""
    height, at = heights(below), {}
    rows = [sorted(n for n in below if height[n] == h) for h in range(max(height.values()) + 1)]
    for h, row in enumerate(rows):
        under = {n: [at[o][0] for o in below[n]] or [600] for n in row}
        row.sort(key=lambda n: sum(under[n]) / len(under[n]))
        for i, name in enumerate(row):
            at[name] = ((i + 0.5) * 1200 / len(row), (len(rows) - h - 0.5) * 110)
    return at, 110 * len(rows)


def picture():
    """Return the picture as SVG."""
    found = {name: to - {*EVERYWHERE} for name, to in arrows().items() if name not in EVERYWHERE}
    below = without_shortcuts(found)
    at, total = places(below)
    note = f"An arrow says: imports. All may import {', '.join(EVERYWHERE)}."
    lines = [
        f'<path d="M{at[a][0]:.0f},{at[a][1] + 26:.0f} C{at[a][0]:.0f},{at[a][1] + 70:.0f} '
        f'{at[b][0]:.0f},{at[b][1] - 70:.0f} {at[b][0]:.0f},{at[b][1] - 30:.0f}"/>'
        for a in sorted(below)
        for b in sorted(below[a])
    ]
    boxes = [box(name, *at[name]) for name in sorted(at)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 {total + 30}" '
        'font-family="sans-serif" text-anchor="middle">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8z" fill="#8a94a6"/></marker>'
        "</defs>\n"
        f'<rect width="1200" height="{total + 30}" fill="#ffffff"/>\n'
        '<g fill="none" stroke="#8a94a6" stroke-width="1.4" marker-end="url(#tip)">\n'
        + "\n".join(lines)
        + "\n</g>\n"
        + "\n".join(boxes)
        + f'\n<text x="600" y="{total + 14}" font-size="15" fill="#4a5568">{note}</text>'
        + "\n</svg>\n"
    )


def box(name, x, y):
    fill = "#dcecf9" if name in DOORS else "#f2f4f7"
    return (
        f'<rect x="{x - 92:.0f}" y="{y - 26:.0f}" width="184" height="52" rx="7" fill="{fill}" '
        f'stroke="#4a5568"/><text x="{x:.0f}" y="{y - 3:.0f}" font-size="18">{name}</text>'
        f'<text x="{x:.0f}" y="{y + 15:.0f}" font-size="11.5" fill="#4a5568">'
        f"{WORDS.get(name, '')}</text>"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
