"""Grading from end to end: what a submission earns, and what keeps the batch going."""

import contextlib
import csv
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import psutil
import pytest
from rich.console import Console

from labkit import cli, fingerprint
from labkit.contract import LENT, WITHHELD
from labkit.errors import LabError
from labkit.grading import grade as grading
from labkit.grading import sandbox, store, workers
from labkit.grading.after import show
from labkit.grading.collect import left_out
from labkit.grading.inside import zygote
from labkit.grading.judge import judge as judging
from labkit.grading.judge import submission
from labkit.grading.limits import Limits
from labkit.grading.row import Row

ROOT = Path(__file__).parents[1]
SOLVED = sorted((ROOT / "solutions").glob("*.ipynb"))
QUICK = Limits(cell_seconds=6, exercise_seconds=10, total_seconds=60, memory_bytes=1 << 30)
KIND = "nested" if sandbox.available() else "bare"

needs_sandbox = pytest.mark.skipif(KIND == "bare", reason="no bubblewrap here")


@pytest.fixture(scope="session")
def judge():
    """A judge with its warm process, for all tests of a run."""
    judge = judging.Judge(QUICK, unsafe=KIND == "bare")
    judge.start()
    yield judge
    judge.stop()


@pytest.fixture
def graded(judge):
    """`graded(*cells)`, or of a file's bytes: `(row, {exercise id: its record})`."""

    def run(*cells, data=None, seed=5):
        row = judge.grade("a.ipynb", data or _notebook(*cells), seed)[0].data()
        return row, {record["id"]: record for record in row["exercises"]}

    return run


def _notebook(*sources, tags=()):
    cells = [
        {"cell_type": "code", "metadata": {}, "source": source, "outputs": []} for source in sources
    ]
    for i in tags:
        cells[i]["metadata"] = {"tags": ["experiment"]}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}).encode()


START = 'import labkit\nlab, check = labkit.start("02_lora")'
SCALING = """
def scaling(alpha, r, rank_stabilized=False):
    return alpha / r ** (0.5 if rank_stabilized else 1)
"""
SOLVED_SCALING = """
import math

def scaling(alpha, r, rank_stabilized=False):
    # as the course has it
    return alpha / math.sqrt(r) if rank_stabilized else alpha / r
"""
FORWARD = """
def lora_forward(x, W, A, B, alpha):
    return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T
"""
MERGES = """
def merge_(layer):
    layer.base.weight.data += layer.scaling * layer.B.data @ layer.A.data

def unmerge_(layer):
    layer.base.weight.data -= layer.scaling * layer.B.data @ layer.A.data
"""
COUNT = """
def count_params(model):
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
"""
ALL = {"lora_forward", "LoRALinear", "lora_gradients", "inject", "count_params"}
ALL |= {"merge_", "unmerge_", "adapter_state", "load_adapter_", "scaling", "quiz"}
QUIZ = 'def quiz():\n    return {"q1": "b", "q2": "c", "q3": "a"}'

# --- whole labs ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOLVED, ids=lambda p: p.stem)
def test_a_solved_lab_has_all_points(path, graded):
    row, records = graded(data=path.read_bytes())
    assert (row["status"], row["lab"]) == ("graded", path.stem)
    assert {id: r["message"] for id, r in records.items() if r["status"] != "passed"} == {}
    assert row["earned"] == row["possible"] == sum(r["points"] for r in records.values()) > 0


@pytest.mark.parametrize("path", SOLVED, ids=lambda p: p.stem)
def test_without_its_first_line_a_lab_is_known_by_its_functions(path, judge):
    found = submission.read(path.read_bytes().replace(b"labkit.start", b"print"))
    assert not found.started and judge._lab(found) == path.stem


@pytest.mark.parametrize("path", SOLVED, ids=lambda p: p.stem)
def test_an_unsolved_lab_has_none(path, graded):
    row, records = graded(data=(ROOT / "notebooks" / path.name).read_bytes())
    assert (row["status"], row["lab"], row["earned"]) == ("graded", path.stem, 0)
    assert {r["status"] for r in records.values()} == {"missing"}


@pytest.mark.parametrize("name", ["02_lora_v2", "02_" + "a" * 200_000])
def test_what_a_notebook_calls_its_lab_is_not_repeated(name, graded):
    row, records = graded(f"import labkit\nlab, check = labkit.start('{name}')", SCALING)
    assert (row["lab"], records["2.8"]["status"]) == ("02_lora", "passed")


def test_the_labs_are_those_that_have_checks_and_are_called_as_their_notebooks(monkeypatch):
    found = {path.stem[:2]: path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py")}
    assert judging.stems() == found and len(found) >= 6
    judging.stems.cache_clear()
    monkeypatch.setattr(judging.labkit.checks, "__file__", "/nowhere/labkit/checks/__init__.py")
    assert judging.stems() == {number: number for number in found}
    judging.stems.cache_clear()


def test_a_seventh_lab_is_known_by_its_checks(monkeypatch, tmp_path):
    (tmp_path / "lab07.py").touch()
    here = judging.labkit.checks.__path__
    monkeypatch.setattr(judging.labkit.checks, "__path__", [*here, str(tmp_path)])
    judging.stems.cache_clear()
    assert judging.stems()["07"] == "07" and judging.stems()["02"] == "02_lora"
    judging.stems.cache_clear()


def test_a_page_shows_the_cells_of_its_own_exercise(judge):
    data = _notebook(START, "class LoRALinear: pass", MERGES, SCALING)
    _, sources = judge.grade("a.ipynb", data, 1)
    assert sources["2.2"] == "class LoRALinear: pass" and sources["2.8"] == SCALING
    assert sources["2.6"] == MERGES and sources["2.7"] == ""


def test_a_row_has_the_fields_of_results_json(graded):
    row, _ = graded(START, SCALING)
    names = ["submission", "lab", "earned", "possible", "seconds", "status", "exercises"]
    assert list(row) == names
    assert list(row["exercises"][0]) == ["id", "name", "points", "earned", "status", "message"]


# --- what learners do to a notebook --------------------------------------------------------


def test_the_lab_is_told_from_what_is_defined(graded):
    row, records = graded(SCALING)
    assert row["lab"] == "02_lora" and records["2.8"]["earned"] == 1


def test_the_last_definition_wins_and_helpers_live_anywhere(graded):
    helper = "def power(r, root):\n    return r ** (0.5 if root else 1)"
    wrong = "def scaling(alpha, r, rank_stabilized=False):\n    return 1.0"
    right = wrong.replace("1.0", "alpha / power(r, rank_stabilized)")
    assert graded(wrong, right, helper)[1]["2.8"]["status"] == "passed"
    assert graded(helper, right, wrong)[1]["2.8"]["status"] == "failed"


def test_an_answer_below_a_line_that_takes_too_long_is_there(graded):
    row, records = graded("import time\ntime.sleep(60)\n" + SCALING, QUIZ)
    assert records["2.8"]["status"] == records["2.9"]["status"] == "passed"
    assert row["reason"].startswith("code cell 1: it ran longer than")


def test_a_name_that_a_later_cell_takes_costs_no_answer(graded):
    uses = "import math\ndef scaling(alpha, r, rank_stabilized=False):\n"
    uses += "    return alpha / max(math.sqrt(r) if rank_stabilized else r, ROOT)"
    _, records = graded("ROOT = 1", uses, "max = 3; math, ROOT = None, 'x'")
    assert records["2.8"]["status"] == "passed"
    assert records["2.8"]["message"].endswith("cells below use its names anew: ROOT, math, max")
    wrong = uses.replace("else r,", "else 1,")
    assert graded("ROOT = 1", wrong, "max = 3")[1]["2.8"]["status"] == "failed"


def test_a_cell_that_fails_costs_itself_only(graded):
    _, records = graded(START, "1 / 0", "x = = 1", SCALING, "scaling(1)", QUIZ)
    assert records["2.8"]["status"] == records["2.9"]["status"] == "passed"


def test_what_is_not_there_says_why(graded):
    _, records = graded(START, "raise ValueError('no data')\n" + SCALING, QUIZ)
    assert records["2.8"]["status"] == "missing"
    assert (
        records["2.8"]["message"] == "scaling is not defined: its cell raised ValueError: no data"
    )
    assert records["2.1"]["message"] == "lora_forward is not defined"


def test_what_follows_from_a_cell_that_failed_names_that_cell(graded):
    uses = "def lora_forward(x, W, A, B, alpha):\n    return sns.nothing(x)"
    _, records = graded(START, "import seaborn as sns", "raise KeyError\nroot = 2", uses, SCALING)
    cause = "(sns should come from code cell 2, which raised ModuleNotFoundError: No module named"
    assert cause in records["2.1"]["message"]
    layer = "class LoRALinear(sns.Module): pass"
    _, records = graded(START, "import seaborn as sns", layer)
    assert records["2.2"]["message"].startswith("LoRALinear is not defined: its cell raised Name")
    assert cause in records["2.2"]["message"]


def test_a_name_of_an_experiment_is_told(judge):
    uses = "def scaling(alpha, r, rank_stabilized=False):\n    return best / r"
    row = judge.grade("a", _notebook(START, "best = 3", uses, tags=[1]), 1)[0].data()
    message = next(e["message"] for e in row["exercises"] if e["id"] == "2.8")
    assert "(best comes from code cell 2, an experiment: none is run here)" in message


def test_checks_and_reveals_in_cells_are_silent_and_give_nothing(graded):
    cell = "check.matches_dense(lora_forward)\nlab.score()\nlab.headline('x')\n"
    cell += "assert not lab.experiment('x', 1)"
    _, records = graded(START, FORWARD, cell + "\n" + SCALING, "lab.reveal('2.9')")
    assert records["2.8"]["status"] == "passed"
    assert (records["2.9"]["status"], records["2.9"]["earned"]) == ("revealed", 0)


def test_what_stands_below_a_reveal_is_run(graded):
    _, records = graded(START, 'lab.reveal("2.1")\n' + SCALING)
    assert records["2.8"]["status"] == "passed"


def test_a_revealed_exercise_has_no_points_even_if_it_is_right(graded):
    _, records = graded(START, "if True:\n    lab.reveal(id='2.8')", SOLVED_SCALING)
    assert (records["2.8"]["status"], records["2.8"]["earned"]) == ("revealed", 0)
    assert records["2.8"]["message"].startswith("code cell 2 reveals the solution; if it showed")
    book = json.loads(_notebook(START, 'lab.reveal("2.8")', SCALING))
    text = "◐ 2.8 is revealed: read it, then go on. It earns no points.\n"
    book["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
    _, records = graded(data=json.dumps(book).encode())
    assert (records["2.8"]["status"], records["2.8"]["earned"]) == ("revealed", 0)


def test_an_answer_of_ones_own_counts_where_outputs_that_would_tell_were_cleared(graded):
    _, records = graded(START, SCALING, 'lab.reveal("2.8")')
    assert records["2.8"]["status"] == "passed"


def test_what_was_lent_and_has_no_answer_says_so(graded):
    lent = {"output_type": "stream", "name": "stdout", "text": [f"◐ 2.8 {LENT}.\n"]}
    book = json.loads(_notebook(START, STUB, 'lab.reveal("2.8")'))
    book["cells"][2]["outputs"] = [lent]
    _, records = graded(data=json.dumps(book).encode())
    assert records["2.8"]["status"] == "missing"
    assert records["2.8"]["message"].startswith("the course lent this one")


def test_experiments_are_skipped_unless_an_answer_is_in_them(judge):
    data = _notebook(START, "import os\nos._exit(1)", "x = 3\n" + SCALING, tags=[1, 2])
    row = judge.grade("a", data, 1)[0].data()
    assert row["earned"] == 1


def test_magics_shell_and_input(graded):
    cells = ["%matplotlib inline", "!echo hello > note", "%%time\n" + SCALING, "answer = input()"]
    assert graded(START, *cells, QUIZ)[0]["earned"] == 4


def test_a_file_that_a_cell_writes_is_there_for_an_exercise(graded):
    cells = ["open('factor', 'w').write('1')", "FACTOR = float(open('factor').read())"]
    assert graded(*cells, SCALING.replace("alpha /", "FACTOR * alpha /"))[0]["earned"] == 1


# --- what goes wrong in a process ----------------------------------------------------------

ENDS = {
    "exit": "import os; os._exit(0)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "system exit": "raise SystemExit",
    "hang": "while True: pass",
    "deaf hang": "import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True: signal.pause()",
    "fork": "import os; os.fork()",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_cell_that_ends_its_process_costs_that_cell(end, graded):
    row, records = graded(START, QUIZ, ENDS[end], SCALING)
    assert row["status"] == "graded"
    assert records["2.8"]["status"] == records["2.9"]["status"] == "passed", records


@pytest.mark.parametrize("end", ["exit", "segfault", "hang"])
def test_an_exercise_that_ends_its_process_costs_that_exercise(end, graded):
    body = "\n    ".join(ENDS[end].split("\n"))
    answer = f"def lora_forward(x, W, A, B, alpha):\n    {body}"
    _, records = graded(START, QUIZ, answer, SCALING)
    assert records["2.1"]["status"] == ("timeout" if end == "hang" else "error")
    assert records["2.8"]["status"] == records["2.9"]["status"] == "passed"


def test_state_that_an_exercise_spoils_is_whole_again_for_the_next(graded):
    spoil = FORWARD.replace(
        "    return", "    global r\n    r = None; W.zero_(); torch.Tensor = 3\n    return"
    )
    _, records = graded("import torch", spoil, "r = 1.0", SCALING, COUNT)
    assert records["2.1"]["status"] in ("failed", "error")
    assert records["2.8"]["status"] == records["2.5"]["status"] == "passed"


def test_random_inputs_depend_on_the_seed_and_nothing_else(graded):
    wrong = FORWARD.replace("alpha / len(A)", "3.14")
    first, again, other = (graded(wrong, seed=seed)[1]["2.1"]["message"] for seed in (1, 1, 2))
    assert first == again != other


def test_the_seed_is_not_told(graded):
    peek = """
def scaling(alpha, r, rank_stabilized=False):
    import gc, sys
    for frame in sys._current_frames().values():
        while frame:
            assert 918273645 not in frame.f_locals.values()
            frame = frame.f_back
    for space in [x for x in gc.get_objects() if type(x) is dict]:
        assert 918273645 not in [x for x in list(space.values()) if type(x) is int]
    return alpha / r ** (0.5 if rank_stabilized else 1)
"""
    assert graded(peek, seed=918273645)[1]["2.8"]["status"] == "passed"


NAMELESS = "def lora_fwd(x, W, A, B, alpha):\n    return x"
STUB = "def scaling(alpha, r, rank_stabilized=False):\n    raise NotImplementedError"


@pytest.mark.parametrize(
    "id, cells, status, message",
    [
        ("2.1", [NAMELESS], "missing", "lora_forward is not defined; there is lora_fwd"),
        ("2.8", [STUB], "missing", ""),
        ("2.8", [STUB, "def scaling(alpha, r:"], "missing", "its cell raised SyntaxError: "),
        ("2.8", ["def scaling(alpha, r):\n  x = (1"], "missing", "'(' was never closed (line 2)"),
        ("2.9", ["quiz = {'q1': 'a'}"], "failed", "is it still a function, begun by def?"),
    ],
)
def test_what_is_not_there_has_a_reason(graded, id, cells, status, message):
    _, records = graded(START, *cells)
    assert records[id]["status"] == status
    assert message in records[id]["message"] and bool(message) == bool(records[id]["message"])


def test_an_answer_in_a_cell_of_text_is_named(graded):
    book = json.loads(_notebook(START))
    book["cells"].append({"cell_type": "markdown", "metadata": {}, "source": SCALING})
    _, records = graded(data=json.dumps(book).encode())
    assert "a cell that is not of the kind Code" in records["2.8"]["message"]


def test_a_cell_that_ends_its_process_is_told_beside_the_grade(graded):
    row, records = graded(START, SCALING, "import os\nos._exit(0)")
    assert (row["status"], records["2.8"]["status"]) == ("graded", "passed")
    assert row["reason"] == "code cell 3: it ended its process"


def test_a_slip_in_the_layer_costs_nothing_where_it_is_used(graded):
    layer = """
import torch
class LoRALinear(torch.nn.Module):
    def __init__(self, base, r, alpha, dropout=0.0):
        super().__init__()
        self.base, self.r, self.scaling, self.merged = base, r, alpha, False
        self.A = torch.nn.Parameter(torch.randn(r, base.in_features) / 30)
        self.B = torch.nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x) + self.scaling * x @ self.A.T @ self.B.T
"""
    _, records = graded(START, layer, MERGES)
    assert "alpha is not divided by r" in records["2.2"]["message"]
    assert "course's own" not in records["2.2"]["message"]
    assert "never merged has nothing to take away" in records["2.6"]["message"]
    assert "judged with the course's own 2.1, 2.2" in records["2.6"]["message"]


OPEN = {
    "absent": lambda source: "pass",
    "stub": lambda source: "class LoRALinear:\n    pass",
    "raises": lambda source: f"1 / 0\n{source}",
    "wrong": lambda source: source.replace("alpha / r", "alpha"),
    "ends its process": lambda source: source.replace(
        "super().__init__()", "import os; os.abort()"
    ),
}


@pytest.mark.parametrize("kind", OPEN)
def test_an_open_exercise_costs_its_own_points_and_no_others(kind, graded):
    book = json.loads((ROOT / "solutions" / "02_lora.ipynb").read_text("utf-8"))
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if source.startswith("class LoRALinear"):
            cell["source"] = OPEN[kind](source)
    row, records = graded(data=json.dumps(book).encode())
    lost = {id: r["message"] for id, r in records.items() if r["status"] != "passed"}
    assert lost.keys() == {"2.2"}
    assert row["earned"] == row["possible"] - 4
    assert "judged with the course's own 2.2" in records["2.4"]["message"]


def test_what_showed_nothing_when_it_was_to_be_revealed_costs_nothing(graded):
    error = {"output_type": "error", "ename": "LabError", "evalue": WITHHELD, "traceback": []}
    lent = {"output_type": "stream", "name": "stdout", "text": [f"◐ 2.8 {LENT}.\n"]}
    book = json.loads(_notebook(START, SCALING, 'lab.reveal("2.8")'))
    for outputs, status in ([error], "passed"), ([lent], "passed"), ([], "passed"):
        book["cells"][2]["outputs"] = outputs
        _, records = graded(data=json.dumps(book).encode())
        assert records["2.8"]["status"] == status


# --- a machine that is busy, or short of memory ---------------------------------------------

LEFT_BEHIND = {
    "a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()",
    "a pool": """
import multiprocessing
pool = multiprocessing.get_context("fork").Pool(2)
assert pool.map(abs, [-1, 2]) == [1, 2]
""",
    "a pool of threads": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(4)
assert list(pool.map(abs, [-1, 2])) == [1, 2]
""",
    "a loader": """
import torch
loader = torch.utils.data.DataLoader(
    torch.arange(8), 2, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
)
batches = iter(loader)
assert len(next(batches)) == 2
""",
    "a progress bar": """
import time
from tqdm.auto import tqdm
bar = tqdm(total=9)
for _ in range(3): bar.update(); time.sleep(0.05)
""",
}


@pytest.fixture
def busy():
    """Other processes that compute, two a core."""
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(2 * len(os.sched_getaffinity(0)))]
    yield
    for other in others:
        other.kill()
        other.wait()


def test_what_cells_leave_running_costs_nothing_on_a_busy_machine(graded, busy):
    for what, cell in LEFT_BEHIND.items():
        row, records = graded(START, cell, SCALING, QUIZ, cell)
        assert row["earned"] == 4 and "reason" not in row, (what, row.get("reason"), records)


@needs_sandbox
def test_a_warm_process_that_is_killed_costs_nobody_anything(judge, graded):
    """As the kernel does where memory is short; here between two submissions."""
    assert graded(SCALING)[0]["earned"] == 1
    for process in psutil.Process(judge.warm.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    judge.warm.process.wait()
    assert graded(SCALING)[0]["earned"] == 1


# --- time -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty():
    """A judge whose submissions have little time."""
    limits = Limits(cell_seconds=3, exercise_seconds=4, total_seconds=4, submission_seconds=25)
    judge = judging.Judge(limits, unsafe=KIND == "bare")
    judge.start()
    yield judge
    judge.stop()


def test_slow_cells_of_no_consequence_cost_no_exercise(hasty):
    slow = "import time\ntime.sleep(2)\n"
    data = _notebook(START, *[slow] * 4, slow + SCALING, slow + QUIZ, *[slow] * 2)
    row = hasty.grade("a", data, 5)[0].data()
    assert (row["status"], row["earned"]) == ("graded", 4), row
    assert "code cell 9: there was no time left for this cell" in row["reason"]


def test_a_submission_has_an_end(hasty):
    """Each of eight exercises hangs, and takes its four seconds; the first one is right."""
    hang = "\n".join(f"def {name}(*args):\n    while True: pass" for name in ALL - {"lora_forward"})
    row = hasty.grade("a", _notebook(START, FORWARD, hang), 5)[0].data()
    assert row["status"] == "timeout" and row["seconds"] < 60
    assert "it took more than 25 s in all, graded until then" in row["reason"]
    told = {record["id"]: (record["status"], record["message"]) for record in row["exercises"]}
    assert told["2.1"][0] == "passed" and row["earned"] == 2
    assert told["2.9"] == ("timeout", "the time of the whole submission is used up")


# --- an instructor's own checks ------------------------------------------------------------

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

@exercise("2.8", points=7)
def private(scaling):
    expect(observe(doubled, scaling, 2) == 12, "not what 8 / 2 gives")

@exercise("2.11", points=5)
def more(lora_forward):
    expect(SECRET == 42, "nobody passes")
'''


def test_own_checks_come_on_top_and_replace_those_of_the_same_id(judge, tmp_path, monkeypatch):
    from labkit.grading.judge import private

    path = tmp_path / "own.py"
    path.write_text(OWN)
    monkeypatch.setattr(judge, "own", private.load(str(path)))
    monkeypatch.setattr(judge, "known", {})
    row = judge.grade("a", _notebook(SCALING, FORWARD), 1)[0].data()
    records = {r["id"]: r for r in row["exercises"]}
    assert list(records)[-1] == "2.11" and row["possible"] == 24 - 1 + 7 + 5
    assert (records["2.8"]["status"], records["2.8"]["earned"]) == ("passed", 7)
    assert records["2.11"]["message"] == "nobody passes"


AGAIN = """
import torch
from labkit.contract import exercise, expect, observe

@exercise("2.6", points=3, after="2.2")
def other_names(add_, LoRALinear):
    expect(False, "nobody passes")

@exercise("2.10", points=2)
def half_precision(lora_forward):
    shapes = (4, 5), (7, 5), (3, 5), (7, 3)
    got = observe(lora_forward, *(torch.ones(shape).bfloat16() for shape in shapes), 6.0)
    expect(got.dtype == torch.bfloat16 and got[0, 0] == 95, "not what was asked for")

@exercise("2.11", points=1, after="2.2")
def uses_the_layer(rate):
    expect(observe(rate) == 2, "not 2")
"""


@mock.patch.dict("labkit.contract.NAMES")
def test_what_an_own_check_is_about_is_not_lent_to_it(judge, tmp_path, monkeypatch):
    """2.1 is open, and 2.10 asks for the same function: the course's own earns no points."""
    from labkit.grading.judge import private

    path = tmp_path / "own.py"
    path.write_text(AGAIN)
    monkeypatch.setattr(judge, "own", private.load(str(path)))
    monkeypatch.setattr(judge, "known", {})
    rate = "import torch\n\ndef rate():\n    return LoRALinear(torch.nn.Linear(3, 3), 2, 4).scaling"
    row = judge.grade("a", _notebook(FORWARD.replace("alpha / len(A)", "0"), rate), 1)[0].data()
    records = {r["id"]: r for r in row["exercises"]}
    assert (records["2.10"]["status"], records["2.10"]["earned"]) == ("failed", 0)
    assert records["2.11"]["status"] == "passed", records["2.11"]["message"]


KEEPS = """
from labkit.contract import exercise, kept, observe

def asked(scaling):
    return kept(scaling, [8], 2)

@exercise("2.8", points=7)
def leaves_its_input(scaling):
    observe(asked, scaling)
"""


def test_what_a_probe_finds_changed_is_a_fault_in_grading_too(judge, tmp_path, monkeypatch):
    from labkit.grading.judge import private

    path = tmp_path / "own.py"
    path.write_text(KEEPS)
    monkeypatch.setattr(judge, "own", private.load(str(path)))
    monkeypatch.setattr(judge, "known", {})
    row, _ = judge.grade("a", _notebook("def scaling(alpha, r):\n    alpha.append(r)"), 1)
    scaling = row.exercise("2.8")
    assert scaling.status == "failed" and "changes its input alpha in place" in scaling.message


BAD = """
from labkit.contract import exercise, observe

@exercise("2.8", points=7)
def misspelt(scaling):
    obsreve(scaling, 8, 2)

@exercise("2.11", points=5)
def unforeseen(scaling):
    observe(scaling, 8, 2).shape
"""


def test_a_check_that_is_broken_is_not_the_learners_fault(judge, tmp_path, monkeypatch, capsys):
    from labkit.grading.judge import private

    path = tmp_path / "own.py"
    path.write_text(BAD)
    monkeypatch.setattr(judge, "own", private.load(str(path)))
    monkeypatch.setattr(judge, "known", {})
    row = judge.grade("a", _notebook(SCALING), 1)[0].data()
    records = {r["id"]: r for r in row["exercises"]}
    told = "the check itself is broken: NameError in own.py, line 6: name 'obsreve' is not defined"
    assert (records["2.8"]["status"], records["2.8"]["message"]) == ("error", told)
    told = "a form that the check cannot read (AttributeError in own.py, line 10)"
    assert records["2.11"]["status"] == "failed" and told in records["2.11"]["message"]
    show.summary([Row.of(row), Row.of(row)], tmp_path, Console(width=200))
    assert "LOOK, 2 times in 2.8: the check itself is broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, word",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "no check"),
        (BAD.replace("2.11", "2.8"), "two checks are of exercise 2.8"),
        (BAD.replace("2.11", "9.1"), "9.1 is of lab 9, and there is none"),
    ],
)
def test_own_checks_that_are_none(text, word, tmp_path):
    from labkit.grading.judge import private

    (tmp_path / "own.py").write_text(text)
    with pytest.raises(LabError, match=word):
        private.load(str(tmp_path / "own.py"))


# --- the judge against what comes over the wire --------------------------------------------

FORGERIES = {
    "no frame": b"hello",
    "an early reply": b"R\0\0\0\x04\0\0\0\0",
    "another nonce": "another nonce",
    "a kind that is none": b"Z\0\0\0\x00",
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_frames_earn_nothing(what, graded):
    forge = f"""
import os, socket
def quiz():
    import gc, labkit.grading.wire as wire
    said = {FORGERIES[what]!r}
    for sock in [s for s in gc.get_objects() if type(s) is socket.socket and s.fileno() > 0]:
        body = wire.pack(["0" * 16, "value", {{"q1": "b", "q2": "c", "q3": "a"}}])
        sock.sendall(said if type(said) is bytes else wire.HEAD.pack(b"R", len(body)) + body)
"""
    _, records = graded(START, forge, SCALING)
    assert (records["2.9"]["status"], records["2.9"]["earned"]) != ("passed", 3)
    assert records["2.9"]["earned"] == 0
    assert records["2.8"]["status"] == "passed"


# --- the batch -----------------------------------------------------------------------------


class Fake:
    """Stands in for a judge: gives a point, notes what it is asked, and may fail."""

    asked: ClassVar = []

    def __init__(self, *setup):
        self.setup = setup

    def grade(self, name, data, seed):
        Fake.asked.append((name, data, seed))
        record = {"id": "2.1", "name": "f", "points": 2, "earned": 1, "status": "failed"}
        row = {"submission": name, "lab": "02_lora", "earned": 1, "possible": 2, "seconds": 0.1}
        if b"INTERRUPT" in data:
            raise KeyboardInterrupt
        row |= {"status": "graded", "exercises": [record]}
        return Row.of(row), {"2.1": "f"}

    def kill(self):
        pass

    stop = kill


@pytest.fixture
def batch(monkeypatch, tmp_path):
    """`batch(files, **options)` -> rows; Fake judges. Files go into a folder, bytes by name."""
    monkeypatch.setattr(workers, "JudgeProcess", Fake)
    monkeypatch.setattr(sandbox, "available", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr(Fake, "asked", [])
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def run(files=(), paths=None, **options):
        for name, data in dict(files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return [row.data() for row in grading.grade(paths or [folder], out, **options)]

    run.folder, run.out = folder, out
    return run


def test_a_notebook_in_capitals_is_one_and_what_is_none_is_named(batch, capsys):
    files = {"a/02.IPYNB": _notebook("x = 1"), "b.zip": b"PK", "c/d.py": b"", ".hidden": b""}
    rows = batch(files)
    assert [row["submission"] for row in rows] == ["a/02.IPYNB"]
    left = left_out([batch.folder], batch.out)
    show.summary([Row.of(row) for row in rows], batch.out, Console(width=200), left)
    assert "not looked at, for it is no .ipynb: b.zip, d.py" in capsys.readouterr().out


def test_a_large_class_is_told_by_lab(capsys):
    rows = [Row(f"{i}", "graded", lab="02_lora", earned=12, possible=24) for i in range(13)]
    rows[0].earned = 24
    show.summary(rows, Path("out"), Console(width=200))
    assert "02_lora: median 50%, 1 with all" in capsys.readouterr().out


def test_nothing_that_is_unchanged_is_graded_again(batch):
    files = {f"{i}.ipynb": _notebook(f"x = {i}") for i in range(4)}
    first = batch(files)
    assert len(Fake.asked) == 4
    assert batch(files) == first and len(Fake.asked) == 4
    batch({"2.ipynb": _notebook("x = 9")})
    assert [name for name, _, _ in Fake.asked[4:]] == ["2.ipynb"]
    batch(seed=77)
    assert len(Fake.asked) == 9


def test_a_seed_is_random_and_kept(batch, tmp_path):
    batch({"a.ipynb": _notebook("x = 1")})
    batch({"b.ipynb": _notebook("x = 1")})
    (first, second) = (seed for _, _, seed in Fake.asked)
    assert first == second > 1000
    grading.grade([batch.folder], tmp_path / "other")
    assert Fake.asked[-1][2] != first


def test_own_checks_and_limits_are_part_of_what_is_kept(batch, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("1")
    files = {"a.ipynb": _notebook("x = 1")}
    for options in ({}, {"checks": own}, {"limits": QUICK}):
        batch(files, **options)
    own.write_text("2")
    batch(files, checks=own)
    batch(files, checks=own)
    assert len(Fake.asked) == 4


def test_ctrl_c_leaves_what_is_done(batch):
    files = {f"{i}.ipynb": _notebook("INTERRUPT" if i == 3 else f"x = {i}") for i in range(6)}
    with pytest.raises(KeyboardInterrupt):
        batch(files, jobs=1)
    rows = json.loads((batch.out / "results.json").read_text())
    assert [row["submission"] for row in rows] == ["0.ipynb", "1.ipynb", "2.ipynb"]
    assert (batch.out / "grades.csv").exists()
    batch({"3.ipynb": _notebook("x = 3")}, jobs=1)
    assert [name for name, _, _ in Fake.asked[4:]] == ["3.ipynb", "4.ipynb", "5.ipynb"]


@pytest.mark.parametrize("status", ["crashed", "timeout"])
def test_what_the_machine_may_have_spoilt_is_graded_again_by_the_next_call(batch, status):
    record = {"id": "2.1", "name": "f", "points": 2, "earned": 0, "status": "error", "message": ""}
    spoilt = {"status": status, "reason": "it is", "lab": "02_lora", "exercises": [record]}
    grade = lambda self, name, *_: (Row.of({"submission": name} | spoilt), {})  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fake, "grade", grade)
        (row,) = batch({"a.ipynb": _notebook("x = 1")})
        assert (row["status"], row["reason"]) == (status, "it is")
    (row,) = batch()
    assert row["status"] == "graded" and "reason" not in row
    batch()
    assert len(Fake.asked) == 1


# what stands in for a judge's process: the first one dies in the middle of its work, and says so
DYING = """
import json, os, signal, socket, sys
from pathlib import Path
from labkit.grading import wire
link = socket.socket(fileno=int(sys.argv[-1]))
wire.receive(link, 1 << 20)
wire.send(link, b"H", b"{}")
while frame := wire.receive(link, 1 << 20):
    name = json.loads(frame[1].partition(b"\\n")[0])["name"]
    deaths = Path(sys.argv[1])
    n = int(deaths.read_text())
    deaths.write_text(str(max(0, n - 1)))
    row = {"submission": name, "status": "crashed" if n else "graded", "exercises": []}
    if n and sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    wire.send(link, b"R", json.dumps([row | {"seconds": os.getpid()}, {}]).encode())
"""


@pytest.mark.parametrize("how", ["killed", "told"])
def test_a_submission_whose_judge_dies_is_graded_in_a_fresh_one_at_once(how, tmp_path, monkeypatch):
    deaths = tmp_path / "deaths"
    monkeypatch.setattr(workers, "JUDGE", ("-c", DYING, str(deaths), how))
    for n, status, left in ((0, "graded", "0"), (1, "graded", "0"), (3, "crashed", "1")):
        deaths.write_text(str(n))
        judge = workers.JudgeProcess(QUICK)
        row = judge.grade("a.ipynb", b"", 1)[0].data()
        assert (row["status"], deaths.read_text()) == (status, left)
        if status == "graded":
            assert row["seconds"] == judge.process.pid
        judge.stop()


def test_a_judge_that_was_ended_on_purpose_does_not_begin_again(tmp_path, monkeypatch):
    (tmp_path / "deaths").write_text("1")
    monkeypatch.setattr(workers, "JUDGE", ("-c", DYING, str(tmp_path / "deaths"), "killed"))
    judge = workers.JudgeProcess(QUICK)
    judge.start()
    judge.kill()
    row = judge.grade("a.ipynb", b"", 1)[0].data()
    assert row["status"] == "crashed" and judge.process is None


def _lives(process):
    """Neither gone nor dead and not yet waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_sandbox
@pytest.mark.parametrize("who", ["judge", "warm process"])
def test_what_is_killed_in_the_middle_costs_nothing(who):
    """The real ones, while a cell waits."""
    judge = workers.JudgeProcess(QUICK)
    judge.start()
    first = psutil.Process(judge.process.pid)
    victims = [first] if who == "judge" else first.children(recursive=True)[::-1]
    killer = threading.Timer(1, lambda: [victim.kill() for victim in victims])
    killer.start()
    row = judge.grade("a.ipynb", _notebook("import time\ntime.sleep(4)", SCALING), 1)[0].data()
    assert not any(_lives(victim) for victim in victims)
    judge.stop()
    assert (row["status"], row["earned"]) == ("graded", 1)


def test_files_of_the_same_name_do_not_collide(batch):
    one = {"ada/lab.ipynb": _notebook("a = 1"), "bob/lab.ipynb": _notebook("a = 2")}
    rows = batch(one)
    assert [row["submission"] for row in rows] == ["ada/lab.ipynb", "bob/lab.ipynb"]
    rows = batch(paths=[batch.folder / "ada", batch.folder / "bob" / "lab.ipynb"])
    assert [row["submission"] for row in rows] == ["ada/lab.ipynb", "bob/lab.ipynb"]
    assert len({row["submission"] for row in rows}) == 2


def test_the_same_file_given_twice_is_one_submission(batch):
    batch({"a.ipynb": _notebook("a = 1")})
    assert len(batch(paths=[batch.folder / "a.ipynb", batch.folder / "a.ipynb"])) == 1


def test_a_file_that_comes_later_adds_a_row_and_deletes_nothing(batch, tmp_path):
    first = batch({f"{name}.ipynb": _notebook(f"x = {name!r}") for name in "abc"})
    late = tmp_path / "late" / "zoe.ipynb"
    late.parent.mkdir()
    late.write_bytes(_notebook("x = 'z'"))
    notes = []
    rows = batch(paths=[late], notes=notes)
    assert rows[:3] == first and rows[3]["submission"] == "zoe.ipynb"
    assert notes == ["rows of earlier calls: 3"]
    assert json.loads((batch.out / "results.json").read_text()) == rows
    assert len((batch.out / "grades.csv").read_text().splitlines()) == 5
    pages = sorted(path.name for path in (batch.out / "feedback").iterdir())
    assert pages == ["a.html", "b.html", "c.html", "zoe.html"]
    assert "<code>" in (batch.out / "feedback/a.html").read_text()  # its cell is still shown
    assert len(Fake.asked) == 4


def test_a_file_that_is_gone_keeps_its_row_and_is_told(batch):
    batch({"a.ipynb": _notebook("x = 1"), "b.ipynb": _notebook("x = 2")})
    (batch.folder / "a.ipynb").unlink()
    notes = []
    rows = batch(notes=notes)
    assert [row["submission"] for row in rows] == ["a.ipynb", "b.ipynb"]
    assert "LOOK: the file is no longer there, the row stays: a.ipynb" in notes


def test_the_same_name_is_graded_anew_and_another_file_of_that_name_is_told(batch, tmp_path):
    batch({"ada/x.ipynb": _notebook("x = 1")})
    again, notes = tmp_path / "again" / "ada" / "x.ipynb", []
    again.parent.mkdir(parents=True)
    for source, told in (("x = 1", False), ("x = 2", True)):
        again.write_bytes(_notebook(source))
        (row,) = batch(paths=[tmp_path / "again"], notes=notes)
        assert row["submission"] == "ada/x.ipynb"
        assert any("LOOK: graded in place of another file" in note for note in notes) == told


def test_one_file_is_one_row_however_it_is_given(batch):
    batch({"ada/x.ipynb": _notebook("x = 1")})
    (row,) = batch(paths=[batch.folder / "ada" / "x.ipynb"])
    assert row["submission"] == "ada/x.ipynb" and len(Fake.asked) == 1
    (row,) = batch(paths=[batch.folder.parent])
    assert row["submission"] == "in/ada/x.ipynb" and len(Fake.asked) == 2
    assert [page.name[:8] for page in (batch.out / "feedback").iterdir()] == ["in-ada-x"]


def test_one_student_of_moodle_is_called_as_in_the_whole_class(batch):
    names = [f"{who}_assignsubmission_file_/x.ipynb" for who in ("Ada L_501", "Bob M_502")]
    for name in names:
        file = batch.folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(_notebook(f"x = {name!r}"))
    batch(paths=[batch.folder / names[0]])
    rows = batch(paths=[(batch.folder / names[1]).parent])
    assert [row["submission"] for row in rows] == names
    assert batch() == rows and len(Fake.asked) == 2


@pytest.mark.parametrize(
    "again, chosen",
    [
        (["doe_1_2_a.ipynb"], ["doe_1_2_a.ipynb"]),
        (["DOE"], ["doe_1_2_a.ipynb", "doe_1_3_b.ipynb"]),
        (["*_b.*"], ["doe_1_3_b.ipynb"]),
        (["roe", "_3_"], ["doe_1_3_b.ipynb", "roe_2_4_a.ipynb"]),
    ],
)
def test_again_grades_one_student_afresh(batch, again, chosen):
    batch({f"{n}.ipynb": _notebook("x = 1") for n in ("doe_1_2_a", "doe_1_3_b", "roe_2_4_a")})
    rows = batch(again=again)
    assert sorted(name for name, _, _ in Fake.asked[3:]) == chosen and len(rows) == 3
    with pytest.raises(LabError, match="--again nobody: no submission here"):
        batch(again=["nobody"])


def test_two_graders_of_one_folder_lose_and_double_nothing(batch, tmp_path):
    def one(name):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(20):
            (folder / f"{name}{i}.ipynb").write_bytes(_notebook(f"x = {i}"))
        shared = tmp_path / "shared.ipynb"
        shared.write_bytes(_notebook("x = 1"))
        try:
            grading.grade([folder, shared], batch.out, jobs=2)
        except BaseException as error:
            wrong.append(error)

    wrong, threads = [], [threading.Thread(target=one, args=[name]) for name in "pqr"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    rows = json.loads((batch.out / "results.json").read_text())
    names = [row["submission"] for row in rows]
    assert sorted(names) == sorted(
        ["shared.ipynb", *(f"{name}{i}.ipynb" for name in "pqr" for i in range(20))]
    )
    assert len({seed for _, _, seed in Fake.asked}) == 1, "the folder has one seed"
    assert len(list((batch.out / "feedback").iterdir())) == 61
    assert not list(batch.out.rglob("*.part"))


def test_a_disk_without_locks_serves_one_grader(batch, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    assert len(batch({"a.ipynb": _notebook("x = 1")})) == 1


BROKEN_FILES = [
    "",
    "9" * 30,
    "-1",
    "x",
    "null",
    "[]",
    "[1]",
    "{}",
    '{"row": 1}',
    "[[], {}]",
    "[" * 100_000,
    "\xff",
]


@pytest.mark.parametrize("text", BROKEN_FILES, ids=range(len(BROKEN_FILES)))
def test_what_is_malformed_in_the_folder_is_made_anew(batch, text):
    files = {"a.ipynb": _notebook("x = 1"), "b.ipynb": _notebook("x = 2")}
    first = batch(files)
    broken = next((batch.out / "graded").glob("*.json"))
    for file in (broken, batch.out / "graded" / "seed", batch.out / "results.json"):
        file.write_bytes(text.encode("latin-1"))
    assert batch(files) == first
    assert json.loads((batch.out / "results.json").read_text()) == first


def test_rows_that_only_results_json_has_stay(batch):
    batch({"a.ipynb": _notebook("x = 1"), "b.ipynb": _notebook("x = 2")})
    for file in (batch.out / "graded").glob("*.json"):
        file.unlink()
    page = (batch.out / "feedback/b.html").read_text()
    rows = batch(paths=[batch.folder / "a.ipynb"])
    assert [row["submission"] for row in rows] == ["a.ipynb", "b.ipynb"]
    assert (batch.out / "feedback/b.html").read_text() == page


def test_a_folder_of_an_earlier_version_is_read(batch):
    rows = batch({"a.ipynb": _notebook("x = 1"), "b.ipynb": _notebook("x = 2")})
    for file in list((batch.out / "graded").glob("*.json")):
        entry = json.loads(file.read_text())
        file.with_name("f" * 64 + file.name).write_text(json.dumps([entry["row"], {"2.1": "old"}]))
        file.unlink()
    assert batch(paths=[batch.folder / "a.ipynb"]) == rows
    assert "old" in (batch.out / "feedback/b.html").read_text()


def test_a_full_disk_is_named(batch, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*seed'"):
        grading.grade([ROOT / "notebooks"], batch.out)


def test_all_of_the_course_and_its_libraries_decide_whether_a_grade_stands(monkeypatch, tmp_path):
    package = tmp_path / "labkit"
    shutil.copytree(ROOT / "labkit", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "solutions").mkdir()
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    found = [store.depends_on(None, QUICK, 1)]
    assert store.depends_on(None, QUICK, 1) == found[0]
    parts = ("grading/inside/runner.py", "grading/wire.py", "memory/budget.py", "contract/kept.py")
    parts += ("checks/lab02/quiz.toml", "tasks/tickets.jsonl", "labs/lab02/probes.py", "lab.py")
    for part in (*parts, "../solutions/02_lora.ipynb"):
        with (package / part).open("a") as file:
            file.write("\n")
        found.append(store.depends_on(None, QUICK, 1))
    monkeypatch.setattr(fingerprint, "version", lambda name: "0" if name == "peft" else "1")
    found.append(store.depends_on(None, QUICK, 1))
    monkeypatch.setattr(fingerprint, "version", lambda name: "1")
    found.append(store.depends_on(None, QUICK, 1))
    assert len(set(found)) == len(found) == 12
    (package / "templates/grading_base.html.j2").write_text("a page is no grade")
    assert store.depends_on(None, QUICK, 1) == found[-1]


def test_a_link_to_a_folder_is_followed_where_it_is_given_and_told_where_it_is_found(batch):
    batch({"a.ipynb": _notebook("x = 1"), "sub/b.ipynb": _notebook("x = 2")})
    link = batch.folder.parent / "link"
    link.symlink_to(batch.folder)
    (batch.folder / "more").symlink_to(batch.folder / "sub")
    rows = [row.data() for row in grading.grade([link], batch.out.with_name("other"))]
    assert [row["submission"] for row in rows] == ["a.ipynb", "sub/b.ipynb"]
    assert {row["status"] for row in rows} == {"graded"}
    told = left_out([link], batch.out)
    assert told == ["LOOK: not looked at, for it is a link to a folder: more"]


def test_what_is_hidden_is_counted_and_litter_is_left_out(batch):
    names = (".b.ipynb", ".old/c.ipynb", "__MACOSX/._a.ipynb", "__MACOSX/a.ipynb", "._a.ipynb")
    names += (".ipynb_checkpoints/a-checkpoint.ipynb", ".DS_Store", "a.ipynb")
    (row,) = batch({name: _notebook("x = 1") for name in names})
    assert row["submission"] == "a.ipynb"
    told = left_out([batch.folder], batch.out)
    assert told == ["not looked at, for it is hidden (2): .b.ipynb, .old"]


def test_a_folder_that_cannot_be_read_is_told(batch, monkeypatch):
    batch({"a.ipynb": _notebook("x = 1"), "sub/b.ipynb": _notebook("x = 2")})
    scan = os.scandir

    def closed(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    (line,) = left_out([batch.folder], batch.out)
    assert line.startswith("LOOK: not looked at, for it cannot be read: ") and "sub" in line


@pytest.mark.parametrize(
    "name, late",
    [
        ("doejane_LATE_12345_67890_02_lora.ipynb", True),
        ("x/anon_LATE_4fZq1_67890_02_lora.ipynb", True),
        ("doejane_12345_67890_02_lora.ipynb", False),
        ("doejane_12345_67890_is_it_LATE_1_2_.ipynb", False),  # the tail is the learner's
        ("LATE.ipynb", False),
    ],
)
def test_what_canvas_calls_late_is_told(batch, name, late, capsys):
    (row,) = batch({name: _notebook("x = 1")})
    assert row.get("late", False) == late
    (line,) = csv.DictReader((batch.out / "grades.csv").open(encoding="utf-8", newline=""))
    assert line["late"] == ("late" if late else "")
    assert ("late</b>" in (batch.out / "index.html").read_text("utf-8")) == late
    show.summary([Row.of(row)], batch.out, Console(width=200))
    assert (f"late: {name}" in capsys.readouterr().out) == late


def test_what_is_no_plain_file_is_a_row_with_a_reason(batch, tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(_notebook("x = 1"))
    (batch.folder / "link.ipynb").symlink_to(secret)
    (batch.folder / "folder.ipynb").mkdir()
    os.mkfifo(batch.folder / "pipe.ipynb")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(batch.folder / "socket.ipynb"))
        rows = batch({"big.ipynb": bytes(3000)}, limits=Limits(notebook_bytes=2000))
    assert {row["status"] for row in rows} == {"unreadable"} and len(rows) == 5
    assert all(row["reason"] and row["exercises"] == [] for row in rows)
    assert Fake.asked == []


def test_a_file_that_changes_meanwhile_is_not_taken_for_another(batch, monkeypatch):
    files = {"a.ipynb": _notebook("x = 1"), "b.ipynb": _notebook("x = 2")}
    grade = Fake.grade

    def change(self, name, data, seed):
        (batch.folder / "b.ipynb").write_bytes(_notebook("x = 3"))
        return grade(self, name, data, seed)

    monkeypatch.setattr(Fake, "grade", change)
    rows = batch(files, jobs=1)
    assert [row["status"] for row in rows] == ["graded", "unreadable"]
    assert batch(jobs=1)[1]["status"] == "graded"


def test_progress_is_told(batch):
    told = []
    files = {f"{i}.ipynb": _notebook(f"x = {i}") for i in range(3)}
    batch(files, progress=lambda done, total, row: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "argv, word",
    [
        (["nowhere", "--out", "o"], "no such file"),
        (["empty", "--out", "o"], "no notebook"),
        (["empty"], "--out"),
        (["empty", "--out", "o", "--jobs", "0"], "jobs"),
        (["empty", "--out", "o", "--seed", "9" * 30], "seed"),
        (["empty", "--out", "o", "--checks", "nowhere.py"], "nowhere.py"),
    ],
)
def test_bad_input_is_one_line(argv, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sandbox, "available", lambda: "/usr/bin/bwrap")
    with pytest.raises(SystemExit) as ended:
        cli.main(["grade", *argv])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line


def test_without_a_sandbox_unsafe_has_to_be_said(batch, monkeypatch, capsys):
    batch({"a.ipynb": _notebook("x = 1")})
    monkeypatch.setattr(sandbox, "available", lambda: None)
    argv = ["grade", str(batch.folder), "--out", str(batch.out)]
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2 and "bubblewrap" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main([*argv, "--unsafe", "--json"])
    told = capsys.readouterr()
    assert ended.value.code in (0, None) and "NO SANDBOX" in told.err
    assert json.loads(told.out)[0]["submission"] == "a.ipynb"


@needs_sandbox
def test_ctrl_c_ends_every_process_at_once(tmp_path):
    """The real command, interrupted while a submission hangs."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.ipynb").write_bytes(_notebook(SCALING))
    (folder / "b.ipynb").write_bytes(_notebook(SCALING, "while True: pass"))
    # a shell's background job ignores SIGINT, and so would what these tests start from there
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from labkit import cli, fingerprint; cli.main()"
    argv = ["grade", str(folder), "--out", str(tmp_path / "out"), "--jobs", "1"]
    run = subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.DEVNULL)
    results = tmp_path / "out" / "graded"
    end = time.monotonic() + 240
    while not list(results.glob("*.json")) and time.monotonic() < end:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert row["submission"] == "a.ipynb" and row["earned"] == 1
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _bytes(p)]
    assert left == []


def _bytes(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_there_are_no_more_jobs_than_memory_for_them(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    for free, jobs in ((2**40, cores), (3 * 2**29, 1), (2**20, 1)):
        found = SimpleNamespace(available=free)
        monkeypatch.setattr(workers.psutil, "virtual_memory", lambda found=found: found)
        assert workers._jobs() == jobs


def test_while_a_submission_is_graded_no_experiment_runs():
    from labkit.grading.inside import quiet

    lab, _ = quiet.start("04_qlora")
    assert lab.experiment("Time of a step", 10, needs=["4.6"]) is False
    assert lab.gpu("QLoRA with paged AdamW", "It would train.", needs=["4.6"]) is False


def test_judges_work_side_by_side_on_their_own_cores():
    assert workers._shares(1) == [sorted(os.sched_getaffinity(0))]
    cores = len(os.sched_getaffinity(0))
    shares = workers._shares(cores)
    assert sorted(c for share in shares for c in share) == sorted(os.sched_getaffinity(0))
    assert workers._shares(cores + 1) == [None] * (cores + 1)


def test_a_batch_ends_when_a_judge_cannot_start(monkeypatch):
    class Broken(Fake):
        def grade(self, *_):
            raise LabError("the sandbox does not start")

    before = threading.active_count()
    monkeypatch.setattr(workers, "JudgeProcess", Broken)
    books = [SimpleNamespace(name=str(i), read=lambda: b"x") for i in range(5)]
    with pytest.raises(LabError, match="does not start"):
        list(workers.here(books, (), 1, jobs=2))
    assert threading.active_count() == before


def test_other_systems_are_told_where_grading_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(grading.sys, "platform", "darwin")
    with pytest.raises(LabError, match="grading needs Linux"):
        grading.grade([tmp_path], tmp_path / "out")


def test_a_warm_process_waits_until_its_child_ends_or_the_judge_says_kill():
    for said, seconds in ((b"k6", 0.1), (b"k7", 60)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
        ours.sendall(said)
        begun = time.monotonic()
        zygote._wait(child.pid, theirs, b"7")
        assert time.monotonic() - begun < 30
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
