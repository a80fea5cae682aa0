"""Judges at work: processes that import torch once and grade one submission after another."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from dataclasses import asdict

from labkit.errors import LabError
from labkit.grading import wire


class JudgeProcess:
    """One judge with its warm process, driven over a socket."""

    def __init__(self, limits, unsafe=False, checks=None, cores=None):
        self.setup = {"limits": asdict(limits), "unsafe": unsafe, "checks": checks, "cores": cores}
        self.most, self.process = 256 << 20, None

    def start(self):
        """Start the process; LabError when no sandbox can be had."""
        self.link, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "labkit.grading.judge", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        wire.send(self.link, b"S", json.dumps(self.setup).encode())
        frame = wire.receive(self.link, self.most)
        if frame is None or frame[0] != b"H":
            self.stop()
            raise LabError("the sandbox does not start" if frame is None else frame[1].decode())

    def grade(self, name, data, seed):
        """`(row, sources)`; a judge that dies costs this submission a row that says so."""
        try:
            if self.process is None:
                self.start()
            head = json.dumps({"name": name, "seed": seed}).encode()
            wire.send(self.link, b"G", head + b"\n" + data)
            frame = wire.receive(self.link, self.most)
        except (OSError, wire.WireError):
            frame = None
        if frame is None:
            self.stop()
            return crashed(name, "the grader itself ended while it worked on this one"), {}
        return tuple(json.loads(frame[1]))

    def stop(self):
        """End the process and all that it started."""
        if self.process:
            self.link.close()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


def crashed(name, reason):
    """A row of a submission that could not be graded."""
    row = {"submission": name, "lab": None, "earned": 0, "possible": 0, "seconds": 0.0}
    return row | {"status": "crashed", "reason": reason, "exercises": []}


def work(todo, jobs, make):
    """Yield `(key, row, sources)` for each `(key, name, data, seed)` of `todo` as it is done.

    `data` is a function that gives the bytes. `make(cores)` gives a judge; `jobs` work side by
    side, each on cores of its own, so that no submission takes another one's time.
    """
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for item in todo:
        waiting.put(item)
    stop = threading.Event()

    def serve(cores):
        judge = make(cores)
        try:
            while not stop.is_set():
                key, name, data, seed = waiting.get_nowait()
                done.put((key, *judge.grade(name, data(), seed)))
        except queue.Empty:
            pass
        except BaseException as error:
            done.put(error)
        finally:
            judge.stop()

    shares = _shares(min(jobs, len(todo)))
    threads = [threading.Thread(target=serve, args=[c], daemon=True) for c in shares]
    for thread in threads:
        thread.start()
    try:
        for _ in todo:
            item = done.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def _shares(jobs):
    """The cores of each job; None where they can't be shared out evenly enough."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else []
    return [cores[i::jobs] if len(cores) >= jobs else None for i in range(jobs)]
