"""Notebooks and Markdown as HTML that needs no network: formulas become MathML, not scripts."""

import jinja2
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath


class Renderer(IPythonRenderer):
    """Markdown of a notebook; every browser of today shows MathML by itself."""

    def block_math(self, body: str) -> str:
        """A formula on a line of its own."""
        return convert(body, display="block")

    def inline_math(self, body: str) -> str:
        """A formula within a line."""
        return convert(body)


class Exporter(HTMLExporter):
    """As nbconvert's, with `to_html` for the Markdown cells."""

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        """The filter that the templates call; `context` is theirs."""
        return to_html(source)


def to_html(markdown: str) -> str:
    """Markdown with `$formulas$` as HTML."""
    renderer = Renderer(escape=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(markdown)
