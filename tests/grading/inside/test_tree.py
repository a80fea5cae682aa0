"""The processes of a submission, as their supervisor counts and kills them."""

import os
import socket
import subprocess
import sys

import pytest

from labkit.grading.inside import tree
from labkit.grading.limits import MIB, Limits

HOLD = r"""
import os, sys, time
held = bytearray(b"x") * (200 << 20)
os.fork() and os.fork()
if sys.argv[1] == "copied":
    held[::4096] = bytes(len(held[::4096]))
os.write(1, f"{os.getpid()}\n".encode())
time.sleep(60)
"""


@pytest.mark.parametrize(("how", "held"), [("shared", 200), ("copied", 600)])
def test_what_forks_share_counts_once_and_what_they_copy_each_time(how, held, monkeypatch):
    """A state of 1.2 GiB and the fork that serves an exercise from it are no 2.4 GiB."""
    with subprocess.Popen([sys.executable, "-c", HOLD, how], stdout=subprocess.PIPE) as first:
        pids = [int(first.stdout.readline()) for _ in range(3)]
        try:
            monkeypatch.setattr(tree, "others", lambda: pids)
            real = tree.memory  # process 1 is this machine's, and no parent of theirs
            monkeypatch.setattr(tree, "memory", lambda pid: real(pid) if pid > 1 else (0, 0))
            least, most = (Limits(memory_bytes=n * MIB) for n in (held - 20, held + 80))
            assert "MiB of memory" in tree.excess(least)
            assert tree.excess(most) is None
        finally:
            for pid in pids:
                tree.kill(pid)


def test_descriptors_that_are_under_way_are_counted(monkeypatch):
    monkeypatch.setattr(tree, "others", lambda: [os.getpid()])
    before = tree.under_way()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [0] * 5)
        assert tree.under_way() == before + 5
        for fd in socket.recv_fds(theirs, 1, 5)[1]:
            os.close(fd)
        assert tree.under_way() == before


def test_outside_of_a_tree_nothing_is_killed():
    assert not tree.enclosed() and tree.others() == []
    sleeper = subprocess.Popen(["sleep", "30"])
    tree.kill_but()
    tree.kill_but(sleeper.pid)
    assert sleeper.poll() is None
    tree.kill(sleeper.pid)
    assert sleeper.wait(5) == -9
    for pid in (1, 0, -1, None, True, "2"):
        tree.kill(pid)
        tree.kill_group(pid)
