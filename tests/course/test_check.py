"""`labkit check`: what lab.score() would say of a saved notebook, as a student sees it."""

import json
import subprocess
import sys

import nbformat
import pytest
from command import call
from nbformat.v4 import new_code_cell, new_notebook
from points import points

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
def checked(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "mine.ipynb"
    ran_away = new_code_cell("import os\nos._exit(1)", metadata={"tags": ["experiment"]})
    nbformat.write(new_notebook(cells=[*map(new_code_cell, CELLS), ran_away]), path)
    before = path.read_bytes()
    done = check.check(path, 60)
    assert path.read_bytes() == before
    return done


def test_it_needs_nothing_that_the_book_alone_needs():
    """Students install the extra `jupyter`."""
    absent = dict.fromkeys(("docutils", "sphinx", "myst_nb", "latex2mathml"))
    code = f"import sys\nsys.modules |= {absent}\nimport labkit.course.check"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_exercise_has_what_its_check_says(checked):
    found = {e["id"]: e for e in checked.exercises}
    assert checked.lab == "02_lora" and not checked.passed
    assert (found["2.8"]["status"], found["2.8"]["earned"]) == ("passed", 3)
    assert found["2.1"]["status"] == "failed" and "update is missing" in found["2.1"]["message"]
    assert found["2.2"]["status"] == "missing"
    assert f"3 of {points()} points" in check.lines(checked)
    # cells that fail are told, but not the checks once more
    assert [line.partition(":")[0] for line in checked.errors] == ["code cell 3", "code cell 6"]
    assert "ZeroDivisionError" in checked.errors[0] and "nothing_of_that_name" in checked.errors[1]


@pytest.mark.parametrize(
    ("statuses", "code"), [(["passed", "lent"], 0), (["passed", "failed"], 1), (["missing"], 1)]
)
def test_the_exit_code_tells(statuses, code, monkeypatch, capsys):
    exercises = [{"status": status, "message": ""} for status in statuses]
    done = check.Checked("mine.ipynb", "02_lora", "", exercises, [])
    monkeypatch.setattr(check, "check", lambda *_: done)
    assert call("check", "mine.ipynb", "--json") == code
    assert json.loads(capsys.readouterr().out)[0]["lab"] == "02_lora"


CODE = {"cell_type": "code", "source": "", "metadata": {}}
MALFORMED = ["text", CODE | {"metadata": {"tags": None}}]
MALFORMED += [{key: CODE[key] for key in CODE.keys() - {absent}} for absent in CODE]


def test_what_is_no_notebook_of_a_lab_is_one_line(tmp_path):
    said = {"text": "is not a notebook", "empty": "belongs to no lab", "none": "No such file"}
    for i, cell in enumerate(MALFORMED):
        book = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]}
        (tmp_path / f"{i}.ipynb").write_text(json.dumps(book))
        said[str(i)] = "is not a notebook"
    (tmp_path / "text.ipynb").write_text("not json")
    nbformat.write(new_notebook(), tmp_path / "empty.ipynb")
    for name, words in said.items():
        with pytest.raises(LabError, match=words):
            check.check(tmp_path / f"{name}.ipynb", 8)
