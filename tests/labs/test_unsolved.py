"""The student notebooks as a student first meets them: nothing written, nothing broken.

Each is rehearsed here from top to bottom, and no cell may fail but the checks of hunts, whose cells
hold wrong code. Experiments that wait for nothing are left out: they run in the solved notebooks,
which are rehearsed beside the tests, and test_gates.py shows that they use nothing of a student's.
Grading runs each notebook, too (test_judge.py), in its own way: for a row without points.
"""

import nbformat
import pytest
from answers import ROOT, STEMS, given

from labkit.course.run import execute


def _output(cell):
    """All text that a cell printed, and the message of what it raised."""
    outputs = cell.get("outputs", [])
    return "".join(out.get("text", "") + out.get("evalue", "") for out in outputs)


def _hunt(cell, stem):
    """`(id, words)` of the hunt that a cell checks, else None."""
    name = cell.source.removeprefix("check.").partition("(")[0]
    return given(stem).get(name) if cell.source.startswith("check.") else None


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
        cells = [cell for cell in books[stem].cells if cell not in _free(books[stem])]
        whole.cells += [nbformat.v4.new_code_cell("%reset -f"), *cells]
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


def _experiments(book):
    return [cell for cell in book.cells if "experiment" in cell.metadata.get("tags", [])]


def _free(book):
    """The experiments that wait for no exercise: they read the course's tables, or train."""
    return [cell for cell in _experiments(book) if "needs=" not in cell.source]


def _scored(cell):
    """The exercises that a cell with `lab.score()` lists."""
    (shown,) = [out["data"] for out in cell.outputs if "data" in out]
    return shown["application/vnd.labkit.score+json"]["exercises"]


def test_every_check_says_not_written_yet_or_what_is_wrong(unsolved):
    stem, checks = unsolved.metadata["stem"], _code(unsolved, "check.")
    for cell in checks:
        _, words = _hunt(cell, stem) or ("", "not written yet")
        assert words in _output(cell), cell.source
    (score,) = _code(unsolved, "lab.score()")
    hunts, rows = {id for id, _ in given(stem).values()}, _scored(score)
    assert len(checks) == len(rows) > 0
    for row in rows:
        status = "failed" if row["id"] in hunts else "missing"
        assert (row["status"], row["earned"]) == (status, 0)


def test_every_hunt_has_words_that_name_its_bug():
    masters = {stem: (ROOT / "labs" / f"{stem}.py").read_text("utf-8") for stem in STEMS}
    hunts = {stem: text.count("# BEGIN GIVEN\n") for stem, text in masters.items()}
    assert hunts == {stem: len(given(stem)) for stem in STEMS}


def test_experiments_wait_and_name_what_for(unsolved):
    assert len(_free(unsolved)) <= {"08_rewards": 4}.get(unsolved.metadata["stem"], 2)
    for cell in _experiments(unsolved):
        if cell not in _free(unsolved):
            assert "waits for" in _output(cell) and "lab.reveal" in _output(cell), cell.source
