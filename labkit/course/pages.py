"""The site that a run leaves: a page a lab, its pictures, the guides, the claims, and an index.

It needs no network: formulas become MathML, which every browser of today shows, not scripts.
"""

import base64
import json
import re
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import jinja2
import nbformat
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from labkit.course import claims

TEMPLATES = Path(__file__).parents[1] / "templates"
SITE = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
SET_UP = "# @title Set-up"  # the cell for Colab, which tells a reader nothing
WIDGET = "application/vnd.jupyter.widget-view+json"


class Renderer(IPythonRenderer):
    """Markdown of a notebook, its formulas as MathML."""

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


def write(
    out: Path, root: Path, stems: list[str], book: nbformat.NotebookNode, results: list
) -> None:
    """Write the page of the lab that results end with, and renew what stands around it, in out.

    root is the course's folder; stems are the labs that this run has or will have.
    """
    rows = [asdict(result) for result in results]
    links = _links(root, stems)
    stem, title = rows[-1]["lab"], rows[-1]["title"]
    (out / f"{stem}.html").write_text(lab_page(book, title, nav(links, f"{stem}.html")), "utf-8")
    (out / "index.html").write_text(index_page(rows, root, links), "utf-8")
    (out / "summary.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")
    write_pictures(out / "pictures", book, stem)
    write_guides(out, root, stems)


def lab_page(book: nbformat.NotebookNode, title: str, nav: str = "") -> str:
    """An executed notebook as HTML, pictures inside, without progress bars and stderr."""
    book = nbformat.from_dict(book)
    book.metadata = book.metadata | {"title": title}
    book.cells = [cell for cell in book.cells if not cell.source.startswith(SET_UP)]
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    template = str(TEMPLATES / "lab.html.j2")
    exporter = Exporter(template_name="lab", template_file=template, embed_images=True)
    return exporter.from_notebook_node(book, resources={"nav": nav})[0]


def _is_noise(output: dict) -> bool:
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def write_pictures(out: Path, book: nbformat.NotebookNode, stem: str) -> None:
    """Save the lab's figures as `02_lora-1.png` and so on, for slides and the README."""
    out.mkdir(exist_ok=True)
    for old in out.glob(f"{stem}-*.png"):
        old.unlink()
    outputs = [o for cell in book.cells for o in cell.get("outputs", []) if not _is_noise(o)]
    images = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    for number, image in enumerate(images, start=1):
        (out / f"{stem}-{number}.png").write_bytes(base64.b64decode(image))


def write_guides(out: Path, root: Path, stems: list[str]) -> None:
    """Write a page for each docs/*.md, the claims' page, and what the guides show."""
    links = _links(root, stems)
    for path in _guides(root):
        page, text = f"{path.stem}.html", path.read_text("utf-8")
        body = Markup(re.sub(r'(href="[\w-]+)\.md\b', r"\1.html", to_html(text)))
        made = _render("site_guide", links, page, title=_title(text), body=body)
        (out / page).write_text(made, "utf-8")
    found = claims.load()
    counts = [(v, n) for v, n in Counter(claim.verdict for claim in found).most_common()]
    made = _render("site_claims", links, "claims.html", claims=found, counts=counts, labs=stems)
    (out / "claims.html").write_text(made, "utf-8")
    for picture in sorted((root / "docs").glob("pictures/*.png")):
        (out / "pictures").mkdir(exist_ok=True)
        shutil.copy(picture, out / "pictures")


def index_page(rows: list[dict], root: Path, links: list[tuple]) -> str:
    """The page that links labs and guides and shows the summary."""
    guides = []
    for path in _guides(root):
        text = path.read_text("utf-8")
        summary = Markup(to_html(text.split("\n\n")[1]))
        guides.append({"page": f"{path.stem}.html", "title": _title(text), "summary": summary})
    return _render("index", links, "index.html", labs=rows, guides=guides)


def nav(links: list[tuple], here: str) -> Markup:
    """The line of links that all pages begin with; `here` is the page it stands on."""
    return Markup(SITE.get_template("site_nav.html.j2").render(links=links, here=here))


def _render(name: str, links: list[tuple], here: str, **values) -> str:
    return SITE.get_template(f"{name}.html.j2").render(nav=nav(links, here), **values)


def _links(root: Path, stems: list[str]) -> list[tuple]:
    """(page, label) pairs in reading order."""
    labs = [(f"{stem}.html", f"Lab {int(stem[:2])}") for stem in stems]
    guides = [(f"{path.stem}.html", path.stem.capitalize()) for path in _guides(root)]
    return [("index.html", "LoRA Labs"), *labs, ("claims.html", "Claims"), *guides]


def _guides(root: Path) -> list[Path]:
    return sorted((root / "docs").glob("*.md"))


def _title(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ")
