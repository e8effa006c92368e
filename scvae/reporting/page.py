"""A page of HTML that asks for nothing from anywhere; every text that comes in is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

# Whatever a name in the data may try, nothing is loaded and nothing is run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --fill: #f4f7f9; --blue: #0072b2;
  --good: #12714c; --look: #a34b00; --bad: #b3261e; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 3rem; background: #fff;
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
p.soft, figcaption, .legend, footer { color: var(--soft); font-size: .875rem; }
p.look { border-left: 4px solid var(--look); background: #fdf6ee; padding: .4rem .75rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr));
  gap: .75rem; margin: 1.25rem 0 0; }
.card { border: 1px solid var(--line); border-left: 4px solid var(--soft); border-radius: 4px;
  padding: .6rem .8rem; background: var(--fill); break-inside: avoid; }
.card.good { border-left-color: var(--good); } .card.look { border-left-color: var(--look); }
.card.bad { border-left-color: var(--bad); }
.card b { display: block; font-size: .8125rem; font-weight: 600; color: var(--soft); }
.card span { display: block; font-size: 1.125rem; font-weight: 650; }
.card small { display: block; font-size: .8125rem; color: var(--soft); }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.1rem .3rem 0;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; }
tbody th { font-weight: 500; color: var(--soft); white-space: nowrap; }
table.numbers td, table.numbers thead th + th { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; padding-left: .6rem; }
table.numbers tr.sum td, table.numbers tr.sum th { font-weight: 700; color: var(--ink); }
.findings td + td + td { width: 100%; min-width: 13rem; }
.findings td { white-space: nowrap; } .findings td + td + td { white-space: normal; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 0 2rem; }
tr.error td:first-child { color: var(--bad); font-weight: 700; }
tr.warning td:first-child { color: var(--look); font-weight: 700; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem;
  margin: .75rem 0 .25rem; }
figure { margin: 0; break-inside: avoid; max-width: 34rem; }
figure img { width: 100%; height: auto; display: block; }
figcaption b { color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; margin: .25rem 0 1rem;
  list-style: none; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .35rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
footer { margin-top: 2.5rem; border-top: 2px solid var(--line); padding-top: .75rem; }
@media (max-width: 36rem) { body { padding: 1rem .9rem 2rem; } .row { grid-template-columns: 1fr; }
  .cards { grid-template-columns: 1fr; } th, td { padding-right: .7rem; }
  tbody th { white-space: normal; } }
@media print { @page { margin: 14mm; } html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; font-size: 1rem; }
  h2, h3 { break-after: avoid; } p { orphans: 3; widows: 3; } tr { break-inside: avoid; }
  .row { grid-template-columns: repeat(3, 1fr); } .cards { grid-template-columns: repeat(3, 1fr); }
  .row.one { grid-template-columns: 1fr; } .pairs { grid-template-columns: 1fr 1fr; }
  .card { background: none; } .wide { overflow: visible; }
  .group { break-inside: avoid; } }
"""


def document(title: str, body: str, facts: dict[str, Any]) -> str:
    """Return the whole page, with the numbers in it as JSON for other programs."""
    # In a script only "<" could end it or open another; JSON has it within strings alone.
    numbers = json.dumps(facts, indent=1, allow_nan=False).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
<script type="application/json" id="scvae-report">{numbers}</script>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """Return a heading and what is below it; `parts` are HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def group(title: str, *parts: str) -> str:
    """Return a smaller heading and HTML that should stay on one page with it."""
    return f'<div class="group">\n<h3>{escape(title)}</h3>\n' + "\n".join(parts) + "\n</div>"


def pairs(*groups: str) -> str:
    """Return groups two beside each other, where there is room."""
    return '<div class="pairs">\n' + "\n".join(groups) + "\n</div>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; `kind` is "soft" for explanations, "look" for what to look at."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def cards(items: Iterable[tuple[str, str, str, str]]) -> str:
    """Return boxes of name, value, note, and state: "good", "look", "bad" or nothing."""
    drawn = (
        f'<div class="card {state}"><b>{escape(name)}</b><span>{escape(value)}</span>'
        f"<small>{escape(note)}</small></div>"
        for name, value, note, state in items
    )
    return '<div class="cards">\n' + "\n".join(drawn) + "\n</div>"


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    lines = "\n".join(
        f'<tr><th scope="row">{escape(name.strip())}</th><td>{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<div class="wide"><table><tbody>\n{lines}\n</tbody></table></div>'


def findings_table(rows: Iterable[Sequence[str]]) -> str:
    """Return a table of findings, each with level, what it is about, and text."""
    lines = "\n".join(
        f'<tr class="{escape(level)}">'
        + "".join(f"<td>{escape(text)}</td>" for text in (level, what, said))
        + "</tr>"
        for level, what, said in rows
    )
    return f'<div class="wide"><table class="findings"><tbody>\n{lines}\n</tbody></table></div>'


def numbers_table(
    head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], sums: Sequence[str] = ()
) -> str:
    """Return a table with a row of numbers for every name; rows named in `sums` stand out."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "\n".join(
        f'<tr class="{"sum" if name in sums else "part"}"><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for name, values in rows
    )
    return (
        f'<div class="wide"><table class="numbers"><thead><tr>{top}</tr></thead><tbody>\n'
        f"{lines}\n</tbody></table></div>"
    )


def figure(png: bytes, about: str, name: str = "", caption: str = "") -> str:
    """Return a picture within the page; `about` is for those who cannot see it."""
    data = base64.b64encode(png).decode()
    bold = f"<b>{escape(name)}</b> " if name else ""
    below = f"<figcaption>{bold}{escape(caption)}</figcaption>" if name or caption else ""
    return f'<figure><img alt="{escape(about)}" src="data:image/png;base64,{data}">{below}</figure>'


def row(*figures: str) -> str:
    """Return figures side by side where there is room, and else below each other."""
    kind = "row one" if len(figures) == 1 else "row"
    return f'<div class="{kind}">\n' + "\n".join(figures) + "\n</div>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return a list of colours, as "#0072b2", and what they stand for."""
    items = "".join(
        f'<li><i style="background:{escape(color)}"></i>{escape(text)}</li>'
        for color, text in entries
    )
    return f'<ul class="legend">{items}</ul>'
