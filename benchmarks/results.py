"""The tables of RESULTS.md, from the figures of the runs: `python benchmarks/results.py`.

Every table stands in a file of `results/`, and in RESULTS.md below a comment that names the file. A
cell is text, or the list of what all seeds or rounds gave: written as the median, with half of the
range in brackets. `best` says which of a row is printed bold. Prose is left as it is.

`--collect` first takes from `work/` what quality.py, without.py and mapping.py have left there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
RESULTS, TABLES, WORK = HERE / "RESULTS.md", HERE / "results", HERE / "work"
MARKED = re.compile(r"(<!-- results/(\w+)\.json -->\n\n)((?:\|.*\n)*)")

METHODS = ("scvae", "scvi", "scvi_recommended", "pca", "harmony")  # the columns of scores
MAPPERS = (  # the columns of mapping.py, some of them with half of the genes, too
    "scvae, new",
    "scvae, extended",
    "scvae with labels, new",
    "scvae with labels, extended",
    "logistic regression",
    "neighbours after Harmony",
    "scANVI, surgery",
)
PIECES = ("counts in one pass", "sparse first layer", "bfloat16 products")  # of without.py

Table = dict[str, Any]


# -- from figures to text --------------------------------------------------------------------------


def number(value: float, digits: int) -> str:
    """Return a number as the tables write it: .698, 1.95."""
    return f"{value:.{digits}f}".removeprefix("0")


def cell(found: str | list[float], digits: int, top: float | None) -> str:
    """Return the text of a cell, bold where its median is `top`."""
    if isinstance(found, str):
        return found
    middle, half = number(median(found), digits), number((max(found) - min(found)) / 2, digits)
    spread = f" ({half})" if float(half) else ""
    return f"**{middle}**{spread}" if median(found) == top else middle + spread


def lines(table: Table) -> str:
    """Return a table as markdown."""
    best, digits = table.get("best"), table.get("digits", 3)
    rows = [table["columns"]]
    for found in table["rows"]:
        middles = [median(one) for one in found if isinstance(one, list)]
        top = {"highest": max, "lowest": min}[best](middles) if best else None
        rows.append([cell(one, digits, top) for one in found])
    head, *rest = ("|" + "".join(f" {text} |" if text else " |" for text in row) for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest, ""])


def written(text: str) -> str:
    """Return the text with all tables made anew."""

    def made(match: re.Match[str]) -> str:
        return match[1] + lines(json.loads((TABLES / f"{match[2]}.json").read_text("utf-8")))

    return MARKED.sub(made, text)


# -- from runs to figures --------------------------------------------------------------------------


def by_method(scores: dict[str, float | None]) -> dict[str, list[float]]:
    """Return the scores of all seeds of every method."""
    found = defaultdict(list)
    for run, score in scores.items():
        if score is not None:
            found[run.rsplit(".", 1)[0]].append(round(score, 6))
    return found


def scored(table: Table) -> Table:
    """Return a table of scores with those that quality.py has left; others stay as they are."""
    rows: list[list[Any]] = []
    for title, *before in table["rows"]:
        name, _, score = title.partition(", ")
        scores = json.loads((WORK / f"{name}.scores.json").read_text())
        found = by_method(scores.get(score or "scib total", {}))
        rows.append([title, *(found.get(m, b) for m, b in zip(METHODS, before, strict=True))])
    return table | {"rows": rows}


def plumbing() -> Table:
    """Return how many times as long a step takes without each piece, in every round."""
    rows = []
    for n_genes, times in json.loads((WORK / "without.json").read_text()).items():
        whole = times["nothing"]
        of_each = [
            [round(ms / of, 3) for ms, of in zip(times[piece], whole, strict=True)]
            for piece in PIECES
        ]
        rows.append([f"{int(n_genes):,} genes", [round(ms, 2) for ms in whole], *of_each])
    columns = ["", "a step, ms", *(f"times, without {piece}" for piece in PIECES)]
    return {"columns": columns, "digits": 2, "rows": rows}


def mapped(kept: dict[str, Any], score: str, of: str = "") -> list[list[Any]]:
    """Return the rows of a score of mapping.py, for all genes or `of` those."""
    rows = []
    for task, methods in kept.items():
        if (", without " in task) == (score == "AUROC"):
            of_seeds = [methods.get(name + of, {}).get(score, {}) for name in MAPPERS]
            rows.append([f"{task}{of}, {score}", *(list(one.values()) or "" for one in of_seeds)])
    return [row for row in rows if any(row[1:])]


def mapping() -> dict[str, Table]:
    """Return what mapping.py has left, by the name of the table."""
    kept = json.loads((WORK / "mapping.json").read_text("utf-8"))
    columns, half = ["", *MAPPERS], ", half of the genes"

    def rows(*scores: str) -> list[list[Any]]:
        return [row for of in ("", half) for score in scores for row in mapped(kept, score, of)]

    right = [*rows("accuracy", "macro F1"), *mapped(kept, "AUROC")]
    alarms = [row[:5] for row in rows("false alarms")]
    return {
        "mapping": {"columns": columns, "best": "highest", "rows": right},
        "mapping_calibration": {"columns": columns, "best": "lowest", "rows": rows("ECE")},
        "mapping_unknown": {"columns": columns[:5], "rows": alarms},
    }


def keep(path: Path, table: Table) -> None:
    """Write a table, a row a line."""
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in table["rows"])
    rest = {key: value for key, value in table.items() if key != "rows"}
    head = json.dumps(rest, ensure_ascii=False)[1:-1]
    path.write_text(f'{{{head}, "rows": [\n{rows}\n]}}\n', "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", action="store_true", help="take new figures from work/")
    if parser.parse_args().collect:
        for path in (TABLES / "quality.json", TABLES / "scib.json"):
            keep(path, scored(json.loads(path.read_text("utf-8"))))
        keep(TABLES / "without.json", plumbing())
        for name, table in mapping().items():
            keep(TABLES / f"{name}.json", table)
    RESULTS.write_text(written(RESULTS.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
