"""An instructor's own checks: what they replace, and what is said of broken ones."""

from unittest import mock

import pytest
from rich.console import Console
from submissions import FORWARD, SCALING, notebook

from labkit.errors import LabError
from labkit.grading.after import show
from labkit.grading.judge import private

OWN = '''
import math
from labkit.contract import exercise, expect, generator, observe

SECRET = 41
STEP = 2

def helper(x):
    return x + STEP

def doubled(scaling, r):
    """Runs beside the learner's code, with what it needs."""
    assert "SECRET" not in globals() and "private" not in globals()
    return helper(scaling(math.floor(8.5), r)) * 2

@exercise("2.9", points=7)
def private(scaling):
    expect(observe(doubled, scaling, 2) == 12, "not what 8 / 2 gives")

@exercise("2.12", points=5)
def more(lora_forward):
    expect(SECRET == 42, "nobody passes")
'''


@pytest.fixture
def graded_by(judge, tmp_path, monkeypatch):
    """`graded_by(text, *cells)`: the row of cells; the text is of an instructor's own checks."""

    def run(text, *cells):
        path = tmp_path / "own.py"
        path.write_text(text)
        monkeypatch.setattr(judge, "own", private.load(str(path)))
        monkeypatch.setattr(judge, "known", {})
        return judge.grade("a", notebook(*cells), 1)[0]

    return run


def test_own_checks_come_on_top_and_replace_those_of_the_same_id(graded_by):
    row = graded_by(OWN, SCALING, FORWARD)
    assert row.exercises[-1].id == "2.12" and row.possible == 24 - 1 + 7 + 5
    assert (row.exercise("2.9").status, row.exercise("2.9").earned) == ("passed", 7)
    assert row.exercise("2.12").message == "nobody passes"


AGAIN = """
import torch
from labkit.contract import exercise, expect, observe

@exercise("2.7", points=3, after="2.2")
def other_names(add_, LoRALinear):
    expect(False, "nobody passes")

@exercise("2.11", points=2)
def half_precision(lora_forward):
    shapes = (4, 5), (7, 5), (3, 5), (7, 3)
    got = observe(lora_forward, *(torch.ones(shape).bfloat16() for shape in shapes), 6.0)
    expect(got.dtype == torch.bfloat16 and got[0, 0] == 95, "not what was asked for")

@exercise("2.12", points=1, after="2.2")
def uses_the_layer(rate):
    expect(observe(rate) == 2, "not 2")
"""


@mock.patch.dict("labkit.contract.NAMES")
def test_what_an_own_check_is_about_is_not_lent_to_it(graded_by):
    """2.1 is open, and 2.11 asks for the same function: the course's own earns no points."""
    rate = "import torch\n\ndef rate():\n    return LoRALinear(torch.nn.Linear(3, 3), 2, 4).scaling"
    row = graded_by(AGAIN, FORWARD.replace("alpha / len(A)", "0"), rate)
    assert (row.exercise("2.11").status, row.exercise("2.11").earned) == ("failed", 0)
    assert row.exercise("2.12").status == "passed", row.exercise("2.12").message


KEEPS = """
from labkit.contract import exercise, kept, observe

def asked(scaling):
    return kept(scaling, [8], 2)

@exercise("2.9", points=7)
def leaves_its_input(scaling):
    observe(asked, scaling)
"""


def test_what_a_probe_finds_changed_is_a_fault_in_grading_too(graded_by):
    row = graded_by(KEEPS, "def scaling(alpha, r):\n    alpha.append(r)")
    scaling = row.exercise("2.9")
    assert scaling.status == "failed" and "changes its input alpha in place" in scaling.message


BAD = """
from labkit.contract import exercise, observe

@exercise("2.9", points=7)
def misspelt(scaling):
    obsreve(scaling, 8, 2)

@exercise("2.12", points=5)
def unforeseen(scaling):
    observe(scaling, 8, 2).shape
"""


def test_a_check_that_is_broken_is_not_the_learners_fault(graded_by, tmp_path, capsys):
    row = graded_by(BAD, SCALING)
    told = "the check itself is broken: NameError in own.py, line 6: name 'obsreve' is not defined"
    assert (row.exercise("2.9").status, row.exercise("2.9").message) == ("error", told)
    told = "a form that the check cannot read (AttributeError in own.py, line 10)"
    assert row.exercise("2.12").status == "failed" and told in row.exercise("2.12").message
    show.summary([row, row], tmp_path, Console(width=200))
    assert "LOOK, 2 times in 2.9: the check itself is broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, word",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "no check"),
        (BAD.replace("2.12", "2.9"), "two checks are of exercise 2.9"),
        (BAD.replace("2.12", "9.9"), "9.9 is of lab 9, and there is none"),
    ],
)
def test_own_checks_that_are_none(text, word, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(LabError, match=word):
        private.load(str(tmp_path / "own.py"))
