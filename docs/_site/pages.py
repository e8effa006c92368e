"""Pages that are made from the package: the API from its public names, the command line from its
help, the gallery from the notebooks. What is new there has its page by that alone."""

import base64
import importlib
import inspect
import io
import json
import math
import re
import shutil

MODULES = (
    "scvae",
    "scvae.analysis",
    "scvae.analysis.labels",
    "scvae.plot",
    "scvae.datasets",
    "scvae.core",
)


def write_all(docs, root):
    for folder in ("api", "tutorials", "commands"):
        shutil.rmtree(docs / folder, ignore_errors=True)
        (docs / folder).mkdir()
    write_api(docs / "api")
    write_commands(docs / "commands")
    write_gallery(docs / "tutorials", root / "tutorials")


def with_further(path, text):
    """Return a page whose `@further@` is the pages of its folder that no index names."""
    below = [page.read_text(encoding="utf-8") for page in path.parent.glob("*/index.md")]
    elsewhere = re.findall(r"^\.\./([\w-]+)$", "\n".join(below), flags=re.MULTILINE)
    named = {*re.findall(r"[\w-]+", text), *elsewhere}
    beside = [page.stem for page in sorted(path.parent.glob("*.md")) if page.stem not in named]
    return text.replace("@further@", "\n".join(name for name in beside if name != path.stem))


# -- API -------------------------------------------------------------------------------------------


def public(module):
    """Return the public names of a module that are not modules themselves."""
    home = importlib.import_module(module)
    things = {name: getattr(home, name) for name in home.__all__ if not name.startswith("_")}
    return {name: thing for name, thing in things.items() if not inspect.ismodule(thing)}


def write_api(folder):
    entries = []
    for module in MODULES:
        names = public(module)
        for name, thing in names.items():
            (folder / f"{file_of(module, name, thing)}.md").write_text(page(module, name, thing))
        (folder / f"{module}.md").write_text(overview(module, names))
        entries.append(f"{module} <{module}>")
    text = ["# API reference", "Every public name, one page each.", toctree(entries, "2")]
    (folder / "index.md").write_text("\n\n".join(text) + "\n")


def file_of(module, name, thing):
    """Return the name of a page; GAUSSIAN and Gaussian are one to some file systems."""
    if inspect.isclass(thing):
        has_twin = name.lower() in importlib.import_module(module).__all__
        return f"{module}.{name}" + "-class" * has_twin
    return f"{module}.{name}" + "-value" * (not hasattr(thing, "__name__"))


def page(module, name, thing):
    full = f"{module}.{name}"
    if inspect.isclass(thing):
        kind = f".. autoclass:: {full}\n   :show-inheritance:\n"
        kind += "".join(f"\n   .. auto{of}:: {full}.{own}" for own, of in members(thing).items())
    elif hasattr(thing, "__name__"):
        kind = f".. autofunction:: {full}"
    else:
        kind = f".. autodata:: {full}\n   :no-value:"
    return f"# {name}\n\n```{{eval-rst}}\n{kind}\n```\n"


def members(kind):
    """Return public methods and properties of scvae's own, inherited ones too, with their kind."""
    owners = [owner for owner in reversed(kind.__mro__) if owner.__module__.startswith("scvae")]
    found = {name: thing for owner in owners for name, thing in vars(owner).items()}
    return {
        name: "property" if isinstance(thing, property) else "method"
        for name, thing in found.items()
        if isinstance(thing, property | classmethod | staticmethod) or inspect.isfunction(thing)
        if not name.startswith("_") and inspect.getdoc(getattr(kind, name))
    }


def overview(module, names):
    home = importlib.import_module(module)
    rows = [
        f"* - [{name}]({file_of(module, name, thing)}.md)\n  - {first_line(thing)}"
        for name, thing in names.items()
    ]
    table = ":::{list-table}\n:widths: 30 70\n\n" + "\n".join(rows) + "\n:::"
    summary = inspect.getdoc(home).split("\n\n")[0]
    hidden = toctree([file_of(module, name, thing) for name, thing in names.items()], "1", True)
    return f"# {module}\n\n{summary}\n\n{table}\n\n{hidden}\n"


def first_line(thing):
    """Return the first sentence of a docstring as Markdown."""
    own = inspect.getdoc(thing) if callable(thing) else None
    text = " ".join((own or f"A {type(thing).__name__}.").split("\n\n")[0].split())
    return text.replace("``", "`").replace(":math:`", "`").replace("|", r"\|")


def toctree(entries, depth, hidden=False):
    option = ":hidden:\n" * hidden
    return f":::{{toctree}}\n:maxdepth: {depth}\n{option}\n" + "\n".join(entries) + "\n:::"


# -- command line ----------------------------------------------------------------------------------


def write_commands(folder):
    from scvae.cli.program import parser

    whole = parser()
    found = next(a for a in whole._actions if hasattr(a, "choices") and a.choices)
    for name, own in found.choices.items():
        (folder / f"{name}.md").write_text(f"# scvae {name}\n\n```text\n{own.format_help()}```\n")
    text = f"# The command line\n\n```text\n{whole.format_help()}```\n\n"
    (folder / "index.md").write_text(text + toctree(list(found.choices), "1") + "\n")


# -- tutorials -------------------------------------------------------------------------------------


def write_gallery(folder, source):
    """Copy the notebooks, with the outputs that they hold, and a page of their first pictures."""
    paths = sorted(source.glob("*.ipynb"))
    cards = [card(path, folder) for path in paths]
    shutil.copytree(source / "images", folder / "images", dirs_exist_ok=True)
    text = ["# Tutorials", "Notebooks that run from top to bottom; the outputs are of a run."]
    grid = "::::{grid} 1 2 2 2\n:gutter: 3\n\n" + "\n\n".join(cards) + "\n::::"
    names = toctree([path.stem for path in paths], "1", True)
    (folder / "index.md").write_text("\n\n".join([*text, grid, names]) + "\n")


def card(path, folder):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    shutil.copy(path, folder)
    title, _, rest = "".join(notebook["cells"][0]["source"]).partition("\n")
    first = " ".join(rest.strip().split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")
    image = f":img-top: {path.stem}.png\n" if draw(notebook, folder / f"{path.stem}.png") else ""
    return (
        f":::{{grid-item-card}} {title.removeprefix('# ')}\n{image}"
        f":link: {path.stem}\n:link-type: doc\n:class-img-top: gallery\n\n{first}.\n:::"
    )


def draw(notebook, path):
    """Save the picture of a notebook that is nearest in shape to a card, small."""
    from PIL import Image

    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", [])]
    found = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    if found:
        images = [Image.open(io.BytesIO(base64.b64decode("".join(one)))) for one in found]
        image = min(images, key=lambda one: abs(math.log(one.width / one.height / 1.6)))
        image.thumbnail((800, 800))
        image.save(path)
    return bool(found)
