"""The inner wall: each submission's own namespaces, limits and system-call filter (Linux).

`enclose` makes a new process tree, with its own /proc and scratch space, whose process 1 is the
supervisor. `close_in` then takes every privilege from the process that runs the cells. Both make
raw system calls, since Python 3.11 has no functions for them.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
from pathlib import Path

from labkit.grading.inside import seccomp, tree
from labkit.grading.limits import Limits

NEW_NS, NEW_IPC, NEW_USER = 0x00020000, 0x08000000, 0x10000000
NEW_PID, NEW_NET = 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS = 1, 4, 38
DETACH = 2
CAPABILITIES_3 = 0x20080522  # version of capset's structure
OPEN_FILES = 256  # of one process
DEVICES = ("pts", "null", "zero", "full", "random", "urandom", "tty")
SCRATCH = "labkit-grading-"  # prefix of a submission's folder if nothing is mounted

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name, *args):
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enclose(limits: Limits) -> None:
    """Return in process 1 of a new tree, while the caller waits; OSError if the kernel refuses."""
    with contextlib.suppress(OSError):  # if memory runs out, kill submissions first
        Path("/proc/self/oom_score_adj").write_text("500")
    _new_user()
    _call("unshare", NEW_PID | NEW_NS | NEW_IPC | NEW_NET)  # its loopback stays down
    pid = os.fork()
    if pid:
        os.closerange(0, 1024)
        os.waitpid(pid, 0)
        os._exit(0)
    _call("prctl", PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("mount", None, b"/", None, REC | PRIVATE, None)
    flags = NOSUID | NODEV | NOEXEC
    try:
        _mount("proc", "/proc", flags)
    except OSError:  # if the visible one is read-only, ours must be, too
        _mount("proc", "/proc", flags | RDONLY)
    _mount("tmpfs", "/run", flags | RDONLY, "size=4k")
    _read_only("/cache")
    for name in DEVICES:  # still usable, but its times can't pass messages
        _read_only(f"/dev/{name}")
    _mount("tmpfs", "/dev/shm", NOSUID | NODEV, f"size={limits.disk_bytes},mode=1777")
    own_tree()
    clean(limits, nested=True)


def _new_user():
    """Enter a new user namespace, whose user has no rights outside it."""
    uid, gid = os.getuid(), os.getgid()
    _call("prctl", SET_DUMPABLE, 1, 0, 0, 0)  # else the files below belong to root
    _call("unshare", NEW_USER)
    maps = {"setgroups": "deny", "uid_map": f"1000 {uid} 1", "gid_map": f"1000 {gid} 1"}
    for name, text in maps.items():
        Path(f"/proc/self/{name}").write_text(text)


def own_tree() -> None:
    """Shield this process, the supervisor, from those that it starts."""
    tree.own()
    _call("prctl", SET_DUMPABLE, 0, 0, 0, 0)


def _mount(kind, where, flags, options=None):
    data = options.encode() if options else None
    _call("mount", kind.encode(), where.encode(), kind.encode(), flags, data)


def _read_only(where):
    """Make a mount read-only and keep its other restrictions."""
    known = os.statvfs(where).f_flag & (NOSUID | NODEV | NOEXEC)  # same numbers as for mount
    _call("mount", None, where.encode(), None, REMOUNT | BIND | RDONLY | known, None)


def clean(limits: Limits, nested: bool) -> None:
    """Empty the submission's scratch space; after `enclose` (`nested`) it is a mount of our own."""
    scratch = os.environ["TMPDIR"]
    if nested:
        _libc.umount2(scratch.encode(), DETACH)  # no effect the first time: bubblewrap's
        options = f"size={limits.disk_bytes},nr_inodes=20000,mode=1777"
        _mount("tmpfs", scratch, NOSUID | NODEV, options)
    elif tree.enclosed() or Path(scratch).name.startswith(SCRATCH):
        for entry in os.scandir(scratch):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
    os.makedirs(_work(), exist_ok=True)


def _work():
    return os.path.join(os.environ["TMPDIR"], "work")


def close_in(limits: Limits) -> None:
    """Give up every privilege for good, and set the limits, before a submission's cells run."""
    os.setsid()
    for fd, flags in (0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY):
        nothing = os.open(os.devnull, flags)  # all submissions share the warm process's streams
        os.dup2(nothing, fd)
        os.close(nothing)
    os.chdir(_work())
    _limit(limits)
    itself = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0)
    _call("capset", itself, (ctypes.c_uint32 * 6)())  # none is left
    _call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    seccomp.install()
    _call("prctl", SET_DUMPABLE, 1, 0, 0, 0)
    with contextlib.suppress(OSError):  # kill this before the supervisor, which can restart
        Path("/proc/self/oom_score_adj").write_text("900")


def _limit(limits):
    wanted = {
        "FSIZE": limits.file_bytes,
        "NOFILE": OPEN_FILES,
        "CORE": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 1024,  # timers, too, which use kernel memory
        "CPU": int(limits.total_seconds + 20 * limits.exercise_seconds),
        "AS": tree.memory(os.getpid())[1] + limits.memory_bytes,
    }
    if tree.enclosed():  # else it would count all processes of this user
        wanted["NPROC"] = limits.processes
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
