"""The judge's hold on its warm process, which lives in the sandbox."""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
from dataclasses import asdict

from labkit.errors import LabError
from labkit.grading import sandbox
from labkit.grading.wall import SCRATCH


class WarmProcess:
    """Starts a submission's processes on demand, and knows when they are gone.

    Of the kinds, "nested" has both walls, where the kernel allows the inner one; "alone" has the
    outer one and serves a single submission; "bare" has none.
    """

    def __init__(self, limits, kind="nested"):
        self.limits, self.kind = limits, kind
        self.process = self.control = self.scratch = None
        self.nested = None  # whether it can serve more than one submission; None: not known yet

    def begin(self):
        """Start the process; it takes seconds until it is warm."""
        if self.kind == "nested" and sandbox.trial() != "nested":
            self.kind = "alone"
        self.control, theirs = socket.socketpair()
        self.scratch = tempfile.mkdtemp(prefix=SCRATCH) if self.kind == "bare" else None
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self.process = subprocess.Popen(
                sandbox.command(theirs.fileno(), self.kind),
                env=sandbox.environment(self.scratch),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
            )
        self.nested = None
        self.control.sendall(json.dumps(asdict(self.limits)).encode())

    def wait(self):
        """Until it is warm. LabError, with the reason, when it does not get there."""
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
                raise LabError(f"the sandbox does not start: {sandbox.mend(reason)}")
            self.nested = json.loads(answer)["nested"]
            if self.kind == "nested" and not self.nested:
                self._go_without()

    def _go_without(self):
        """Start again as "alone": the wall that is made for nesting shows the host's processes."""
        self.end()
        self.kind = "alone"
        self.begin()
        self.wait()

    def _last_error(self):
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    @contextlib.contextmanager
    def submission(self):
        """A socket to a new submission's supervisor. Afterwards all its processes are gone."""
        self.wait()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self.control, [b"s"], [theirs.fileno()])
            try:
                yield ours
            finally:
                ours.close()
                self._see_it_end()

    def _see_it_end(self):
        """Wait until the submission's processes are gone; kill them when that takes too long."""
        if not self.nested and self.kind != "bare":
            self.end()  # it was this process that became the supervisor
            return
        self.control.settimeout(10)
        try:
            with contextlib.suppress(TimeoutError):
                if self.control.recv(1) == b".":
                    return
            self.control.send(b"k")
            if self.control.recv(1) == b".":
                return
        except OSError:
            pass
        finally:
            self.control.settimeout(None)
        self.end()

    def end(self):
        """End the process, and with it all that it has started."""
        if self.process:
            self.control.close()
            self.errors.close()
            self.process.kill()
            self.process.wait()
            if self.scratch:
                shutil.rmtree(self.scratch, ignore_errors=True)
        self.process = self.scratch = None
