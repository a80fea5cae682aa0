"""What the book adds to Sphinx: formulas as MathML, which browsers of today show without script.

And answers that are folded under words which a screen reader says, too.
"""

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
    """A formula within a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(translator, node) -> None:
    """A formula on a line of its own, which scrolls where it is too long."""
    made = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula" tabindex="0">{made}</div>')
    raise nodes.SkipNode


def fold(translator, node) -> None:
    """Begin what is folded; its words are the same open and closed, since the mark turns."""
    words = escape(node["prompt_show"])
    translator.body.append(f'<details class="fold"><summary>{words}</summary>')


def unfold(translator, node) -> None:
    """End what is folded."""
    translator.body.append("</details>")
