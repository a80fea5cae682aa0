"""Cells and answers that end their process, and time that runs out."""

import pytest
from submissions import FLOPS, FORWARD, KIND, NAMED, QUIZ, START, notebook

from labkit.checks import lab02
from labkit.contract import checks_of
from labkit.grading.judge import judge as judging
from labkit.grading.judge.case import object_names
from labkit.grading.limits import TIME_UP, Limits

pytestmark = pytest.mark.thorough

ENDS = {  # what a cell or an answer does, and what comes of an exercise by that
    "exit": ("import os; os._exit(0)", "error"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "error"),
    "hang": ("while True: pass", "timeout"),
    "deaf hang": (
        "import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile 1: signal.pause()",
        "timeout",
    ),
}


@pytest.fixture(scope="module")
def hasty():
    """As `graded`, of a judge that gives cells and exercises little time of their own.

    What they may take by the clock is told by `seconds`; None is what its limits say.
    """
    limits = Limits(cell_seconds=2, exercise_seconds=3, total_seconds=2, submission_seconds=12)
    judge = judging.Judge(limits, unsafe=KIND == "bare")
    judge.start()

    def run(*cells, seconds=600):
        row = judge.grade("a.ipynb", notebook(*cells), 5, seconds)[0].data()
        return row, {record["id"]: record for record in row["exercises"]}

    yield run
    judge.stop()


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_its_process_costs_its_cell_or_its_exercise_and_is_told(end, hasty):
    code, status = ENDS[end]
    body = code.replace("\n", "\n    ")
    answer = f"def lora_forward(x, W, A, B, alpha):\n    {body}"
    row, records = hasty(START, QUIZ, "import os; os.fork()", code, answer, FLOPS)
    assert row["status"] == "graded" and "code cell 4: it " in row["reason"]
    assert records["2.1"]["status"] == status
    assert records["2.5"]["status"] == records["2.8"]["status"] == "passed", records


def test_an_answer_below_a_line_that_takes_too_long_is_there(hasty):
    row, records = hasty(f"{NAMED}\nimport time\ntime.sleep(60)\n{FLOPS}", QUIZ)
    assert records["2.5"]["status"] == records["2.8"]["status"] == "passed"
    assert row["reason"].startswith("code cell 1: it ran longer than")


def test_slow_cells_of_no_consequence_cost_no_exercise(hasty):
    slow = "import time\ntime.sleep(1)\n"
    row, _ = hasty(START, *[slow] * 4, slow + FLOPS, slow + QUIZ, *[slow] * 2)
    assert (row["status"], row["earned"]) == ("graded", 5), row
    assert "code cell 9: there was no time left for this cell" in row["reason"]


def test_a_submission_has_an_end(hasty):
    """Each of eight exercises hangs, and takes its three seconds; the first one is right."""
    names = set(object_names(checks_of(lab02))) - {"lora_forward"}
    hang = "\n".join(f"def {name}(*args):\n    while True: pass" for name in names)
    row, records = hasty(START, FORWARD, hang, seconds=None)
    assert row["status"] == "timeout" and row["seconds"] < 60
    assert "it took more than 12 s in all; what was done by then is graded" in row["reason"]
    assert records["2.1"]["status"] == "passed" and row["earned"] == 2
    assert (records["2.8"]["status"], records["2.8"]["message"]) == ("timeout", TIME_UP)
