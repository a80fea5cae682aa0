"""A Sphinx extension: formulas as MathML, which needs no script, and accessible folds."""

from html import escape

from docutils import nodes
from latex2mathml.converter import convert
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict:
    """Sphinx calls this when it loads the extension."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.add_node(HideCodeCellNode, override=True, html=(fold, unfold))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def inline(translator, node) -> None:
    """A formula within a line of text."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(translator, node) -> None:
    """A displayed formula, which scrolls if it is too long."""
    made = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula" tabindex="0">{made}</div>')
    raise nodes.SkipNode


def fold(translator, node) -> None:
    """Begin folded content; its title stays the same when opened, since the marker turns."""
    words = escape(node["prompt_show"])
    translator.body.append(f'<details class="fold"><summary>{words}</summary>')


def unfold(translator, node) -> None:
    """End folded content."""
    translator.body.append("</details>")
