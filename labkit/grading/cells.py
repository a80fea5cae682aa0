"""The supervisor's hold on the process that runs the cells."""

import json
import os
import select
import signal
import socket
import time

from labkit.grading import runner, tree, wall

TICK = 0.05  # seconds between two looks at processes and memory
GRACE = 1.0  # seconds from an interrupt to the end
SOON = 10.0  # seconds for what takes milliseconds on a machine that is not busy
STARTS = 12


def _keep_open(fd):
    """Close every descriptor but the standard ones and `fd`: the way to the judge, above all."""
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))


class Lost(Exception):
    """The process that was asked is gone or out of time; the message says why."""

    def __init__(self, why, how="error"):
        super().__init__(why)
        self.how = how


class Excess(Lost):
    """A submission has taken more memory or processes than it may."""


class Cells:
    """Runs the cells, and starts again from a clean state when the process that runs them is lost.

    At first all run in one process. Once that is lost, each cell runs in a fork of the state before
    it, so that what ends its process costs that cell only. A cell that takes even that state with
    it, or has to be killed, is left out from then on.
    """

    def __init__(self, cells, shell, limits):
        self.cells, self.shell, self.limits = cells, shell, limits
        self.told = {}  # index of a cell -> [how, message]
        self.skip, self.apart = set(), False
        self.pid = self.channel = None  # the process that holds the state, and the way to it

    def run(self):
        """Reach the state after the last cell. Lost when that does not succeed."""
        self.over = time.monotonic() + self.limits.total_seconds
        for _ in range(STARTS):
            try:
                self._start()
                return self._all()
            except Lost:
                self.apart = True
        raise Lost("its cells ended all processes again and again")

    def _start(self):
        """Fork a runner from the clean state; all others end."""
        self.end()
        wall.clean(self.limits)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _keep_open(theirs.fileno())
                wall.close_in(self.limits)
                runner.obey(theirs, self.shell, self.cells, self.limits.reply_bytes)
            finally:
                os._exit(1)
        theirs.close()

    def end(self):
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
            if time.monotonic() > self.over:
                self.told.setdefault(index, ["timeout", "there was no time left for this cell"])
                continue
            try:
                self._run(index)
            except Lost as lost:
                if self.apart or isinstance(lost, Excess):
                    self.told.setdefault(index, [lost.how, str(lost)])
                    self.skip.add(index)
                raise

    def _run(self, index):
        self.order(run=index, apart=self.apart)
        state = pid = self.pid
        if self.apart:
            pid = self.new_pid()
        end = min(time.monotonic() + self.limits.cell_seconds, self.over + GRACE)
        try:
            answer = self.answer(end, state, pid)
        except TimeoutError:
            self.told[index] = ["timeout", f"it ran longer than {self.limits.cell_seconds:g} s"]
            answer = self._stop(index, state, pid)
        if answer.get("done") == index:
            self.pid = pid
            if answer.get("error"):
                self.told.setdefault(index, ["raised", str(answer["error"])])
        elif answer.get("lost") == index:
            self.told.setdefault(index, ["error", "it ended its process"])
        else:
            raise Lost("it disturbed the grader")

    def _stop(self, index, state, pid):
        """Interrupt a cell that takes too long, then kill it."""
        tree.kill(pid, signal.SIGINT)
        try:
            return self.answer(time.monotonic() + GRACE, state, pid)
        except TimeoutError:
            self.skip.add(index)
            tree.kill(pid)
        try:
            return self.answer(time.monotonic() + SOON, state, pid)
        except TimeoutError:
            raise Lost("it disturbed the grader") from None

    def settle(self):
        """Leave nothing of the cells but one process, with one thread."""
        if tree.threads(self.pid) != 1:
            self.order(settle=True)
            self.pid = self.new_pid()
        tree.kill_but(self.pid)

    def order(self, fds=(), **order):
        """Send an order to the process that holds the state."""
        try:
            socket.send_fds(self.channel, [json.dumps(order).encode()], list(fds))
        except OSError:
            raise Lost("it ended its process") from None

    def new_pid(self):
        """The process that an order has brought about."""
        try:
            pid = self.answer(time.monotonic() + SOON, self.pid).get("pid")
        except TimeoutError:
            pid = None
        if type(pid) is not int or pid < 2:
            raise Lost("it disturbed the grader")
        return pid

    def answer(self, end, *pids):
        """The next message. TimeoutError at time `end`; Lost when none of `pids` is left."""
        while True:
            if select.select([self.channel], [], [], TICK)[0]:
                return self._message()
            wrong = tree.excess(self.limits)
            if wrong:
                raise Excess(wrong)
            over = not any(map(tree.alive, pids))
            if over and not select.select([self.channel], [], [], 0)[0]:
                raise Lost("it ended its process")
            if time.monotonic() > end:
                raise TimeoutError

    def _message(self):
        try:
            answer = json.loads(self.channel.recv(runner.ORDER_BYTES))
        except (OSError, ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Lost("it ended its process")
        return answer
