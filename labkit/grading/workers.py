"""Judge processes, which import torch once and grade one submission after another.

They run in parallel on this machine, or on many as workers of `dask.distributed`, one judge per
worker process. A task that a worker loses is given to another one; graded submissions are not
graded again. Workers need this course and bubblewrap installed.
"""

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict

import psutil

from labkit.errors import LabError
from labkit.files import last_line
from labkit.grading import wire
from labkit.grading.collect import Notebook
from labkit.grading.limits import Limits
from labkit.grading.row import Row

JUDGE = ("-m", "labkit.grading.judge.judge")
GONE = "the file was changed or removed during grading"
TRIES = 3  # Dask workers that may end while grading the same submission
Done = Iterator[tuple[Notebook, Row, dict[str, str]]]  # with the learner's cell of each exercise


class JudgeProcess:
    """One judge with its warm process, driven over a socket."""

    def __init__(
        self,
        limits: Limits,
        unsafe: bool = False,
        checks: str | None = None,
        cores: list[int] | None = None,
    ):
        self.setup = {"limits": asdict(limits), "unsafe": unsafe, "checks": checks, "cores": cores}
        self.most, self.process = 256 << 20, None
        self.started = self.killed = False  # it was ready once; `kill` was called

    def start(self) -> None:
        """Start the process; LabError without a sandbox."""
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
        if self.killed:  # `kill` came before there was a process
            self._end()
        wire.send(self.link, b"S", json.dumps(self.setup).encode())
        frame = wire.receive(self.link, self.most)
        if frame is None or frame[0] != b"H":
            reason = self._last_error() if frame is None else frame[1].decode()
            self.stop()
            raise LabError(reason)
        self.started = True

    def grade(self, name: str, data: bytes, seed: int) -> tuple[Row, dict[str, str]]:
        """`(row, sources)`. If the grader's processes die, this tries once more in fresh ones.

        The first time may be the machine's fault; the second time gives a "crashed" row. Both tries
        share the submission's time. LabError if no process can start at all.
        """
        begun, seconds = time.monotonic(), self.setup["limits"]["submission_seconds"]
        row, sources = self._grade(name, data, seed, seconds)
        left = seconds - (time.monotonic() - begun)
        if row.status == "crashed" and not self.killed and left > 0:
            self.stop()
            row, sources = self._grade(name, data, seed, left)
        return row, sources

    def _grade(self, name, data, seed, seconds):
        try:
            if self.process is None and self.killed:
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
            row, sources = json.loads(frame[1])
            return Row.of(row), sources
        except (OSError, wire.WireError):
            reason = f"the grader itself ended: {self._last_error()}"
        except LabError as error:  # the sandbox does not start
            if not self.started:
                raise
            reason = str(error)
        self.stop()
        return Row(name, "crashed", reason), {}

    def _last_error(self):
        self._end()
        return last_line(self.errors)[:300] or "it was killed"

    def kill(self) -> None:
        """End the process for good, with everything it started; `grade` then returns."""
        self.killed = True
        self._end()

    def _end(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """End the process and everything it started."""
        if self.process:
            self.link.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self._end()
            self.errors.close()
            self.process = None


def here(books: list[Notebook], setup: tuple, seed: int, jobs: int | None) -> Done:
    """Yield `(notebook, row, sources)` as each is done, by parallel judges on this machine.

    `setup` is the arguments of `JudgeProcess`. Each judge has its own cores.
    """
    judges = [JudgeProcess(*setup, cores) for cores in _shares(min(jobs or _jobs(), len(books)))]
    idle, broken = queue.SimpleQueue(), []
    for judge in judges:
        idle.put(judge)

    def judged_by_one(book):
        if broken:
            raise broken[0]
        data, judge = book.read(), idle.get()
        try:
            return judge.grade(book.name, data, seed) if data is not None else _gone(book.name)
        except BaseException as error:  # it ends the batch
            broken.append(error)
            raise
        finally:
            idle.put(judge)

    with ThreadPoolExecutor(len(judges)) as threads:
        try:
            tasks = {threads.submit(judged_by_one, book): book for book in books}
            for task in as_completed(list(tasks)):
                yield tasks.pop(task), *task.result()
            list(threads.map(JudgeProcess.stop, judges))
        finally:  # after Ctrl-C judges are still at work
            threads.shutdown(wait=False, cancel_futures=True)
            for judge in judges:
                judge.kill()


def _jobs():
    """One job per core, if each has a GiB of memory."""
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available >> 30))


def _gone(name):
    return Row(name, "unreadable", GONE), {}


def _shares(jobs):
    """The cores of each job; None if there are too few for one core per job."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i::jobs] if len(cores) >= jobs else None for i in range(jobs)]


@contextlib.contextmanager
def client(workers: int | None = None, scheduler: str | None = None) -> Iterator:
    """A Dask client for a scheduler's address or for `workers` here; LabError if there is none."""
    if workers and scheduler:
        raise LabError("use --workers or --scheduler, not both")
    try:
        from distributed import Client
    except ImportError:
        raise LabError("dask.distributed is missing: pip install 'lora-labs[cluster]'") from None
    here = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    try:
        found = Client(scheduler, timeout=10) if scheduler else Client(**here)
    except (OSError, ValueError) as error:
        raise LabError(f"no Dask scheduler at {scheduler or 'this machine'}: {error}") from None
    with found:
        yield found


def on_cluster(books: list[Notebook], setup: tuple, seed: int, client) -> Done:
    """As `here`, by the workers of a Dask client."""
    from distributed import as_completed

    waiting, futures = list(reversed(books)), {}
    wide = 2 * max(1, sum(client.nthreads().values()))  # notebooks in flight

    def submit():
        book = waiting.pop()
        arguments = (book.name, book.read(), seed, setup)
        how = {"key": f"grade-{book.key}", "pure": False, "retries": TRIES}
        future = client.submit(_on_worker, *arguments, **how)
        futures[future.key] = book
        return future

    done = as_completed([submit() for _ in range(min(wide, len(waiting)))])
    for future in done:
        book = futures.pop(future.key)
        try:
            row, sources = future.result()
        except LabError:
            raise
        except Exception as error:
            reason = f"no worker could grade it: {type(error).__name__}"
            row, sources = Row(book.name, "crashed", reason), {}
        yield book, row, sources
        future.release()
        if waiting:
            done.add(submit())


_lock, _judges = threading.Lock(), {}  # of a worker


def _on_worker(name, data, seed, setup):
    """`(row, sources)`, by the one judge of this process, which grades one at a time."""
    if data is None:
        return _gone(name)
    with _lock:
        key = repr(setup)
        if key not in _judges:
            while _judges:
                _judges.popitem()[1].stop()
            _judges[key] = JudgeProcess(*setup)
        return _judges[key].grade(name, data, seed)
