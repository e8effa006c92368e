"""Pages of the guide, and of those who come from elsewhere: their code runs, from page to page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "docs"
SHOWN = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
ELSEWHERE = [ROOT / f"{name}.md" for name in ("mapping", "kinds", "scale")]
PAGES = {
    f"{path.parent.name}/{path.stem}": [block for block in blocks if "rule all" not in block]
    for path in sorted([*ROOT.glob("guide/*.md"), *ROOT.glob("from/*.md"), *ELSEWHERE])
    if (blocks := SHOWN.findall(path.read_text(encoding="utf-8")))
}
PAGES = {name: blocks for name, blocks in PAGES.items() if blocks}


def test_the_pages_are_found() -> None:
    assert {"guide/data", "guide/fit", "from/scanpy", "from/methods", "docs/scale"} <= PAGES.keys()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_code_of_the_guide_runs_and_prints_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in PAGES[page]:
        exec(compile(block, f"docs/{page}.md", "exec"), names)
        said = re.findall(r"print\(.*\)  # (.*)", block)
        assert capsys.readouterr().out.splitlines() == said
