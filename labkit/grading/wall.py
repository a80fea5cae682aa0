"""The inner wall: each submission's own namespaces, limits and system-call filter (Linux).

`enclose` makes a process tree of its own, with a fresh /proc and private scratch space, whose
process 1 is the supervisor. `close_in` then takes every privilege from the process that runs a
submission's cells. Both are plain system calls, as Python 3.11 has no names for them.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time

from labkit.grading import seccomp

LINUX = sys.platform == "linux"
NEW_NS, NEW_IPC, NEW_USER, NEW_PID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS = 1, 4, 38
PAGE = os.sysconf("SC_PAGE_SIZE")
SCRATCH, WORK = "/tmp", "/tmp/work"

_libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
_enclosed = False  # whether this process is process 1 of a tree of its own


def _call(name, *args):
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enclose(limits):
    """Return in process 1 of a new tree; this process waits for its end and exits with it.

    Raises OSError where the kernel does not allow it.
    """
    uid, gid = os.getuid(), os.getgid()
    _call("prctl", SET_DUMPABLE, 1, 0, 0, 0)  # else the maps below belong to root
    _call("unshare", NEW_USER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"1000 {uid} 1"),
        ("gid_map", f"1000 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _call("unshare", NEW_PID | NEW_NS | NEW_IPC)
    pid = os.fork()
    if pid:
        os.closerange(0, 1024)
        os.waitpid(pid, 0)
        os._exit(0)
    _call("prctl", PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("mount", None, b"/", None, REC | PRIVATE, None)
    _mount_proc()
    if os.path.isdir("/run"):
        _mount("tmpfs", "/run", RDONLY | NOSUID | NODEV | NOEXEC, "size=4k")
    if os.path.isdir("/cache"):
        _call("mount", None, b"/cache", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV, None)
    _mount("tmpfs", "/dev/shm", NOSUID | NODEV, f"size={limits.disk_bytes},mode=1777")
    own_process_tree()
    clean(limits)


def own_process_tree():
    """Remember that this process is process 1 of a tree, where killing all others is safe."""
    global _enclosed
    _enclosed = os.getpid() == 1
    if LINUX:
        _call("prctl", SET_DUMPABLE, 0, 0, 0, 0)


def _mount(kind, where, flags, options=None):
    data = options.encode() if options else None
    _call("mount", kind.encode(), where.encode(), kind.encode(), flags, data)


def _mount_proc():
    flags = NOSUID | NODEV | NOEXEC
    try:
        _mount("proc", "/proc", flags)
    except OSError:  # only as open as what is there already
        _mount("proc", "/proc", flags | RDONLY)


_scratch = None


def clean(limits=None):
    """Empty scratch space: a new tmpfs where we may mount, else what is there is removed."""
    global _scratch
    _scratch = limits or _scratch
    try:
        _libc.umount2(SCRATCH.encode(), 2)
        options = f"size={_scratch.disk_bytes},nr_inodes=20000,mode=1777"
        _mount("tmpfs", SCRATCH, NOSUID | NODEV, options)
    except OSError:
        _remove_within(SCRATCH)
    os.makedirs(WORK, mode=0o777, exist_ok=True)


def close_in(limits):
    """Give up every privilege, for good, and set the limits; then a submission's cells may run."""
    os.setsid()
    os.chdir(WORK)
    _limit(limits)
    if LINUX:
        _drop_capabilities()
        _call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seccomp.install()
        _call("prctl", SET_DUMPABLE, 1, 0, 0, 0)


def _limit(limits):
    mapped = resident(os.getpid())[1] if LINUX else 0
    wanted = {
        "AS": mapped + limits.memory_bytes,
        "FSIZE": limits.file_bytes,
        "NOFILE": 256,
        "CORE": 0,
        "NPROC": limits.processes,
        "CPU": int(limits.total_seconds + 20 * limits.exercise_seconds),
    }
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        if name != "AS" or LINUX:  # macOS does not keep it
            resource.setrlimit(which, (value, value))


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _drop_capabilities():
    header, nothing = _CapHeader(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), nothing)


# --- what runs in this tree


def others():
    """The ids of all processes of this tree but this one; [] where there is no such tree."""
    if not _enclosed:
        return []
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def threads(pid):
    """How many threads a process has; 1 where it can't be known."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) if LINUX else 1
    except OSError:
        return 1


def resident(pid):
    """`(private bytes, mapped bytes)` of a process; zeros when it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            mapped, held, shared = map(int, file.read().split()[:3])
    except (OSError, ValueError):
        return 0, 0
    return (held - shared) * PAGE, mapped * PAGE


def excess(limits):
    """What the processes of this tree have too much of, as one line; None while all is well."""
    running = others()
    if len(running) > limits.processes:
        return f"it started more than {limits.processes} processes"
    base = resident(1)[0]
    if sum(max(0, resident(pid)[0] - base) for pid in running) > limits.memory_bytes:
        return f"it took more than {limits.memory_bytes >> 20:,} MiB of memory"
    return None


def kill_others(known, keep=None):
    """Kill every process of this tree but this one and `keep`; without a tree, `known` alone."""
    if not _enclosed:
        if known and known != keep:
            _kill_group(known)
        return
    if keep is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        reap()
        left = [pid for pid in others() if pid != keep and not _is_dead(pid)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _is_dead(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def _kill_group(pid):
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    reap()


def reap():
    """Collect what has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _remove_within(folder):
    import shutil

    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
