"""Formulas as MathML, made while the site is built: browsers show it without script or network."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)
# What docutils does not know, and what it writes otherwise.
SPELLINGS = {
    r"\Bigl": "",
    r"\Bigr": "",
    r"\Big": "",
    r"\tfrac": r"\frac",
    r"\!": "",
    r"\dots": r"\ldots",
}


def spelt(tex):
    """Return a formula as docutils reads it: it takes the 12 of frac12 for one number."""
    for ours, theirs in SPELLINGS.items():
        tex = tex.replace(ours, theirs)
    tex = re.sub(r"\\frac\s*([0-9A-Za-z])", r"\\frac{\1}", tex)
    tex = re.sub(r"(\\frac\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}", tex)
    return re.sub(r"(\\log)(?![a-zA-Z_^(\[{])", r"\1\\,", tex)


def formula(node, as_block):
    tex = spelt(node.astext())
    try:
        return tex2mathml(tex, as_block=as_block)
    except MathError as error:
        logger.warning("the formula %s cannot be shown: %s", tex, error, location=node)
        return f"<code>{tex}</code>"


def inline(writer, node):
    writer.body.append(formula(node, as_block=False))
    raise SkipNode


def block(writer, node):
    writer.body.append(f'<div class="formula">{formula(node, as_block=True)}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
