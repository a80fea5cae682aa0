"""The student notebooks as a student first meets them: nothing written, nothing broken.

Each is rehearsed here from top to bottom, experiments included, and no cell may fail but the checks
of hunts, whose cells hold wrong code; grading runs it too (test_judge.py), in its own way: without
experiments, for a row without points.
"""

from pathlib import Path

import nbformat
import pytest
from answers import given

from labkit.course.run import execute

ROOT = Path(__file__).parents[2]
STEMS = sorted(path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py"))


def _output(cell):
    """All text that a cell printed, and the message of what it raised."""
    outputs = cell.get("outputs", [])
    return "".join(out.get("text", "") + out.get("evalue", "") for out in outputs)


def _hunt(cell, stem):
    """`(id, words)` of the hunt that a cell checks, else None."""
    name = cell.source.removeprefix("check.").partition("(")[0]
    return given(stem[:2]).get(name) if cell.source.startswith("check.") else None


@pytest.fixture(scope="module")
def executed(request, tmp_path_factory):
    """`{stem: book}` of the student notebooks of this run, executed one by one in one kernel.

    Names are cleared between them. What was imported stays: the solved notebooks import the same,
    each in a kernel of its own.
    """
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    stems = {spec.params["unsolved"] for spec in specs if spec and "unsolved" in spec.params}
    books, whole = {}, nbformat.v4.new_notebook()
    for stem in sorted(stems):
        books[stem] = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
        books[stem].metadata["stem"] = stem
        for cell in books[stem].cells:
            if _hunt(cell, stem):
                cell.metadata["tags"] = ["raises-exception"]
        whole.cells += [nbformat.v4.new_code_cell("%reset -f"), *books[stem].cells]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_REHEARSAL", "1")
        failure, _ = execute(whole, tmp_path_factory.mktemp("unsolved"), lambda index: None)
    assert failure == ""
    return books


@pytest.fixture(params=STEMS)
def unsolved(request, executed):
    """An executed student notebook."""
    return executed[request.param]


def _code(book, start):
    return [
        cell for cell in book.cells if cell.cell_type == "code" and cell.source.startswith(start)
    ]


def _scored(cell):
    """The exercises that a cell with `lab.score()` lists."""
    (shown,) = [out["data"] for out in cell.outputs if "data" in out]
    return shown["application/vnd.labkit.score+json"]["exercises"]


def test_every_check_says_not_written_yet_or_what_is_wrong(unsolved):
    checks = _code(unsolved, "check.")
    (score,) = _code(unsolved, "lab.score()")
    assert len(checks) == len(_scored(score)) > 0
    for cell in checks:
        _, words = _hunt(cell, unsolved.metadata["stem"]) or ("", "not written yet")
        assert words in _output(cell), cell.source


@pytest.mark.parametrize("stem", STEMS)
def test_every_hunt_has_words_that_name_its_bug(stem):
    master = (ROOT / "labs" / f"{stem}.py").read_text("utf-8")
    assert master.count("# BEGIN GIVEN\n") == len(given(stem[:2]))


def test_experiments_wait_and_name_what_for(unsolved):
    experiments = [cell for cell in unsolved.cells if "experiment" in cell.metadata.get("tags", [])]
    waiting = [cell for cell in experiments if "needs=" in cell.source]
    for cell in waiting:
        assert "waits for" in _output(cell) and "lab.reveal" in _output(cell), cell.source
    # the others read the course's tables, with the course's own functions
    free = {"08_rewards": 4}.get(unsolved.metadata["stem"], 2)
    assert len(waiting) >= len(experiments) - free


def test_the_score_is_nothing_of_all(unsolved):
    (cell,) = _code(unsolved, "lab.score()")
    rows = _scored(cell)
    hunts = {id for id, _ in given(unsolved.metadata["stem"][:2]).values()}
    for row in rows:
        status = "failed" if row["id"] in hunts else "missing"
        assert (row["status"], row["earned"]) == (status, 0)
    assert rows
