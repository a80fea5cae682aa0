"""Grading over Dask: a scheduler and two workers in processes of their own, one of them killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from submissions import FLOPS, NAMED, needs_sandbox, notebook

from labkit.errors import LabError
from labkit.grading import workers
from labkit.grading.grade import grade

pytest.importorskip("distributed")

# What stands in for a judge on the workers: slow, and it notes who graded what.
JUDGE = """
import os, time
from labkit.grading import workers
from labkit.grading.row import Row

class Slow:
    def __init__(self, *setup): pass
    def grade(self, name, data, seed):
        note("begun", name)
        time.sleep(0.25)
        note("done", name)
        return Row(name, "graded", lab="02_lora", earned=1, possible=2), {}
    def stop(self): pass

def note(what, name):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{what} {name} {os.getpid()}\\n")

workers.JudgeProcess = Slow
"""
N = 24


@pytest.fixture
def machines(tmp_path):
    """`(address, workers, notes)`: a scheduler and two workers without a nanny, as subprocesses."""
    (tmp_path / "slow_judge.py").write_text(JUDGE)
    notes = tmp_path / "notes"
    notes.touch()
    env = os.environ | {"NOTES": str(notes)}
    running = []

    def start(*args):
        log = tmp_path / f"log{len(running)}"
        with log.open("w") as file:
            command = [sys.executable, "-m", "distributed.cli." + args[0], *args[1:]]
            running.append(subprocess.Popen(command, env=env, stderr=file, stdout=file))
        return log

    log = start("dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard")
    address = _await(lambda: re.search(r"Scheduler at:\s+(tcp://\S+)", log.read_text()))[1]
    options = ("--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory")
    for i in range(2):
        folder = str(tmp_path / f"worker{i}")
        preload = ("--preload", str(tmp_path / "slow_judge.py"))
        start("dask_worker", address, *options, folder, *preload)
    yield address, running[1:], notes
    for process in running:
        process.kill()
        process.wait()


def _await(look, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_each_is_graded_once_and_none_is_lost_when_a_worker_is_killed(machines, tmp_path):
    address, running, notes = machines
    folder, out, killed = tmp_path / "in", tmp_path / "out", []
    folder.mkdir()
    for i in range(N):
        (folder / f"{i:02}.ipynb").write_bytes(notebook(f"x = {i}"))

    def progress(done, total, row):
        if done >= N // 3 and not killed:
            pids = {line.split()[2] for line in notes.read_text().splitlines()}
            victim = next((w for w in running if str(w.pid) in pids), None)
            if victim:
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)

    rows = grade([folder], out, scheduler=address, progress=progress)
    assert killed
    assert [row.submission for row in rows] == [f"{i:02}.ipynb" for i in range(N)]
    assert {row.status for row in rows} == {"graded"}
    told = [line.split() for line in notes.read_text().splitlines()]
    assert len({pid for _, _, pid in told}) == 2, "both workers had work"
    done = Counter(name for what, name, _ in told if what == "done")
    assert set(done) == {row.submission for row in rows}
    # what the dead one had done and not told yet is the only work done twice
    again = [name for name, times in done.items() if times > 1]
    dead = {name for _, name, pid in told if int(pid) == killed[0]}
    assert set(again) <= dead and len(again) <= 2
    assert len(json.loads((out / "results.json").read_text())) == N
    for worker in running:  # a second call asks none
        worker.kill()
    assert grade([folder], out, scheduler=address) == rows


def test_bad_input_is_one_line():
    with pytest.raises(LabError, match="not both"), workers.client(2, "tcp://127.0.0.1:1"):
        pass
    with pytest.raises(LabError, match="no Dask scheduler at"), workers.client(None, "tcp://x:y"):
        pass


@needs_sandbox
@pytest.mark.thorough
def test_workers_on_this_machine_grade(tmp_path):
    (tmp_path / "a.ipynb").write_bytes(notebook(NAMED, FLOPS))
    (row,) = grade([tmp_path / "a.ipynb"], tmp_path / "out", workers=1)
    assert (row.status, row.earned) == ("graded", 2)
