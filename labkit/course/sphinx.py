"""What the book adds to Sphinx: formulas as MathML, which browsers of today show without script."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict:
    """Sphinx calls this when it loads the extension."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def formula(latex: str, display: str = "inline") -> str:
    """LaTeX as MathML; display is `inline` or `block`."""
    return convert(latex, display=display)


def inline(translator, node) -> None:
    """A formula within a line."""
    translator.body.append(formula(node.astext()))
    raise nodes.SkipNode


def block(translator, node) -> None:
    """A formula on a line of its own, which scrolls where it is too long."""
    made = formula(node.astext(), "block")
    translator.body.append(f'<div class="formula" tabindex="0">{made}</div>')
    raise nodes.SkipNode
