"""Two labs as if they had run: below their first cells stand outputs of each kind."""

import base64
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


def books_and_results():
    """The executed notebooks by lab, and how each went."""
    books, results = {}, []
    for stem in RAN:
        books[stem] = nbformat.read(ROOT / "solutions" / f"{stem}.ipynb", 4)
        cells = [cell for cell in books[stem].cells[2:] if cell.cell_type == "code"]
        for cell, outputs in zip(cells, kinds(), strict=False):
            cell.outputs = outputs
        results.append(LabResult(stem, "a title", "ok", 60.0, 3, 4, "half < all", 2 * 10**9))
    results[-1].status, results[-1].error = "failed", "in 'Merging': ValueError: no <rank>"
    return books, results


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


def execute_here(book, *_):
    """`kernel.execute` in this process, which has imported already what every page imports."""
    shell = InteractiveShell.instance()
    for cell in book.cells:
        if cell.cell_type == "code":
            done = shell.run_cell(cell.source)
            done.raise_error()
            cell.outputs = [] if done.result is None else [shown(done.result)]
    return "", None


def shown(thing):
    if hasattr(thing, "savefig"):
        png, told = described(thing)
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": "<Figure>"}
        return new_output("display_data", data=data, metadata={"image/png": told})
    data, _ = InteractiveShell.instance().display_formatter.format(thing)
    return new_output("display_data", data=data)
