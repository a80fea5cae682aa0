"""What is outside of the sandbox: files, processes, sockets, and whether they stayed as they were.

Other programs work on this machine too. So only what an attack can have made is compared: the
grader's own folders whole, and elsewhere whatever carries the attacks' word.
"""

import ctypes
import hashlib
import os
import select
import socket
import sysconfig
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from attack import ROOT

WORD = "lora-attack"
SITE = Path(sysconfig.get_paths()["purelib"])
PLACES = "/ /etc /usr /usr/bin /usr/local/bin /var/tmp /var/spool/cron /opt /srv /run /mnt /boot"
PLACES += " /root /home /dev/shm /dev/mqueue /tmp"
FIXED = ["/etc/passwd", "/etc/shadow", "/etc/hostname", ROOT / "labkit/__init__.py"]
SYSV_KEY = str(0x10AA78)  # of the shared memory that an attack leaves behind
PR_SET_CHILD_SUBREAPER = 36


def snapshot(*folders):
    """{what: fingerprint} of `folders`, whole, and of what an attack may leave elsewhere."""
    seen = {}
    for folder in folders:
        seen |= {str(path): _print(path) for path in [folder, *folder.rglob("*")]}
    fixed = [*FIXED, *ROOT.glob("labkit/checks/**/*.toml"), *ROOT.glob("solutions/*")]
    seen |= {str(path): _print(Path(path)) for path in fixed}
    places = [
        *map(Path, PLACES.split()),
        Path.home(),
        Path.home() / ".ipython/profile_default/startup",
        ROOT,
        ROOT / "labkit",
        ROOT / "tests",
        SITE,
        SITE / "torch",
    ]
    for place in places:
        seen |= {str(p): "left behind" for p in _listed(place) if WORD in p.name}
    seen |= {str(p): "in site-packages" for p in _listed(SITE) if p.suffix in (".pth", ".py")}
    return seen | _of_the_kernel()


def _print(path):
    """Kind, mode, owner and content of a file; None where there is none."""
    try:
        info = path.lstat()
    except OSError:
        return None
    content = ""
    if path.is_file() and not path.is_symlink():
        if os.access(path, os.R_OK):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:  # /etc/shadow, for all but root
            content = (info.st_size, info.st_mtime_ns)
    return (info.st_mode, info.st_uid, content)


def _listed(folder):
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _of_the_kernel():
    """Its host name, and the shared memory and keys that attacks make."""
    seen = {"host name": socket.gethostname()}
    shared, keys = Path("/proc/sysvipc/shm"), Path("/proc/keys")
    if shared.exists():
        seen["shared memory"] = SYSV_KEY in shared.read_text().split()
    if keys.exists():
        seen["keyring"] = WORD in keys.read_text()
    return seen


def adopt_orphans():
    """Make this process the parent of descendants whose own parent ends, so that none hides."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def running(but=(), patience=3.0):
    """Descendants of this process that run after `patience` seconds.

    But for the pids `but` and what comes from them: an open browser starts helpers when it likes.
    """
    end = time.monotonic() + patience
    while True:
        alive = [_told(p) for p in psutil.Process().children(recursive=True) if not _of(p, but)]
        alive = [told for told in alive if told]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.05)


def _of(process, pids):
    """Whether a process or one of its parents is among `pids`."""
    try:
        return not {process.pid, *(parent.pid for parent in process.parents())}.isdisjoint(pids)
    except psutil.Error:
        return False


def _told(process):
    """`pid name command`, or None for what has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.pid} {process.name()} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return None


@contextmanager
def listener(folder):
    """Listen on a Unix socket in `folder`; yields a list that fills with what arrives."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    heard, done = [], threading.Event()
    with server:
        server.listen()
        thread = threading.Thread(target=_hear, args=(server, heard, done))
        thread.start()
        try:
            yield heard
        finally:
            done.set()
            thread.join()
            (folder / "socket").unlink(missing_ok=True)


def _hear(server, heard, done):
    while not done.is_set():
        if select.select([server], [], [], 0.1)[0]:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(1)
                try:
                    heard.append(connection.recv(1000) or b"a connection")
                except OSError:
                    heard.append(b"a connection")
