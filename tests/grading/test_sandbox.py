"""The walls around a submission, seen from inside: what cells reach, and what they cannot."""

import fcntl
import json
import os
import py_compile
import socket
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from submissions import little

from labkit.grading import cgroup, sandbox, wire
from labkit.grading.inside import seccomp
from labkit.grading.limits import MIB, Limits
from labkit.grading.warm import WarmProcess

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="no bubblewrap here")

ROOT = Path(__file__).parents[2]
SMALL = Limits(8, 8, 40, memory_bytes=600 * MIB, processes=24, file_bytes=8 * MIB)
SMALL = replace(SMALL, disk_bytes=16 * MIB)


@pytest.fixture(scope="module", autouse=True)
def without_what_labs_use():
    """These tests ask for nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "command", little)
        yield


@pytest.fixture(scope="module")
def nested():
    process = WarmProcess(SMALL, "nested")
    process.wait()
    if not process.nested:
        process.end()
        pytest.skip("no nested user namespaces here")
    yield process
    process.end()


@pytest.fixture(scope="module", params=["nested", "alone"])
def warm(request):
    """A warm process with both walls, and one with the outer wall alone."""
    if request.param == "nested":
        yield request.getfixturevalue("nested")
        return
    process = WarmProcess(SMALL, "alone")  # it starts anew for each submission
    yield process
    process.end()


def _task(*cells):
    return json.dumps({"cells": cells, "needed": [], "seconds": 100}).encode()


def _run(warm, *cells):
    """{index: [how, message]} of the cells that went wrong, run as a submission's."""
    with warm.submission() as link:
        wire.send(link, b"C", _task(*cells))
        kind, body = wire.receive(link, 1 << 24, time.monotonic() + 120)
        assert kind == b"D", body
        return {index: [how, why] for index, how, why in json.loads(body)}


def _told(warm, expression, before=""):
    """The value of an expression inside the sandbox, as the text of an error brings it out."""
    value = f"raise Exception('VALUE ' + json.dumps({expression}))"
    ((how, why),) = _run(warm, f"import os, socket, json\n{before}\n{value}").values()
    assert how == "raised" and "VALUE " in why, why
    return json.loads(why.partition("VALUE ")[2])


def test_what_is_inside(warm, monkeypatch):
    """One pass, because a process with the outer wall alone serves a single submission."""
    monkeypatch.setenv("A_SECRET_OF_MINE", "1")
    code = f"""
home = os.path.exists({str(Path.home() / ".bashrc")!r})
variables = ["A_SECRET_OF_MINE" in os.environ, "PATH" in os.environ]
pids = len([n for n in os.listdir("/proc") if n.isdigit()])
addresses = [name for _, name in socket.if_nameindex()]
home |= os.path.exists("/run/proc")
"""
    value = "[variables, home, pids, os.path.basename(os.getcwd()), os.getuid() == 0, addresses]"
    assert _told(warm, value, code) == [[False, True], False, 2, "work", False, ["lo"]]


def test_where_nesting_fails_the_wall_that_shows_the_host_is_not_used(monkeypatch):
    """Here the warm process is made to say that it cannot nest, behind the wall for nesting."""
    real = sandbox.command
    monkeypatch.setattr(sandbox, "command", lambda fd, kind: [*real(fd, kind)[:-1], "alone"])
    process = WarmProcess(SMALL, "nested")
    try:
        assert _told(process, "os.path.exists('/run/proc')") is False
        assert process.kind == "alone"
    finally:
        process.end()


PATHS = [ROOT / name for name in ("solutions", "labs", "tests", ".git", "labkit/checks/lab02.toml")]
PATHS += [Path.home() / name for name in (".bashrc", ".ssh")]
PATHS += map(Path, ("/etc/passwd", "/etc/shadow", "/var", "/home", "/sys", "/run/proc"))
NEEDED = [ROOT, Path(sys.prefix), Path(sys.base_prefix)]  # the way to these is there, if they are


def test_what_is_secret_is_not_there(nested):
    shut = [p for p in PATHS if not any(place.is_relative_to(p) for place in NEEDED)]
    paths = [str(p) for p in shut if p.exists() or p == Path("/run/proc")]
    assert _told(nested, f"[p for p in {paths} if os.path.exists(p)]") == []


def test_of_labkit_all_but_what_is_closed_is_inside(nested):
    """Its bytecode, too: every file outside is there or below a closed folder, and none is more."""
    package = ROOT / "labkit"
    closed = {package / name for name in sandbox.HIDDEN}
    bytecode = Path(py_compile.compile(package / "checks" / "engine.py"))
    files = {path for path in package.rglob("*") if path.is_file()}
    open_ = {path for path in files if not closed & set(path.parents)}
    assert bytecode in files - open_
    code = f"""
files = [os.path.join(w, f) for w, _, files in os.walk({str(package)!r}) for f in files]
import hashlib
told = [len(files), hashlib.sha256("\\n".join(sorted(files)).encode()).hexdigest()]
"""
    text = "\n".join(sorted(map(str, open_)))
    assert _told(nested, "told", code) == [len(open_), sha256(text.encode()).hexdigest()]


def test_what_is_secret_is_hidden_in_every_copy_of_the_course(tmp_path, monkeypatch):
    """In the base Python, in environments below it, and where the whole course lies in one."""
    places = ["lib/python3.11/site-packages", "envs/lora/lib/python3.11/site-packages", "src/lora"]
    names = ("checks", "_solutions", "_lent")
    secret = {f"{place}/labkit/{name}" for place in places for name in names} | {"src/lora/labs"}
    others = [f"{places[0]}/{name}" for name in ("labkit/labs", "other/checks", "labs")]
    for name in [*secret, *others, "labs"]:
        (tmp_path / name).mkdir(parents=True)
    before = set(sandbox._hidden())
    sandbox._hidden.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "prefixes", lambda: [str(tmp_path)])
        found = set(sandbox._hidden()) - before
    sandbox._hidden.cache_clear()
    assert found == {str(tmp_path / name) for name in secret}


def test_writing_is_possible_in_scratch_space_only(nested):
    tries = ["/", "/usr", "/etc", "/dev", "/cache", "/run", "/proc", "/work", sys.prefix, str(ROOT)]
    tries += [str(ROOT / "labkit"), sandbox.scratch(), "/dev/shm", "."]
    code = f"""
wrote = []
for folder in {tries}:
    try: open(os.path.join(folder, "x"), "w").close(); wrote.append(folder)
    except OSError: pass
"""
    assert _told(nested, "wrote", code) == [sandbox.scratch(), "/dev/shm", "."]


def test_nothing_of_one_submission_reaches_the_next(nested):
    leave = """
import json, os, subprocess
open("../note", "w").write("x"); open("/dev/shm/note", "w").write("x")
subprocess.Popen(["sleep", "60"], start_new_session=True)
json.left_behind = True
for fd in range(3):
    os.set_blocking(fd, False)
    for call, *args in (os.write, b"an answer"), (os.lseek, 1 << 40, 0), (os.ftruncate, 100):
        try: call(fd, *args)
        except OSError: pass
"""
    look = """
notes = [os.path.exists(f"{folder}/note") for folder in ("..", "/dev/shm")]
notes += [hasattr(json, "left_behind"), len([n for n in os.listdir("/proc") if n.isdigit()]) > 2]
notes += [not os.get_blocking(fd) for fd in range(3)]
for fd in range(3):
    try: notes.append(b"answer" in open(f"/proc/self/fd/{fd}", "rb").read(100))
    except OSError: pass
"""
    assert _run(nested, leave) == {}
    assert not any(_told(nested, "notes", look))


def test_a_submission_has_a_network_of_its_own_that_is_down(nested):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"""
routes = "127.0.0.1" in open("/proc/net/fib_trie").read()
names = [n for line in open("/proc/net/unix").readlines()[1:] for n in line.split()[7:]]
failed = 0
for host in ("127.0.0.1", "10.0.0.1", "1.1.1.1"):
    try: socket.create_connection((host, {server.getsockname()[1]}), timeout=2)
    except OSError: failed += 1
"""
        assert _told(nested, "[routes, names, failed]", code) == [False, [], 3]


REFUSED = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def failed(name, *args):
    return getattr(libc, name)(*args) == -1 and errno.errorcode[ctypes.get_errno()]
context, fd = ctypes.c_ulong(), os.open("/usr", os.O_RDONLY)
counted = [failed("semget", 0, 1, 0o600), failed("msgget", 0, 0o600), failed("shmget", 0, 1, 0o600)]
counted += [failed("syscall", NUMBERS["mq_open"], b"x", os.O_CREAT | os.O_RDWR, 0o600, None)]
counted += [failed("syscall", NUMBERS["io_setup"], 1, ctypes.byref(context))]
counted += [failed("inotify_init1", 0)]
families = [failed("socket", family, 1, 0) for family in (2, 10, 38, 40)]
families += [failed("socket", 16, 3, protocol) for protocol in (0, 4)]
inode = [failed("fcntl", fd, command, 0) for command in (1024, 1026, 1036)]
root = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.ptrace(16, 1, 0, 0), libc.setuid(0)]
root += [libc.mount(b"t", b"/tmp", b"tmpfs", 0, None), libc.chroot(b"/tmp")]
root += [libc.sched_setaffinity(0, 8, b"\\xff" * 8)]
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
fields = [int(status[k].strip(), 16) for k in ("CapPrm", "CapEff", "CapInh")]
fields += [int(status[k]) for k in ("NoNewPrivs", "Seccomp")]
"""


def test_privileges_are_gone_and_what_the_kernel_counts_for_nobody_is_refused(warm):
    """Queues, semaphores and watches of the kernel, sockets that lead elsewhere, leases, hints."""
    numbers = seccomp.MACHINES[os.uname().machine][1]
    value = "[counted, families, inode, root, fields]"
    found = _told(warm, value, f"NUMBERS = {numbers}{REFUSED}")
    families = ["ENETUNREACH"] * 2 + ["EAFNOSUPPORT"] * 2 + [False, "EAFNOSUPPORT"]
    assert found == [["EPERM"] * 6, families, ["EINVAL"] * 3, [-1] * 7, [0, 0, 0, 1, 2]]


def test_a_lock_on_a_file_of_the_machine_is_none(nested):
    path = ROOT / "labkit" / "__init__.py"
    locks = f"""
import fcntl, os
fd = os.open({str(path)!r}, os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_SH)
"""
    with nested.submission() as link, open(path, "rb+") as file:
        wire.send(link, b"C", _task(locks))
        assert json.loads(wire.receive(link, 1 << 24, time.monotonic() + 120)[1]) == []
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


HONEST = {
    "a manager": """
import multiprocessing
with multiprocessing.get_context("fork").Manager() as manager:
    shared = manager.dict(a=1)
    assert shared["a"] == 1
""",
    "a pair of sockets": """
import socket
a, b = socket.socketpair()
a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
a.sendall(b"x"); assert b.recv(1) == b"x"
assert socket.gethostname()
""",
    "locks on files": """
import filelock, sqlite3
with filelock.FileLock("a.lock", timeout=1): pass
with sqlite3.connect("a.db") as base:
    base.execute("create table t (x)"); base.execute("insert into t values (1)")
assert sqlite3.connect("a.db").execute("select x from t").fetchall() == [(1,)]
""",
    "streams": "import os; assert [os.write(2, b'x'), os.read(0, 1)] == [1, b'']",
}


def test_honest_code_goes_on_working(warm):
    told = _run(warm, *HONEST.values())
    assert {list(HONEST)[index]: why for index, why in told.items()} == {}


def test_a_submission_has_no_descriptor_that_another_one_had(warm):
    code = """
import fcntl
found = {}
for name in os.listdir("/proc/self/fd"):
    try: kind = os.readlink(f"/proc/self/fd/{name}").partition(":")[0]
    except OSError: continue  # the one that lists them
    found[int(name)] = [kind, fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE]
"""
    found = _told(warm, "found", code)
    assert {found.pop(fd)[0] for fd in "012"} == {"/dev/null"}
    assert list(found.values()) == [["socket", os.O_RDWR]]


def test_the_supervisor_cannot_be_touched(nested):
    code = """
import signal
done = []
for sign in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):
    os.kill(1, sign)
for name in ("mem", "environ", "maps", "fd", "root"):
    path = f"/proc/1/{name}"
    try: os.listdir(path) if name in ("fd", "root") else open(path).read(1)
    except OSError: continue
    done.append(name)
"""
    assert _told(nested, "done", code) == []


SLEEPERS = """
import threading, time
for _ in range(200): threading.Thread(target=time.sleep, args=[60], daemon=True).start()
"""
BREEDERS = """
import os, time
for _ in range(8):  # below the limit on processes, above that on memory
    if not os.fork():
        x = bytearray(b"x") * (200 << 20)
        time.sleep(60)
time.sleep(30)
"""
SOCKETS = """
import os, socket, time
kept = []
for _ in range(3):
    if os.fork(): continue
    while len(kept) < 100: kept.append(socket.socketpair())
    time.sleep(30)
while len(kept) < 110: kept.append(socket.socketpair())
time.sleep(30)
"""
HOGS = {
    "forks": ("import os, time\nwhile True:\n    if not os.fork(): time.sleep(60)", ""),
    "threads": (SLEEPERS, "thread"),
    "memory": ("x = bytearray(2 << 30)", "MemoryError"),
    "memory by processes": (BREEDERS, "MiB of memory"),
    "sockets": (SOCKETS, "512 sockets"),
    "a file": ("open('big', 'wb').write(bytes(64 << 20))", "File too large"),
    "files": ("for i in range(20): open(str(i), 'wb').write(bytes(4 << 20))", "No space"),
    "output": ("print('x' * (1 << 28))", None),
}


@pytest.mark.parametrize("what", HOGS)
def test_a_hog_costs_its_cell_and_nothing_else(what, nested):
    source, word = HOGS[what]
    began = time.monotonic()
    after = "1" if what == "files" else "open('after', 'w').write('x' * 1000)"
    told = _run(nested, "kept = 7", source, "assert kept == 7", after)
    assert set(told) == ({1} if word is not None else set()), told
    assert word is None or word in told[1][1], told
    assert time.monotonic() - began < 60
    assert nested.process.poll() is None


def test_a_tree_is_gone_when_the_judge_hangs_up(nested):
    """Also in the middle of a cell that ignores all signals."""
    deaf = "import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(60)"
    with nested.submission() as link:
        wire.send(link, b"C", _task(deaf))
        time.sleep(1)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert _run(nested, "x = 1") == {}


def test_the_warm_process_ends_with_its_judge():
    process = WarmProcess(SMALL, "nested")
    process.wait()
    process.control.close()
    process.process.wait(10)
    process.end()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_each_warm_process_of_root_is_a_user_of_its_own(nested):
    """What the kernel counts by user, processes above all, is not shared with others."""
    other = WarmProcess(SMALL, "alone")
    try:
        other.wait()
        found = [psutil.Process(w.process.pid).children(True)[-1] for w in (nested, other)]
        users = [set(process.uids()) for process in found]
        assert all(len(user) == 1 and user & {0, 65534} == set() for user in users)
        assert users[0] != users[1]
    finally:
        other.end()


def test_where_a_memory_cgroup_can_be_made_a_warm_process_is_in_it(tmp_path, monkeypatch):
    """A folder stands for the kernel's; of two places the first cannot be written."""
    monkeypatch.setattr(cgroup, "_parents", lambda: [tmp_path / "missing", tmp_path])
    process = WarmProcess(SMALL)
    try:
        assert _run(process, "x = 1") == {}
        (group,) = tmp_path.iterdir()
        assert int((group / "memory.max").read_text()) > SMALL.memory_bytes
        assert (group / "cgroup.procs").read_text() == "0\n"
    finally:
        process.end()
    assert (group / "cgroup.kill").read_text() == "1"
