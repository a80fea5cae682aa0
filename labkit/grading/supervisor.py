"""Process 1 of a submission's own process tree. It runs none of its code and holds no secret.

It is forked from the warm process, forks the runner of the cells, keeps the time and counts
processes and memory, and carries messages between the judge and the process that answers. When
all is lost it kills every other process and starts again from its own clean state.
"""

import contextlib
import json
import os
import select
import signal
import socket
import time

from labkit.grading import runner, wall, wire

TICK = 0.05  # seconds between two looks at processes and memory
GRACE = 1.0  # seconds from an interrupt to the end
RESTARTS = 12


class Lost(Exception):
    """The process that was asked is gone; the message says why."""

    def __init__(self, how, why):
        super().__init__(why)
        self.how = how  # "timeout" or "error"


def supervise(link, shell, limits, begin):
    """Serve one judge over the socket `link` until it hangs up. `begin` runs first in runners."""
    frame = wire.receive(link, limits.notebook_bytes * 4)
    keeper = Keeper(json.loads(frame[1]), shell, limits, begin)
    wire.send(link, b"D", json.dumps(keeper.run_cells()).encode())
    while frame := wire.receive(link, limits.reply_bytes):
        kind, body = frame
        if kind == b"B":
            keeper.bundle = body
        elif kind == b"N":
            keeper.next_exercise(fresh=body == b"1")
        else:
            try:
                wire.send(link, b"R", keeper.ask(body))
            except Lost as lost:
                told = {"how": lost.how, "why": str(lost), "fresh": keeper.fresh}
                wire.send(link, b"G", json.dumps(told).encode())


class Keeper:
    """Keeps a submission's processes: the runner of its cells and the one that answers."""

    def __init__(self, cells, shell, limits, begin):
        self.cells, self.shell, self.limits, self.begin = cells, shell, limits, begin
        self.told = {}  # index of a cell -> what went wrong
        self.skip, self.apart, self.restarts = set(), False, 0
        self.pid = self.answerer = self.bundle = None
        self.fresh, self.settled, self.deadline = True, False, 0.0
        self.over = time.monotonic() + limits.total_seconds

    # --- cells

    def run_cells(self):
        """Run all cells; `[[index, how, message], ...]` of those that went wrong."""
        self._start()
        done = 0
        while done < len(self.cells):
            try:
                self._run_from(done)
                done = len(self.cells)
            except Lost:
                self._again()
                done = 0
        return [[index, *what] for index, what in sorted(self.told.items())]

    def _start(self):
        """Fork a runner from the clean state."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            try:
                self.begin()
                runner.obey(theirs, self.shell, self.cells, self.limits.reply_bytes)
            finally:
                os._exit(1)
        theirs.close()
        self.settled, self.base = False, None

    def _again(self):
        """Kill every process and start anew, from now on with each cell in its own fork."""
        wall.kill_others(self.pid)
        self.channel.close()
        self.answerer, self.apart = None, True
        self.restarts += 1
        wall.clean()
        self._start()

    def _run_from(self, first):
        for index in range(first, len(self.cells)):
            if index in self.skip:
                continue
            if time.monotonic() > self.over or self.restarts > RESTARTS:
                self.told.setdefault(index, ["timeout", "there was no time left for this cell"])
                continue
            self._run(index)

    def _run(self, index):
        """Run one cell. Lost when the runner is gone, so that only a new start helps."""
        self._order(run=index, apart=self.apart)
        begun = self._answer(time.monotonic() + 5, index)
        pid = begun.get("pid")
        if type(pid) is not int or pid < 2:
            self._blame(index, "error", "it disturbed the grader")
        if not self.apart:
            pid = self.pid
        end = min(time.monotonic() + self.limits.cell_seconds, self.over + GRACE)
        try:
            answer = self._answer(end, index)
        except TimeoutError:
            self.told[index] = ["timeout", f"it ran longer than {self.limits.cell_seconds:g} s"]
            answer = self._stop(pid, index)
        if answer.get("done") == index:
            self.pid = pid
            if index not in self.told and answer.get("error"):
                self.told[index] = ["raised", str(answer["error"])]
        elif answer.get("lost") == index:
            self.told.setdefault(index, ["error", "it ended its process"])
        else:
            self._blame(index, "error", "it disturbed the grader")

    def _stop(self, pid, index):
        """Interrupt a cell that takes too long, then kill it."""
        _kill(pid, signal.SIGINT)
        try:
            return self._answer(time.monotonic() + GRACE, index)
        except TimeoutError:
            self.skip.add(index)
            _kill(pid, signal.SIGKILL)
            return self._answer(time.monotonic() + 5, index)

    def _blame(self, index, how, why):
        """The cell took everything with it: leave it out from now on, and start again."""
        self.told.setdefault(index, [how, why])
        self.skip.add(index)
        raise Lost(how, why)

    def _order(self, fds=(), **order):
        try:
            socket.send_fds(self.channel, [json.dumps(order).encode()], list(fds))
        except OSError:
            raise Lost("error", "the process is gone") from None

    def _answer(self, end, index):
        """The runner's next message; TimeoutError at `end`, Lost when it can't come any more."""
        while True:
            ready = select.select([self.channel], [], [], TICK)[0]
            if ready:
                try:
                    message = self.channel.recv(runner.ORDER_BYTES)
                    answer = json.loads(message) if message else None
                except (OSError, ValueError, RecursionError):
                    answer = None
                if isinstance(answer, dict):
                    return answer
                self._gone(index)
            wrong = wall.excess(self.limits)
            if wrong:
                self._blame(index, "error", wrong)
            if not _alive(self.pid) and not (self.apart and wall.others()):
                self._gone(index)
            if time.monotonic() > end:
                raise TimeoutError

    def _gone(self, index):
        """No runner is left: the first time, each cell is tried again, one by one."""
        if self.apart:
            self._blame(index, "error", "it ended its process and all others")
        raise Lost("error", "the process is gone")

    # --- exercises

    def next_exercise(self, fresh):
        """Begin an exercise and its time; `fresh` asks for a process that served none."""
        if fresh and self.answerer:
            self._hang_up()
        self.fresh = self.answerer is None
        self.deadline = time.monotonic() + self.limits.exercise_seconds

    def ask(self, body):
        """The reply of the process that answers. Lost when there is none in time."""
        if self.answerer is None:
            self._call()
        try:
            self.line.settimeout(self.limits.exercise_seconds)
            wire.send(self.line, b"A", body)
            return self._reply()
        except TimeoutError:
            self._hang_up()
            raise Lost(
                "timeout", f"it took longer than {self.limits.exercise_seconds:g} s"
            ) from None
        except (OSError, wire.WireError) as error:
            self._hang_up()
            what = str(error) if isinstance(error, wire.WireError) else "its process ended"
            raise Lost("error", what) from None
        except Lost:
            self._hang_up()
            raise

    def _reply(self):
        while not select.select([self.line], [], [], TICK)[0]:
            wrong = wall.excess(self.limits)
            if wrong:
                raise Lost("error", wrong)
            if time.monotonic() > self.deadline:
                raise TimeoutError
        self.line.settimeout(max(0.1, self.deadline - time.monotonic()))
        frame = wire.receive(self.line, self.limits.reply_bytes)
        if frame is None or frame[0] != b"R":
            raise Lost("error", "its process ended")
        return frame[1]

    def _call(self):
        """Have the runner fork a process that answers; start again once if it can't."""
        for attempt in range(2):
            try:
                self._settle()
                ours, theirs = socket.socketpair()
                with theirs:
                    self._order(fds=[theirs.fileno()], serve=True)
                pid = self._answer(time.monotonic() + 5, -1).get("pid")
                if type(pid) is not int or pid < 2:
                    raise Lost("error", "it disturbed the grader")
                self.line, self.answerer, self.fresh = ours, pid, True
                self.line.settimeout(5)
                wire.send(self.line, b"B", self.bundle)
                return
            except (Lost, TimeoutError, OSError):
                if attempt or self.restarts > RESTARTS:
                    raise Lost("error", "its process could not be started") from None
                self._again()
                self.over = time.monotonic() + self.limits.total_seconds
                self.run_cells_again()

    def run_cells_again(self):
        """Reach the state after the cells once more."""
        try:
            self._run_from(0)
        except Lost:
            self._again()
            self._run_from(0)

    def _settle(self):
        """Leave nothing of the cells but one process with one thread."""
        if self.settled:
            return
        if wall.threads(self.pid) != 1:
            self._order(settle=True)
            pid = self._answer(time.monotonic() + 5, -1).get("pid")
            if type(pid) is int and pid > 1:
                self.pid = pid
        wall.kill_others(None, keep=self.pid)
        self.settled = True

    def _hang_up(self):
        """Kill the process that answers, and all that it left behind."""
        if self.answerer:
            self.line.close()
            _kill(self.answerer, signal.SIGKILL)
            wall.kill_others(None, keep=self.pid)
        self.answerer = None


def _kill(pid, sign):
    if type(pid) is int and pid > 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)


def _alive(pid):
    """Whether `pid` runs; reaps what has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False
