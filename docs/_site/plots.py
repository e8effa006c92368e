"""Plots of the benchmarks, drawn as the site is built from the files of benchmarks/results: one a
table of numbers, put above it. Every number of a cell is a dot; none is written by hand."""

import json
import re
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Plot:
    """What the numbers of a table are, in which of its columns, and whether the axis is one of
    factors, or one of its own for every row."""

    unit: str
    columns: tuple[int, ...]
    is_log: bool = False
    is_apart: bool = False


PLOTS = {
    "quality": Plot("biology, mixing (higher is better)", (1, 2, 3, 4, 5)),
    "scib": Plot("total of scib-metrics (higher is better)", (1, 2, 3, 4, 5)),
    "null_batch": Plot("pbmc3k: share of neighbours kept, and ARI (higher is better)", (1, 2)),
    "specific_type": Plot("best F1 of a cluster (higher is better)", (1, 2, 3, 4)),
    "held_out_peer": Plot(
        "held-out negative ELBO, nats a cell (lower is better)", (1, 2, 3, 4, 5), is_apart=True
    ),
    "scaling": Plot("seconds of a whole fit, two CPU cores", (1, 5), is_log=True),
    "throughput": Plot("cells a second in training, two CPU cores", (1, 2), is_log=True),
    "gpu_throughput": Plot("cells a second in training, one H100", (1, 2), is_log=True),
    "gpu_inference": Plot("cells a second, one H100", (1, 2), is_log=True),
}
MARKED = re.compile(r"<!-- results/(\w+)\.json -->\n")
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d+\.?\d*|\.\d+")


def numbers(cell):
    """Return all numbers of a cell: of its seeds or runs; of a text, those that it names, but not
    those that count runs and steps in words."""
    if isinstance(cell, list):
        return cell
    return [float(one.replace(",", "")) for one in NUMBER.findall(cell)]


def draw(plot, table):
    """Return the figure of a table: a line of dots a row of it, a colour a column."""
    from matplotlib.figure import Figure

    rows = table["rows"]
    ends = [*range(len(rows)), len(rows)] if plot.is_apart else [0, len(rows)]
    parts = [rows[start:end] for start, end in pairwise(ends)]
    height = 0.42 * len(rows) + (0.45 * len(parts) if plot.is_apart else 0.5)
    figure = Figure(figsize=(8, 0.7 + height), layout="constrained")
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        for color, column in enumerate(plot.columns):
            found = [(x, y) for y, row in enumerate(part) for x in numbers(row[column])]
            x, y = zip(*found, strict=True) if found else ((), ())
            name = table["columns"][column].removeprefix("F1: ")
            axes.scatter(x, y, s=40, alpha=0.7, color=f"C{color}", lw=0, label=name)
        axes.set_yticks(range(len(part)), [row[0] for row in part])
        axes.set_ylim(len(part) - 0.5, -0.5)
        axes.set_xscale("log" if plot.is_log else "linear")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(plot.unit)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=9)
    return figure


def table_of(results, name):
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


def write(folder, results):
    """Draw every table of `PLOTS`."""
    folder.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        figure = draw(plot, table_of(results, name))
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def with_plots(text):
    """Return RESULTS.md with the plot of every table that has one, above it."""

    def plotted(match):
        if match[1] not in PLOTS:
            return match[0]
        unit = PLOTS[match[1]].unit
        return f"{match[0]}\n![Each row of the table below: {unit}](plots/{match[1]}.svg)\n"

    beside = re.sub(r"\]\((\w+\.png)\)", r"](../benchmarks/\1)", text)
    return MARKED.sub(plotted, beside)
