"""The judge's handle on its warm process in the sandbox."""

import contextlib
import json
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict

from labkit.errors import LabError
from labkit.files import last_line
from labkit.grading import cgroup, sandbox, wire
from labkit.grading.inside.wall import SCRATCH
from labkit.grading.limits import Limits

GONE = 60  # seconds for a submission's processes to end


class WarmProcess:
    """Starts a submission's processes on demand, and detects when they are gone.

    Kinds: "nested" has both walls, if the kernel allows the inner one; "alone" has the outer one
    and serves a single submission; "bare" has none.
    """

    def __init__(self, limits: Limits, kind: str = "nested"):
        self.limits, self.kind = limits, kind
        self.process = self.control = self.scratch = self.group = None
        self.nested = None  # whether it can serve several submissions; None: unknown yet
        self.number = 0  # of the submission, in messages about it

    def begin(self) -> None:
        """Start the process, which takes seconds to warm up."""
        if self.kind == "nested" and sandbox.trial() != "nested":
            self.kind = "alone"
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.scratch = tempfile.mkdtemp(prefix=SCRATCH) if self.kind == "bare" else None
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.group = cgroup.make(self.limits)
        with theirs:
            self.process = subprocess.Popen(
                cgroup.entering(self.group, sandbox.command(theirs.fileno(), self.kind)),
                env=sandbox.environment(self.scratch),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
            )
        self.nested = None
        with contextlib.suppress(BrokenPipeError):  # `wait` finds out why
            self.control.sendall(json.dumps(asdict(self.limits)).encode())

    def wait(self) -> None:
        """Wait until the process is warm; LabError with the reason if that fails."""
        if self.nested is not None and self.process and self.process.poll() is not None:
            self.end()  # killed by the kernel, out of memory
        if self.process is None:
            self.begin()
        if self.nested is None:
            try:
                answer = self.control.recv(4096)
            except ConnectionError:
                answer = b""
            if not answer:
                reason = self._last_error()
                self.end()
                raise LabError(f"the sandbox does not start: {sandbox.advice(reason)}")
            self.nested = json.loads(answer)["nested"]
            if self.kind == "nested" and not self.nested:
                self.end()  # a wall for nesting shows the host's processes
                self.kind = "alone"
                self.wait()

    def _last_error(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GONE)
        return last_line(self.errors) or "it ended without a message"

    @contextlib.contextmanager
    def submission(self) -> Iterator[socket.socket]:
        """A socket to a new submission's supervisor; afterwards all its processes are gone."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._hand_over(theirs)
            try:
                yield ours
            finally:
                ours.close()
                self._see_it_end()

    def _hand_over(self, theirs):
        """Send the socket of a new submission; a process that has died is replaced."""
        for last in (False, True):
            self.wait()
            self.number += 1
            try:
                wire.send_fds(self.control, b"s%d" % self.number, [theirs.fileno()])
                return
            except OSError:
                reason = self._last_error()
                self.end()
                if last:
                    raise LabError(f"the sandbox keeps ending: {reason}") from None

    def _see_it_end(self):
        """Wait until the submission's processes are gone; kill any that the kernel leaves."""
        if not self.nested and self.kind != "bare":
            self.end()  # this process had become the supervisor
            return
        with contextlib.suppress(OSError):
            if self.kind == "bare" and self._is_gone():
                return
            self.control.send(b"k%d" % self.number)
            if self._is_gone():
                return
        self.end()

    def _is_gone(self):
        """Whether the warm process reports in time that this submission's processes are gone."""
        end = time.monotonic() + GONE
        while select.select([self.control], [], [], max(0, end - time.monotonic()))[0]:
            message = self.control.recv(64)
            if not message or message == b"%d" % self.number:
                return bool(message)
        return False

    def end(self) -> None:
        """Kill the process and everything that it started."""
        if self.process:
            self.control.close()
            self.errors.close()
            self.process.kill()
            self.process.wait()
            cgroup.remove(self.group)
            if self.scratch:
                shutil.rmtree(self.scratch, ignore_errors=True)
        self.process = self.scratch = self.group = None
