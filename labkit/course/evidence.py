"""Evidence pages: docs/evidence/NN_topic.md, MyST notebooks that run when the book is built."""

from pathlib import Path

import nbformat

from labkit.course import executed
from labkit.course.kernel import LabResult, execute
from labkit.course.notebooks import METADATA
from labkit.course.progress import nearest_headings


def pages(root: Path, pictures: Path) -> tuple[dict[str, nbformat.NotebookNode], list[LabResult]]:
    """The executed pages by name, and results for failed ones; figures go into `pictures`."""
    made, failed = {}, []
    for path in files(root):
        name, book, reached = f"evidence/{path.stem}", read(path), [0]
        failure, _ = execute(book, path.parent, reached.append)
        if failure:
            heading = nearest_headings(book.cells, name)[reached[-1]]
            title = book.cells[0].source.partition("\n")[0].lstrip("# ")
            error = f"in '{heading}': {failure}"
            failed.append(LabResult(name, title, "failed", error=error))
        made[name] = executed.page(book, name, pictures)
    return made, failed


def files(root: Path) -> list[Path]:
    """The evidence pages of the course in `root`, in order."""
    return sorted((root / "docs" / "evidence").glob("*.md"))


def read(path: Path) -> nbformat.NotebookNode:
    """A page as a notebook, with its code folded."""
    import jupytext

    book = jupytext.read(path, fmt="md:myst")
    book.metadata, book.nbformat_minor = nbformat.from_dict(METADATA), 4  # 4.4: no cell ids
    for cell in book.cells:
        if cell.cell_type == "code":
            executed.fold(cell, "hide-input", "The code")
    return book
