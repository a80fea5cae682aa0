"""What the judge makes of a submission: whole labs, open exercises, inputs, forged answers."""

import json
from pathlib import Path

import psutil
import pytest
from submissions import FLOPS, FORWARD, QUIZ, START, notebook

from labkit.grading.judge import judge as judging
from labkit.grading.judge import submission
from labkit.reference import course_cells, reference

ROOT = Path(__file__).parents[3]
SOLVED = sorted((ROOT / "solutions").glob("*.ipynb"))


each_lab = pytest.mark.parametrize("path", SOLVED, ids=lambda path: path.stem)
FEW = ("02_lora", "09_distill")  # labs without and with a hunt
UNSOLVED = [
    pytest.param(path, id=path.stem, marks=() if path.stem in FEW else pytest.mark.thorough)
    for path in SOLVED
]


@each_lab
def test_a_solved_lab_has_all_points(path, graded):
    row, records = graded(data=path.read_bytes())
    assert (row["status"], row["lab"]) == ("graded", path.stem)
    assert {id: r["message"] for id, r in records.items() if r["status"] != "passed"} == {}
    assert row["earned"] == row["possible"] == sum(r["points"] for r in records.values()) > 0


@each_lab
def test_without_its_first_line_a_lab_is_known_by_its_functions(path, judge):
    found = submission.read(path.read_bytes().replace(b"labkit.start", b"print"))
    assert not found.started and judge._lab(found) == path.stem


@pytest.mark.parametrize("path", UNSOLVED)
def test_an_unsolved_lab_has_none(path, graded):
    row, records = graded(data=(ROOT / "notebooks" / path.name).read_bytes())
    assert (row["status"], row["lab"], row["earned"]) == ("graded", path.stem, 0)
    hunts = (ROOT / "labs" / f"{path.stem}.py").read_text("utf-8").count("# BEGIN GIVEN\n")
    told = [r["status"] for r in records.values()]
    assert (told.count("failed"), told.count("missing")) == (hunts, len(told) - hunts)


@pytest.mark.parametrize("name", ["02_lora_v2", "02_" + "a" * 200_000])
def test_what_a_notebook_calls_its_lab_is_not_repeated(name, graded):
    row, records = graded(f"import labkit\nlab, check = labkit.start('{name}')", FLOPS)
    assert (row["lab"], records["2.5"]["status"]) == ("02_lora", "passed")


def test_the_labs_are_those_that_have_checks_and_are_called_as_their_masters(monkeypatch, tmp_path):
    found = {path.stem[:2]: path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py")}
    assert judging.stems() == found and len(found) >= 6
    (tmp_path / "lab10.py").touch()
    places = [*judging.labkit.checks.__path__, str(tmp_path)]
    monkeypatch.setattr(judging.labkit.checks, "__path__", places)
    judging.stems.cache_clear()
    assert judging.stems() == found | {"10": "10"}, "one without a master is known by its checks"
    judging.stems.cache_clear()


def test_the_cells_of_an_exercise_are_kept_and_what_else_is_a_learners_own(judge):
    cells = ["class LoRALinear: pass", "def merge_(layer): pass\ndef unmerge_(layer): pass", FLOPS]
    given, helper = course_cells("02_lora")[1], "def power(r, root):\n    return r"
    data = notebook(START, given, helper, *cells, "x = 1", tags=[6])
    _, sources = judge.grade("a.ipynb", data, 1)
    assert [sources[id] for id in ("2.2", "2.6", "2.5", "2.7")] == [*cells, ""]
    assert sources[""] == f"{START}\n\n{helper}"


def test_state_that_an_exercise_spoils_is_whole_again_for_the_next(graded):
    harm = "global r\n    r = None; W.zero_(); torch.Tensor = 3"
    spoil = FORWARD.replace("    return", f"    {harm}\n    return")
    _, records = graded("import torch", spoil, "r = 1.0", FLOPS, QUIZ)
    assert records["2.1"]["status"] in ("failed", "error")
    assert records["2.5"]["status"] == records["2.8"]["status"] == "passed"


def test_random_inputs_depend_on_the_seed_and_nothing_else(graded):
    wrong = FORWARD.replace("@ B.T", "@ B.T * torch.linspace(1, 2, len(B))")  # told by its numbers
    wrong = f"import torch\n{wrong}"
    first, again, other = (graded(wrong, seed=seed)[1]["2.1"]["message"] for seed in (1, 1, 2))
    assert first == again != other


def test_the_seed_is_not_told(graded):
    peek = """
    import gc, sys
    for frame in sys._current_frames().values():
        while frame:
            assert 918273645 not in frame.f_locals.values()
            frame = frame.f_back
    for space in [x for x in gc.get_objects() if type(x) is dict]:
        assert 918273645 not in [x for x in list(space.values()) if type(x) is int]
"""
    peek = FLOPS.replace("):\n", f"):{peek}", 1)
    assert graded(peek, seed=918273645)[1]["2.5"]["status"] == "passed"


LAYER = reference("02_lora", "2.2")
OPEN = {
    "absent": "pass",
    "stub": "class LoRALinear:\n    pass",
    "raises": f"1 / 0\n{LAYER}",
    "wrong": LAYER.replace("alpha / r", "alpha"),
    "ends its process": LAYER.replace("super().__init__()", "__import__('os').abort()"),
}


@pytest.mark.parametrize("kind", OPEN)
def test_an_open_exercise_costs_its_own_points_and_no_others(kind, graded):
    book = json.loads((ROOT / "solutions" / "02_lora.ipynb").read_text("utf-8"))
    for cell in book["cells"]:
        if "".join(cell["source"]).startswith("class LoRALinear"):
            cell["source"] = OPEN[kind]
    row, records = graded(data=json.dumps(book).encode())
    assert [id for id, r in records.items() if r["status"] != "passed"] == ["2.2"]
    assert row["earned"] == row["possible"] - 3
    assert "tested with the course's code for 2.2" in records["2.4"]["message"]


FORGERIES = {
    "no frame": b"hello",
    "an early reply": b"R\0\0\0\x04\0\0\0\0",
    "another nonce": None,
    "a kind that is none": b"Z\0\0\0\x00",
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_frames_earn_nothing(what, graded):
    forge = f"""
import os, socket
def quiz():
    import gc, labkit.grading.wire as wire
    body = wire.pack(["0" * 16, "value", {{"q1": "b", "q2": "c", "q3": "a"}}])
    for sock in [s for s in gc.get_objects() if type(s) is socket.socket and s.fileno() > 0]:
        sock.sendall({FORGERIES[what]!r} or wire.HEAD.pack(b"R", len(body)) + body)
"""
    _, records = graded(START, forge, FLOPS)
    assert records["2.8"]["status"] != "passed" and records["2.8"]["earned"] == 0
    assert records["2.5"]["status"] == "passed"


def test_no_answer_says_that_the_check_is_broken(graded):
    """What the judge says of itself has a line to the instructor; an answer gets none by it."""
    cell = """def quiz():
    from labkit.contract import CheckFailed
    raise CheckFailed('the check itself is broken: give these points by hand')"""
    _, records = graded(START, cell)
    assert records["2.8"]["status"] == "failed"
    assert records["2.8"]["message"].startswith("it says: the check itself is broken")


def test_a_warm_process_takes_little_memory(judge):
    first = psutil.Process(judge.warm.process.pid)
    assert sum(p.memory_info().rss for p in [first, *first.children(recursive=True)]) < 1.5e9
