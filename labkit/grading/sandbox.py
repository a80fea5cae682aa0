"""The outer wall: bubblewrap around the warm process from which each submission is forked.

With both walls, a submission sees Python, its packages, /usr and this package without checks and
solutions, all read-only. It sees no home, no environment, and only its own processes. Its network
is down; sockets connect only its own processes. It writes to scratch space in memory, which is
deleted at the end. It has no capabilities, gains none, and a filter refuses system calls that labs
don't need. Memory, processes, sockets, disk and time are limited by each process's limits and by a
supervisor that checks twenty times a second. When a submission ends, the kernel kills its whole
process tree. Points are computed in another process outside the wall.

A submission leaves nothing behind for the next one: its files, sockets, locks, queues, keys and
standard streams are its own, and it cannot change the content, times or hints of the machine's
files and devices.

docs/instructor.md lists what this does not stop.

If the kernel allows no user namespace inside bubblewrap's ("alone"), a submission has no process
tree inside the outer wall. Each submission then has its own warm process, which takes seconds to
start. It can set the times of devices such as /dev/null to now, which the next submission sees, and
only a cgroup counts its files in scratch space.

Without bubblewrap ("bare") only each process's limits and the filter are left: a submission can
read and write what the grader's user can. On x86-64 and ARM64, it cannot open network connections.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import labkit

MISSING = (
    "no sandbox here: install bubblewrap (Linux: the package 'bubblewrap'), or use --unsafe to "
    "run submissions with limits only"
)
UNSAFE = (
    " NO SANDBOX: submissions run as your user, with limits only. They can read your files and "
    "write where you can, but not open network connections. Grade only submissions that you trust. "
)
PACKAGE = Path(labkit.__file__).resolve().parent
HIDDEN = ("checks", "_solutions", "_lent")
MASTERS = ("labs", "solutions")  # next to labkit in the whole course
DEPTH = 8  # depth of the search for other copies
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types")
ETC += ("ssl", "fonts", "alternatives")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "IPYTHONDIR": "/tmp/ipython",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PIP_NO_INDEX": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONWARNINGS": "ignore",
    "LABKIT_CACHE": "/cache",
}


def available() -> str | None:
    """The path of bubblewrap, or None."""
    return shutil.which("bwrap")


def command(fd: int, kind: str) -> list[str]:
    """The command that starts a warm process of a kind with the control socket `fd`."""
    start = [sys.executable, "-m", "labkit.grading.inside.zygote", str(fd), kind]
    return start if kind == "bare" else [*_outer_wall(kind), "--", *start]


@cache
def trial() -> str:
    """How submissions can be isolated here: "nested" or "alone", else bubblewrap's error."""
    start = [sys.executable, "-m", "labkit.grading.inside.zygote", "-", "trial"]
    done = subprocess.run(
        [*_outer_wall("nested"), "--", *start],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    output = (done.stdout if done.returncode == 0 else done.stderr).strip()
    return output.splitlines()[-1] if output else f"it ended with {done.returncode}"


def advice(reason: str) -> str:
    """`reason`, along with the fix if Ubuntu's AppArmor blocks bubblewrap."""
    limit = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    if limit.exists() and limit.read_text().strip() == "1":
        return f"{reason}; Ubuntu forbids it; to allow it: sudo sysctl kernel.{limit.name}=0"
    return reason


def environment(folder: str | None = None) -> dict[str, str]:
    """The environment of the warm process; nothing is inherited. `folder` is its scratch space."""
    where = folder or scratch()
    found = {name: value.replace("/tmp", where) for name, value in ENVIRONMENT.items()}
    found["PYTHONPATH"] = str(PACKAGE.parent)
    return found | ({"LABKIT_CACHE": os.path.join(folder, "cache")} if folder else {})


def scratch() -> str:
    """Where scratch space is mounted: /tmp, unless Python or the course is below it."""
    below = any(Path("/tmp") in Path(path).parents for path in [*prefixes(), str(PACKAGE)])
    return "/scratch" if below else "/tmp"


def _outer_wall(kind):
    """Bubblewrap and its options: only what is named here exists inside the wall."""
    wall = [available(), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    wall += ["--unshare-cgroup-try", "--as-pid-1", "--die-with-parent", "--new-session"]
    if os.getuid():
        wall.append("--unshare-user")
    for path in SYSTEM:
        if os.path.islink(path):
            wall += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            wall += ["--ro-bind", path, path]
    for name in ETC:
        wall += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    wall += ["--proc", "/proc", "--dev", "/dev", "--dir", "/run"]
    for path in dict.fromkeys(("/tmp", scratch(), "/cache", "/dev/shm")):
        wall += ["--perms", "1777", "--tmpfs", path]
    if kind == "nested":  # the kernel mounts a new /proc only if a full one is visible
        wall += ["--ro-bind", "/proc", "/run/proc"]
    bound = [*prefixes(), str(PACKAGE)]
    for folder in sorted({str(p) for path in bound for p in Path(path).parents} - {"/", "/tmp"}):
        wall += ["--perms", "0755", "--dir", folder]  # bubblewrap's own would be private
    for path in bound:
        wall += ["--ro-bind", path, path]
    for path in _hidden():
        wall += ["--tmpfs", path, "--remount-ro", path]
    if scratch() != "/tmp":
        wall += ["--remount-ro", "/tmp"]
    return [*wall, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", scratch()]


@cache
def _hidden():
    """Folders of checks and solutions, in all copies that a submission could see."""
    roots = [*prefixes(), *(path for path in SYSTEM if not os.path.islink(path))]
    copies = {copy for root in roots for copy in _copies(root)}
    found = [copy / name for copy in {PACKAGE, *copies} for name in HIDDEN]
    whole = {copy.parent for copy in copies if not copy.parent.name.endswith("-packages")}
    found += [folder / name for folder in whole for name in MASTERS]
    return sorted({str(path) for path in found if path.is_dir()})


def _copies(root):
    """The labkits below a folder, installed or in a copy of the whole course."""
    for where, folders, _ in os.walk(root):
        if "labkit" in folders:
            yield Path(where, "labkit")
        if where.endswith("-packages") or where.count("/") - root.count("/") >= DEPTH:
            folders.clear()


def prefixes() -> list[str]:
    """The folders with Python and its packages, without nested ones."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    found |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {str(Path(p).resolve()) for p in found}
    outer = list(SYSTEM)
    for path in sorted(filter(os.path.isdir, found)):
        if not any(path == other or path.startswith(f"{other}/") for other in outer):
            outer.append(path)
    return outer[len(SYSTEM) :]
