"""A memory cgroup around a warm process, if this user may create one (Linux, cgroup v2).

The cgroup counts what polling each process misses: kernel memory, files in memory, and short peaks.
At the limit, the kernel kills a process of the submission.
"""

import contextlib
import os
import secrets
import subprocess
import time
from pathlib import Path

from labkit.grading.limits import Limits

ROOT = Path("/sys/fs/cgroup")
WARM = 2 << 30  # bytes of a warm process, with the files that it reads
ENTER = 'echo 0 > "$0/cgroup.procs"'  # 0 is the writing process
TRIES = 20  # every 0.05 s, until the last process is gone


def make(limits: Limits) -> Path | None:
    """The folder of a new group for one warm process; None if no group can be created."""
    most = WARM + limits.memory_bytes + 3 * limits.disk_bytes
    for parent in _parents():
        group = parent / f"labkit-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            group.mkdir()
            (group / "memory.max").write_text(str(most))
            subprocess.run(["sh", "-ec", ENTER, group], check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            remove(group)
        else:
            return group
    return None


def _parents():
    """The group of this process, and its parent group, where memory is more often counted."""
    if not (ROOT / "cgroup.controllers").exists():  # another layout, or none
        return []
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = ROOT / next(line[4:] for line in lines if line.startswith("0::/"))
    return [own] if own == ROOT else [own, own.parent]


def entering(group: Path | None, command: list[str]) -> list[str]:
    """`command`, started inside a group, or unchanged if `group` is None."""
    return ["sh", "-c", f'{ENTER}; exec "$@"', str(group), *command] if group else command


def remove(group: Path | None) -> None:
    """Kill the processes left in a group, and remove it."""
    if group is None or not group.exists():
        return
    with contextlib.suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    for _ in range(TRIES):
        with contextlib.suppress(OSError):
            return group.rmdir()
        time.sleep(0.05)
