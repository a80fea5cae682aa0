"""Count, measure and kill the processes of a submission, from its supervisor.

Inside a sandbox the supervisor is process 1 of its own tree, and may kill all others. Without one
it knows only the process groups that it has started.
"""

import contextlib
import os
import select
import signal
import time

from labkit.grading.limits import Limits

TICKS = os.sysconf("SC_CLK_TCK")
GONE = 60  # seconds for killed processes to vanish, on the busiest machine
MANY = 4  # with more processes, shared pages are always counted exactly, which is slow

_enclosed = False


def enclosed() -> bool:
    """Whether this process is process 1 of its own tree."""
    return _enclosed


def own() -> None:
    """Record whether this process is process 1 of its own tree."""
    global _enclosed
    _enclosed = os.getpid() == 1


def others() -> list[int]:
    """The ids of all other processes of this tree; [] without a tree."""
    return [int(n) for n in os.listdir("/proc") if n.isdigit() and n != "1"] if _enclosed else []


def alive(pid: int) -> bool:
    """Whether `pid` exists and has not ended."""
    reap()
    return _state(pid) not in "ZX"


def _state(task):
    """The kernel's letter for the state of a process or thread; "X" if it is gone."""
    return (_stat(task) or "X")[0]


def _stat(task):
    """/proc's fields of a process or thread, from its state on; None if it is gone."""
    try:
        with open(f"/proc/{task}/stat") as file:
            return file.read().rpartition(")")[2].split() or None
    except OSError:
        return None


def pulse(*known: int) -> tuple[float, bool]:
    """`(CPU seconds of this tree's processes, whether one is ready to run)`.

    Without a tree, this covers the processes `known`. Waiting for a disk counts as ready.
    """
    times = os.times()
    computed, ready = times.children_user + times.children_system, False
    for pid in others() or set(known):
        fields = _stat(pid)
        if fields:  # its own seconds and those of ended children
            computed += sum(map(int, fields[11:15])) / TICKS
            ready = ready or fields[0] in "RD" or _has_ready_thread(pid)
    return computed, ready


def _has_ready_thread(pid):
    with contextlib.suppress(OSError):
        names = os.listdir(f"/proc/{pid}/task")
        return len(names) > 1 and any(_state(f"{pid}/task/{name}") in "RD" for name in names)
    return False


def threads(pid: int) -> int:
    """How many threads a process has; 1 if unknown."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 1


def memory(pid: int) -> tuple[int, int]:
    """`(bytes in memory except files, mapped bytes)` of a process; zeros if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        kib = [int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSize")]
    except (OSError, ValueError, KeyError):  # an ended process maps nothing
        return 0, 0
    return (kib[0] + kib[1]) * 1024, kib[2] * 1024


def _proportional(pid):
    """Bytes of a process except files, each shared page divided among its users."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith("Pss"))
        parts = [lines[name] for name in ("Pss_Anon", "Pss_Shmem") if name in lines]
        return sum(int(part.split()[0]) for part in parts or [lines["Pss"]]) * 1024
    except (OSError, ValueError, KeyError):
        return 0


def sockets() -> int:
    """How many sockets this tree's network has, including those in flight or closed."""
    try:
        with open("/proc/net/sockstat") as file:
            return int(file.readline().split()[2])
    except (OSError, IndexError, ValueError):
        return 0


def under_way() -> int:
    """How many descriptors are in flight in the sockets of this tree, counted per process."""
    found = 0
    for pid in others():
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fdinfo"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{number}") as file:
                    found += sum(int(line.split()[1]) for line in file if "scm_fds" in line)
    return found


def excess(limits: Limits) -> str | None:
    """One line on a limit that the processes of this tree exceed; None if they exceed none."""
    running = others()
    if len(running) > limits.processes:
        return f"it started more than {limits.processes} processes"
    if _enclosed and sockets() > limits.sockets:
        return f"it opened more than {limits.sockets} sockets"
    base = memory(1)[0]
    taken = sum(max(0, memory(pid)[0] - base) for pid in running)
    if taken > limits.memory_bytes or len(running) > MANY:  # pages shared by forks count once,
        taken = sum(map(_proportional, [1, *running])) - base  # private copies each time
    if taken > limits.memory_bytes:
        return f"it used more than {limits.memory_bytes >> 20:,} MiB of memory"
    return None


def kill(pid: int, sign: int = signal.SIGKILL) -> None:
    """Signal one process."""
    if type(pid) is int and pid > 1:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, sign)


def kill_group(pid: int) -> None:
    """Kill a process and the group that it leads."""
    if type(pid) is int and pid > 1 and pid != os.getpgid(0):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    kill(pid)


def kill_but(keep: int | None = None) -> None:
    """Kill every process of this tree except this one and `keep`, and wait until they are gone."""
    if not _enclosed:
        return
    if keep is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    end = time.monotonic() + GONE
    while time.monotonic() < end:
        reap()
        left = [pid for pid in others() if pid != keep and _state(pid) not in "ZX"]
        if not left:
            return
        for pid in left:
            kill(pid)
        select.select([], [], [], 0.001)


def reap() -> None:
    """Collect children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
