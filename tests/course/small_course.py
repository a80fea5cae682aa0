"""A course whose labs are short and look as if two of them had run: an output of each kind."""

import base64
import shutil
from pathlib import Path

import nbformat
import pandas as pd
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_output

from labkit import live
from labkit.course import executed
from labkit.course.run import LabResult
from labkit.plots import compare_answers, described, figure

ROOT = Path(__file__).parents[2]
RAN = ("01_svd", "03_peft")
POINT = 'Rank 8 keeps 54% of the <energy>, and "half" of it'
JSON = '{"intent": "HassTurnOn", "name": "the lamp on the shelf", "area": "living room"}'
ERROR = "\x1b[31mValueError\x1b[39m: no \x1b[32m'rank'\x1b[39m"


def made(root):
    """Lay the course in the folder root; `(books, results)` of the labs that ran."""
    for name in ("docs", "notebooks", "solutions"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "pyproject.toml", root)
    books, results = {}, []
    for path in sorted((root / "solutions").glob("*.ipynb")):
        ran, handed_out = path.stem in RAN, root / "notebooks" / path.name
        nbformat.write(short(nbformat.read(handed_out, 4), ran), handed_out)
        book = short(nbformat.read(path, 4), ran)
        nbformat.write(book, path)
        if ran:
            books[path.stem] = with_outputs(book)
            results.append(
                LabResult(path.stem, "a title", "ok", 60.0, 3, 4, "half < all", 2 * 10**9)
            )
    results[-1].status, results[-1].error = "failed", "in 'Merging': ValueError: no <rank>"
    return books, results


def short(book, ran):
    """Of the code three lines a cell; below the cells with outputs only what has an anchor."""
    left = len(list(kinds())) + 1 if ran else 0
    for cell in book.cells[2:]:
        title = executed.experiment(cell)
        left -= cell.cell_type == "code"
        if cell.cell_type == "code" and left >= 0:
            cell.source = "\n".join(cell.source.splitlines()[:3])
        elif cell.cell_type == "code":
            cell.source = f'lab.experiment("{title}")' if title else ""
        elif left <= 0:
            cell.source = "\n\n".join(m[0] for m in executed.HEADING.finditer(cell.source))
    book.cells = [cell for cell in book.cells if cell.source]
    return book


def with_outputs(book):
    """The book, its first cells with outputs of one kind after another."""
    cells = [cell for cell in book.cells[2:] if cell.cell_type == "code"]
    for cell, outputs in zip(cells, kinds(), strict=False):
        cell.outputs = outputs
    return book


def kinds():
    """Lists of outputs: what the labs show, and what a page leaves out."""
    fig, ax = figure(width=9, height=3)
    ax.set_title(POINT)
    table = pd.DataFrame({"loss": [1.25, 2.5], "way": ["LoRA", "full"]}, index=["r=4", "r=8"])
    wide = pd.DataFrame([[1.5] * 30], index=["r=4"])
    answers = compare_answers(["dim the lamp"] * 2, [JSON] * 2, {"base": ["Sure!", JSON]})
    widget = {executed.WIDGET: {"model_id": "x"}, "text/plain": "a slider"}
    yield [shown(fig)]
    yield [shown(table), shown(wide), shown(table.style.format(precision=2))]
    yield [shown(answers), new_output("display_data", data=widget)]
    yield [
        new_output("stream", name="stdout", text="✓ 1.1 best_rank_r: passes\n" + "long " * 60),
        new_output("stream", name="stderr", text="noise of a bar\n"),
        new_output("error", ename="ValueError", evalue="no rank", traceback=[ERROR] * 3),
    ]
    line = live._line("steps", 30, 60, 12)
    yield [new_output("display_data", data={"text/html": line, "text/plain": "30/60"})]
    yield [shown(fig)]


def shown(thing):
    """The output of a cell that displays `thing`."""
    if hasattr(thing, "savefig"):
        png, told = described(thing)
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": "<Figure>"}
        return new_output("display_data", data=data, metadata={"image/png": told})
    data, _ = InteractiveShell.instance().display_formatter.format(thing)
    return new_output("display_data", data=data)
