"""`labkit check`: what lab.score() would say of a saved notebook, as a student sees it."""

import json
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labkit import cli
from labkit.course import check
from labkit.errors import LabError

CELLS = [
    'import labkit\n\nlab, check = labkit.start("02_lora")',
    'def quiz():\n    return {"q1": "b", "q2": "c", "q3": "a"}',
    "1 / 0",
    "def lora_forward(x, W, A, B, alpha):\n    return x @ W.T",
    "check.matches_dense(lora_forward)",  # a check that fails ends its cell and no other
    "import nothing_of_that_name",
    "lab = None",  # the score does not hang on it
]


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """`(path, exit code, {id: exercise}, what was found)` of one notebook, checked once."""
    path = tmp_path_factory.mktemp("mine") / "mine.ipynb"
    book = new_notebook(cells=[new_markdown_cell("# Mine"), *map(new_code_cell, CELLS)])
    ran_away = new_code_cell("import os\nos._exit(1)", metadata={"tags": ["experiment"]})
    book.cells.append(ran_away)
    nbformat.write(book, path)
    return path, check.check(path, 60)


def test_it_needs_nothing_that_the_book_alone_needs():
    """Students install the extra `jupyter`."""
    absent = (
        "for name in ('docutils', 'sphinx', 'myst_nb', 'latex2mathml'): sys.modules[name] = None"
    )
    code = f"import sys\n{absent}\nimport labkit.course.check"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_exercise_has_what_its_check_says(called):
    _, done = called
    found = {e["id"]: e for e in done.exercises}
    assert done.lab == "02_lora" and not done.passed
    assert (found["2.8"]["status"], found["2.8"]["earned"]) == ("passed", 3)
    assert found["2.1"]["status"] == "failed" and "update is missing" in found["2.1"]["message"]
    assert found["2.2"]["status"] == "missing"
    assert "3 of 22 points" in check.lines(done)


def test_cells_that_fail_are_told_but_not_the_checks_once_more(called):
    _, done = called
    assert [line.partition(":")[0] for line in done.errors] == ["code cell 3", "code cell 6"]
    assert "ZeroDivisionError" in done.errors[0] and "nothing_of_that_name" in done.errors[1]


def test_the_file_is_as_before(called):
    path, _ = called
    assert [cell.source for cell in nbformat.read(path, 4).cells][1:-1] == CELLS


def test_the_exit_code_tells(called, monkeypatch, capsys):
    path, done = called
    monkeypatch.setattr(check, "check", lambda *_: done)
    for statuses, code in (["passed", "lent"], 0), (["passed", "failed"], 1), (["missing"], 1):
        done.exercises = [{"status": status, "message": ""} for status in statuses]
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", str(path), "--json"])
        assert ended.value.code == code
        assert json.loads(capsys.readouterr().out)[0]["lab"] == "02_lora"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "is no notebook"),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}', "is of no lab"),
        (None, "No such file"),
    ],
)
def test_what_is_no_notebook_of_a_lab_is_one_line(tmp_path, text, said):
    path = tmp_path / "x.ipynb"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LabError, match=said):
        check.check(path, 8)
