"""The HTML that a run leaves: one page a lab, an index, and the same as data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter

TEMPLATES = Path(__file__).parent / "templates"
WIDGET = "application/vnd.jupyter.widget-view+json"


def write(out: Path, book: nbformat.NotebookNode, results: list) -> None:
    """Write the page of the lab that results end with, the index and summary.json into out."""
    rows = [asdict(result) for result in results]
    (out / f"{rows[-1]['lab']}.html").write_text(lab_page(book, rows[-1]["title"]), "utf-8")
    (out / "index.html").write_text(index_page(rows), "utf-8")
    (out / "summary.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")


def lab_page(book: nbformat.NotebookNode, title: str) -> str:
    """Return an executed notebook as HTML, pictures inside, without progress bars and stderr."""
    book = nbformat.from_dict(book)
    book.metadata = book.metadata | {"title": title}
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    exporter = HTMLExporter(
        template_name="lab", template_file=str(TEMPLATES / "lab.html.j2"), embed_images=True
    )
    return exporter.from_notebook_node(book)[0]


def _is_noise(output: dict) -> bool:
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def index_page(rows: list[dict]) -> str:
    """Return the page that links the labs and shows the summary."""
    source = (TEMPLATES / "index.html.j2").read_text("utf-8")
    return jinja2.Environment(autoescape=True).from_string(source).render(labs=rows)
