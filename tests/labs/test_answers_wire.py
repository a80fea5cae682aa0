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
from answers import STEMS, half_written, right, wrong

from labkit import contract
from labkit.grading.inside import answer, runner
from labkit.grading.judge.remote import Learner, RemoteSession
from labkit.grading.limits import Limits

pytestmark = pytest.mark.thorough

MOST = Limits().reply_bytes
# of labs, and of an exercise, whose checks build models, one case in so many
SAMPLE = {"03": 3, "04": 3, "06": 6, "7.4": 3}


class SameSeed(RemoteSession):
    """Seeds the learner's side as a notebook does, so that messages are the same to the letter."""

    def their_seed(self):
        return self.seed


@contextlib.contextmanager
def across(objects):
    """A session whose answers, `{name: object}`, live in another process."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            torch.set_num_threads(1)  # as the warm process does after a fork
            mine = {n: m for n, m in sys.modules.items() if n.startswith("labkit.probes.")}
            runner.serve(theirs, mine | {answer.__name__: answer}, objects, {}, MOST)
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield SameSeed(ours, 0, Limits(), time.monotonic() + 600)
    finally:
        ours.close()
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


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(stem, id=f"lab{stem[:2]}", marks=pytest.mark.xdist_group(f"wire {stem[:2]}"))
        for stem in STEMS
    ],
)
def test_every_answer_has_the_same_verdict_from_outside(stem, monkeypatch):
    """To the letter, for some wrong answers of labs whose checks build no models."""
    listed = [*right(stem), *half_written(stem), *wrong(stem)]
    every = [SAMPLE.get(stem[:2], SAMPLE.get(case.check.exercise["id"], 1)) for case in listed]
    listed = [case for i, case in enumerate(listed) if i % every[i] == 0]
    theirs = {f"{i} {k}": o for i, case in enumerate(listed) for k, o in enumerate(case.objects)}
    with across(theirs) as session:
        for i, case in enumerate(listed):
            names = [Learner(f"{i} {k}") for k in range(len(case.objects))]
            record = _judged(session, case.check, names, monkeypatch)
            told = f"{case}: {record['message']}"
            assert record["status"] == case.status, told
            assert case.words in record["message"], told
            assert record["earned"] == record["points"] or case.status != "passed", told
            if case.status == "failed" and stem[:2] not in SAMPLE and i % 3 == 0:
                here = contract.Session()
                assert record == _judged(here, case.check, case.objects, monkeypatch)
