"""The documentation site: `make docs`. What is generated is generated anew on every build."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = HERE.parent / "benchmarks"
sys.path[:0] = [str(HERE.parent), str(HERE / "_site")]

import architecture  # noqa: E402
import mathml  # noqa: E402
import pages  # noqa: E402
import plots  # noqa: E402

from scvae import __version__  # noqa: E402

project, author, copyright = "scvae", "The scvae developers", "The scvae developers"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_site"]
suppress_warnings = ["myst.header"]  # notebooks may go from a title to a third-level heading

# -- API -------------------------------------------------------------------------------------------

default_role = "py:obj"  # a link where there is a page, code where there is none
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False

# -- Markdown and notebooks ------------------------------------------------------------------------

nb_execution_mode = "off"  # the notebooks hold their outputs
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# -- HTML ------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = "scvae"
html_static_path = ["_static"]
html_css_files = ["scvae.css"]
html_math_renderer = "mathml"  # at build time: no script, no font, no network
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "home_page_in_toc": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "toc_title": "On this page",
    "navbar_persistent": [],
}


def with_further(app, name, source):
    source[0] = pages.with_further(HERE / f"{name}.md", source[0])
    if name == "benchmarks":
        source[0] = plots.with_plots((RUNS / "RESULTS.md").read_text(encoding="utf-8"))


def setup(app):
    pages.write_all(HERE, HERE.parent)
    plots.write(HERE / "plots", RUNS / "results")
    (HERE / "_static" / "architecture.svg").write_text(architecture.picture(), encoding="utf-8")
    mathml.setup(app)
    app.connect("source-read", with_further)
