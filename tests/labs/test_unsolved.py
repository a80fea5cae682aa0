"""The student notebooks as a student first meets them: nothing written, nothing broken.

Each is executed here from top to bottom in a kernel, experiments included, and no cell may fail;
grading runs it too (test_judge.py), in its own way: without experiments, for a row without points.
"""

from pathlib import Path

import nbformat
import pytest

from labkit.course.run import execute

ROOT = Path(__file__).parents[2]
STEMS = sorted(path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py"))


def _output(cell):
    """All text that a cell printed."""
    return "".join(out.get("text", "") for out in cell.get("outputs", []))


@pytest.fixture(scope="module", params=STEMS)
def unsolved(request):
    """An executed student notebook."""
    book = nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)
    failure, _ = execute(book, ROOT / "notebooks", lambda index: None)
    assert failure == ""
    return book


def _code(book, start):
    return [
        cell for cell in book.cells if cell.cell_type == "code" and cell.source.startswith(start)
    ]


def _scored(cell):
    """The exercises that a cell with `lab.score()` lists."""
    (shown,) = [out["data"] for out in cell.outputs if "data" in out]
    return shown["application/vnd.labkit.score+json"]["exercises"]


def test_every_check_says_not_written_yet(unsolved):
    checks = _code(unsolved, "check.")
    (score,) = _code(unsolved, "lab.score()")
    assert len(checks) == len(_scored(score)) > 0
    for cell in checks:
        assert "not written yet" in _output(cell), cell.source


def test_experiments_wait_and_name_what_for(unsolved):
    experiments = [cell for cell in unsolved.cells if "experiment" in cell.metadata.get("tags", [])]
    waiting = [cell for cell in experiments if "needs=" in cell.source]
    for cell in waiting:
        assert "waits for" in _output(cell) and "lab.reveal" in _output(cell), cell.source
    assert len(waiting) >= len(experiments) - 2


def test_the_score_is_nothing_of_all(unsolved):
    (cell,) = _code(unsolved, "lab.score()")
    rows = _scored(cell)
    assert rows and all(row["status"] == "missing" and row["earned"] == 0 for row in rows)
