"""An instructor's own checks: what they replace, and what is said of broken ones."""

import pytest
from points import points
from rich.console import Console
from submissions import FLOPS, FORWARD, notebook

from labkit.contract import BROKEN, ODD
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

def doubled(step_flops, n):
    """Runs beside the learner's code, with what it needs."""
    assert "SECRET" not in globals() and "private" not in globals()
    return helper(step_flops({"q_proj": (math.floor(4.5), 1)}, n)) * 2

@exercise("2.5", points=7)
def private(step_flops):
    expect(observe(doubled, step_flops, 2) == 100, "not what 6 * 2 * 4 gives")

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
    row = graded_by(OWN, FLOPS, FORWARD)
    assert row.exercises[-1].id == "2.12" and row.possible == points() - 2 + 7 + 5
    assert (row.exercise("2.5").status, row.exercise("2.5").earned) == ("passed", 7)
    assert row.exercise("2.12").message == "nobody passes"


AGAIN = """
import torch
from labkit.contract import exercise, expect, observe

@exercise("2.11", points=2)
def half_precision(lora_forward):
    shapes = (4, 5), (7, 5), (3, 5), (7, 3)
    got = observe(lora_forward, *(torch.ones(shape).bfloat16() for shape in shapes), 6.0)
    expect(got.dtype == torch.bfloat16 and got[0, 0] == 95, "not what was asked for")

@exercise("2.12", points=1, after="2.2")
def uses_the_layer(rate):
    expect(observe(rate) == 2, "not 2")
"""


def test_what_an_own_check_is_about_is_not_lent_to_it(graded_by):
    """2.1 is open, and 2.11 asks for the same function: the course's own earns no points."""
    rate = "import torch\n\ndef rate():\n    return LoRALinear(torch.nn.Linear(3, 3), 2, 4).scaling"
    row = graded_by(AGAIN, FORWARD.replace("alpha / len(A)", "0"), rate)
    assert (row.exercise("2.11").status, row.exercise("2.11").earned) == ("failed", 0)
    assert row.exercise("2.12").status == "passed", row.exercise("2.12").message


BAD = """
from labkit.contract import exercise, observe

@exercise("2.5", points=7)
def misspelt(step_flops):
    obsreve(step_flops, {}, 2)

@exercise("2.12", points=5)
def unforeseen(step_flops):
    observe(step_flops, {}, 2).shape
"""


def test_a_check_that_is_broken_is_not_the_learners_fault(graded_by, tmp_path, capsys):
    row = graded_by(BAD, FLOPS)
    broken, odd = row.exercise("2.5"), row.exercise("2.12")
    assert broken.status == "error" and broken.message.startswith(BROKEN)
    assert "NameError in own.py, line 6" in broken.message
    assert odd.status == "failed" and odd.message.startswith(ODD)
    assert "AttributeError in own.py, line 10" in odd.message
    show.summary([row, row], tmp_path, Console(width=200))
    assert f"LOOK, 2 times in 2.5: {BROKEN}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, word",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "no check"),
        (BAD.replace("2.12", "2.5"), "two checks are for exercise 2.5"),
        (BAD.replace("2.12", "99.9"), "99.9 belongs to lab 99"),
    ],
)
def test_own_checks_that_are_none(text, word, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(LabError, match=word):
        private.load(str(tmp_path / "own.py"))
