"""The process that forks others, and how it waits for them."""

import os
import socket
import subprocess
import sys
import time

import pytest

from labkit.grading.inside import zygote


@pytest.mark.parametrize("said, seconds", [(b"k6", 0.1), (b"k7", 60), (None, 60)])
def test_a_warm_process_waits_until_its_child_ends_or_the_judge_says_kill_or_is_gone(said, seconds):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    ours.sendall(said) if said else ours.close()
    begun = time.monotonic()
    zygote._wait(child.pid, theirs, b"7")
    assert time.monotonic() - begun < 30
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
