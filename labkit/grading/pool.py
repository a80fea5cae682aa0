"""Judges at work: processes that import torch once and grade one submission after another."""

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict

from labkit.errors import LabError
from labkit.grading import wire

JUDGE = ("-m", "labkit.grading.judge.judge")
GONE = "the file was changed or removed while grading went on"


class JudgeProcess:
    """One judge with its warm process, driven over a socket."""

    def __init__(self, limits, unsafe=False, checks=None, cores=None):
        self.setup = {"limits": asdict(limits), "unsafe": unsafe, "checks": checks, "cores": cores}
        self.most, self.process = 256 << 20, None
        self.started = self.over = False  # whether it has once got ready; whether it is to end

    def start(self):
        """Start the process; LabError when no sandbox can be had."""
        self.link, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *JUDGE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                start_new_session=True,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # checks need no card
            )
        wire.send(self.link, b"S", json.dumps(self.setup).encode())
        frame = wire.receive(self.link, self.most)
        if frame is None or frame[0] != b"H":
            reason = self._last_error() if frame is None else frame[1].decode()
            self.stop()
            raise LabError(reason)
        self.started = True

    def grade(self, name, data, seed):
        """`(row, sources)`. Where the grader's processes die, all is tried once more in fresh ones.

        It may have been the machine's fault. The second time it is a row that says so. Both tries
        share the submission's time. LabError when none can start at all.
        """
        begun, seconds = time.monotonic(), self.setup["limits"]["submission_seconds"]
        row, sources = self._grade(name, data, seed, seconds)
        left = seconds - (time.monotonic() - begun)
        if row["status"] == "crashed" and not self.over and left > 0:
            self.stop()
            row, sources = self._grade(name, data, seed, left)
        return row, sources

    def _grade(self, *asked):
        try:
            return self._graded(*asked)
        except (OSError, wire.WireError):
            reason = f"the grader itself ended: {self._last_error()}"
        except LabError as error:  # the sandbox does not start
            if not self.started:
                raise
            reason = str(error)
        self.stop()
        return crashed(asked[0], reason), {}

    def _graded(self, name, data, seed, seconds):
        if self.process is None and self.over:
            raise ConnectionError
        if self.process is None:
            self.start()
        head = json.dumps({"name": name, "seed": seed, "seconds": seconds}).encode()
        wire.send(self.link, b"G", head + b"\n" + data)
        frame = wire.receive(self.link, self.most)
        if frame is None:
            raise ConnectionError
        if frame[0] != b"R":
            raise LabError(frame[1].decode(errors="replace"))
        return tuple(json.loads(frame[1]))

    def _last_error(self):
        self._end()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it was killed"

    def kill(self):
        """End the process at once and for good, and all that it started; `grade` then returns."""
        self.over = True
        self._end()

    def _end(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self):
        """End the process, and all that it started."""
        if self.process:
            self.link.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self._end()
            self.errors.close()
            self.process = None


def crashed(name, reason):
    """A row of a submission that could not be graded."""
    row = {"submission": name, "lab": None, "earned": 0, "possible": 0, "seconds": 0.0}
    return row | {"status": "crashed", "reason": reason, "exercises": []}


def unreadable(name, reason):
    """A row of a submission that is no notebook."""
    return crashed(name, reason) | {"status": "unreadable"}


def gone(name):
    """A row of a submission that is not there any more, or not the same, when its turn comes."""
    return unreadable(name, GONE)


def work(todo, jobs, make):
    """Yield `(key, row, sources)` for each `(key, name, read, seed)` of `todo` as it is done.

    `read()` gives the bytes, or None when the file has changed. `make(cores)` gives a judge; `jobs`
    work side by side, each on cores of its own, so that no submission takes another one's time.
    """
    waiting, done, judges = queue.SimpleQueue(), queue.SimpleQueue(), []
    for item in todo:
        waiting.put(item)

    def serve(judge):
        try:
            while True:
                key, name, read, seed = waiting.get_nowait()
                data = read()
                row = (gone(name), {}) if data is None else judge.grade(name, data, seed)
                done.put((key, *row))
        except queue.Empty:
            judge.stop()
        except BaseException as error:  # it ends the batch, in the thread that waits for it
            done.put(error)

    judges = [make(cores) for cores in _shares(min(jobs, len(todo)))]
    threads = [threading.Thread(target=serve, args=[judge], daemon=True) for judge in judges]
    for thread in threads:
        thread.start()
    try:
        for _ in todo:
            item = done.get()
            if isinstance(item, BaseException):
                raise item
            yield item
        for thread in threads:
            thread.join()
    finally:  # after Ctrl-C judges are still at work
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        for judge in judges:
            judge.kill()
        for thread in threads:
            thread.join(10)


def _shares(jobs):
    """The cores of each job; None where there are not enough for one each."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i::jobs] if len(cores) >= jobs else None for i in range(jobs)]
