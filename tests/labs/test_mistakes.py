"""Rows and edits test the checks: what is one slip away from the course's own answer is rejected.

Each row of `labkit/checks/labNN.toml` is rejected and hears its message. Each edit of a solution is
rejected too, unless `same.toml` says why it is the same function.
"""

import ast
import contextlib
import functools
import signal
import tomllib
from pathlib import Path

import pytest
import torch
from answers import STEMS
from edits import edited

from labkit import contract, reference
from labkit.checks import engine

SAME = tomllib.loads((Path(__file__).parent / "same.toml").read_text("utf-8"))
SECONDS = 10  # an edit may make a loop that does not end


def _checks(stem):
    """The checks of a lab but for its quiz."""
    return [c for c in reference.checks(stem) if c.exercise["names"] != ["quiz"]]


CHECKS = {check.exercise["id"]: (stem, check) for stem in STEMS for check in _checks(stem)}
ROWS = [
    pytest.param(id, piece, new, message, marks=pytest.mark.xdist_group(f"lab{CHECKS[id][0][:2]}"))
    for id in CHECKS
    for piece, ways in engine.mistakes(id).items()
    for new, message in ways.items()
]


_solution = functools.cache(reference.reference)


@pytest.fixture(scope="module", autouse=True)
def remembered():
    """What a rewritten solution gives in a case is computed once, not again for each row."""
    rewritten, mistake, rows, given = engine.rewritten, engine._mistake, {}, {}

    def rewritten_once(names):
        key = contract.session.exercise, *names
        if contract.session.reference and key not in rows:
            rows[key] = list(rewritten(names))
        return rows[key] if contract.session.reference else []

    def mistake_of(cases, run, names, tol):
        places = {id(case.data): (case.where, *case.right) for case in cases}

        def run_once(objects, data):
            key = contract.session.exercise, id(objects), places[id(data)]
            if key not in given:
                given[key] = run(objects, data)
            return given[key]

        return mistake(cases, run_once, names, tol)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "rewritten", rewritten_once)
        patch.setattr(engine, "_mistake", mistake_of)
        yield


def _judge(id, source, named=True):
    """The status and the message of the objects that a source defines, all else being solved."""
    stem, check = CHECKS[id]
    space = contract.defined_by(source)
    contract.session.clear()
    contract.session.namespace = space
    contract.session.records |= {other: {"status": "passed"} for other in CHECKS if other != id}
    if named:
        contract.session.reference = functools.partial(_solution, stem)
    with contextlib.suppress(contract.CheckFailed):
        check(*(space[name] for name in check.exercise["names"]))
    record = contract.session.records[id]
    return record["status"], record["message"]


@pytest.mark.parametrize(("id", "piece", "new", "message"), ROWS)
def test_a_row_is_rejected_and_heard(id, piece, new, message):
    source = _solution(CHECKS[id][0], id)
    most = len(contract.NAMES[id])  # once, or once in each function of the exercise
    assert 1 <= source.count(piece) <= most, "the solution was rewritten, but not this row"
    assert not any(isinstance(node, ast.While) for node in ast.walk(ast.parse(source)))
    status, told = _judge(id, source.replace(piece, new))
    assert (status, message in told, "NameError" in told) == ("failed", True, False), told


def test_an_exercise_has_few_rows():
    counts = {id: sum(map(len, engine.mistakes(id).values())) for id in CHECKS}
    assert {id: n for id, n in counts.items() if n > 20} == {}


def _right_case(*fields, make=engine.Case):
    """A case that is right: a wrong one, by whatever tolerance, ends the check."""
    case = make(*fields)
    contract.expect(engine._first_wrong(case, tol=0.1) is None, "it is wrong")
    return case


def _survivors(id):
    """The edits of a solution that its check accepts."""
    stem, check = CHECKS[id]
    own = [name for name in check.exercise["names"] if name in contract.NAMES[id]]

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    found, solution = [], _solution(stem, id)
    assert _judge(id, solution, named=False)[0] == "passed"
    for text, source in edited(solution, own):
        signal.alarm(SECONDS)
        try:
            if _judge(id, source, named=False)[0] == "passed":
                found.append(text)
        except Exception:  # a source that does not run, or for too long
            continue
        finally:
            signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    return found


@pytest.mark.parametrize(
    "id", [pytest.param(id, marks=pytest.mark.xdist_group(f"edits {id}")) for id in CHECKS]
)
def test_an_edit_that_passes_is_the_same_function(id, capsys, monkeypatch):
    monkeypatch.setattr(engine, "Case", _right_case)
    torch.manual_seed(0)  # what an answer draws itself is the same in each run
    found, known = set(_survivors(id)), set(SAME.get(id, {}))
    assert found == known, "\n".join(["these edits differ from same.toml:", *(found ^ known)])
