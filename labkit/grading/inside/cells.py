"""The supervisor's handle on the process that runs the cells."""

import errno
import json
import os
import select
import signal
import socket
import time
from collections.abc import Sequence

from labkit.grading import wire
from labkit.grading.inside import runner, tree, wall
from labkit.grading.inside.clock import Clock

TICK = 0.05  # seconds between checks of processes and memory
GRACE = 1.0  # seconds from an interrupt to the end
SOON = 10.0  # seconds for what takes milliseconds
LITTLE = 1.0  # seconds for an unneeded cell when time is short
FOR_CELLS = 0.8  # share of real time; the rest is for the exercises
STARTS = 12


class Lost(Exception):
    """The process is gone or out of time; the message says why."""

    def __init__(self, why, how="error"):
        super().__init__(why)
        self.how = how


class Crowded(Exception):
    """No descriptor can be sent: some submission has too many in flight."""


class Excess(Lost):
    """A submission exceeds its limit of memory or processes."""


class Cells:
    """Runs the cells, and restarts from a clean state if their process is lost.

    At first all cells run in one process. Once that is lost, each cell runs in a fork of the state
    before it, so that a crash costs only that cell. A cell that also destroys that state, or has to
    be killed, is skipped from then on.

    `needed` lists the indices of cells that exercises need. These get their full time even if the
    time of all cells is used up. `nested`: as in `wall.clean`.
    """

    def __init__(self, cells, needed, seconds, shell, limits, nested=False):
        self.cells, self.needed, self.shell = cells, needed, shell
        self.limits, self.nested = limits, nested
        self.began = time.monotonic()
        self.deadline = self.began + seconds  # end of the submission's time
        self.last = self.began + FOR_CELLS * seconds  # end of its cells' time
        self.used = 0.0  # seconds of all cells so far
        self.messages = {}  # index of a cell -> [how, message]
        self.skip, self.apart = set(), False
        self.pid = self.channel = None  # the process with the state, and a socket to it

    def run(self) -> None:
        """Reach the state after the last cell; Lost if that fails."""
        for _ in range(STARTS):
            try:
                self._start()
                return self._all()
            except Lost:
                self.apart = True
        raise Lost("its cells kept ending all processes")

    def _start(self):
        """Fork a runner from the clean state; kill all others."""
        self.end()
        wall.clean(self.limits, self.nested)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.closerange(3, theirs.fileno())  # above all the socket to the judge
                os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
                wall.close_in(self.limits)
                runner.obey(theirs, self.shell, self.cells, self.limits.reply_bytes)
            finally:
                os._exit(1)
        theirs.close()

    def end(self) -> None:
        """Kill every process of the submission."""
        if self.pid:
            tree.kill_group(self.pid)
            self.channel.close()
            tree.kill_but()
        self.pid = None

    def _all(self):
        for index in range(len(self.cells)):
            if index in self.skip:
                continue
            seconds = self._seconds(index)
            if seconds == 0:
                self.messages.setdefault(index, ["timeout", "there was no time left for this cell"])
                continue
            try:
                self._run(index, seconds)
            except Lost as lost:
                if self.apart or isinstance(lost, Excess):
                    self.messages.setdefault(index, [lost.how, str(lost)])
                    self.skip.add(index)
                raise

    def _seconds(self, index):
        """The time for a cell; less, even 0, for unneeded ones once others have used too much."""
        now = time.monotonic()
        if now > self.last:
            return 0
        share = max(
            self.used / (2 * self.limits.total_seconds),
            (now - self.began) / (self.last - self.began),
        )
        if index in self.needed or share < 0.5:
            return self.limits.cell_seconds
        return min(LITTLE, self.limits.cell_seconds) if share < 0.75 else 0

    def _run(self, index, seconds):
        self.order(run=index, apart=self.apart)
        state = pid = self.pid
        if self.apart:
            pid = self.new_pid()
        clock = self.clock(seconds, state, pid)
        try:
            answer = self.answer(clock, state, pid)
        except TimeoutError:
            little = "there was little time left for this cell"
            message = little if seconds < self.limits.cell_seconds else clock.message()
            self.messages[index] = ["timeout", message]
            answer = self._stop(index, state, pid)
        finally:
            clock.over(state, pid)
            self.used += clock.used
        if answer.get("done") == index:
            self.pid = pid
            if answer.get("error"):
                self.messages.setdefault(index, ["raised", str(answer["error"])[: runner.MESSAGE]])
        elif answer.get("lost") == index:
            self.messages.setdefault(index, ["error", "it ended its process"])
        else:
            raise Lost("it disturbed the grader")

    def _stop(self, index, state, pid):
        tree.kill(pid, signal.SIGINT)
        try:
            return self.answer(self.clock(GRACE, state, pid), state, pid)
        except TimeoutError:
            self.skip.add(index)
            tree.kill(pid)
        try:
            return self.answer(self.clock(SOON, state, pid), state, pid)
        except TimeoutError:
            raise Lost("it disturbed the grader") from None

    def settle(self) -> None:
        """Leave only one process of the cells, with one thread."""
        if tree.threads(self.pid) != 1:
            self.order(settle=True)
            self.pid = self.new_pid()
        tree.kill_but(self.pid)

    def order(self, fds: Sequence[int] = (), **order: object) -> None:
        """Send an order to the process with the state; Lost if it is gone."""
        try:
            wire.send_fds(self.channel, json.dumps(order).encode(), fds, self._hopeless)
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                raise Crowded("a submission has too many descriptors in flight") from None
            raise Lost("it ended its process") from None

    def _hopeless(self):
        """Whether this submission itself blocks descriptors, or time is up."""
        return tree.under_way() > wall.OPEN_FILES or time.monotonic() > self.deadline

    def new_pid(self) -> int:
        """The process started by an order."""
        try:
            pid = self.answer(self.clock(SOON, self.pid), self.pid).get("pid")
        except TimeoutError:
            pid = None
        if type(pid) is not int or pid < 2:
            raise Lost("it disturbed the grader")
        return pid

    def clock(self, seconds: float, *pids: int) -> Clock:
        """A clock for `seconds` of own time; it ends with the submission's."""
        end = min(time.monotonic() + self.limits.crowding * seconds, self.deadline)
        return Clock(seconds, end, *pids)

    def answer(self, clock: Clock, *pids: int) -> dict:
        """The next message. TimeoutError when time is up; Lost if none of `pids` is left."""
        self.wait(self.channel, clock, *pids)
        try:
            answer = json.loads(self.channel.recv(runner.ORDER_BYTES))
        except (OSError, ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Lost("it ended its process")
        return answer

    def wait(
        self, link: socket.socket, clock: Clock, *pids: int, gone: str = "it ended its process"
    ) -> None:
        """Wait until `link` is readable; TimeoutError, Excess, or Lost without live `pids`."""
        while not select.select([link], [], [], TICK)[0]:
            if wrong := tree.excess(self.limits):
                raise Excess(wrong)
            ended = not any(map(tree.alive, pids))
            if ended and not select.select([link], [], [], 0)[0]:
                raise Lost(gone)
            if clock.over(*pids):
                raise TimeoutError
