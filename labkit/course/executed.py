"""Turn a lab's notebook into a page of the book: picture files with alt texts, link targets."""

import base64
import copy
import re
from html import escape
from pathlib import Path

import nbformat
from docutils.nodes import make_id

SET_UP = "# @title Set-up"  # the cell for Colab, left out
EVIDENCE = re.compile(r"\]\((?:\.\./docs/)?((?:evidence/)?\d\d_\w+)\.md")  # a link to a page
BADGE = re.compile(r"^\[!\[Open in Colab\].*\n*", re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPERIMENT = re.compile(r'lab\.experiment\(\s*"([^"]+)"')
HEADING = re.compile(r"^#{2,4} +(.+)$", re.MULTILINE)
EMPTY_HEAD = re.compile(r"<th\b[^>]*>\s*</th>")
NOT_RUN = "```{note}\nThis lab was not run here. `labkit run %d` adds the outputs of its code.\n```"


def page(
    book: nbformat.NotebookNode,
    stem: str,
    pictures: Path | None,
    given: nbformat.NotebookNode | None = None,
) -> nbformat.NotebookNode:
    """A copy of a lab's notebook for Sphinx; figures go into `pictures` (None: not run).

    Each answer is folded below the stub that a learner is `given`, so nobody sees it by accident.
    The page's metadata has a `cover`, the HTML of the lab's picture: the last picture of the cell
    tagged `cover`, or else of the notebook, or "".
    """
    book = copy.deepcopy(book)
    if given and len(given.cells) == len(book.cells):  # else they are from different builds
        book.cells = _folded(book.cells, given.cells)
    book.cells = [cell for cell in book.cells if not cell.source.startswith(SET_UP)]
    book.cells[0].source = BADGE.sub("", book.cells[0].source)
    book.metadata["cover"] = _lay_out(book, stem, pictures) if pictures else ""
    if not pictures:
        book.cells.insert(1, nbformat.v4.new_markdown_cell(NOT_RUN % int(stem[:2])))
    book.cells = _with_anchors(book.cells, stem)
    return book


def _folded(cells: list, given: list) -> list:
    """The cells of a solved lab, each answer folded below its stub in `given`."""
    made = []
    for cell, stub in zip(cells, given, strict=True):
        if cell.cell_type == "code" and cell.source != stub.source:
            made.append(nbformat.v4.new_code_cell(stub.source))
            fold(cell, "hide-input", "The course's answer")
        elif cell.source.startswith("check.quiz("):  # it explains the right letters
            fold(cell, "hide-output", "The check's explanation")
        made.append(cell)
    return made


def fold(cell: dict, tag: str, words: str) -> None:
    """Make myst-nb fold a cell's input or output under these words."""
    cell.metadata["tags"] = [*cell.metadata.get("tags", ()), tag]
    cell.metadata["mystnb"] = {"code_prompt_show": words, "code_prompt_hide": words}


def _with_anchors(cells: list, stem: str) -> list:
    """The cells of a lab, with a link target before each heading and each experiment."""
    made, known = [], set()

    def target(title):
        name = anchor(stem, title)
        known.add(name)
        return f"({name})="

    for cell in cells:
        cell.pop("id", None)
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source)
            cell.source = HEADING.sub(lambda m: f"{target(m[1])}\n{m[0]}", cell.source)
        title = experiment(cell)
        if title and anchor(stem, title) not in known:
            plain = {"cell_type": "markdown", "metadata": {}, "source": target(title)}
            made.append(nbformat.from_dict(plain))
        made.append(cell)
    return made


def linked(text: str) -> str:
    """Markdown with links to labs, evidence and guides changed to their pages in the book."""
    text = EVIDENCE.sub(r"](\1.ipynb", text).replace("](../../notebooks/", "](../")
    return text.replace("](../docs/", "](")


def experiment(cell: dict) -> str:
    """The title of the experiment in a code cell; "" if it has none."""
    found = EXPERIMENT.search(cell["source"]) if cell["cell_type"] == "code" else None
    return found[1] if found else ""


def anchor(stem: str, title: str) -> str:
    """The link target of a heading or an experiment on a lab's or an evidence page."""
    folder, _, name = stem.rpartition("/")
    return make_id(f"{folder or 'lab'}{name[:2]}-{title}")


def anchor_of(place: str, stem: str, book: nbformat.NotebookNode) -> str:
    """The link target of the heading or experiment that equals or begins with `place`, or ""."""
    titles = [experiment(cell) for cell in book.cells]
    for cell in book.cells:
        titles += HEADING.findall(cell.source) if cell.cell_type == "markdown" else []
    found = [t for t in titles if t == place] + [t for t in titles if t.startswith(f"{place} ")]
    return anchor(stem, found[0]) if found else ""


def _lay_out(book: nbformat.NotebookNode, stem: str, pictures: Path) -> str:
    """Drop noise from outputs, save figures, fix tables; return the HTML of the lab's cover."""
    up, file = "../" * stem.count("/"), stem.replace("/", "-")
    for old in pictures.glob(f"{file}-*.png"):
        old.unlink()
    shown, covers = [], []
    for cell in book.cells:
        outputs = cell.get("outputs", [])
        outputs[:] = [output for output in outputs if not _is_noise(output)]
        for output in outputs:
            data = output.get("data", {})
            for kind in [kind for kind in data if kind.startswith("application/vnd.labkit")]:
                del data[kind]  # read by `labkit run`
            if "image/png" in data:
                name = f"{file}-{len(shown) + 1}.png"
                (pictures / name).write_bytes(base64.b64decode(data["image/png"]))
                about, source = output.metadata.get("image/png", {}), f"{up}pictures/{name}"
                shown.append(_picture(source, about, experiment(cell)))
                covers += [shown[-1]] if "cover" in cell.metadata.get("tags", ()) else []
                output.data = {"text/html": f'<a class="picture" href="{source}">{shown[-1]}</a>'}
            elif "text/html" in data:
                data["text/html"] = EMPTY_HEAD.sub("<td></td>", data["text/html"])
    return (covers or shown or [""])[-1]


def _is_noise(output: dict) -> bool:
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def _picture(source: str, about: dict, title: str) -> str:
    """The `<img>` of a figure; its alt text is in its metadata, else the experiment's title."""
    sizes = "".join(f' {key}="{int(about[key])}"' for key in ("width", "height") if key in about)
    sizes += f' style="--width: {int(about["width"])}px"' if "width" in about else ""
    alt = escape(about.get("alt") or title)
    return f'<img src="{source}" alt="{alt}"{sizes} loading="lazy">'
