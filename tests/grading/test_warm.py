"""The judge's warm process: what the two say of submissions that end, and what if it dies."""

import os
import socket
import sys
import time

import pytest

from labkit.errors import LabError
from labkit.grading import sandbox, warm
from labkit.grading.limits import Limits

# the real loop of the warm process, with nothing to warm up and a supervisor that waits for its end
FAKE = """
import os, socket
from labkit.grading.inside import zygote
def supervisor(fd, *_):
    link = socket.socket(fileno=fd)
    link.sendall(b"ready")
    link.recv(10)
    os._exit(0)
zygote.warm = zygote.unprivileged = lambda: None
zygote._can_nest = lambda limits: True
zygote._become_supervisor = supervisor
zygote.main()
"""


def running(code):
    """What takes the place of `sandbox.command`: a warm process that runs `code`."""
    return lambda fd, kind: [sys.executable, "-c", code, str(fd), kind]


@pytest.fixture
def process(monkeypatch):
    """A warm process with the fake supervisor, as if it lived in a sandbox that nests."""
    monkeypatch.setattr(sandbox, "trial", lambda: "nested")
    monkeypatch.setattr(sandbox, "command", running(FAKE))
    monkeypatch.setattr(sandbox, "environment", lambda folder: os.environ)
    process = warm.WarmProcess(Limits(), "nested")
    yield process
    process.end()


def _serve_one(process):
    with process.submission() as link:
        assert link.recv(10) == b"ready"


def test_an_order_to_kill_that_comes_late_is_for_nobody_else(process):
    """A hundred submissions that end as they are about to be killed, before it and after it."""
    process.wait()
    first = process.process.pid
    for late in range(100):
        with process.submission() as link:
            assert link.recv(10) == b"ready"
            if late % 2:
                link.sendall(b"end")
                assert link.recv(1) == b""  # gone, and then comes the order
                time.sleep(0.002)
        process.control.send(b"k%d" % process.number)
    assert process.process.pid == first and process.process.poll() is None


def test_a_reply_that_comes_late_is_not_taken_for_another_submissions():
    process = warm.WarmProcess(Limits(), "nested")
    process.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process.number = 7
    theirs.send(b"6")
    theirs.send(b"7")
    theirs.send(b"next")
    assert process._is_gone() is True
    assert process.control.recv(10) == b"next"


def test_a_hung_submission_is_killed_and_the_next_has_its_turn(process, monkeypatch):
    deaf = FAKE.replace("link.recv(10)", "import time; time.sleep(600)")
    monkeypatch.setattr(sandbox, "command", running(deaf))
    for _ in range(3):
        _serve_one(process)
    assert process.number == 3


def test_a_warm_process_that_dies_between_submissions_is_replaced(process):
    _serve_one(process)
    process.process.kill()
    with process.submission() as link:
        link.recv(10)  # nothing, perhaps: it was not known yet
    _serve_one(process)
    process.process.kill()
    process.process.wait()
    _serve_one(process)
    with process.submission() as link:
        assert link.recv(10) == b"ready"
        process.process.kill()
    _serve_one(process)


def test_a_warm_process_that_cannot_start_says_why(process, monkeypatch):
    monkeypatch.setattr(sandbox, "command", running("raise SystemExit('no memory')"))
    with pytest.raises(LabError, match="no memory"):
        _serve_one(process)
