"""The answers that the labs' tests list, judged as grading judges them: from another process.

A fork of this process holds all answers and answers questions, as a submission's process does. The
check and the verdict are here. A wrong answer has to hear the same words as in the learner's cell.
"""

import contextlib
import os
import signal
import socket
import sys
import time

import pytest
import torch
from answers import LABS, STATUS, cases

from labkit import contract
from labkit.grading.inside import answer, runner
from labkit.grading.judge.remote import Learner, RemoteSession
from labkit.grading.limits import Limits

pytestmark = pytest.mark.thorough

MOST = Limits().reply_bytes
# of labs, and of an exercise, whose checks build models, one case in so many
SAMPLE = {"03": 3, "04": 3, "06": 6, "7.4": 3}


def _labs(*numbers):
    """`pytest.mark.parametrize` with labs, each called as in other tests."""
    return pytest.mark.parametrize(
        "number",
        [
            pytest.param(number, id=f"lab{number}", marks=pytest.mark.xdist_group(f"wire {number}"))
            for number in numbers
        ],
    )


def _cases(number):
    """All cases of a lab, or a sample of them."""
    listed = [case for kind in STATUS for case in cases(number, kind)]
    every = [SAMPLE.get(number, SAMPLE.get(case.check.exercise["id"], 1)) for case in listed]
    return [case for i, case in enumerate(listed) if i % every[i] == 0]


class SameSeed(RemoteSession):
    """Seeds the learner's side as a notebook does, so that messages are the same to the letter."""

    def their_seed(self):
        return self.seed


@pytest.fixture(scope="module")
def across():
    """`across(number)` -> (cases of the lab, a session whose answers live in another process)."""
    made, children = {}, []

    def get(number):
        if number not in made:
            listed, (ours, theirs) = _cases(number), socket.socketpair()
            answers = enumerate(case.objects for case in listed)
            space = {f"{i} {k}": o for i, objects in answers for k, o in enumerate(objects)}
            pid = os.fork()
            if pid == 0:
                ours.close()
                try:
                    torch.set_num_threads(1)  # as the warm process does after a fork
                    probes = "labkit.probes."
                    mine = {n: m for n, m in sys.modules.items() if n.startswith(probes)}
                    mine |= {answer.__name__: answer}
                    runner.serve(theirs, mine, space, {}, MOST)
                finally:
                    os._exit(0)
            theirs.close()
            children.append((pid, ours))
            made[number] = listed, SameSeed(ours, 0, Limits(), time.monotonic() + 600)
        return made[number]

    yield get
    for pid, link in children:
        link.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _judged(session, check, objects, monkeypatch):
    """The record of an exercise."""
    session.clear()
    session.letters.clear()
    with monkeypatch.context() as patch:
        patch.setattr(contract, "session", session)
        with contextlib.suppress(contract.CheckFailed):
            check(*objects)
    return session.records[check.exercise["id"]]


@_labs(*LABS)
def test_every_answer_has_the_same_verdict_from_outside(number, across, monkeypatch):
    listed, session = across(number)
    for i, (status, check, objects, words) in enumerate(listed):
        names = [Learner(f"{i} {k}") for k in range(len(objects))]
        record = _judged(session, check, names, monkeypatch)
        told = f"{check.exercise['id']}, case {i}: {record['message']}"
        assert record["status"] == status, told
        assert any(word in record["message"] for word in words), told
        assert record["earned"] == record["points"] or status != "passed", told


@_labs("01", "02", "05")
def test_messages_are_those_of_the_cell(number, across, monkeypatch):
    """To the letter, for every seventh wrong answer."""
    listed, session = across(number)
    wrong = [(i, case) for i, case in enumerate(listed) if case.status == "failed"]
    for i, (_, check, objects, _) in wrong[::7]:
        names = [Learner(f"{i} {k}") for k in range(len(objects))]
        outside = _judged(session, check, names, monkeypatch)
        assert outside == _judged(contract.Session(), check, objects, monkeypatch)


def test_a_name_that_is_not_there_is_not_a_wrong_answer(across, monkeypatch):
    from labkit.grading.judge.remote import Undefined

    listed, session = across("02")
    with pytest.raises(Undefined, match="nowhere"):
        _judged(session, listed[0].check, [Learner("nowhere")], monkeypatch)
