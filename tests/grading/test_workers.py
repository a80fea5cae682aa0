"""Judges in processes of their own: how many, on which cores, and what if one dies."""

import os
import threading
from types import SimpleNamespace

import psutil
import pytest
from submissions import FLOPS, LITTLE_JUDGE, NAMED, QUICK, Fake, needs_sandbox, notebook

from labkit.errors import LabError
from labkit.grading import workers

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
    if n and sys.argv[2] == "no sandbox":
        wire.send(link, b"X", b"the sandbox does not start: no memory")
    wire.send(link, b"R", json.dumps([row | {"seconds": os.getpid()}, {}]).encode())
"""


@pytest.mark.parametrize("how", ["killed", "told", "no sandbox"])
def test_a_submission_whose_judge_dies_is_graded_in_a_fresh_one_at_once(how, tmp_path, monkeypatch):
    deaths = tmp_path / "deaths"
    monkeypatch.setattr(workers, "JUDGE", ("-c", DYING, str(deaths), how))
    for n, status, left in ((0, "graded", "0"), (1, "graded", "0"), (3, "crashed", "1")):
        deaths.write_text(str(n))
        judge = workers.JudgeProcess(QUICK)
        row = judge.grade("a.ipynb", b"", 1)[0]
        assert (row.status, deaths.read_text()) == (status, left)
        if status == "graded":
            assert row.seconds == judge.process.pid
        else:
            assert ("no memory" in row.reason) == (how == "no sandbox")
        assert judge.grade("b.ipynb", b"", 1)[0].status == "graded", "it costs a row, not the batch"
        judge.stop()


def test_a_judge_that_was_ended_on_purpose_does_not_begin_again(tmp_path, monkeypatch):
    (tmp_path / "deaths").write_text("1")
    monkeypatch.setattr(workers, "JUDGE", ("-c", DYING, str(tmp_path / "deaths"), "killed"))
    judge = workers.JudgeProcess(QUICK)
    judge.start()
    judge.kill()
    row, _ = judge.grade("a.ipynb", b"", 1)
    assert row.status == "crashed" and judge.process is None


def _lives(process):
    """Neither gone nor dead and not yet waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_sandbox
@pytest.mark.parametrize("who", ["judge", "warm process"])
def test_what_is_killed_in_the_middle_costs_nothing(who, monkeypatch):
    """The real ones, while a cell waits."""
    monkeypatch.setattr(workers, "JUDGE", LITTLE_JUDGE)
    judge = workers.JudgeProcess(QUICK)
    judge.start()
    first = psutil.Process(judge.process.pid)
    victims = [first] if who == "judge" else first.children(recursive=True)[::-1]
    killer = threading.Timer(1, lambda: [victim.kill() for victim in victims])
    killer.start()
    row, _ = judge.grade("a.ipynb", notebook(NAMED, "import time\ntime.sleep(4)", FLOPS), 1)
    assert not any(_lives(victim) for victim in victims)
    judge.stop()
    assert (row.status, row.earned) == ("graded", 2)


def test_there_are_no_more_jobs_than_memory_for_them(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    for free, jobs in ((2**40, cores), (3 * 2**29, 1), (2**20, 1)):
        found = SimpleNamespace(available=free)
        monkeypatch.setattr(workers.psutil, "virtual_memory", lambda found=found: found)
        assert workers._jobs() == jobs


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
