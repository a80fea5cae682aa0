"""Process 1 of a submission's process tree. It runs no code of the submission and has no secret.

Forked from the warm process, it has the cells run, keeps time, counts processes and memory, carries
messages between the judge and the answering process, and restarts lost processes.

Frames from the judge: C, the cells; B, the code to ship; N, a new exercise; A, a question. Frames
to the judge: D, how the cells went; R, a reply; G, the answering process is gone; X, all is lost.
"""

import json
import signal
import socket
import time

from labkit.grading import wire
from labkit.grading.inside import tree
from labkit.grading.inside.cells import Cells, Crowded, Lost
from labkit.grading.limits import TIME_UP, Limits


def supervise(link: socket.socket, shell: object, limits: Limits, nested: bool) -> None:
    """Serve one judge over the socket `link` until it hangs up; `nested` as in `wall.clean`."""
    for number in signal.valid_signals():  # no signal without a handler reaches process 1
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)
    _, body = wire.receive(link, 4 * limits.notebook_bytes)
    task = json.loads(body)
    cells = Cells(task["cells"], set(task["needed"]), task["seconds"], shell, limits, nested)
    try:
        cells.run()
        results = [[index, *what] for index, what in sorted(cells.messages.items())]
        wire.send(link, b"D", json.dumps(results).encode())
        _carry(link, Answers(cells, limits), limits)
    except (Lost, Crowded) as why:
        wire.send(link, b"X", str(why).encode())
    finally:
        cells.end()


def _carry(link, answers, limits):
    while frame := wire.receive(link, limits.reply_bytes):
        kind, body = frame
        if kind == b"B":
            answers.code = body
        elif kind == b"N":
            answers.begin(fresh=body == b"1")
        else:
            try:
                wire.send(link, b"R", answers.ask(body))
            except Lost as lost:
                reason = {"how": lost.how, "why": str(lost)}
                wire.send(link, b"G", json.dumps(reason).encode())


class Answers:
    """A fork of the state after the cells, which answers the judge until the fork is lost."""

    def __init__(self, cells, limits):
        self.cells, self.limits = cells, limits
        self.line = self.pid = self.code = None
        self.settled, self.clock = False, None

    def begin(self, fresh: bool = False) -> None:
        """Begin an exercise and its time; `fresh` asks for an unused process."""
        if fresh:
            self._hang_up()
        known = [self.pid] if self.pid else []
        self.clock = self.cells.clock(self.limits.exercise_seconds, *known)

    def ask(self, body: bytes) -> bytes:
        """The reply to a question; Lost if there is none in time."""
        try:
            if self.pid is None:
                self._call()
            if time.monotonic() > self.cells.deadline:
                raise TimeoutError
            self.line.settimeout(self.clock.left())
            wire.send(self.line, b"A", body)
            return self._reply()
        except TimeoutError:
            over = time.monotonic() > self.cells.deadline
            too_long = f"it took longer than {self.limits.exercise_seconds:g} s"
            lost = Lost(TIME_UP if over else too_long, "timeout")
        except OSError:
            lost = Lost("its process ended")
        except (wire.WireError, Lost) as error:
            lost = error if isinstance(error, Lost) else Lost(str(error))
        self._hang_up()
        raise lost

    def _reply(self):
        self.cells.wait(self.line, self.clock, self.pid, gone="its process ended")
        frame = wire.receive(self.line, self.limits.reply_bytes, self.clock.end)
        if frame is None or frame[0] != b"R":
            raise Lost("its process ended")
        return frame[1]

    def _call(self):
        """Fork the answering process; if the state is lost, reach it once more."""
        try:
            self._fork()
        except (Lost, TimeoutError, OSError):
            self.cells.last = self.cells.deadline  # needed cells may use the exercises' time
            self.cells.run()
            self.settled = False
            self._fork()

    def _fork(self):
        if not self.settled:
            self.cells.settle()
            self.settled = True
        ours, theirs = socket.socketpair()
        with theirs:
            self.cells.order(fds=[theirs.fileno()], serve=True)
        self.line, self.pid = ours, self.cells.new_pid()
        self.begin()  # starting does not count as the exercise's time
        self.line.settimeout(self.clock.left())
        wire.send(self.line, b"B", self.code)

    def _hang_up(self):
        if self.pid:
            self.line.close()
            tree.kill_group(self.pid)
            tree.kill_but(self.cells.pid)
        self.pid = None
