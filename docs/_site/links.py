"""Look at every link of the built site: `python docs/_site/links.py docs/_build/html`.

A link within the site that leads nowhere is an error, and so is a script, style, font or picture
from elsewhere: the site works without a network. Links to elsewhere are listed in links.txt.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
NOT_LOADED = {"canonical", "search", "next", "prev", "index", "author"}


class Page(HTMLParser):
    """The anchors of a page, the links in it, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.path, self.anchors, self.links, self.loaded = path, set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag in LOADED and given.get("rel") not in NOT_LOADED:
            self.loaded.add(given.get(LOADED[tag], ""))

    def faults(self, pages):
        """Yield what is wrong with the links of this page."""
        for link in sorted(self.loaded):
            if is_elsewhere(link) and not link.startswith("data:"):
                yield f"{self.path.name} loads {link}"
        for link in sorted(self.links | self.loaded):
            parts = urlsplit(link)
            if is_elsewhere(link) or link == "#":
                continue
            target = (self.path.parent / unquote(parts.path)).resolve() if parts.path else self.path
            if not target.exists():
                yield f"{self.path.name}: {link} leads nowhere"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors | {""}:
                yield f"{self.path.name}: {link} has no such place"


def is_elsewhere(link):
    parts = urlsplit(link)
    return bool(parts.scheme or parts.netloc)


def main(site):
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): Page(path.resolve()) for path in paths}
    faults = [fault for page in pages.values() for fault in page.faults(pages)]
    away = sorted({link for page in pages.values() for link in page.links if is_elsewhere(link)})
    (site / "links.txt").write_text("\n".join(away) + "\n", encoding="utf-8")
    print(*faults, sep="\n", end="\n" * bool(faults))
    print(f"{len(pages)} pages, {len(faults)} faulty links, {len(away)} links to elsewhere")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
